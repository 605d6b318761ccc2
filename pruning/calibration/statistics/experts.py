"""What whole experts put out (docs/scores.md section 8). E experts, y a row that one puts out, g its gate.

- ``expert_energy`` (E,): sum of w ||g y||^2.
- ``expert_norm`` (E,): sum of w |g| ||y||.
- ``expert_rows`` (E,): sum of w over the rows that each expert sees.
- ``layer_tokens`` (1,): sum of w over the tokens that enter the layer.
- ``expert_effect`` (E,): sum over samples of w_tau z_e^2, ``z_e = sum_i <d<v, output>/dy_i, y_i>``, v random signs.
"""

from __future__ import annotations

from torch import Tensor

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import ExpertEffect, ExpertOutput, LayerInput, Produced


def expert_energy(seen: Produced) -> Tensor:
    """(E,) float64."""
    return seen.of_expert(seen.weight @ (seen.gate * seen.y.double().norm(dim=1)).square())


def expert_norm(seen: Produced) -> Tensor:
    """(E,) float64."""
    return seen.of_expert(seen.weight @ (seen.gate.abs() * seen.y.double().norm(dim=1)))


def expert_rows(seen: Produced) -> Tensor:
    """(E,) float64."""
    return seen.of_expert(seen.weight.sum())


for _name, _measure in {
    "expert_energy": expert_energy,
    "expert_norm": expert_norm,
    "expert_rows": expert_rows,
}.items():
    register(_name, Observer(ExpertOutput(), _measure, lambda at: (at.experts,)))
register("layer_tokens", Observer(LayerInput(), lambda weights: weights.sum()[None], lambda at: (1,)))
register(
    "expert_effect",
    Observer(ExpertEffect("output"), lambda one: one.weight @ one.z.square(), lambda at: (at.experts,)),
)

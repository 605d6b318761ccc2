"""How far the model's output moves with the output of a consumer (docs/scores.md sections 3 and 4).

With q = d<v, output>/dy at row y of a consumer's output, v random signs, ``E q q^T = J^T J`` where J is the Jacobian
of the model's output by that row. Divide by ``samples`` for means per sample.

- ``output_sensitivity`` (C, C): sum over rows of w_tau q q^T, all rows, whatever ``rows`` says.
"""

from __future__ import annotations

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import OutputGradient, Rows
from pruning.calibration.triangle import Symmetric


def output_sensitivity(rows: Rows) -> Symmetric:
    """(C, C)."""
    return Symmetric.product(rows.x, rows.weight)


register(
    "output_sensitivity",
    Observer(
        OutputGradient("output"),
        output_sensitivity,
        lambda at: (at.outputs, at.outputs),
        symmetric=True,
    ),
)

"""Gradient statistics: first-order effects of the units, in input-gradient form (SCORES.md section 3).

With q = dL/dx at the consumer's input x, a unit's effect in one sample is ``z_g = sum_i sum_{c in g} q_ic x_ic``
(row i times omega_i in a variant). Divide by ``samples`` for means.

- ``taylor`` (G,): sum over samples of w_tau |z_g|, L the sample's mean squared error to the target.
- ``probe`` (G, G): sum of w_tau z z^T with x - mu in place of x and L = <v, output>, v random signs; mu is the mean of
  each channel over all rows and timesteps, from the first pass. Not for groups of more than 1024 units.
- ``probe_diag`` (G,): the diagonal of ``probe``, always.
"""

from __future__ import annotations

from torch import Tensor

from pruning.calibration.base import GradientStatistic, register

MAX_PROBE_UNITS = 1024


def taylor(z: Tensor, weight: Tensor) -> Tensor:
    """(G,)."""
    return weight @ z.abs()


def probe(z: Tensor, weight: Tensor) -> Tensor:
    """(G, G)."""
    return (z * weight[:, None]).T @ z


def probe_diag(z: Tensor, weight: Tensor) -> Tensor:
    """(G,)."""
    return weight @ z.square()


register("taylor", GradientStatistic("data", taylor))
register("probe", GradientStatistic("output", probe, max_units=MAX_PROBE_UNITS, beside=("probe_diag",)))
register("probe_diag", GradientStatistic("output", probe_diag))

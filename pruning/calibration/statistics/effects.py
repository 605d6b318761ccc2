"""First-order effects of the units, in input-gradient form (docs/scores.md section 3).

With q = dL/dx at the consumer's input x, a unit's effect in one sample is ``z_g = sum_i sum_{c in g} q_ic x_ic``
(row i times omega_i in a variant). Divide by ``samples`` for means.

- ``taylor`` (G,): sum over samples of w_tau |z_g|, L the sample's mean squared error to the target.
- ``probe_diag`` (G,): sum of w_tau z_g^2 with x - mu in place of x and L = <v, output>, v random signs; mu is the mean
  of each channel over all rows and timesteps, from the first pass.
"""

from __future__ import annotations

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import InputGradient

register(
    "taylor", Observer(InputGradient("data"), lambda one: one.weight @ one.z.abs(), lambda at: (at.units,))
)
register(
    "probe_diag",
    Observer(InputGradient("output"), lambda one: one.weight @ one.z.square(), lambda at: (at.units,)),
)

"""The weight statistic of Diff-Pruning (Fang et al. 2023, arXiv 2305.10924, Taylor expansion over pruned timesteps).

- ``diff_pruning`` (G,): ``sum over w in g of |w sum_{n,t} dL_t/dw|``, w over the matrices and kernels that the unit
  owns; L_t is a sample's mean squared error at timestep t, times w_tau. The signed gradient is summed over t from the
  least noise upwards while ``L_t >= 0.05 max_{t' <= t} L_t'``. Divide by ``samples`` for means.

Biases and norms are left out, as in the torch-pruning that the paper's code calls. That code tests the mean loss of
one batch; here every sample has its own test, so that the batch size does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import Owned, WeightGradient
from pruning.types import slices_of

THRESHOLD = 0.05  # the paper's for DDPM; its DDIM code takes 0.01


def diff_pruning(owned: Owned) -> Tensor:
    """(G,) float64."""
    group = owned.group
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for where in slices_of(group):
        if owned.weights[where.path].ndim < 2:
            continue
        size = group.num_units * where.unit_size
        w, g = (
            by_path[where.path].narrow(where.dim, where.offset, size)
            for by_path in (owned.weights, owned.gradients)
        )
        product = (w.detach() * g).abs().transpose(0, where.dim).flatten(1).cpu()  # rows or columns first
        total += product.sum(1, dtype=torch.float64).unflatten(0, (group.num_units, -1)).sum(1)
    return total


register("diff_pruning", Observer(WeightGradient(THRESHOLD), diff_pruning, lambda at: (at.group.num_units,)))

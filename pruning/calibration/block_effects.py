"""Block statistics: what a whole block does (SCORES.md section 6). Divide by ``samples`` for means.

- ``block_change`` (1,): sum over samples of w_tau ||eps_full - eps_without_block||^2, one more forward a block.
- ``block_cosine`` (1,): sum over samples of 1 - cos(x_in, x_out), mean over tokens; the cheap prefilter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.base import BlockStatistic, register


def block_change(full: Tensor, without: Tensor) -> Tensor:
    """(B,)."""
    return (full.double() - without.double()).square().flatten(1).sum(1)


def block_cosine(before: Tensor, after: Tensor) -> Tensor:
    """(B,); tokens are the positions of a feature map (B, C, H, W) or the rows of (B, N, C)."""
    channel = 1 if before.ndim == 4 else -1
    cosine = torch.cosine_similarity(before.double(), after.double(), dim=channel)
    return (1 - cosine).flatten(1).mean(1)


register("block_change", BlockStatistic(block_change, ablates=True))
register("block_cosine", BlockStatistic(block_cosine, weighted=False))

"""What a whole block does (docs/scores.md section 6). Divide by ``samples`` for means.

- ``block_change`` (1,): sum over samples of w_tau ||eps_full - eps_without_block||^2, one more forward per block.
- ``block_cosine`` (1,): sum over samples of 1 - cos(x_in, x_out), mean over tokens; the cheap prefilter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import Ablation, Block, Change


def block_change(change: Change) -> Tensor:
    """(B,)."""
    return change.weight * (change.before.double() - change.after.double()).square().flatten(1).sum(1)


def block_cosine(change: Change) -> Tensor:
    """(B,); tokens are the positions of a feature map (B, C, H, W) or the rows of (B, N, C)."""
    channel = 1 if change.before.ndim == 4 else -1
    cosine = torch.cosine_similarity(change.before.double(), change.after.double(), dim=channel)
    return (1 - cosine).flatten(1).mean(1)


register("block_change", Observer(Ablation(), block_change, lambda at: (1,)))
register("block_cosine", Observer(Block(), block_cosine, lambda at: (1,)))

"""What updates the weights: AdamW, or the same with moments of eight bits."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from pruning.errors import PruningError
from pruning.settings import ADAMW_8BIT, Recover


def check_optimizer(settings: Recover) -> None:
    """Raise PruningError if the package of the optimizer is not installed."""
    if settings.optimizer == ADAMW_8BIT and find_spec("bitsandbytes") is None:
        raise PruningError(
            f"recover.optimizer: {ADAMW_8BIT!r} needs the package 'bitsandbytes', which is not installed; "
            "pip install 'sinkprune[8bit]', or set recover.optimizer=adamw"
        )


def optimizer_of(
    parameters: Iterable[nn.Parameter], settings: Recover, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of what is trained; only weights of two or more dimensions decay.

    With ``adamw8bit`` moments of weights of 4,096 entries or more take a byte each (Dettmers et al., arXiv 2110.02861).
    """
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == ADAMW_8BIT:
        check_optimizer(settings)
        return import_module("bitsandbytes.optim").AdamW8bit(groups, lr=settings.learning_rate)
    fused = device.type in ("cpu", "cuda") or None
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)

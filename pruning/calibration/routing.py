"""Rows that do not follow the order of the batch, and experts that gradients must get through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

TOKENS_FIRST = {"ErnieImageTransformer2DModel": "its hidden states are (tokens, batch, channels)"}
"""Denoisers in which the leading entries of an input are no samples, and why."""

ROUTED = re.compile(r"(^|\.)experts\.\d+(\.|$)")
"""Paths of single experts, which get the tokens of all samples that a router sends them."""

DIFFERENTIABLE_IN_TRAINING = ("MOEFeedForwardSwiGLU",)
"""Mixtures of experts that run without gradients in evaluation mode, and do the same with them in training mode."""


def in_batch_order(model: nn.Module, path: str) -> bool:
    """Tell whether the leading entries of what enters or leaves a module follow the samples of the batch."""
    return type(model).__name__ not in TOKENS_FIRST and ROUTED.search(path) is None


@contextmanager
def experts_with_gradients(model: nn.Module) -> Iterator[None]:
    """Let gradients go through experts; what the model computes stays the same but for rounding."""
    found = [m for m in model.modules() if type(m).__name__ in DIFFERENTIABLE_IN_TRAINING and not m.training]
    try:
        for module in found:
            module.training = True  # of the module alone: its parts stay in evaluation mode
        yield
    finally:
        for module in found:
            module.training = False

"""Which tokens lie where in the image."""

from __future__ import annotations

import math

from pruning.models import sample_shape
from pruning.stages.run import Run


def image_grid(run: Run, tokens: int) -> list[int] | None:
    """Return rows and columns of that many image tokens, or None if no grid of the input's shape has as many."""
    _, height, width = sample_shape(run.meta)
    scale = math.sqrt(height * width / tokens)
    rows, columns = round(height / scale), round(width / scale)
    return [rows, columns] if rows * columns == tokens else None


def key_grid(run: Run, module: str, keys: int) -> list[int] | None:
    """Return the grid of an attention site's keys; cross-attention looks at text, which has none."""
    if getattr(run.meta.get_submodule(module), "is_cross_attention", False):
        return None
    return image_grid(run, keys)

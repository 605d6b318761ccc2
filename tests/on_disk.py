"""What the tests of surgery on disk share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning import checkpoint
from pruning.hook import hooked
from pruning.models import load_denoiser
from pruning.surgery import apply_plan, cut_on_disk
from pruning.types import PruningPlan


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def both_ways(
    tmp_path: Path,
    plan: PruningPlan,
    *,
    stored: torch.dtype = torch.float32,
    change: Callable[[nn.Module], object] = lambda model: None,
    changed: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> None:
    """Cut the model in ``dense`` in memory and on disk, and compare the folders ``memory`` and ``disk``.

    Args:
        tmp_path: Where they are.
        plan: What stays.
        stored: Type of the weight files.
        change: Changes the model in memory before it is cut.
        changed: The same for the cut on disk.
        options: Of saving.
    """
    with hooked():
        model = load_denoiser(tmp_path / "dense", dtype=stored)
    with torch.no_grad():
        change(model)
    apply_plan(model, plan)
    checkpoint.save(model, tmp_path / "memory", **options)
    written = cut_on_disk(tmp_path / "dense", plan, tmp_path / "disk", changed=changed, **options)
    assert written.params == sum(p.numel() for p in model.parameters())
    assert contents(tmp_path / "disk") == contents(tmp_path / "memory")

"""From folder to folder, every kind of cut writes what cutting in memory and saving writes, byte for byte."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning import checkpoint
from pruning.groups import find_groups
from pruning.hook import hooked
from pruning.models import load_denoiser
from pruning.surgery import apply_plan, cut_on_disk
from pruning.types import PruningPlan, config_hash
from tests.family.zoo_setup import FIRST, half, model_of, smaller, widths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def both_ways(tmp_path: Path, plan: PruningPlan, **options: Any) -> Path:
    """Cut the model in ``dense`` in memory and on disk, compare what is written, and return the folder."""
    with hooked():
        model = load_denoiser(tmp_path / "dense")
    apply_plan(model, plan)
    checkpoint.save(model, tmp_path / "memory", **options)
    written = cut_on_disk(tmp_path / "dense", plan, tmp_path / "disk", **options)
    assert written.params == sum(p.numel() for p in model.parameters())
    assert contents(tmp_path / "disk") == contents(tmp_path / "memory")
    return tmp_path / "disk"


def a_plan(model: nn.Module, seed: int) -> PruningPlan:
    blocks = [group.module for group in find_groups(model) if group.kind == "blocks"]
    return PruningPlan(
        kept=half(widths(model), seed),
        removed_blocks=tuple(sorted(blocks[::3])),
        base_hash=config_hash(model.config),
        meta={"seed": seed},
        **smaller(model),
    )


@pytest.mark.parametrize("name", FIRST)
def test_zoo(name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(model_of(name))
    model.save_pretrained(tmp_path / "dense")
    both_ways(tmp_path, a_plan(model, 1), max_shard_size="20KB")

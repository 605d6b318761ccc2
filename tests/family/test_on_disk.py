"""From folder to folder, every kind of cut writes what cutting in memory and saving writes, byte for byte."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.groups import find_groups
from pruning.types import PruningPlan, config_hash
from tests.family.zoo_setup import half, model_of, smaller, widths
from tests.on_disk import both_ways

KINDS_OF_CUTS = {
    "dit": "low-rank layers, embedders that become one, blocks that the config counts",
    "flux": "fused projections of two groups",
    "hidream": "experts that are items of lists",
    "ltx": "arguments that keep the entries of all heads",
    "nucleusmoe": "experts stacked in one weight",
    "unet2d": "channels in groups of norms",
}
"""Entries of the table of tiny models, and what each adds."""


@pytest.mark.parametrize("name", KINDS_OF_CUTS)
def test_the_same_as_in_memory(name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(model_of(name))
    model.save_pretrained(tmp_path / "dense")
    both_ways(tmp_path, _plan(model), max_shard_size="20KB")
    assert len([*(tmp_path / "disk").glob("*.safetensors")]) > 3


def test_types_that_a_class_keeps(tmp_path: Path) -> None:
    """Wan keeps some modules in float32, also where its files hold them in bfloat16."""
    model = nn.Module.to(copy.deepcopy(model_of("wan")), torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    both_ways(tmp_path, _plan(model), stored=torch.bfloat16)


def _plan(model: nn.Module) -> PruningPlan:
    """Cut every group, take every third block out, and give all weights that can take one a smaller form."""
    blocks = [group.module for group in find_groups(model) if group.kind == "blocks"]
    return PruningPlan(
        kept=half(widths(model)),
        removed_blocks=tuple(sorted(blocks[::3])),
        base_hash=config_hash(model.config),
        **smaller(model),
    )

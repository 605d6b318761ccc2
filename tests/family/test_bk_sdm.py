"""The cuts of BK-SDM (2305.15798) on Stable Diffusion 1.5, on the meta device."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from pruning.groups import find_groups
from pruning.surgery import apply_plan
from pruning.types import PruningPlan
from tests.shared import SHARED

CONFIG = SHARED / "configs" / "sd15_unet.json"

BASE = [
    *(f"down_blocks.{stage}.resnets.1" for stage in range(4)),
    *(f"down_blocks.{stage}.attentions.1" for stage in range(3)),
    *(f"up_blocks.{stage}.resnets.1" for stage in range(4)),
    *(f"up_blocks.{stage}.attentions.1" for stage in range(1, 4)),
]
"""The second pair of each down stage; of each up stage the middle one, whose skipped channels go with it."""


@pytest.mark.skipif(not CONFIG.is_file(), reason=f"{CONFIG} is not on this machine")
@pytest.mark.parametrize(
    ("removed", "parameters"),
    [
        (BASE, 579_384_964),
        ([*BASE, "mid_block"], 482_346_884),
        ([*BASE, "mid_block", "down_blocks.3"], 323_384_964),
    ],
    ids=["base", "small", "tiny"],
)
def test_published_sizes_come_out_exactly(removed: list[str], parameters: int) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(json.loads(CONFIG.read_text(encoding="utf-8")))
    groups = find_groups(model, "blocks")
    apply_plan(model, PruningPlan(removed_blocks=tuple(sorted(removed))), groups)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters

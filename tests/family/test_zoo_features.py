"""Block features on every denoiser class: blocks of a slim model put out what their dense twins do, in their shapes."""

from __future__ import annotations

import copy

import pytest
import torch

from pruning.recovery import pairs
from pruning.recovery.features import Features
from pruning.surgery import apply_plan
from pruning.types import PruningPlan
from tests.family.zoo_setup import FIRST, half, widths
from tests.zoo import BATCH, ZOO, build, run


@pytest.mark.parametrize("name", FIRST)
def test_blocks_of_a_slim_model_put_out_what_their_twins_do(name: str) -> None:
    dense = build(ZOO[name])
    plan = PruningPlan(kept=half(widths(dense)))
    slim = apply_plan(copy.deepcopy(dense), plan)
    features = Features(pairs(dense, plan))
    with features.watched(slim, dense), features.taken():
        run(ZOO[name], slim)
        run(ZOO[name], dense)
    apart = features.distance(BATCH)
    assert bool(torch.isfinite(apart).all())
    assert bool((apart > 0).all())

"""The master tests: if they hold, surgery is right."""

from __future__ import annotations

import copy

import pytest
import torch

from pruning.checkpoint import load, save
from pruning.groups import KINDS, find_groups
from pruning.hook import install_hook
from pruning.surgery import apply_plan, mask_plan, storage
from tests.models import MODELS, run
from tests.plans import random_plan

CASES = [
    (family, kind)
    for family in MODELS
    for kind in (*KINDS, "all")
    if kind == "all" or any(g.kind == kind for g in find_groups(MODELS[family]()))
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_cut_equals_mask_and_reload_equals_saved(family, kind, seed, tmp_path, monkeypatch):
    if seed == 1:  # within the memory that the dense weights have, in several pieces
        monkeypatch.setattr(storage, "WORTHWHILE", 0)
        monkeypatch.setattr(storage, "PIECE", 256)
    model = MODELS[family]()
    kinds = KINDS if kind == "all" else (kind,)
    plan = random_plan(model, kinds, seed)
    masked = run(mask_plan(model, plan))
    dense = run(model)
    cut = apply_plan(copy.deepcopy(model), plan)
    assert torch.equal(run(model), dense)
    pruned = run(cut)
    assert torch.isfinite(pruned).all()
    assert (pruned - masked).abs().max() <= 1e-5 * max(1.0, float(masked.abs().max()))

    install_hook()
    save(cut, tmp_path)
    for reloaded in (load(tmp_path), type(model).from_pretrained(tmp_path)):
        assert torch.equal(run(reloaded), pruned)
        assert {n: p.shape for n, p in reloaded.named_parameters()} == {
            n: p.shape for n, p in cut.named_parameters()
        }


@pytest.mark.parametrize("family", list(MODELS))
def test_an_empty_plan_changes_nothing(family):
    model = MODELS[family]()
    dense = run(model)
    plan = random_plan(model, KINDS, 0)
    empty = type(plan)(base_hash=plan.base_hash)
    cut = apply_plan(model, empty)
    assert torch.equal(run(cut), dense)
    assert "_structured_pruning" not in cut.config

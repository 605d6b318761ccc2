"""The functions of the Python interface: what a slip of the hand is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDPMScheduler

import pruning as sp
from pruning.errors import PruningError
from tests.models import dit
from tests.unit.calibration_setup import noised


@pytest.mark.parametrize("made", [list, iter])
def test_batches_that_are_no_longer_batches_are_refused(made):
    model = dit()
    batches = made(noised(model, 2, 2))
    with pytest.raises(
        PruningError, match=r"cannot run on a (list|generator); give what noised_batches returns"
    ):
        sp.calibrate(model, sp.find_groups(model), batches, for_=["wanda"])


def test_a_single_kind_or_name_needs_no_list():
    model = dit()
    groups = sp.find_groups(model, "attention_heads")
    assert groups == sp.find_groups(model, ["attention_heads"])
    one, listed = (
        sp.calibrate(model, groups, noised(model, 2, 2), for_=given) for given in ("wanda", ["wanda"])
    )
    assert one.meta == listed.meta
    with pytest.raises(PruningError, match="unknown group kind 'heads'"):
        sp.find_groups(model, "heads")
    with pytest.raises(
        PruningError, match=r"kinds is empty; name at least one of attention_heads, .*, or None for all"
    ):
        sp.find_groups(model, [])


def test_noising_needs_a_scheduler():
    message = r"scheduler is None: give the one that the model was trained with, such as .*from_pretrained"
    with pytest.raises(PruningError, match=message):
        sp.noised_batches(dit(), None, "digits")


@pytest.mark.parametrize("name", ["samples", "batch_size", "timestep_buckets", "seed"])
def test_numbers_are_whole(name):
    for value, kind in (("8", "str"), (2.5, "float"), (None, "NoneType")):
        with pytest.raises(PruningError, match=f"{name}: {value!r} is a {kind}; expected a whole number"):
            sp.noised_batches(dit(), DDPMScheduler(), "digits", **{name: value})
    assert len([*sp.noised_batches(dit(), DDPMScheduler(), "digits", **{"samples": 1, name: np.int64(1)})])


def test_blocks_are_chosen_by_measuring_sets_of_them():
    model = dit(num_layers=6)
    groups, batches = sp.find_groups(model, ["blocks"]), noised(model, 2, 2)
    scores = sp.score(
        model, groups, sp.calibrate(model, groups, batches, for_="block_change"), criterion="block_change"
    )
    plan = sp.allocate(model, groups, scores, params=0.7)
    anew, trace = sp.choose_blocks(model, groups, scores, plan, batches, budget=10)
    assert trace["chosen"]["change"] <= trace["start"]["change"]
    assert trace["start"]["removed"] == list(plan.removed_blocks)
    assert len(trace["measured"]) <= 10
    assert len(anew.removed_blocks) == len(plan.removed_blocks)
    assert trace["chosen"]["change"] == min(
        entry["change"] for entry in trace["measured"] if len(entry["removed"]) == len(plan.removed_blocks)
    )
    by_hand = sp.PruningPlan(removed_blocks=plan.removed_blocks)
    with pytest.raises(
        PruningError, match="choose_blocks: the plan does not say its goal, got, scope, target"
    ):
        sp.choose_blocks(model, groups, scores, by_hand, batches)
    with pytest.raises(PruningError, match=r"choose_blocks: depth\.budget: -1 must be at least 0"):
        sp.choose_blocks(model, groups, scores, plan, batches, budget=-1)


def test_modulation_layers_go_as_the_documentation_prints():
    text = (Path(__file__).resolve().parents[2] / "docs" / "writing-a-recipe.md").read_text(encoding="utf-8")
    lines = next(part for part in text.split("```python\n")[1:] if "modulation_forms" in part).partition(
        "```"
    )[0]
    found: dict[str, Any] = {}
    exec(lines.replace("samples=64", "samples=8"), found)
    model, plan, forms = (found[name] for name in ("model", "plan", "forms"))
    assert forms
    assert plan.ranks == {path: form.rank for path, form in forms.items()}
    left = sum(p.numel() for p in model.parameters())
    assert plan.meta["params"]["plan"] == pytest.approx(left, rel=1e-2)
    assert left < 0.6 * plan.meta["params"]["dense"]

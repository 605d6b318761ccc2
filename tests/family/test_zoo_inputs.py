"""Tables with entries for every head: a module that lost heads is given those of the heads that stay."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.surgery import apply_plan, mask_plan, reshape
from pruning.types import PRUNING_KEY, PruningPlan
from tests.family.zoo_setup import assert_same, built, half
from tests.models import unet2d_condition
from tests.zoo import ZOO, build, run

NARROWED = ("ltx", "ltx2", "ltx2_interleaved", "mochi", "prior")


@pytest.mark.parametrize("name", NARROWED)
def test_a_copy_of_a_cut_model_is_cut_again(name):
    model, _ = built(name)
    groups = find_groups(model, "attention_heads")
    assert any(group.narrowed for group in groups)
    cut = apply_plan(copy.deepcopy(model), PruningPlan(kept=half(groups)), groups)
    copied = copy.deepcopy(cut)
    assert torch.equal(run(ZOO[name], copied), run(ZOO[name], cut))
    left = [group for group in find_groups(copied) if group.kind == "attention_heads"]
    plan = PruningPlan(kept=half(left, seed=3))
    masked = run(ZOO[name], mask_plan(copied, plan, left))
    assert_same(run(ZOO[name], apply_plan(copied, plan, left)), masked)


def test_what_a_checkpoint_says_of_inputs_is_checked():
    model, _ = built("ltx")
    groups = find_groups(model, "attention_heads")
    owner = next(group for group in groups if group.narrowed)
    cut = apply_plan(copy.deepcopy(model), PruningPlan(kept=half(groups)), groups)
    entry = cut.config[PRUNING_KEY]
    units = owner.num_units
    for inputs, message in [
        (None, "'inputs' does not say which units stay"),
        ({"kept": [1, 0], "units": units}, "sorted distinct units"),
        ({"kept": [0, units], "units": units}, "sorted distinct units"),
        ({"kept": "01", "units": units}, "sorted distinct units"),
        ({"kept": [0], "units": units}, "1 units stay, but heads is"),
        ({"kept": list(range(units // 2)), "units": 10**12}, "must hold 'kept' and 'units'"),
    ]:
        wrong = {**entry, "modules": {path: dict(record) for path, record in entry["modules"].items()}}
        wrong["modules"][owner.module].pop("inputs")
        if inputs is not None:
            wrong["modules"][owner.module]["inputs"] = inputs
        with pytest.raises(PruningError, match=message):
            reshape(build(ZOO["ltx"]), wrong)


def test_heads_of_a_processor_with_weights_of_its_own_stay():
    model = unet2d_condition()
    whole = [group.module for group in find_groups(model, "attention_heads")]
    attention = model.get_submodule(next(path for path in whole if path.endswith("attn2")))
    attention.set_processor(IPAdapterAttnProcessor2_0(attention.inner_dim, 24, num_tokens=(4,)))
    assert len(find_groups(model, "attention_heads")) == len(whole) - 1

"""Hidden channels of stacked experts: cut equals mask, reload equals saved, parameters fall as asked."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from pruning.checkpoint import install_hook, load, save
from pruning.groups import HANDLERS
from pruning.surgery import apply_plan, mask_plan
from pruning.types import PrunableGroup, PruningPlan, config_hash
from tests.zoo import ZOO, build, run

TINY = ZOO["nucleusmoe"]


def stacks(model: nn.Module) -> list[PrunableGroup]:
    find = HANDLERS["experts"].find
    return [group for path, module in model.named_modules() for group in find(path, module, model)]


def test_every_layer_of_experts_is_a_group() -> None:
    groups = stacks(build(TINY))
    assert [group.module for group in groups] == [
        f"transformer_blocks.{i}.img_mlp.experts" for i in (1, 2, 3)
    ]
    assert {(group.kind, group.num_units, group.unit_size) for group in groups} == {("ffn_channels", 40, 1)}
    assert {len(group.consumers) for group in groups} == {TINY.config["num_experts"]}
    assert not stacks(build(ZOO["nucleusmoe_dense"]))


def test_cut_equals_mask_and_reload_equals_saved(tmp_path: Path) -> None:
    model = build(TINY)
    groups = stacks(model)
    kept = {group.name: tuple(range(i, 40, 2 + i)) for i, group in enumerate(groups)}
    plan = PruningPlan(kept=kept, base_hash=config_hash(model.config))  # type: ignore[arg-type]
    masked = run(TINY, mask_plan(model, plan, groups))
    assert (masked - run(TINY, model)).abs().max() > 1e-3
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    pruned = run(TINY, cut)
    assert (pruned - masked).abs().max() < 1e-5
    experts = cut.get_submodule(groups[0].module)
    assert experts.down_proj.shape[1] == experts.gate_up_proj.shape[2] / 2 == 20  # type: ignore[union-attr]
    assert experts.moe_intermediate_dim == 20
    install_hook()
    save(cut, tmp_path)
    assert torch.equal(run(TINY, load(tmp_path)), pruned)

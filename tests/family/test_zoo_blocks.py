"""Every residual block of every denoiser class: removed is masked is zero, and the slim model loads again."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.checkpoint import save
from pruning.groups import find_groups
from pruning.groups.blocks import blocks_of
from pruning.hook import install_hook
from pruning.removal import BlockRemoval
from pruning.surgery import apply_plan, mask_plan
from pruning.surgery.stages import take_out
from pruning.types import PrunableGroup, PruningPlan, slices_of
from tests.family.zoo_setup import FIRST, assert_same, built, model_of
from tests.zoo import ZOO, build, run


@cache
def _blocks(name: str) -> list[PrunableGroup]:
    """Return the blocks of an entry's model but the inner stages of a U, of which other tests are."""
    removals = blocks_of(model_of(name)).removals.items()
    return [
        PrunableGroup(f"{path}:blocks", path, "blocks", 1, 1, removal=removal)
        for path, removal in removals
        if removal.between is None
    ]


def _kinds(name: str) -> dict[tuple[str, BlockRemoval], PrunableGroup]:
    """Return the last block of each kind of an entry."""
    return {
        (re.sub(r"\d+", "*", group.module), group.removal): group for group in _blocks(name) if group.removal
    }


def _some(name: str) -> list[PrunableGroup]:
    """Return up to three kinds of blocks of a class; of its further entries, one that those before do not have."""
    others = [other for other in ZOO if ZOO[other].cls == ZOO[name].cls]
    known = {kind for other in others[: others.index(name)] for kind in _kinds(other)}
    new = [group for kind, group in _kinds(name).items() if kind not in known]
    return new[:: max(1, len(new) // 3)][:3] if name == others[0] else new[:1]


@contextmanager
def _without(model: nn.Module, block: PrunableGroup) -> Iterator[None]:
    """Take a block out of a model for a while."""
    parent, _, name = block.module.rpartition(".")
    before = model.get_submodule(block.module)
    take_out(model, block)
    try:
        yield
    finally:
        setattr(model.get_submodule(parent), name, before)


@contextmanager
def _zeroed(module: nn.Module) -> Iterator[None]:
    """Let all parameters of a module be zero for a while."""
    before = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    with torch.no_grad():
        for parameter, _ in before:
            parameter.zero_()
        yield
        for parameter, value in before:
            parameter.copy_(value)


@pytest.mark.parametrize("name", ZOO)
def test_each_block_removed_is_the_block_at_zero(name: str) -> None:
    assert _blocks(name)
    for group in _some(name):
        model, dense = built(name)
        with _without(model, group):
            removed = run(ZOO[name], model)
            assert not list(model.get_submodule(group.module).parameters())
        assert not torch.equal(removed, dense), group.module
        assert group.removal is not None
        if group.removal.channels is None:  # else the shortcut goes, which is not zero
            with _zeroed(model.get_submodule(group.module)):
                assert_same(removed, run(ZOO[name], model))


@pytest.mark.parametrize("name", FIRST)
def test_blocks_cut_together_are_masked_and_load_again(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    groups = _blocks(name)
    plan = PruningPlan(removed_blocks=tuple(sorted(group.module for group in groups[::2])))
    gone = {id(p) for path in plan.removed_blocks for p in model.get_submodule(path).parameters()}
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    assert _count(cut) == sum(p.numel() for p in model.parameters() if id(p) not in gone)
    pruned = run(ZOO[name], cut)
    assert_same(pruned, run(ZOO[name], mask_plan(model, plan, groups)), 1e-6)
    install_hook()
    save(cut, tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert_same(run(ZOO[name], reloaded), pruned, 1e-6)
    assert _shapes(reloaded) == _shapes(cut)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["wan", "latte", "dit"])
def test_a_list_never_ends_empty(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    groups = _blocks(name)
    plan = PruningPlan(removed_blocks=tuple(sorted(group.module for group in groups)))
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    assert all(len(part) for part in cut.modules() if isinstance(part, nn.ModuleList))
    masked = run(ZOO[name], mask_plan(model, plan, groups))
    install_hook()
    save(cut, tmp_path)
    assert_same(run(ZOO[name], type(model).from_pretrained(tmp_path)), masked, 1e-6)


def test_a_removed_block_may_hold_a_part_of_a_group(tmp_path: Path) -> None:
    model = build(ZOO["amused"])
    groups = find_groups(model)
    ffn = next(group for group in groups if group.name == "up_block.res_blocks.0:ffn_channels")
    norm = "up_block.res_blocks.0.channelwise_norm"
    assert any(part.path.startswith(norm) for part in slices_of(ffn))
    plan = PruningPlan(kept={ffn.name: tuple(range(0, ffn.num_units, 2))}, removed_blocks=(norm,))
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    pruned = run(ZOO["amused"], cut)
    assert_same(pruned, run(ZOO["amused"], mask_plan(model, plan, groups)), 1e-5)
    install_hook()
    save(cut, tmp_path)
    assert_same(run(ZOO["amused"], type(model).from_pretrained(tmp_path)), pruned, 1e-6)  # type: ignore[attr-defined]

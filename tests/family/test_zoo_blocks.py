"""Every residual block of every denoiser class: removed is masked is zero, and the slim model loads again."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.checkpoint import install_hook, save
from pruning.groups.blocks import blocks
from pruning.surgery import apply_plan, mask_plan
from pruning.types import PrunableGroup, PruningPlan
from tests.zoo import ZOO, Tiny, build, run

FIRST = {tiny.cls: name for name, tiny in reversed(ZOO.items())}
"""The first entry of each class; of its variants fewer blocks are taken."""

LEGACY = [name for name, tiny in ZOO.items() if tiny.cls == "Transformer2DModel"]
"""Saved as this class they are loaded as another one, for which the saved entry is not made."""


def _blocks(model: nn.Module) -> list[PrunableGroup]:
    return [group for path, module in model.named_modules() for group in blocks(path, module, model)]


def _some(name: str, groups: list[PrunableGroup]) -> list[PrunableGroup]:
    """Return the last block of each kind, of variants only one."""
    kinds = {(re.sub(r"\d+", "*", group.module), group.removal): group for group in groups}
    every = list(kinds.values())
    return every[:: max(1, len(every) // 3)][:3] if FIRST[ZOO[name].cls] == name else every[:1]


def _near(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * max(1.0, float(other.abs().max())))


def _zeroed(tiny: Tiny, model: nn.Module, path: str) -> torch.Tensor:
    """Return what the model puts out with all parameters of a block at zero."""
    parameters = list(model.get_submodule(path).parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        output = run(tiny, model)
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return output


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_each_block_removed_is_the_block_at_zero(name: str) -> None:
    tiny = ZOO[name]
    model = build(tiny)
    groups = _blocks(model)
    assert groups
    dense = run(tiny, model)
    for group in _some(name, groups):
        plan = PruningPlan(removed_blocks=(group.module,))
        size = _count(model.get_submodule(group.module))
        assert group.removal is not None
        cut = apply_plan(copy.deepcopy(model), plan, groups)
        removed = run(tiny, cut)
        assert not torch.equal(removed, dense), group.module
        assert _count(cut) == _count(model) - size
        if group.removal.channels is None:  # else the shortcut goes, which is not zero
            assert _near(removed, _zeroed(tiny, model, group.module), 1e-5), group.module


@pytest.mark.parametrize("name", FIRST.values())
def test_blocks_cut_together_are_masked_and_load_again(name: str, tmp_path: Path) -> None:
    tiny = ZOO[name]
    model = build(tiny)
    groups = _blocks(model)
    plan = PruningPlan(removed_blocks=tuple(sorted(group.module for group in groups[::2])))
    masked = run(tiny, mask_plan(model, plan, groups))
    cut = apply_plan(model, plan, groups)
    pruned = run(tiny, cut)
    assert _near(pruned, masked, 1e-6)
    if name in LEGACY:
        return
    install_hook()
    save(cut, tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert _near(run(tiny, reloaded), pruned, 1e-6)
    assert {n: p.shape for n, p in reloaded.named_parameters()} == {
        n: p.shape for n, p in cut.named_parameters()
    }


@pytest.mark.parametrize("name", ["wan", "latte", "dit"])
def test_a_list_never_ends_empty(name: str, tmp_path: Path) -> None:
    tiny = ZOO[name]
    model = build(tiny)
    groups = _blocks(model)
    plan = PruningPlan(removed_blocks=tuple(sorted(group.module for group in groups)))
    masked = run(tiny, mask_plan(model, plan, groups))
    cut = apply_plan(model, plan, groups)
    assert all(len(part) for part in cut.modules() if isinstance(part, nn.ModuleList))
    install_hook()
    save(cut, tmp_path)
    reloaded = run(tiny, type(model).from_pretrained(tmp_path))
    assert _near(reloaded, masked, 1e-6)

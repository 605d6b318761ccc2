"""Models whose blocks went: inner stages of a U go together, and what is left is an ordinary model if it can be."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch import nn

from pruning.allocation import CostModel
from pruning.calibration import bypassed
from pruning.checkpoint import save
from pruning.groups import find_groups
from pruning.hook import disable_hooks, install_hook
from pruning.surgery import apply_plan, mask_plan
from pruning.types import PRUNING_KEY, PrunableGroup, PruningPlan
from tests.family.zoo_setup import assert_same, error
from tests.models import call, unet2d_condition
from tests.zoo import ZOO, Tiny, build, run

LAYERS = re.compile(r"(down|up)_blocks\.\d+\.\w+\.1")


def _even(name: str) -> Tiny:
    """Return a tiny UNet whose two innermost stages are equally wide."""
    tiny = ZOO[name]
    *outer, _ = tiny.config["block_out_channels"]
    return replace(tiny, config={**tiny.config, "block_out_channels": (*outer, outer[-1])})


@cache
def _built(name: str) -> tuple[Tiny, nn.Module, list[PrunableGroup]]:
    tiny = _even(name)
    model = build(tiny)
    return tiny, model, find_groups(model, "blocks")


def _stage(groups: Collection[PrunableGroup]) -> PrunableGroup:
    (found,) = [group for group in groups if group.removal is not None and group.removal.between]
    return found


@pytest.fixture
def plain_diffusers() -> Iterator[None]:
    """Run a test as if this package had not been imported."""
    disable_hooks()
    yield
    install_hook()


def _cut(name: str, removed: Collection[str]) -> tuple[Tiny, nn.Module]:
    tiny, model, groups = _built(name)
    plan = PruningPlan(removed_blocks=tuple(sorted(removed)))
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    assert_same(run(tiny, cut), run(tiny, mask_plan(model, plan, groups)), 1e-6)
    return tiny, cut


CLASSES = ["sd15", "unet2d-consistency", "dreamlite-plain", "unet3d", "svd", "animatediff"]


@pytest.mark.parametrize("name", CLASSES)
def test_the_innermost_stages_removed_is_what_enters_them(name: str, tmp_path: Path) -> None:
    tiny, model, groups = _built(name)
    stage = _stage(groups)
    with bypassed(model, stage):
        expected = run(tiny, model)
    tiny, cut = _cut(name, [stage.module])
    assert_same(run(tiny, cut), expected, 1e-6)
    assert error(expected, run(tiny, model)) > 1e-3
    assert len(cut.down_blocks) == len(cut.up_blocks) == len(model.down_blocks) - 1
    save(cut, tmp_path)
    assert_same(run(tiny, type(model).from_pretrained(tmp_path)), expected, 1e-6)


@pytest.mark.parametrize("name", ["unet2d-ncsnpp", "latent-upscaler"])
def test_stages_with_a_stream_of_their_own_stay(name: str) -> None:
    assert not [group for group in find_groups(build(_even(name)), "blocks") if group.removal.between]


def test_stages_of_other_widths_stay() -> None:
    assert not [group for group in find_groups(build(ZOO["sd15"]), "blocks") if group.removal.between]


def test_one_path_of_the_innermost_stages_names_all() -> None:
    _, _, groups = _built("sd15")
    stage = _stage(groups)
    every = ("down_blocks.1.downsamplers", "down_blocks.2", "mid_block", "up_blocks.0")
    for path in (*every[:2], every[3]):
        assert PruningPlan(removed_blocks=(path,)).completed(groups).removed_blocks == every
    assert PruningPlan(removed_blocks=("mid_block",)).completed(groups).removed_blocks == ("mid_block",)
    assert set(stage.paths) == set(every)


def test_the_cost_of_the_innermost_stages_is_what_goes() -> None:
    model = unet2d_condition(block_out_channels=(16, 16))
    groups = find_groups(model)
    cost = CostModel.trace(model, call(model), groups)
    plan = PruningPlan(removed_blocks=(_stage(groups).module,))
    cut = apply_plan(model, plan, groups)
    assert cost.params(plan) == sum(p.numel() for p in cut.parameters())
    assert cost.macs(plan) == CostModel.trace(cut, call(cut), find_groups(cut)).macs()
    assert cost.unit_costs("params")[_stage(groups).name] == cost.params() - cost.params(plan)


BK_SDM = {"base": [], "small": ["mid_block"], "tiny": ["mid_block", "down_blocks.2"]}


@pytest.mark.parametrize("size", BK_SDM)
@pytest.mark.parametrize("name", ["sd15", "unet2d"])
def test_bk_sdm_is_an_ordinary_checkpoint(
    name: str, size: str, tmp_path: Path, plain_diffusers: None
) -> None:
    _, _, groups = _built(name)
    removed = [group.module for group in groups if LAYERS.fullmatch(group.module)]
    tiny, cut = _cut(name, removed + BK_SDM[size])
    assert PRUNING_KEY not in cut.config
    assert cut.config["layers_per_block"] == 1
    assert (cut.config["mid_block_type"] is None) is (size != "base")
    assert len(cut.config["down_block_types"]) == (2 if size == "tiny" else 3)
    save(cut, tmp_path)
    assert_same(run(tiny, type(cut).from_pretrained(tmp_path)), run(tiny, cut), 0.0)
    in_memory = type(cut).from_config(cut.config)
    assert {n: p.shape for n, p in in_memory.named_parameters()} == {
        n: p.shape for n, p in cut.named_parameters()
    }


@pytest.mark.parametrize(("name", "depths"), [("sdxl", 1), ("ssd1b", [0, 1, 1])])
def test_fewer_transformer_blocks_are_an_ordinary_checkpoint(
    name: str, depths: object, tmp_path: Path, plain_diffusers: None
) -> None:
    _, _, groups = _built(name)
    removed = [group.module for group in groups if group.module.endswith("transformer_blocks.1")]
    tiny, cut = _cut(name, removed)
    assert PRUNING_KEY not in cut.config
    assert cut.config["transformer_layers_per_block"] == depths
    assert cut.config["reverse_transformer_layers_per_block"] is None
    save(cut, tmp_path)
    assert_same(run(tiny, type(cut).from_pretrained(tmp_path)), run(tiny, cut), 0.0)


def test_depths_that_differ_within_a_stage_are_listed(tmp_path: Path, plain_diffusers: None) -> None:
    tiny, cut = _cut("sdxl", ["up_blocks.0.attentions.1.transformer_blocks.0"])
    assert cut.config["transformer_layers_per_block"] == (1, 1, 2)
    assert cut.config["reverse_transformer_layers_per_block"] == [[2, 1, 2], 1, 1]
    save(cut, tmp_path)
    assert_same(run(tiny, type(cut).from_pretrained(tmp_path)), run(tiny, cut), 0.0)


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        # The layer that stays on the way up would be given another skipped stream, of the same shape.
        ("sd15", ["down_blocks.2.resnets.1", "up_blocks.0.resnets.2"]),
        # Only a half of each layer goes.
        ("sd15", ["down_blocks.0.resnets.1", "up_blocks.2.resnets.1"]),
        # What is left of a block is a factor.
        ("simple-only-cross", ["down_blocks.0.resnets.1", "up_blocks.1.resnets.1"]),
    ],
    ids=["other-skip", "half-layer", "factor"],
)
def test_what_diffusers_cannot_say_stays_an_identity(name: str, removed: list[str], tmp_path: Path) -> None:
    tiny, cut = _cut(name, removed)
    assert cut.config[PRUNING_KEY]["removed_blocks"] == sorted(removed)
    install_hook()
    save(cut, tmp_path)
    assert_same(run(tiny, type(cut).from_pretrained(tmp_path)), run(tiny, cut), 0.0)


def test_a_cut_of_units_keeps_its_record_beside_the_stock_values(tmp_path: Path) -> None:
    tiny, model, _ = _built("sd15")
    groups = find_groups(model)
    removed = [group.module for group in groups if group.kind == "blocks" and LAYERS.fullmatch(group.module)]
    kept = {group.name: tuple(range(group.num_units // 2)) for group in groups if group.num_units > 1}
    plan = PruningPlan(kept, tuple(sorted([*removed, "mid_block", "down_blocks.2"])))
    masked = run(tiny, mask_plan(model, plan, groups))
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    assert_same(run(tiny, cut), masked)
    assert cut.config["layers_per_block"] == 1
    assert cut.config[PRUNING_KEY]["removed_blocks"] == []
    install_hook()
    save(cut, tmp_path)
    assert_same(run(tiny, type(cut).from_pretrained(tmp_path)), run(tiny, cut), 0.0)
    # Cut a second time, the record of the first goes with what it is about.
    again = find_groups(cut)
    whole = PruningPlan(
        removed_blocks=tuple(g.module for g in again if g.kind == "blocks" and "up_blocks.1" in g.module)
    )
    masked = run(tiny, mask_plan(cut, whole, again))
    assert_same(run(tiny, apply_plan(cut, whole, again)), masked)


@pytest.mark.parametrize(
    ("places", "layers", "identities"),
    [
        ([(0, 1), (1, 1)], 2, []),
        ([(0, 1), (1, 1), (0, 2)], 2, ["transformer_blocks.1"]),
        ([(0, 1), (1, 2)], 3, ["temporal_transformer_blocks.2", "transformer_blocks.1"]),
        # A table of positions is added at the first place, whatever the blocks there.
        ([(0, 0), (1, 0), (0, 2), (1, 2)], 2, ["temporal_transformer_blocks.0", "transformer_blocks.0"]),
    ],
)
def test_two_lists_with_one_count_are_cut_in_pairs(
    places: list[tuple[int, int]], layers: int, identities: list[str], tmp_path: Path
) -> None:
    tiny = ZOO["latte"]
    model = build(tiny)
    lists = ("transformer_blocks", "temporal_transformer_blocks")
    removed = {f"{lists[which]}.{place}" for which, place in places}
    plan = PruningPlan(removed_blocks=tuple(sorted(removed)))
    masked = run(tiny, mask_plan(model, plan))
    cut = apply_plan(model, plan)
    assert_same(run(tiny, cut), masked, 1e-6)
    assert cut.config["num_layers"] == len(cut.transformer_blocks) == layers
    assert (cut.config.get(PRUNING_KEY) or {"removed_blocks": []})["removed_blocks"] == identities
    install_hook()
    save(cut, tmp_path)
    assert_same(run(tiny, type(cut).from_pretrained(tmp_path)), masked, 1e-6)

"""Surgery from folder to folder: every option, stopped and gone on with, and all that it refuses."""

from __future__ import annotations

import gc
import json
import re
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning import files
from pruning.errors import PruningError
from pruning.groups import KINDS, find_groups
from pruning.groups.modulation import modulation_layers
from pruning.store.locks import locked
from pruning.surgery import LowRank, apply_plan, cut_on_disk, origins, take_low_rank
from pruning.surgery.changes import Changes
from pruning.types import PruningPlan
from tests.family.zoo_setup import smaller
from tests.models import dit
from tests.on_disk import both_ways, contents
from tests.plans import random_plan
from tests.zoo import ZOO, build

SHARDS = {"max_shard_size": "20KB"}
PROJECTION = "transformer_blocks.0.attn1.to_out.0"


@pytest.fixture
def model(tmp_path: Path) -> nn.Module:
    """Return a tiny DiT, which lies in ``dense``."""
    found = dit()
    found.save_pretrained(tmp_path / "dense")
    return found


def plan_of(model: nn.Module, seed: int = 2) -> PruningPlan:
    return random_plan(model, KINDS, seed)


def cut_heads(model: nn.Module) -> PruningPlan:
    return random_plan(model, {"attention_heads"}, 0)


def test_a_pruned_source(model: nn.Module, tmp_path: Path):
    once = apply_plan(model, replace(plan_of(model), **smaller(model)))
    once.save_pretrained(tmp_path / "dense")
    both_ways(tmp_path, plan_of(once, 5), **SHARDS)
    config = json.loads((tmp_path / "disk" / "config.json").read_text())["_structured_pruning"]
    assert {"earlier_plans", "ranks", "shared"} <= set(config)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_types(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype):
    model = nn.Module.to(dit(), stored)
    model.save_pretrained(tmp_path / "dense", **SHARDS)
    both_ways(tmp_path, plan_of(model), stored=stored, dtype=dtype)


def test_an_empty_plan_converts(model: nn.Module, tmp_path: Path):
    both_ways(tmp_path, PruningPlan(), dtype=torch.bfloat16)


def test_a_small_piece_at_a_time(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins, "PIECE", 300)
    told: list[tuple[int, int]] = []
    both_ways(tmp_path, plan_of(model))
    cut_on_disk(
        tmp_path / "dense", plan_of(model), tmp_path / "again", progress=lambda *done: told.append(done)
    )
    weights = load_file(tmp_path / "disk" / "diffusion_pytorch_model.safetensors")
    assert told[-1] == (sum(w.nbytes for w in weights.values()),) * 2
    assert len(told) > 2 * len(weights)
    assert told == sorted(told)


def test_changed_weights_and_biases_that_the_model_lacks(tmp_path: Path):
    model = build(ZOO["flux2"])
    model.save_pretrained(tmp_path / "dense")
    paths = [one.consumer for group in find_groups(model) for one in group.consumers]
    paths = [path for path in paths if model.get_submodule(path).bias is None]
    assert len(paths) > 4
    draw = torch.Generator().manual_seed(3)
    changed: dict[str, Tensor] = {}
    for path in paths:
        shape = model.get_submodule(path).weight.shape
        changed[f"{path}.weight"] = torch.randn(shape, generator=draw)
        changed[f"{path}.bias"] = torch.randn(shape[0], generator=draw)

    def change(model: nn.Module) -> None:
        for path in paths:
            layer = model.get_submodule(path)
            layer.weight.copy_(changed[f"{path}.weight"])
            layer.bias = nn.Parameter(changed[f"{path}.bias"].clone())

    kept = {group.name: (0,) for group in find_groups(model) if group.consumers}
    both_ways(tmp_path, PruningPlan(kept=kept), change=change, changed=changed)
    assert b"bias" in (tmp_path / "disk" / "config.json").read_bytes()


def test_low_rank_forms_that_were_chosen_elsewhere(model: nn.Module, tmp_path: Path):
    path = modulation_layers(model, find_groups(model))[0].module
    out, width = model.get_submodule(path).weight.shape
    draw = torch.Generator().manual_seed(3)
    shapes = {"up": (out, 4), "down": (4, width), "bias": (out,)}
    parts = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    names = {"up": "up.weight", "down": "down.weight", "bias": "bias"}
    both_ways(
        tmp_path,
        PruningPlan(ranks={path: 4}),
        change=lambda model: take_low_rank(model, {path: LowRank(**parts, lost=0.0, lost_fitted=0.0)}),
        changed={f"{path}.{names[name]}": part for name, part in parts.items()},
    )


class Stop(Exception):
    pass


def stopping_after(share: float) -> Any:
    def progress(done: int, total: int) -> None:
        if done > share * total:
            raise Stop

    return progress


def test_what_was_stopped_goes_on_where_it_was(model: nn.Module, tmp_path: Path):
    source, target, plan = tmp_path / "dense", tmp_path / "slim", plan_of(model)
    before = contents(source)
    with pytest.raises(Stop):
        cut_on_disk(source, plan, target, progress=stopping_after(0.5), **SHARDS)
    assert not target.exists()
    (work,) = tmp_path.glob(".slim.*.partial")
    assert not [*work.glob(".*")]
    whole = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    assert whole
    (work / ".left.tmp").write_text("by a process that was killed")
    told: list[int] = []
    cut_on_disk(source, plan, target, progress=lambda done, total: told.append(done), **SHARDS)
    assert told[0] > sum((target / name).stat().st_size for name in whole) * 0.8
    assert {name: (target / name).stat().st_mtime_ns for name in whole} == whole
    cut_on_disk(source, plan, tmp_path / "at once", **SHARDS)
    assert contents(target) == contents(tmp_path / "at once")
    assert contents(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "slim", "at once"}


def test_half_done_work_of_another_plan_or_other_weights_is_never_taken(model: nn.Module, tmp_path: Path):
    source, target, plan = tmp_path / "dense", tmp_path / "slim", cut_heads(model)
    weight = {f"{PROJECTION}.weight": torch.ones(32, 32)}
    for call in ({"plan": plan_of(model)}, {"plan": plan, "changed": weight}, {"plan": plan}):
        with pytest.raises(Stop):
            cut_on_disk(source, target=target, progress=stopping_after(0.9), **call, **SHARDS)
        assert len([*tmp_path.glob(".slim.*.partial")]) == 1
    weights = source / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    cut_on_disk(source, plan, target, **SHARDS)
    cut_on_disk(source, plan, tmp_path / "other", **SHARDS)
    assert contents(target) == contents(tmp_path / "other")


def test_one_process_at_a_time(model: nn.Module, tmp_path: Path):
    with (
        locked(tmp_path / ".slim.lock", "", ""),
        pytest.raises(PruningError, match=r"slim is in use by process \d+.*wait, or choose another folder"),
    ):
        cut_on_disk(tmp_path / "dense", plan_of(model), tmp_path / "slim")
    assert {path.name for path in tmp_path.iterdir()} == {"dense"}


def test_a_disk_without_room(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**9, 0, 1000))
    with pytest.raises(PruningError, match=r"cannot write the slim model .* are needed and 1.00 kB are free"):
        cut_on_disk(tmp_path / "dense", plan_of(model), tmp_path / "slim")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("dense", "it is the source, or lies in it"),
        ("dense/slim", "it is the source, or lies in it"),
        ("taken", "it is not empty; choose a folder that is not there yet"),
        ("taken/note.txt", "it is a file"),
        ("taken/note.txt/slim", "a part of the path is a file|Not a directory|a file of that name"),
    ],
)
def test_targets_that_are_none(model: nn.Module, tmp_path: Path, target: str, message: str):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    before = contents(tmp_path / "dense")
    with pytest.raises(PruningError, match=message):
        cut_on_disk(tmp_path / "dense", plan_of(model), tmp_path / target)
    assert contents(tmp_path / "taken") == {"note.txt": b"mine"}
    assert contents(tmp_path / "dense") == before


def test_an_empty_target_is_taken(model: nn.Module, tmp_path: Path):
    (tmp_path / "slim").mkdir()
    cut_on_disk(tmp_path / "dense", plan_of(model), tmp_path / "slim")
    assert (tmp_path / "slim" / "config.json").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nothing.weight": torch.ones(1)}, r"changed\['nothing.weight'\]: DiT\w+ has no such weight"),
        (
            {f"{PROJECTION}.weight": torch.ones(3, 3)},
            r"its shape is \[3, 3\], and that of the weight \[32, 32\]",
        ),
        (
            {f"{PROJECTION}.weight": torch.full((32, 32), torch.nan)},
            r"changed\[.*to_out.0.weight.*holds NaN",
        ),
    ],
)
def test_changes_that_do_not_fit(model: nn.Module, tmp_path: Path, changed: dict[str, Tensor], message: str):
    with pytest.raises(PruningError, match=message):
        cut_on_disk(tmp_path / "dense", cut_heads(model), tmp_path / "slim", changed=changed)


def test_a_new_bias_where_nothing_is_cut(tmp_path: Path):
    dit(attention_bias=False).save_pretrained(tmp_path / "dense")
    changed = {"transformer_blocks.0.attn1.to_q.bias": torch.ones(32)}
    with pytest.raises(
        PruningError, match=r"to_q.bias'\]: the layer has no bias, and the plan does not cut it"
    ):
        cut_on_disk(tmp_path / "dense", PruningPlan(), tmp_path / "slim", changed=changed)


def test_half_a_low_rank_form(model: nn.Module, tmp_path: Path):
    path = modulation_layers(model, find_groups(model))[0].module
    changed = {f"{path}.up.weight": torch.ones(len(model.get_submodule(path).weight), 4)}
    with pytest.raises(PruningError, match=rf"of the low-rank form of '{re.escape(path)}' there is only up"):
        cut_on_disk(tmp_path / "dense", PruningPlan(ranks={path: 4}), tmp_path / "slim", changed=changed)


def test_broken_weights_and_sizes(model: nn.Module, tmp_path: Path):
    with pytest.raises(PruningError, match=r"max_shard_size': 'large'.*not supported"):
        cut_on_disk(tmp_path / "dense", PruningPlan(), tmp_path / "slim", max_shard_size="large")
    with torch.no_grad():
        model.get_parameter(f"{PROJECTION}.weight")[3, 3] = torch.inf
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(PruningError, match=rf"dense'?.*'{PROJECTION}.weight' holds NaN or infinity"):
        cut_on_disk(tmp_path / "dense", PruningPlan(), tmp_path / "slim")
    assert not (tmp_path / "slim").exists()


def test_broken_weights_of_a_low_rank_form(model: nn.Module, tmp_path: Path):
    path = modulation_layers(model, find_groups(model))[0].module
    with torch.no_grad():
        model.get_submodule(path).weight[3, 3] = torch.nan
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(PruningError, match=rf"low-rank form: '{path}.weight' holds NaN"):
        cut_on_disk(tmp_path / "dense", PruningPlan(ranks={path: 4}), tmp_path / "slim")


def test_a_plan_of_another_model(model: nn.Module, tmp_path: Path):
    with pytest.raises(PruningError, match="plan was made for the architecture"):
        cut_on_disk(tmp_path / "dense", PruningPlan(base_hash="another"), tmp_path / "slim")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told by Linux")
def test_little_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model of 200 MB whose largest weight has 10 MB, in pieces of 4 MB."""
    with torch.device("meta"):
        model: Any = DiTTransformer2DModel(
            num_attention_heads=8, attention_head_dim=80, num_layers=8, sample_size=8, num_embeds_ada_norm=9
        )
    model.to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(0.5)
    model.save_pretrained(tmp_path / "dense", max_shard_size="50MB")
    plan = random_plan(model, {"attention_heads", "ffn_channels"}, 0)
    weights = sum(p.nbytes for p in model.parameters())
    assert weights > 180e6
    del model
    monkeypatch.setattr(origins, "PIECE", 1 << 22)
    cut_on_disk(tmp_path / "dense", PruningPlan(), tmp_path / "first")  # code is read, arenas grow
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # begin to count anew
    before = _status("VmRSS")
    cut_on_disk(tmp_path / "dense", plan, tmp_path / "slim", max_shard_size="50MB")
    assert _status("VmHWM") - before < 30e6
    shutil.rmtree(tmp_path)


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def test_changed_weights_take_the_place_of_no_other_files(tmp_path: Path):
    folder = tmp_path / "changed"
    Changes({}, folder)["weight"] = torch.ones(2)
    assert [*Changes({}, str(folder))] == [], "what an earlier attempt left is removed"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    message = r"changed weights cannot be kept in .*changed: it holds 'config\.json', which would be removed"
    with pytest.raises(PruningError, match=message):
        Changes({}, folder)
    assert (folder / "config.json").exists()

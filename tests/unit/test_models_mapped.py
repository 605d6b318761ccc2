"""Weights that stay in their files: the model is the one that is loaded, nothing is read early, no file changes."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pruning import hook
from pruning.errors import PruningError
from pruning.groups import KINDS
from pruning.models import load_denoiser, mapped
from pruning.models.mapped import map_denoiser
from pruning.models.pages import FilePages, give_back, madvise
from pruning.models.stored import weights_digest
from pruning.surgery import apply_plan, cut_on_disk
from pruning.types import PruningPlan
from tests.models import dit, run, unet2d
from tests.plans import random_plan

WEIGHTS = "diffusion_pytorch_model.safetensors"

needs_linux = pytest.mark.skipif(madvise() is None, reason="pages are told and given back by Linux")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a pipeline with a tiny DiT."""
    dit().save_pretrained(tmp_path / "transformer")
    return tmp_path


def assert_same(one: Any, other: Any) -> None:
    assert dict(one.config) == dict(other.config)
    assert one.training is other.training is False
    for mine, its in (
        (one.named_parameters(), other.named_parameters()),
        (one.named_buffers(), other.named_buffers()),
    ):
        mine, its = dict(mine), dict(its)
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in mine)
        assert all(mine[name].dtype == its[name].dtype for name in mine)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_model_is_the_one_that_is_loaded(
    tmp_path: Path, stored: torch.dtype, shard: str, variant: str | None
):
    model = nn.Module.to(unet2d(), stored)
    model.save_pretrained(tmp_path / "unet", max_shard_size=shard, variant=variant)
    found = map_denoiser(tmp_path, variant=variant)
    assert_same(found, load_denoiser(tmp_path, dtype=stored, variant=variant))
    assert all(map(FilePages().hold, found.parameters())) or sys.platform != "linux"


def test_a_pruned_source_without_the_hook(tmp_path: Path):
    model = unet2d()
    apply_plan(model, random_plan(model, KINDS, seed=2)).save_pretrained(tmp_path)
    hook.disable_hooks()
    try:
        found = map_denoiser(tmp_path)
    finally:
        hook.install_hook()
    assert torch.equal(run(found), run(model))


def test_another_type_is_converted_in_memory(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        found = map_denoiser(folder, dtype=torch.bfloat16)
    assert_same(found, load_denoiser(folder, dtype=torch.bfloat16))
    assert "is float32, taken as bfloat16), and are converted in memory" in caplog.text


def test_files_of_two_types_are_taken_as_the_larger(folder: Path, caplog: pytest.LogCaptureFixture):
    path = folder / "transformer" / WEIGHTS
    weights = load_file(path)
    weights["proj_out_1.weight"] = weights["proj_out_1.weight"].bfloat16()
    save_file(weights, path, {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        found = map_denoiser(folder)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert "1 of" in caplog.text
    assert "(proj_out_1.weight is bfloat16, taken as float32)" in caplog.text


@pytest.mark.parametrize("runs_in", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_stored_in_a_wider_type_than_most_keeps_it(folder: Path, runs_in: torch.dtype):
    """So that the model that streams in that type, or is written in it, is the one that is loaded in it."""
    path = folder / "transformer" / WEIGHTS
    weights = load_file(path)
    weights |= {name: weight.half() for name, weight in weights.items() if weight.ndim > 1}
    save_file(weights, path, {"format": "pt"})
    found = map_denoiser(folder, runs_in=runs_in).state_dict()
    kept = torch.float32 if runs_in.itemsize > 2 else runs_in
    assert {weight.dtype for weight in found.values()} == {torch.float16, kept}
    cut_on_disk(folder / "transformer", PruningPlan(), folder / "written", dtype=runs_in)
    written = load_denoiser(folder / "written", dtype=runs_in).state_dict()
    for name, weight in load_denoiser(folder, dtype=runs_in).state_dict().items():
        assert torch.equal(found[name].to(runs_in), weight)
        assert torch.equal(written[name], weight)


def test_a_type_in_which_no_model_runs(folder: Path):
    path = folder / "transformer" / WEIGHTS
    weights = {name: weight.to(torch.float8_e4m3fn) for name, weight in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        PruningError, match=r"its weights are stored as float8_e4m3fn, in which no model runs"
    ):
        map_denoiser(folder)


def test_faults_are_told_as_in_loading(folder: Path):
    path = folder / "transformer" / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(PruningError, match=r"the weights of DiTTransformer2DModel cannot be loaded"):
        map_denoiser(folder)
    path.unlink()
    with pytest.raises(PruningError, match=r"the weights of DiTTransformer2DModel cannot be loaded"):
        map_denoiser(folder)
    with pytest.raises(PruningError, match=r"no such folder"):
        map_denoiser(folder / "nowhere")


def test_a_hub_id_is_fetched_once_and_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def download(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((source, revision, sorted(allow_patterns)))
        return str(folder)

    config = load_denoiser(folder).config
    monkeypatch.setattr(mapped, "find_config", lambda *asked: ("transformer", dict(config)))
    monkeypatch.setattr(mapped, "snapshot_download", download)
    found = map_denoiser("owner/model", revision="v1")
    assert found.config["_name_or_path"] == "owner/model"
    assert torch.equal(run(found), run(load_denoiser(folder)))
    stem = "transformer/diffusion_pytorch_model"
    wanted = [f"{stem}-*.safetensors", f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    assert asked == [("owner/model", "v1", ["transformer/config.json", *wanted])]

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(mapped, "snapshot_download", offline)
    with pytest.raises(
        PruningError, match=r"'owner/model': its weights cannot be fetched: OSError: no network"
    ):
        map_denoiser("owner/model")


@needs_linux
def test_written_pages_stay_and_files_do_not_change(tmp_path: Path):
    model = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
    save_file({"weight": model.weight.detach()}, tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    found = load_file(tmp_path / "w.safetensors")["weight"]
    assert FilePages().hold(found)
    assert not FilePages().hold(model.weight)
    expected = model.weight.detach().clone()
    found[100:300].data.add_(1)  # which no version counter sees
    found.numpy()[700] = 5
    expected[100:300] += 1
    expected[700] = 5
    give_back([found])
    assert torch.equal(found, expected)
    assert (tmp_path / "w.safetensors").read_bytes() == before


@needs_linux
def test_a_digest_leaves_no_weights_in_memory(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(4096, 4096)}, tmp_path / WEIGHTS)  # 67 MB
    layer = nn.Linear(4096, 4096, bias=False, device="meta")
    layer.weight = nn.Parameter(load_file(tmp_path / WEIGHTS)["weight"])
    assert FilePages().hold(layer.weight)
    process = psutil.Process()
    before = process.memory_info().rss
    digest = weights_digest(layer)
    assert process.memory_info().rss - before < 3e7
    with torch.no_grad():
        layer.weight[0, 0] = 2
    assert weights_digest(layer) != digest
    assert layer.weight[0, 0] == 2

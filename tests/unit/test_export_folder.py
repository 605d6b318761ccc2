"""Export: what is written loads, is whole or not there, and errors say what to do."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from torch import nn

from pruning import checkpoint, hook
from pruning.errors import PruningError
from pruning.export import EXPORTERS, ExportRequest, Facts, check_export, diffusers_folder
from pruning.export import export as write_export
from pruning.settings import Export
from pruning.surgery import apply_plan
from pruning.types import PRUNING_KEY
from tests.models import dit, run, unet2d, unet2d_condition
from tests.plans import random_plan


def export(
    model, folder, *, dtype="float32", max_shard_size="10GB", card=None, exporter="diffusers", **others
):
    settings = Export(dtype=dtype, max_shard_size=max_shard_size)
    scheduler = others.pop("scheduler", None) or DDIMScheduler(num_train_timesteps=77)
    request = ExportRequest(model, scheduler, settings, Facts(**(card or {})), **others)
    return write_export(request, folder, exporter=exporter)


KINDS = ("attention_heads", "ffn_channels", "resnet_channels", "blocks")


def slim(make, seed: int = 3) -> nn.Module:
    return apply_plan(make(), random_plan(make(), KINDS, seed))


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("make", [dit, unet2d, unet2d_condition])
def test_a_pruned_model_comes_back_the_same(tmp_path, make):
    model = slim(make)
    part = "transformer" if make is dit else "unet"
    result = export(model, tmp_path / "slim", scheduler=DDIMScheduler())
    loaded = type(model).from_pretrained(tmp_path / "slim", subfolder=part)
    assert torch.equal(run(loaded), run(model))
    assert result == {"output_error": 0.0}
    names = {f"{part}/config.json", f"{part}/diffusion_pytorch_model.safetensors", "README.md"}
    assert set(_files(tmp_path / "slim")) == names | {"scheduler/scheduler_config.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["slim"]
    assert (
        DDIMScheduler.from_pretrained(tmp_path / "slim", subfolder="scheduler").config.num_train_timesteps
        == 1000
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_of_the_files_and_not_of_the_model(tmp_path, dtype):
    model = slim(dit)
    result = export(model, tmp_path / "slim", dtype=dtype)
    stored = load_file(tmp_path / "slim" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {getattr(torch, dtype)}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(stored[name], tensor.to(getattr(torch, dtype)))
    assert 0 < result["output_error"] < 0.1


def test_shards(tmp_path):
    model = slim(dit)
    export(model, tmp_path / "slim", max_shard_size="20KB")
    assert sum(name.endswith(".safetensors") for name in _files(tmp_path / "slim")) > 2
    assert torch.equal(
        run(DiTTransformer2DModel.from_pretrained(tmp_path / "slim", subfolder="transformer")), run(model)
    )


def test_a_dense_model_needs_no_import(tmp_path):
    export(dit(), tmp_path / "dense", card={"base_model": "someone/model"})
    card = (tmp_path / "dense" / "README.md").read_text()
    assert "import pruning" not in card
    assert "What was pruned" not in card
    assert PRUNING_KEY not in json.loads((tmp_path / "dense" / "transformer" / "config.json").read_text())


def test_the_cards_loading_example_runs_as_it_stands(tmp_path, monkeypatch):
    model = slim(dit)
    export(model, tmp_path / "slim")
    code = (tmp_path / "slim" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert code.splitlines()[0].startswith("import pruning")
    monkeypatch.chdir(tmp_path / "slim")
    seen: dict[str, nn.Module] = {}
    exec(compile(code, "card", "exec"), seen)
    assert torch.equal(run(seen["model"]), run(model))


def test_verification_works_without_the_hook(tmp_path):
    before = hook.hook_installed()
    hook.disable_hooks()
    try:
        export(slim(dit), tmp_path / "slim")
    finally:
        if before:
            hook.install_hook()


def test_files_can_be_read_by_whoever_may_read_the_folder(tmp_path):
    export(slim(dit), tmp_path / "slim")
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "slim").rglob("*") if p.is_file()}
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


def test_only_an_empty_folder_is_written_to(tmp_path):
    folder = tmp_path / "slim"
    folder.mkdir()
    export(slim(dit), folder)  # an empty folder is fine
    before = _files(tmp_path)
    with pytest.raises(PruningError, match=r"slim exists and is no empty folder; choose another, or delete"):
        export(slim(dit, seed=5), folder)
    assert _files(tmp_path) == before
    (tmp_path / "file").touch()
    with pytest.raises(PruningError, match="file exists and is no empty folder"):
        export(slim(dit), tmp_path / "file")
    with pytest.raises(PruningError, match=r"a file of that name is in the way|a part of the path is a file"):
        export(slim(dit), tmp_path / "file" / "slim")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number, message):

    def save(*args, **kwargs):
        raise OSError(number, "from the system")

    monkeypatch.setattr(diffusers_folder.checkpoint, "save", save)
    with pytest.raises(
        PruningError, match=rf"cannot write export in .*slim: {message}.*Nothing is left there"
    ):
        export(slim(dit), tmp_path / "slim")
    assert list(tmp_path.iterdir()) == []


def _tamper(monkeypatch, change):
    save = checkpoint.save

    def tampered(model, folder, **settings):
        save(model, folder, **settings)
        path = Path(folder) / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    monkeypatch.setattr(diffusers_folder.checkpoint, "save", tampered)


def test_what_does_not_verify_leaves_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _tamper(patch, lambda tensors: tensors.pop("proj_out_2.bias"))
        with pytest.raises(
            PruningError, match=r"does not verify: .* the weight files lack 'proj_out_2.bias'"
        ):
            export(slim(dit), tmp_path / "slim")
    with monkeypatch.context() as patch:
        _tamper(patch, lambda tensors: tensors["proj_out_2.bias"].add_(1))
        with pytest.raises(PruningError, match=r"'proj_out_2.bias' reads back with other values"):
            export(slim(dit), tmp_path / "slim")
    with monkeypatch.context() as patch:
        patch.setitem(diffusers_folder.OUTPUT_ERROR, torch.bfloat16, 1e-9)
        patch.setitem(diffusers_folder.OUTPUT_ERROR, torch.float32, 1e-9)
        with pytest.raises(PruningError, match=r"the outputs differ by .* Use a wider dtype"):
            export(slim(dit), tmp_path / "slim", dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_model_of_a_narrow_type_verifies(tmp_path, stored):
    model = slim(dit).to(torch.bfloat16).train()
    assert export(model, tmp_path / "slim", dtype=stored)["output_error"] == 0.0
    assert model.training


def test_a_config_that_does_not_fit_does_not_verify(tmp_path, monkeypatch):
    save = checkpoint.save

    def tampered(model, folder, **settings):
        save(model, folder, **settings)
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text())
        del config[PRUNING_KEY]
        path.write_text(json.dumps(config))

    monkeypatch.setattr(diffusers_folder.checkpoint, "save", tampered)
    with pytest.raises(PruningError, match=r"does not verify: .*cannot be loaded"):
        export(slim(dit), tmp_path / "slim")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exporter": "onyx"}, "unknown exporter 'onyx'; valid: diffusers"),
        ({"dtype": "int8"}, "export: dtype: 'int8' is not valid; valid: float32, bfloat16, float16"),
        ({"max_shard_size": "ten"}, "export: max_shard_size: 'ten' is no size above zero"),
        ({"base_folder": Path("/nowhere/at/all")}, "base_folder '/nowhere/at/all' is no folder"),
    ],
)
def test_bad_requests(tmp_path, changes, message):
    with pytest.raises(PruningError, match=message):
        export(slim(dit), tmp_path / "slim", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_export_without_a_scheduler_is_refused(tmp_path):
    with pytest.raises(
        PruningError, match=r"scheduler is None: give the one that the model was trained with"
    ):
        write_export(ExportRequest(slim(dit), None), tmp_path / "slim")
    assert list(tmp_path.iterdir()) == []


def test_what_would_stop_an_export_is_found_before_the_work(tmp_path):
    _dit_pipeline(tmp_path / "dense")
    request = ExportRequest(dit(), DDIMScheduler(), base_folder=tmp_path / "dense")
    check_export(request)
    weights = tmp_path / "dense" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PruningError, match="only as a pickle"):
        check_export(request)


def test_weights_that_cannot_be_written(tmp_path):
    model = slim(dit)
    with torch.no_grad():
        model.proj_out_2.bias[0] = 1e5
    with pytest.raises(
        PruningError, match=r"'proj_out_2.bias' reaches 1e\+05, more than torch.float16 holds"
    ):
        export(model, tmp_path / "slim", dtype="float16")
    export(model, tmp_path / "slim", dtype="bfloat16")
    with torch.no_grad():
        model.proj_out_2.bias[0] = float("nan")
    with pytest.raises(PruningError, match=r"export: 'proj_out_2.bias' holds NaN or infinity"):
        export(model, tmp_path / "slim")


def test_exporters_are_found_by_their_file():
    assert EXPORTERS["diffusers"].write is diffusers_folder.write_folder


def _dit_pipeline(folder: Path) -> None:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        sample_size=8,
    )
    DiTPipeline(dit(), vae, DDIMScheduler()).save_pretrained(folder)


def test_a_whole_pipeline_stays_whole(tmp_path):
    _dit_pipeline(tmp_path / "dense")
    (tmp_path / "dense" / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "dense" / "vae" / "evil.py").write_text("raise SystemExit")
    variant = tmp_path / "dense" / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    variant.write_bytes(b"variant")
    model = slim(dit)
    export(
        model,
        tmp_path / "slim",
        base_folder=tmp_path / "dense",
        scheduler=DDPMScheduler(),
    )
    names = set(_files(tmp_path / "slim"))
    assert not any(name.endswith((".bin", ".py", ".fp16.safetensors")) for name in names)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "slim")
    assert isinstance(pipeline, DiTPipeline)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    assert torch.equal(run(pipeline.transformer), run(model))
    assert "pipeline = DiffusionPipeline.from_pretrained(folder)" in (tmp_path / "slim/README.md").read_text()


def test_a_part_that_is_there_only_as_a_variant_is_loaded_without_naming_it(tmp_path):
    _dit_pipeline(tmp_path / "dense")
    weights = tmp_path / "dense" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    weights.with_name("diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"another variant")
    export(slim(dit), tmp_path / "slim", base_folder=tmp_path / "dense")
    assert sum(name.startswith("vae/") for name in _files(tmp_path / "slim")) == 2
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "slim"), DiTPipeline)


def test_the_old_flat_layout_of_an_unconditional_pipeline(tmp_path):
    DDPMPipeline(unet2d(), DDPMScheduler(num_train_timesteps=77)).save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "scheduler" / "scheduler_config.json").rename(
        tmp_path / "dense" / "scheduler_config.json"
    )
    (tmp_path / "dense" / "scheduler").rmdir()
    export(slim(unet2d), tmp_path / "slim", base_folder=tmp_path / "dense")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "slim")
    assert isinstance(pipeline.unet, UNet2DModel)
    assert pipeline.scheduler.config.num_train_timesteps == 77


def test_a_base_folder_without_an_index_gives_the_layout(tmp_path):
    unet2d().save_pretrained(tmp_path / "dense" / "transformer")  # an unusual place, kept
    export(slim(unet2d), tmp_path / "slim", base_folder=tmp_path / "dense")
    assert "transformer/config.json" in _files(tmp_path / "slim")
    assert "model_index.json" not in _files(tmp_path / "slim")
    assert (
        DDIMScheduler.from_pretrained(tmp_path / "slim", subfolder="scheduler").config.num_train_timesteps
        == 77
    )


def test_base_pipelines_that_cannot_be_completed(tmp_path):
    dense = tmp_path / "dense"
    _dit_pipeline(dense)
    with pytest.raises(PruningError, match="has no part of class UNet2DModel"):
        export(slim(unet2d), tmp_path / "slim", base_folder=dense)
    weights = dense / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(dense / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(
        PruningError, match=r"vae has its weights only as a pickle \(diffusion_pytorch_model.bin\)"
    ):
        export(slim(dit), tmp_path / "slim", base_folder=dense)
    (dense / "vae").rename(tmp_path / "elsewhere")
    with pytest.raises(PruningError, match="lacks its part 'vae'"):
        export(slim(dit), tmp_path / "slim", base_folder=dense)
    index = json.loads((dense / "model_index.json").read_text())
    (dense / "model_index.json").write_text(
        json.dumps({**index, "../escape": ["diffusers", "AutoencoderKL"]})
    )
    with pytest.raises(PruningError, match=r"names a part '../escape', which is no folder's name"):
        export(slim(dit), tmp_path / "slim", base_folder=dense)
    (dense / "model_index.json").write_text("[]")
    with pytest.raises(PruningError, match=r"expected a mapping, found \["):
        export(slim(dit), tmp_path / "slim", base_folder=dense)
    (dense / "model_index.json").write_text("{")
    with pytest.raises(PruningError, match="cannot be read as JSON"):
        export(slim(dit), tmp_path / "slim", base_folder=dense)
    assert not (tmp_path / "slim").exists()

"""Loading denoisers, schedulers and pipelines; everything that can be wrong with a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from pruning.errors import PruningError
from pruning.export.components import check_components
from pruning.models import (
    bundled,
    hub,
    load_denoiser,
    load_meta_denoiser,
    load_pipeline,
    load_scheduler,
    num_classes,
    resolve_source,
    sources,
    weights,
)
from pruning.models.weights import weights_fault
from tests.models import dit, run, unet2d
from tests.unit.tiny_pipelines import dit_latent, stable_diffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a denoiser and a scheduler but no pipeline, like the bundled ones."""
    dit().save_pretrained(tmp_path / "model" / "transformer")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


@pytest.mark.parametrize("part", ["", "transformer"])
def test_a_denoiser_from_its_folder_and_the_one_above(folder: Path, part: str):
    model = load_denoiser(folder / part)
    assert not model.training
    assert torch.equal(run(model), run(dit()))


def test_a_named_subfolder(tmp_path: Path):
    unet2d().save_pretrained(tmp_path / "prior")
    assert torch.equal(run(load_denoiser(tmp_path, subfolder="prior")), run(unet2d()))
    assert load_meta_denoiser(tmp_path, subfolder="prior").device.type == "meta"
    with pytest.raises(PruningError, match=r"holds no denoiser: none of decoder/config.json is there"):
        load_denoiser(tmp_path, subfolder="decoder")


def test_weights_take_the_asked_type(folder: Path):
    assert load_denoiser(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_denoiser(folder, dtype=None).dtype == torch.float32


def test_a_variant(tmp_path: Path):
    dit().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert load_denoiser(tmp_path, variant="fp16").dtype == torch.float32
    with pytest.raises(
        PruningError,
        match=r"the weights of DiTTransformer2DModel cannot be loaded: there are no weights of the plain variant, only "
        "of: fp16; set model.variant=fp16",
    ):
        load_denoiser(tmp_path)
    dit().save_pretrained(tmp_path)
    with pytest.raises(
        PruningError,
        match=r"no weights of the variant 'bf16', only of: fp16, the plain one; leave model\.variant out, or set "
        r"model\.variant=fp16",
    ):
        load_denoiser(tmp_path, variant="bf16")


def test_pickles_are_not_read(tmp_path: Path):
    dit_latent().save_pretrained(tmp_path / "pipe")
    vae = tmp_path / "pipe" / "vae"
    torch.save(load_file(vae / WEIGHTS), vae / "diffusion_pytorch_model.bin")
    assert load_pipeline(tmp_path / "pipe") is not None
    (vae / WEIGHTS).unlink()
    with pytest.raises(
        PruningError,
        match=r"pipe' cannot be loaded: vae: the weights are there only as a pickle \(diffusion_pytorch_model.bin\), "
        r"which is never read here; convert it once, where you trust it: .*save_pretrained\(folder, safe_serializ",
    ):
        load_pipeline(tmp_path / "pipe")
    with pytest.raises(
        PruningError, match=r"vae has its weights only as a pickle \(diffusion_pytorch_model.bin\)"
    ):
        check_components(tmp_path / "pipe", "transformer")
    dit().save_pretrained(tmp_path / "bare", safe_serialization=False)
    with pytest.raises(PruningError, match=r"cannot be loaded: the weights are there only as a pickle"):
        load_denoiser(tmp_path / "bare")


def test_a_text_encoder_that_is_a_pickle_is_not_read(tmp_path: Path):
    stable_diffusion(tmp_path / "made").save_pretrained(tmp_path / "pipe")
    encoder = tmp_path / "pipe" / "text_encoder"
    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(
        PruningError, match=r"text_encoder: the weights are there only as a pickle \(pytorch_model.bin\)"
    ):
        load_pipeline(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("names", "variant", "fault"),
    [
        (["config.json", WEIGHTS], None, None),
        (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"], "fp16", None),
        (["model.fp16-00001-of-00002.safetensors"], None, "set model.variant=fp16"),
        (["config.json"], None, None),
        (["model.bin", "model.safetensors"], None, None),
    ],
)
def test_names_of_weight_files(names: list[str], variant: str | None, fault: str | None):
    found = weights_fault(names, variant)
    assert (found is None) if fault is None else (found is not None and found.endswith(fault))


def test_the_hub_is_asked_why_weights_are_missing(monkeypatch: pytest.MonkeyPatch):
    files = ["config.json", "unet/a.fp16.safetensors", "vae/b.safetensors"]
    monkeypatch.setattr(weights, "list_repo_files", lambda source, revision: files)
    assert weights.weight_names("owner/model", "unet", None) == ["a.fp16.safetensors"]
    assert weights.weight_names("owner/model", None, None) == ["config.json"]

    def offline(source: str, revision: str | None) -> list[str]:
        raise ConnectionError

    monkeypatch.setattr(weights, "list_repo_files", offline)
    assert weights.weight_names("owner/model", "unet", None) == []


@pytest.mark.parametrize("part", ["", "transformer", "transformer/config.json"])
def test_a_meta_denoiser_reads_no_weights(folder: Path, part: str):
    (folder / "transformer" / WEIGHTS).unlink()
    model = load_meta_denoiser(folder / part)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} <= {"meta"}
    assert model.config.num_layers == 3
    assert not model.training


def test_schedulers(folder: Path, tmp_path: Path):
    assert load_scheduler(folder).config.prediction_type == "v_prediction"
    DDIMScheduler().save_pretrained(tmp_path / "flat")  # as in google/ddpm-cifar10-32
    assert isinstance(load_scheduler(tmp_path / "flat"), DDIMScheduler)
    with pytest.raises(PruningError, match=r"transformer' has no scheduler"):
        load_scheduler(folder / "transformer")


def test_a_pipeline_takes_a_loaded_denoiser(folder: Path, tmp_path: Path):
    assert load_pipeline(folder) is None
    dit_latent().save_pretrained(tmp_path / "pipe")
    denoiser = load_denoiser(tmp_path / "pipe")
    pipeline = load_pipeline(tmp_path / "pipe", denoiser=denoiser)
    assert pipeline is not None
    assert pipeline.transformer is denoiser
    assert type(pipeline).__name__ == "DiTPipeline"
    (tmp_path / "pipe" / "vae" / WEIGHTS).unlink()
    with pytest.raises(PruningError, match=r"pipe' cannot be loaded"):
        load_pipeline(tmp_path / "pipe", denoiser=denoiser)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_weights_are_named(folder: Path, value: float):
    path = folder / "transformer" / WEIGHTS
    state = load_file(path)
    state["transformer_blocks.1.attn1.to_q.weight"][3, 2] = value
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(PruningError, match=r"'transformer_blocks.1.attn1.to_q.weight' holds NaN or infinity"):
        load_denoiser(folder)


def test_weights_without_a_place_are_named(folder: Path, caplog: pytest.LogCaptureFixture):
    path = folder / "transformer" / WEIGHTS
    state = load_file(path)
    state["transformer_blocks.9.extra.weight"] = torch.ones(2)
    save_file(state, path, metadata={"format": "pt"})
    load_denoiser(folder)
    assert "hold 1 tensor(s) that" in caplog.text
    assert "'transformer_blocks.9.extra.weight'" in caplog.text


def test_missing_weights_are_named(folder: Path):
    path = folder / "transformer" / WEIGHTS
    state = load_file(path)
    del state["proj_out_1.weight"], state["proj_out_2.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(PruningError, match=r"lack 'proj_out_1.weight' and 1 more"):
        load_denoiser(folder)


def test_weights_of_another_shape_or_none(folder: Path):
    path = folder / "transformer" / WEIGHTS
    state = load_file(path)
    state["proj_out_1.bias"] = torch.zeros(3)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(PruningError, match=r"the weights of DiTTransformer2DModel cannot be loaded"):
        load_denoiser(folder)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        PruningError,
        match=r"cannot be loaded: .*safetensors'.* It is damaged \(.*not fully covered\); get it again",
    ):
        load_denoiser(folder)
    path.write_bytes(b"cut short")
    with pytest.raises(PruningError, match=r"the weights of DiTTransformer2DModel cannot be loaded"):
        load_denoiser(folder)
    path.unlink()
    with pytest.raises(PruningError, match=r"the weights of DiTTransformer2DModel cannot be loaded"):
        load_denoiser(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "NoSuchModel"}, r"the class 'NoSuchModel' is not a ModelMixin of diffusers"),
        ({"_class_name": "DDIMScheduler"}, r"the class 'DDIMScheduler' is not a ModelMixin of diffusers"),
        ({"_class_name": "os.system"}, r"the class 'os.system' is not a ModelMixin"),
        ({"architectures": ["CLIP"]}, r"names no class \(_class_name is None\)"),
        ([1], r"config.json: expected a mapping, found \[1\]; mend it"),
        ("{", r"config.json: cannot be read as JSON"),
    ],
)
def test_configs_that_name_no_denoiser(tmp_path: Path, config: object, message: str):
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    for load in (load_denoiser, load_meta_denoiser):
        with pytest.raises(PruningError, match=message):
            load(tmp_path)


def test_a_config_that_cannot_be_built(tmp_path: Path):
    config = {
        "_class_name": "UNet2DModel",
        "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"] * 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PruningError, match=r"diffusers cannot build UNet2DModel"):
        load_meta_denoiser(tmp_path)


def test_folders_without_a_denoiser(tmp_path: Path):
    with pytest.raises(
        PruningError, match=r"holds no denoiser: none of unet/config.json, transformer/config.json, config"
    ):
        load_denoiser(tmp_path)
    unet2d().save_pretrained(tmp_path / "unet")
    dit().save_pretrained(tmp_path / "transformer")
    with pytest.raises(
        PruningError, match=r"several denoisers \(unet, transformer\); name one with subfolder"
    ):
        load_denoiser(tmp_path)


def test_paths_that_are_wrong(tmp_path: Path, folder: Path):
    with pytest.raises(PruningError, match=r"no such folder .*and not a hub id either"):
        load_denoiser(tmp_path / "nowhere")
    with pytest.raises(PruningError, match=r"not a hub id either \(did you mean '.*/model'\?\)"):
        load_denoiser(tmp_path / "modle")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(
        PruningError, match=r"not a hub id either \(it is a link to 'gone', which is not there\)"
    ):
        load_denoiser(tmp_path / "link")
    with pytest.raises(PruningError, match=r"is a file; give the folder that holds config.json"):
        load_denoiser(folder / "transformer" / WEIGHTS)
    with pytest.raises(PruningError, match=r"the model source is empty"):
        load_denoiser(" ")


def test_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Which files are asked for, and what becomes of the ways in which that can fail."""
    asked = []

    def download(repo: str, name: str, *, subfolder: str | None, revision: str | None) -> str:
        asked.append((repo, subfolder, name, revision))
        path = folder / (subfolder or "") / name
        if not path.is_file():
            raise EntryNotFoundError(f"404: {path}")
        return str(path)

    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    model = load_meta_denoiser("owner/model", revision="v1")
    assert num_classes(model) == 10
    assert asked == [("owner/model", part, "config.json", "v1") for part in ("unet", "transformer", None)]
    assert load_pipeline("owner/model") is None
    assert load_scheduler("owner/model").config.prediction_type == "v_prediction"

    def offline(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(
        PruningError, match=r"'owner/model' is no folder here, and as a hub id it cannot be fetched: Local"
    ):
        load_denoiser("owner/model")

    def gated(*args: object, **kwargs: object) -> str:
        raise PermissionError("gated")

    monkeypatch.setattr(hub, "hf_hub_download", gated)
    with pytest.raises(PruningError, match=r"cannot be fetched: PermissionError: gated"):
        load_scheduler("owner/model")


def test_a_hub_that_cannot_be_reached_is_asked_once_unless_the_file_is_here(folder, monkeypatch):
    def unreachable(url: str) -> None:
        assert url.endswith("owner/model/resolve/main/unet/config.json")
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: pytest.fail("would try six times"))
    with pytest.raises(PruningError, match="cannot be fetched: ConnectionError: no network"):
        load_meta_denoiser("owner/model")
    config = folder / "transformer" / "config.json"
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: str(config))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: str(config))
    assert num_classes(load_meta_denoiser("owner/model", subfolder="transformer")) == 10


def test_loading_uses_no_keyword_that_diffusers_calls_old(folder, recwarn):
    model = load_denoiser(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not [w for w in recwarn if "torch_dtype" in str(w.message)]


def test_bundled_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "pruning"
    beside = tmp_path / "recipes"
    (beside / "models" / "toy").mkdir(parents=True)
    (beside / "fast.yaml").write_text("")
    package.mkdir()
    monkeypatch.setattr(sources, "_PACKAGE", package)
    assert bundled("models/toy") == bundled("bundled:models/toy") == beside / "models" / "toy"
    assert resolve_source("bundled:fast.yaml") == str(beside / "fast.yaml")
    for name in ("models/none", "", "../pruning"):
        with pytest.raises(
            PruningError,
            match=r"nothing is bundled as .*; bundled are: bundled:models/toy$",
        ):
            bundled(name)
    (package / "recipes" / "models" / "toy").mkdir(parents=True)  # inside a wheel
    assert bundled("models/toy") == package / "recipes" / "models" / "toy"


def test_sources_that_stay_as_they_are():
    assert resolve_source("owner/name") == "owner/name"
    assert resolve_source("~/x") == str(Path.home() / "x")


@pytest.mark.parametrize("name", ["digits-dit", "digits-unet"])
def test_the_bundled_models(name: str):
    source = f"bundled:models/{name}"
    model, scheduler = load_denoiser(source), load_scheduler(source)
    assert num_classes(model) == 10
    predictions = {"digits-dit": "v_prediction", "digits-unet": "epsilon"}
    assert scheduler.config.prediction_type == predictions[name]
    weights = list(bundled(source).glob(f"*/{WEIGHTS}"))
    assert len(weights) == 1
    assert weights[0].stat().st_size <= 6_000_000
    assert {t.dtype for t in load_file(weights[0]).values()} == {torch.bfloat16}


def test_a_config_that_is_refused_leaves_the_type_of_new_tensors(tmp_path: Path):
    dit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_type": "none"}))
    with pytest.raises(PruningError, match=r"the weights of DiTTransformer2DModel cannot be loaded"):
        load_denoiser(tmp_path, dtype=torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32

"""The input that each denoiser was made for: each class runs on its own, public models cost what is known of them."""

from __future__ import annotations

import re

import diffusers
import pytest
import torch

from pruning.allocation import CostModel
from pruning.errors import PruningError
from pruning.models import example_call, has_native_input, load_meta_denoiser, native_input
from pruning.models.native import NATIVE, WITHOUT
from pruning.models.outputs import with_tuple
from tests.shared import SHARED
from tests.zoo import ZOO, tensors_in

PART = "transformer2d"
"""A tiny model whose class also makes images, but which is a part of a UNet."""

KNOWN = [name for name, tiny in ZOO.items() if tiny.cls in NATIVE and name != PART]
ONE_SAMPLE = ("cosmos3", "cosmos3-sound-action")

REAL = [
    *(
        "sd3",
        "pixart",
        "pixart-sizes",
        "sana-sprint",
        "hunyuan-dit11",
        "cogview3",
        "audioldm",
        "allegro",
        "amused",
    ),
    *("animatediff-sdxl", "bria-fibo2", "consisid", "cosmos2-video", "cosmos25-transfer", "hidream", "latte"),
    *("longcat_audio", "omnigen", "prior", "spectrogram-diffusion", "stable-cascade", "stable_audio3"),
    *("transformer2d-dit", "transformer2d-vectors", "unet1d-value", "unet3d"),
]
"""Tiny models whose native input is small."""

PUBLIC = {
    # GMACs, products of attention included. DiT's paper (Peebles and Xie, 2023) says 118.6 "Gflops" for XL/2 at 256 px.
    "dit_xl_2_256": (118.7, "4 x 32 x 32 latents (256 x 256 px)"),
    "sd15_unet": (401.6, "4 x 64 x 64 latents (512 x 512 px), 77 text tokens"),
    "flux1_dev": (37192.3, "4096 x 64 packed latents (1024 x 1024 px), 512 text tokens"),
    "lumina_image_2": (11914.6, "16 x 128 x 128 latents (1024 x 1024 px), 256 text tokens"),
    "wan21_t2v_14b": (839185.1, "16 x 21 x 60 x 104 latents (81 frames of 832 x 480 px), 512 text tokens"),
    "stable_audio_open": (1136.0, "64 x 1024 latents (48 s), 128 text tokens, 2 time tokens"),
}


def on_meta(name: str) -> torch.nn.Module:
    tiny = ZOO[name]
    with torch.device("meta"):
        model = getattr(diffusers, tiny.cls)(**tiny.config)
    return model.to("meta").eval()


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_class_is_counted_on_its_native_input(name: str):
    model = on_meta(name)
    native = native_input(model, 1 if name in ONE_SAMPLE else 2)
    cost = CostModel.trace(model, native.call, [])
    assert cost.macs() > sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1) // 2
    assert re.match(r"\d+", native.words)


def test_every_class_has_a_native_input_or_a_reason():
    assert {tiny.cls for tiny in ZOO.values()} == {*NATIVE, *WITHOUT}
    assert not {*NATIVE} & {*WITHOUT}


@pytest.mark.parametrize("name", [PART, *(name for name, tiny in ZOO.items() if tiny.cls in WITHOUT)])
def test_the_reason_is_said(name: str):
    with pytest.raises(PruningError, match=WITHOUT.get(ZOO[name].cls, "is a part of a UNet")):
        native_input(on_meta(name))


@pytest.mark.parametrize("name", REAL)
def test_native_inputs_are_also_real_ones(name: str):
    tiny = ZOO[name]
    model = getattr(diffusers, tiny.cls)(**tiny.config).eval()
    call = example_call(model, 2)
    with torch.no_grad():
        found = list(tensors_in(model(**with_tuple(model, call))))
    assert found
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found)


def test_a_video_on_the_meta_device_takes_no_memory():
    call = native_input(on_meta("wan"), 1).call
    assert {
        tensor.device.type for tensor in tensors_in(call) if tensor.is_floating_point() and tensor.ndim > 2
    } == {"meta"}


def test_what_is_not_known_is_said():
    assert not has_native_input(torch.nn.Linear(2, 2))
    with pytest.raises(
        PruningError, match=r"denoiser class 'Linear': what it is called with is not known here; known: "
    ):
        native_input(torch.nn.Linear(2, 2))
    model = on_meta("sd3")
    model.register_to_config(sample_size=None)  # type: ignore[operator]
    with pytest.raises(
        PruningError, match="SD3Transformer2DModel: the config does not say what the model is called"
    ):
        native_input(model)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_cost_what_they_are_known_for(name: str):
    path = SHARED / "configs" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"public configs are not here ({path}); set SINKPRUNE_SHARED to their folder")
    model = load_meta_denoiser(path)
    native = native_input(model)
    giga, words = PUBLIC[name]
    assert native.words == words
    assert CostModel.trace(model, native.call, []).macs() / 1e9 == pytest.approx(giga, rel=1e-3)

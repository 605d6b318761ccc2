"""Example calls of every family and every kind of condition."""

from __future__ import annotations

import json

import pytest
import torch

from pruning.errors import PruningError
from pruning.models import (
    FAMILIES,
    denoise,
    denoiser_call,
    example_call,
    load_meta_denoiser,
    null_class,
    num_classes,
    sample_shape,
)
from tests.models import MODELS, dit, unet2d, unet2d_condition
from tests.shared import SHARED

CONDITIONS = {
    "class timestep": lambda: unet2d(class_embed_type="timestep"),
    "class identity": lambda: unet2d(class_embed_type="identity"),
    "text class projection": lambda: unet2d_condition(
        class_embed_type="projection", projection_class_embeddings_input_dim=12
    ),
    "text class simple projection": lambda: unet2d_condition(
        class_embed_type="simple_projection", projection_class_embeddings_input_dim=12
    ),
    "text classes": lambda: unet2d_condition(num_class_embeds=4),
    "text_time": lambda: unet2d_condition(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64
    ),
    "text": lambda: unet2d_condition(addition_embed_type="text", addition_embed_type_num_heads=2),
    "text_image": lambda: unet2d_condition(
        addition_embed_type="text_image", encoder_hid_dim=20, encoder_hid_dim_type="text_image_proj"
    ),
    "image": lambda: unet2d_condition(
        addition_embed_type="image", encoder_hid_dim=20, encoder_hid_dim_type="image_proj"
    ),
    "image_hint": lambda: unet2d_condition(
        in_channels=8, addition_embed_type="image_hint", encoder_hid_dim=20, encoder_hid_dim_type="image_proj"
    ),
    "image_proj alone": lambda: unet2d_condition(encoder_hid_dim=20, encoder_hid_dim_type="image_proj"),
    "text_image_proj alone": lambda: unet2d_condition(
        encoder_hid_dim=20, encoder_hid_dim_type="text_image_proj"
    ),
    "guidance embedding": lambda: unet2d_condition(time_cond_proj_dim=6),
    "widths by block": lambda: unet2d_condition(cross_attention_dim=(24, 24)),
    "oblong": lambda: unet2d(sample_size=(8, 16)),
}


@pytest.mark.parametrize("name", [*MODELS, *CONDITIONS])
def test_every_family_runs_on_its_example_call(name: str):
    model = {**MODELS, **CONDITIONS}[name]()
    call = example_call(model, 2)
    with torch.no_grad():
        out = denoise(model, call)
    assert out.shape == (2, *sample_shape(model))
    assert bool(torch.isfinite(out).all())


def test_example_calls_are_seeded_and_of_the_model_s_type():
    model = dit()
    one, two = example_call(model, 2), example_call(model, 2)
    assert torch.equal(one["hidden_states"], two["hidden_states"])
    other = example_call(model.to(torch.float16), 3)
    assert other["hidden_states"].shape == (3, 1, 8, 8)
    assert other["hidden_states"].dtype == torch.float16
    assert other["class_labels"].shape == other["timestep"].shape == (3,)


def test_meta_models_get_meta_tensors():
    model = unet2d(num_class_embeds=4).to("meta")
    call = example_call(model, 2)
    assert {value.device.type for value in call.values()} == {"meta"}
    assert denoise(model, call).shape == (2, 1, 8, 8)


def test_the_learned_variance_is_dropped():
    model = dit(out_channels=2)
    call = example_call(model, 1)
    with torch.no_grad():
        whole = model(**call, return_dict=False)[0]
        assert whole.shape[1] == 2
        assert torch.equal(denoise(model, call), whole[:, :1])


def test_other_numbers_of_channels_are_kept():
    model = unet2d(in_channels=3, out_channels=1)
    with torch.no_grad():
        assert denoise(model, example_call(model)).shape == (1, 1, 8, 8)


def test_classes():
    assert (num_classes(dit()), null_class(dit())) == (10, 10)
    assert (num_classes(unet2d()), null_class(unet2d())) == (None, None)
    assert num_classes(unet2d(num_class_embeds=5)) == 5
    assert num_classes(unet2d(class_embed_type="timestep")) is None
    assert num_classes(unet2d_condition()) is None


def test_the_null_class_is_a_row_of_the_label_embedding():
    model = dit()
    label, call = null_class(model), example_call(model)
    call["class_labels"] = torch.tensor([label])
    with torch.no_grad():
        assert bool(torch.isfinite(denoise(model, call)).all())


def test_denoiser_call_names_the_sample():
    sample, t = torch.zeros(1), torch.zeros(1)
    assert set(denoiser_call(dit(), sample, t, {"class_labels": t})) == {
        "hidden_states",
        "timestep",
        "class_labels",
    }
    assert set(denoiser_call(unet2d(), sample, t, {})) == {"sample", "timestep"}


def test_unknown_class():
    known = ", ".join(FAMILIES)
    assert {"DiTTransformer2DModel", "UNet2DConditionModel", "UNet2DModel"} <= set(FAMILIES)
    with pytest.raises(PruningError, match=f"denoiser class 'Linear' is not known here; known: {known}"):
        denoiser_call(torch.nn.Linear(2, 2), torch.zeros(1), torch.zeros(1), {})


def test_no_sample_size():
    model = unet2d(sample_size=None)
    with pytest.raises(PruningError, match="UNet2DModel: the config has no sample_size"):
        example_call(model)


CONFIGS = [
    "cm_lsun256",
    "ddim_celeba_64",
    "ddpm_butterflies_128",
    "ddpm_cat_256",
    "ddpm_cifar10_32",
    "dit_xl_2_256",
    "ldm_celebahq_256_unet",
    "sd15_unet",
    "sd21_unet",
    "sdxl_unet",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_public_architectures_run_on_the_meta_device(name: str):
    path = SHARED / "configs" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"public configs are not here ({path}); set SINKPRUNE_SHARED to their folder")
    model = load_meta_denoiser(path)
    config = json.loads(path.read_text())
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sample_shape(model) == (config["in_channels"], config["sample_size"], config["sample_size"])
    assert denoise(model, example_call(model, 2)).shape == (2, *sample_shape(model))

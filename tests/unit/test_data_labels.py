"""Labels of the data against those of the model: null classes and classes that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from pruning.data import ImageData, check_classes, find_null_class, open_images
from pruning.data.labels import golden_stride
from pruning.errors import PruningError
from pruning.models import load_denoiser, null_class, num_classes, set_null_class
from pruning.models.families import NULL_CLASS
from pruning.sampling import sample
from pruning.types import config_hash
from tests.models import dit, unet2d


def data(*classes: int, name: str = "made up") -> ImageData:
    names = {label: f"class {label}" for label in classes}
    return ImageData(
        name, (1, 8, 8), 1, lambda i: torch.zeros(1, 8, 8), lambda i: 0, class_names=names or None
    )


DIGITS = open_images("digits", split="train", channels=1, resolution=8)


def test_a_unet_with_one_class_more_than_the_data_has_a_null_class():
    model = unet2d(num_class_embeds=11)
    label, why = find_null_class(model, DIGITS)
    assert label == 10
    assert why == (
        "UNet2DModel has 11 classes, of which the last, 10, is taken to be 'no class' (digits[train] has 10): guidance "
        "and label dropout use it, and it is never asked for; overrule it with model.null_class=none"
    )
    set_null_class(model, label)
    assert (num_classes(model), null_class(model)) == (10, 10)
    assert find_null_class(model, DIGITS) == (10, None), "a settled model says it itself"


@pytest.mark.parametrize(
    ("build", "classes", "asked", "label"),
    [
        (lambda: unet2d(num_class_embeds=10), range(10), "auto", None),
        (lambda: unet2d(num_class_embeds=11), (3, 5, 7), "auto", None),
        (lambda: unet2d(num_class_embeds=11), (3, 9), "auto", 10),
        (lambda: unet2d(num_class_embeds=11), range(10), "none", None),
        (lambda: unet2d(num_class_embeds=11), (3, 5, 7), "last", 10),
        (lambda: unet2d(num_class_embeds=11), (), "auto", None),
        (dit, range(9), "auto", 10),
        (dit, range(10), "last", 10),
        (unet2d, range(10), "auto", None),
        (unet2d, range(10), "none", None),
    ],
)
def test_the_rule_and_the_setting(build, classes, asked: str, label: int | None):
    assert find_null_class(build(), data(*classes), asked)[0] == label


def test_a_settled_null_class_can_be_taken_back():
    model = unet2d(num_class_embeds=11)
    set_null_class(model, 10)
    label, _ = find_null_class(model, DIGITS, "none")
    set_null_class(model, label)
    assert (num_classes(model), null_class(model)) == (11, None)


@pytest.mark.parametrize(
    ("build", "asked", "message"),
    [
        (unet2d, "last", "'last' was asked, but UNet2DModel has no classes; leave it out"),
        (dit, "none", "'none' was asked, but DiTTransformer2DModel has the null class 10 by its config"),
    ],
)
def test_settings_that_contradict_the_model(build, asked: str, message: str):
    with pytest.raises(PruningError, match=message):
        find_null_class(build(), DIGITS, asked)


def test_only_the_last_class_can_be_settled():
    for classes, label in ((11, 3), (11, "10"), (None, 3)):
        model = unet2d(num_class_embeds=classes)
        model.register_to_config(**{NULL_CLASS: label})
        with pytest.raises(
            PruningError,
            match=f"_null_class is {label!r} in the config; expected the last of its {classes} classes",
        ):
            null_class(model)


def test_the_null_class_is_kept_with_the_model_and_is_no_other_architecture(tmp_path: Path):
    model = unet2d(num_class_embeds=11)
    before = config_hash(model.config)
    set_null_class(model, 10)
    assert config_hash(model.config) == before
    model.save_pretrained(tmp_path)
    assert null_class(load_denoiser(tmp_path)) == 10
    assert UNet2DModel.from_pretrained(tmp_path).config.num_class_embeds == 11


def test_guidance_uses_the_null_class_and_labels_leave_it_out():
    model, scheduler = unet2d(num_class_embeds=11), DDIMScheduler()
    common = {"sample_ids": [0, 1], "num_steps": 3, "seed": 4, "batch_size": 2}
    with pytest.raises(PruningError, match="UNet2DModel has no null class; use"):
        sample(model, scheduler, labels=[3, 4], guidance_scale=0.0, **common)
    set_null_class(model, 10)
    nothing = sample(model, scheduler, labels=[10, 10], **common)
    assert torch.equal(sample(model, scheduler, labels=[3, 4], guidance_scale=0.0, **common), nothing)


def test_missing_classes_are_said():
    model = dit()
    assert check_classes(DIGITS, model) == []
    assert check_classes(DIGITS, unet2d()) == []
    assert check_classes(data(3, 5, 7, name="mine[train]"), model) == [
        "mine[train] has 3 of the 10 classes of DiTTransformer2DModel: 'class 3', 'class 5', 'class 7'; none of class "
        "'0', '1', '2', '4' and 3 more. Calibration and recovery see nothing of those, evaluation asks the model for "
        "all"
    ]


def test_data_without_labels_or_with_too_many():
    check_classes(DIGITS, dit())
    check_classes(data(), unet2d())
    with pytest.raises(
        PruningError, match=r"made up has no labels, but DiTTransformer2DModel has 10 classes; name"
    ):
        check_classes(data(), dit())
    with pytest.raises(
        PruningError,
        match=r"made up has 11 classes, the model only 10: label 10 \('class 10'\), where .* 0 to 9",
    ):
        check_classes(data(1, 10), dit())


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100, 1000])
def test_the_golden_stride_meets_every_class_once(classes):
    stride = golden_stride(classes)
    assert sorted(i * stride % classes for i in range(classes)) == list(range(classes))


def test_a_few_samples_in_the_golden_stride_are_of_classes_far_apart():
    met = sorted(i * golden_stride(100) % 100 for i in range(10))
    assert max(b - a for a, b in zip(met, [*met[1:], met[0] + 100], strict=True)) <= 20

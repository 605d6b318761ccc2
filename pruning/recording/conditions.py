"""What is recorded for images: what a call of the pipeline is asked with, and which of them goes with an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning import models
from pruning.data import ImageData
from pruning.data.images import cached_images
from pruning.errors import PruningError
from pruning.models.pipelines import STEPS, call_parameters
from pruning.recording.calls import RecordedCalls
from pruning.recording.decoding import DECODING, Decoding
from pruning.recording.images import ImageCalls

logger = logging.getLogger(__name__)

LEVELS = 100
"""Sampling steps, and so noise levels, at which images are shown where nobody says how many."""


@dataclass(frozen=True)
class Conditions:
    """What is recorded for images.

    Attributes:
        inputs: One mapping for each recorded sample.
        of_image: Row of the data -> recorded sample.
        without: The recorded sample of no class or prompt; None where the model knows none.
    """

    inputs: list[dict[str, Any]]
    of_image: Callable[[int], int]
    without: int | None = None


def conditions_of(
    pipeline_class: type, denoiser: nn.Module, data: ImageData, images: Sequence[int]
) -> Conditions:
    """Return what is recorded for some images: each of their prompts once, or all classes, or one sample.

    Args:
        pipeline_class: Class of the pipeline.
        denoiser: Its denoiser, which says what classes it has; may be on the meta device.
        data: Where the images are from.
        images: Rows of it.

    Raises:
        PruningError: If the model has classes, and the data have no labels or others.
    """
    taken, images = call_parameters(pipeline_class), [int(i) for i in images]
    if "prompt" in taken:
        texts = data.captions(images)
        if texts is None:
            logger.warning("%s has no captions: the empty prompt goes with every image", data.name)
            return Conditions([{"prompt": ""}], lambda image: 0)
        known = {text: number for number, text in enumerate(dict.fromkeys([*texts, ""]))}
        number = {image: known[text] for image, text in zip(images, texts, strict=True)}
        return Conditions([{"prompt": text} for text in known], number.__getitem__, known[""])
    classes = models.num_classes(denoiser) if "class_labels" in taken else None
    if classes is None:
        return Conditions([{}], lambda image: 0)
    fetch, name = data.fetch_label, type(denoiser).__name__
    if fetch is None:
        raise PruningError(f"{name} has {classes} classes, but {data.name} has no labels: give label_column")
    if (data.num_classes or 0) > classes:
        raise PruningError(f"{data.name} has {data.num_classes} classes; {name} has {classes}")
    null = models.null_class(denoiser)
    labels = [*range(classes), *([] if null is None else [null])]
    inputs = [{"class_labels": [label]} for label in labels]
    return Conditions(inputs, fetch, None if null is None else classes)


def call_for_images(pipeline_class: type, scheduler: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pipeline's call is given for images: what is asked, and `LEVELS` steps where that says nothing."""
    if STEPS not in call_parameters(pipeline_class) or asked.get(STEPS) is not None:
        return dict(asked)
    most = (scheduler.config.get(key) for key in ("num_train_timesteps", "original_inference_steps"))
    return {**asked, STEPS: min([LEVELS, *filter(None, most)])}


def open_image_calls(
    folder: Path, pipeline: Any, denoiser: str, data: ImageData, images: Sequence[int], conditions: Conditions
) -> ImageCalls:
    """Return images within recorded calls.

    Args:
        folder: Recording of what `conditions` says, for images.
        pipeline: Whose autoencoder is asked.
        denoiser: Name of the component.
        data: Where the images are from.
        images: Rows of it.
        conditions: Of these images.
    """
    decoding, calls = Decoding.load(folder / DECODING), RecordedCalls.open(folder)

    def encode(pixels: Tensor, generators: list[torch.Generator]) -> Tensor:
        return decoding.latents_of(pipeline, pixels, generators)

    return ImageCalls(
        calls,
        denoiser,
        data.name,
        images,
        cached_images(data),
        encode,
        conditions.of_image,
        conditions.without,
    )

"""What a tiny pipeline is: a builder of random components, samples to ask it for, and how it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from tests.models import randomise
from tests.zoo import ZOO

PROMPTS = ("a red fox", "two boats on a grey lake", "a tin cup")
"""The first and the last have as many tokens."""


@dataclass(frozen=True)
class TinyPipeline:
    """A tiny random pipeline.

    Attributes:
        build: Builds it on the CPU, the same weights every time, progress bar off.
        inputs: Arguments of three samples, one mapping a sample.
        call: Arguments that all samples share.
        kind: What a sample is told.
    """

    build: Callable[[], DiffusionPipeline]
    inputs: Sequence[Mapping[str, Any]]
    call: Mapping[str, Any]
    kind: Literal["text", "class", "unconditional", "image"]


def text(build: Callable[[], DiffusionPipeline], **call: Any) -> TinyPipeline:
    """Return an entry that is told three prompts of different lengths."""
    return TinyPipeline(
        build, [{"prompt": prompt} for prompt in PROMPTS], {"num_inference_steps": 4, **call}, "text"
    )


def pictures(frames: int, height: int, width: int) -> list[list[Image.Image]]:
    """Return three short films of smooth random colours."""
    draws = np.random.default_rng(0).uniform(0, 255, (3, frames, 4, 4, 3)).astype(np.uint8)
    return [
        [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in one]
        for one in draws
    ]


def image(
    build: Callable[[], DiffusionPipeline],
    size: tuple[int, int],
    name: str = "image",
    prompt: bool = True,
    film: int | None = None,
    sized: bool = True,
    **call: Any,
) -> TinyPipeline:
    """Return an entry that is told three images, or films of so many frames, most with a prompt and the size."""
    films = pictures(film or 1, *size)
    inputs = [{name: frames if film else frames[0]} for frames in films]
    if prompt:
        inputs = [{"prompt": words, **one} for words, one in zip(PROMPTS, inputs, strict=True)]
    told = {"height": size[0], "width": size[1]} if sized else {}
    return TinyPipeline(build, inputs, {"num_inference_steps": 4, **told, **call}, "image")


def masked(entry: TinyPipeline) -> TinyPipeline:
    """Return an entry whose samples also have a mask of what is to be made anew, which is their image's right half."""
    white = Image.new("L", entry.inputs[0]["image"].size)
    white.paste(255, (white.width // 2, 0, white.width, white.height))
    return replace(entry, inputs=[{**one, "mask_image": white} for one in entry.inputs])


def denoiser(name: str, **changes: Any) -> nn.Module:
    """Return the tiny model of this name in the zoo, with changes of its config."""
    tiny = ZOO[name]
    return getattr(diffusers, tiny.cls)(**{**tiny.config, **changes})


def scheduler(name: str, **config: Any) -> Any:
    """Return a scheduler of diffusers."""
    return getattr(diffusers, name)(**config)


def flow(**config: Any) -> Any:
    """Return Euler's scheduler for flow matching."""
    return scheduler("FlowMatchEulerDiscreteScheduler", **config)


def assemble(
    cls: str | type[DiffusionPipeline], gain: Mapping[str, float] | None = None, **parts: Any
) -> DiffusionPipeline:
    """Return a pipeline of these components, each module with non-trivial weights of its own.

    `gain` by component is how much a layer passes on of what it is given, where 0.7 is too much or too little.
    """
    pipeline = (getattr(diffusers, cls) if isinstance(cls, str) else cls)(**parts)
    for seed, (name, part) in enumerate(sorted(parts.items())):
        if isinstance(part, nn.Module):
            randomise(part, seed, (gain or {}).get(name, 0.7))
    pipeline.set_progress_bar_config(disable=True)
    # Some clean their prompts with ftfy, whether it is installed or not.
    vars(sys.modules[type(pipeline).__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
    return pipeline


@torch.no_grad()
def run(tiny: TinyPipeline, pipeline: DiffusionPipeline, sample: int = 0, seed: int = 0) -> np.ndarray:
    """Return what the pipeline makes of one sample, drawn from this seed."""
    generator = torch.Generator().manual_seed(seed)
    output = pipeline(
        **tiny.inputs[sample], **tiny.call, generator=generator, output_type="np", return_dict=False
    )[0]
    return np.asarray(output)

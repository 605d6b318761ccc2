"""Samples from any pipeline of diffusers: images, videos or sounds, each of its own seed.

A sample depends on its index alone. Where a pipeline makes several in one call they may depend on each other (a prompt
is padded to the longest beside it), so that a batch is made only where `batch_fault` finds nothing against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.errors import PruningError, failing
from pruning.models.pipelines import as_it_was, call_parameters, weights_of
from pruning.sampling.arguments import as_taken, shortened
from pruning.sampling.pixels import PixelPipeline
from pruning.sampling.steps import in_batches, sample_generators

SAME, SAME_HALF = 1e-4, 2e-2
"""Largest difference, of values in [0, 1], that rounding explains in single and in half precision."""

REHEARSED = 2
"""Steps of a rehearsal; a single one does not show what a scheduler does between steps."""

MEDIA = {"images": 4, "image": 4, "frames": 5, "video": 5, "audios": 3}
"""Fields of a pipeline's output that hold samples, and how many axes they have."""

Inputs = Sequence[Mapping[str, Any]]
"""What each sample brings to a call: ``{"prompt": text}``, ``{"class_labels": [k]}``, or nothing."""


@torch.no_grad()
def sample_pipeline(
    pipeline: Any,
    inputs: Inputs,
    *,
    sample_ids: Sequence[int] | Tensor,
    seed: int,
    arguments: Mapping[str, Any] | None = None,
    batch_size: int = 1,
) -> Tensor:
    """Sample from a pipeline, which is left as it was.

    Args:
        pipeline: A `PixelPipeline`, or any pipeline of diffusers that gives images, videos or sounds.
        inputs: One mapping per sample.
        sample_ids: N sample indices; the same index, input and seed give the same sample.
        seed: Seed of the run.
        arguments: What every call is given besides, by the pipeline's own names.
        batch_size: Samples in one call; see `batch_fault`.

    Returns:
        On the CPU: images uint8 (N, C, H, W), videos uint8 (N, F, C, H, W), or sounds float32 (N, channels, samples).

    Raises:
        PruningError: If inputs are missing, the pipeline fails, or what it gives is NaN or none of these.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    if len(inputs) != len(ids):
        raise PruningError(f"{len(inputs)} inputs for {len(ids)} samples: give one per sample")

    def draw(rows: slice) -> Tensor:
        return _draw(pipeline, inputs[rows], ids[rows], seed, arguments or {})

    samples = in_batches(ids, batch_size, draw, _finished)
    if len({each.shape[1:] for each in samples}) > 1:
        shapes = sorted({tuple(each.shape[1:]) for each in samples})
        raise PruningError(f"{type(pipeline).__name__} gives samples of several shapes: {shapes}")
    return torch.cat(samples) if samples else torch.empty(0, dtype=torch.uint8)


def pipeline_call(
    pipeline: Any, inputs: Inputs, sample_ids: Sequence[int] | Tensor, seed: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of one call of a pipeline that samples `sample_ids`; see `sample_pipeline`.

    Several samples stand in lists, as do the texts for all of them, which pipelines want like the prompts.

    Raises:
        PruningError: If the pipeline cannot make several samples in one call.
    """
    taken, count = call_parameters(type(pipeline)), len(inputs)
    names, generators = list(inputs[0]), sample_generators(torch.as_tensor(sample_ids), seed)
    ours: dict[str, Any] = {"output_type": "np", "return_dict": True, "batch_size": count}
    ours["generator"] = generators if count > 1 else generators[0]
    call = as_taken(type(pipeline), arguments) | {name: ours[name] for name in ours if name in taken}
    if count == 1:
        call |= inputs[0]
    elif not names and "batch_size" not in taken:
        raise PruningError(f"{type(pipeline).__name__} makes one sample a call")
    else:
        texts = [name for name, value in arguments.items() if isinstance(value, str) and _is_prompt(name)]
        call |= {name: [arguments[name]] * count for name in texts}
        for name in names:
            values = [one[name] for one in inputs]
            call[name] = list(chain.from_iterable(values)) if isinstance(values[0], list) else values
    if isinstance(pipeline, PixelPipeline):
        call["latents"] = pipeline.initial_noise(sample_ids, seed)
    return call


def rehearse(
    pipeline: Any, one: Mapping[str, Any], *, seed: int, arguments: Mapping[str, Any] | None = None
) -> Tensor:
    """Return one sample of few steps, as `sample_pipeline` does; what fails, fails here."""
    few = shortened(type(pipeline), arguments or {}, REHEARSED)
    return sample_pipeline(pipeline, [one], sample_ids=[0], seed=seed, arguments=few)


@torch.no_grad()
def batch_fault(
    pipeline: Any, inputs: Inputs, *, seed: int, arguments: Mapping[str, Any] | None = None
) -> str | None:
    """Say why samples must be made one a call, or return None: two together, of few steps, are those of two calls.

    Args:
        pipeline: As for `sample_pipeline`.
        inputs: Two, best a short and a long prompt.
        seed: Seed of the run.
        arguments: As for `sample_pipeline`.
    """
    if isinstance(pipeline, PixelPipeline):
        return None  # labels and noise are rows, and nothing is padded
    few = shortened(type(pipeline), arguments or {}, REHEARSED)
    alone = [_draw(pipeline, [one], [i], seed, few) for i, one in enumerate(inputs)]
    try:
        together = _draw(pipeline, inputs, range(len(inputs)), seed, few)
    except PruningError as error:
        return str(error)
    shapes = [tuple(each.shape) for each in (*alone, together)]
    if shapes[:2] != [(1, *shapes[2][1:])] * 2:
        return f"one by one they are of shapes {shapes[0]} and {shapes[1]}, together {shapes[2]}"
    off = float((together - torch.cat(alone)).abs().max())
    half = any(part.dtype in (torch.float16, torch.bfloat16) for part in weights_of(pipeline))
    return None if off <= (SAME_HALF if half else SAME) else f"together they differ by {off:.2g}"


def _draw(
    pipeline: Any, inputs: Inputs, sample_ids: Sequence[int] | Tensor, seed: int, arguments: Mapping[str, Any]
) -> Tensor:
    """Return the samples of one call of a pipeline, in floating point; its own errors become ours."""
    call = pipeline_call(pipeline, inputs, sample_ids, seed, arguments)
    given = {key: value for key, value in call.items() if key not in ("generator", "latents")}
    seeded = sample_generators(torch.as_tensor(sample_ids[:1]), seed)[0].initial_seed()
    is_ours = isinstance(pipeline, PixelPipeline)  # it changes nothing, and calls may run side by side
    with failing(type(pipeline).__name__, given), nullcontext() if is_ours else as_it_was(pipeline, seeded):
        output = pipeline(**call)
    return _in_layout(output, len(inputs), type(pipeline).__name__)


def _is_prompt(name: str) -> bool:
    return re.fullmatch(r"(negative_)?prompt(_\d+)?", name) is not None


def _in_layout(output: Any, count: int, name: str) -> Tensor:
    """Return the samples in what a pipeline gave, with channels in front: of height and width, or of time.

    What they are is said by the name of the output's first field, and not by their shape: one video, which some give
    without the axis of samples, is shaped like several images.
    """
    field, value = next(iter(output.items())) if isinstance(output, Mapping) else ("", None)
    if field not in MEDIA:
        said = field or type(output).__name__
        raise PruningError(f"{name} gives {said}, none of {', '.join(MEDIA)}: it makes no samples to look at")
    found = torch.as_tensor(np.asarray(value.float().cpu() if isinstance(value, Tensor) else value)).float()
    is_picture = field != "audios"
    if found.ndim == MEDIA[field] - 1:  # one video, or sounds of one channel
        found = found.unsqueeze(0 if is_picture else 1)
    if (
        found.ndim not in (3, 4, 5)
        or len(found) != count
        or (is_picture and found.shape[-1] not in (1, 3, 4))
    ):
        raise PruningError(
            f"{name} gives {field} of shape {tuple(found.shape)} for {count} sample(s); expected images (B, H, W, C), "
            "frames (B, F, H, W, C) or audios (B, channels, samples)"
        )
    return found.movedim(-1, -3) if is_picture else found


def _finished(drawn: Tensor) -> Tensor:
    """Return images and videos in [0, 1] as rounded uint8, sounds as they are."""
    return drawn if drawn.ndim == 3 else (drawn.clamp(0, 1) * 255).round().to(torch.uint8)

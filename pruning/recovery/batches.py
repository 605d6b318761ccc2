"""Training batches as a function of the seed and the step, so that resuming is exact by construction.

Every draw has its own generator, seeded by (seed, what it is for, its index): the order of the images by epoch,
timesteps and label dropout by optimiser step, noise by the position of the sample in the run. Nothing depends on
how a step is split over micro-batches and processes, and there is no generator state to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data import ImageData, indexed_noise, noise_and_target, num_train_timesteps, sample_generator
from pruning.data.batches import move
from pruning.data.conditioning import Conditioner
from pruning.models.families import denoiser_call, null_class
from pruning.recovery.labels import drop_captions, drop_classes
from pruning.settings import Recover

ORDER, STEP_DRAWS, TRAINING_NOISE, ENCODER, MODULES = range(16, 21)
"""Streams of `sample_generator` that recovery uses; evaluation and calibration use lower ones."""

CACHE_BYTES = 2**30
"""Memory for decoded images."""


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch.

    Attributes:
        call: Arguments of the denoiser.
        target: What it should predict (B, C, H, W).
        timesteps: int64 (B,), in ``[0, num_train_timesteps)``.
        sample_ids: Indices into the data (B,), on the CPU.
        dropped: Which samples lost their label (B,), bool, on the CPU.
        position: Position of its first sample in the run; identifies the micro-batch.
    """

    call: dict[str, Any]
    target: Tensor
    timesteps: Tensor
    sample_ids: Tensor
    dropped: Tensor
    position: int


def sample_order(length: int, first: int, count: int, seed: int) -> Tensor:
    """Return the data indices at positions ``[first, first + count)`` of the run, int64 (count,).

    Epochs follow each other without a gap, each a fresh permutation seeded by (seed, epoch), so that a batch may
    span epochs and may be larger than the data.
    """
    positions = torch.arange(first, first + count)
    epochs, offsets = positions // length, positions % length
    indices = torch.empty(count, dtype=torch.long)
    for epoch in epochs.unique().tolist():
        chosen = epochs == epoch
        indices[chosen] = _epoch_order(length, epoch, seed)[offsets[chosen]]
    return indices


@lru_cache(maxsize=2)
def _epoch_order(length: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=sample_generator(seed, epoch, ORDER))


def step_draws(
    step: int, batch_size: int, num_timesteps: int, label_dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the timesteps and the label dropout of one optimiser step.

    Timesteps are stratified, one in each of B equal parts of ``[0, T)`` in random order: each is uniform, and the
    loss of a step has less variance than with independent ones (Kingma et al., arXiv 2107.00630, appendix I.1).

    Returns:
        timesteps (B,), int64; dropped (B,), bool, each true with probability `label_dropout`.
    """
    generator = sample_generator(seed, step, STEP_DRAWS)
    strata = torch.randperm(batch_size, generator=generator)
    within = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    timesteps = ((strata + within) * (num_timesteps / batch_size)).long().clamp_max(num_timesteps - 1)
    dropped = torch.rand(batch_size, generator=generator) < label_dropout
    return timesteps, dropped


@dataclass(frozen=True)
class BatchSource:
    """All that a training batch is made of.

    Attributes:
        model: The denoiser, read for its call arguments only.
        data: Clean images.
        conditioner: Makes clean samples and conditioning of them.
        scheduler: Noises them.
        settings: Batch size, micro-batches and label dropout, null resolved.
        seed: Of every draw.
        device: Where the batches go.
        rank: This process, 0 <= rank < processes.
        processes: How many share the samples of each step.
    """

    model: nn.Module
    data: ImageData
    conditioner: Conditioner
    scheduler: Any
    settings: Recover
    seed: int
    device: torch.device
    rank: int = 0
    processes: int = 1

    def slices(self) -> list[slice]:
        """Return the micro-batches of this process as slices of the step's B samples."""
        parts = self.settings.gradient_accumulation
        size = self.settings.batch_size // (parts * self.processes)
        first = self.rank * size * parts
        return [slice(first + m * size, first + (m + 1) * size) for m in range(parts)]

    def sample_ids(self, step: int, part: slice) -> Tensor:
        """Return the data indices of one micro-batch."""
        first = step * self.settings.batch_size + part.start
        return sample_order(len(self.data), first, part.stop - part.start, self.seed)

    def build(self, step: int, part: slice, ids: Tensor, images: Tensor) -> TrainingBatch:
        """Noise and condition a micro-batch: the samples `part` of `step` (from 0), with their indices and images."""
        size, count = self.settings.batch_size, num_train_timesteps(self.scheduler)
        timesteps, dropped = step_draws(step, size, count, self.settings.label_dropout or 0.0, self.seed)
        timesteps, dropped = timesteps[part].to(self.device), dropped[part]
        position = step * size + part.start
        places = range(position, position + len(ids))
        x0, conditioning = self.conditioner(
            images,
            self.data.labels(ids),
            drop_captions(self.data.captions(ids), dropped),
            [sample_generator(self.seed, p, ENCODER) for p in places],
        )
        conditioning = move(conditioning, self.device, torch.float32)
        conditioning = drop_classes(conditioning, dropped, null_class(self.model))
        noise = indexed_noise(places, x0.shape[1:], self.seed, TRAINING_NOISE).to(self.device)
        x0 = x0.to(self.device, torch.float32)
        noised, target, asked = noise_and_target(self.scheduler, x0, noise, timesteps)
        call = denoiser_call(self.model, noised, asked, conditioning)
        return TrainingBatch(call, target, timesteps, ids, dropped, position)


def training_batches(
    source: BatchSource, first_step: int, last_step: int
) -> Generator[TrainingBatch, None, None]:
    """Yield the micro-batches of steps ``[first_step, last_step)`` of this process, in order.

    One thread decodes the images of the next micro-batch while the model works on this one; where all of them fit into
    `CACHE_BYTES`, each is decoded once and kept. Close the generator to end the thread.

    Raises:
        PruningError: From the data, the conditioner or the scheduler.
    """
    data = source.data
    fits = len(data) * math.prod(data.shape) * 4 <= CACHE_BYTES
    read = _cached(data) if fits else data.images
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as pool:

        def ask(step: int, part: slice) -> tuple[int, slice, Tensor, Future[Tensor]]:
            ids = source.sample_ids(step, part)
            return step, part, ids, pool.submit(read, ids)

        asked = (ask(step, part) for step in range(first_step, last_step) for part in source.slices())
        ahead = next(asked, None)
        while ahead is not None:
            step, part, ids, images = ahead
            batch = source.build(step, part, ids, images.result())
            ahead = next(asked, None)  # after `build`, for one thread reads the data at a time
            yield batch


def _cached(data: ImageData) -> Callable[[Tensor], Tensor]:
    """Return ``ids -> images``, decoding each image of `data` once."""
    held = torch.empty(len(data), *data.shape)
    present = torch.zeros(len(data), dtype=torch.bool)

    def read(ids: Tensor) -> Tensor:
        missing = ids[~present[ids]].unique()
        if len(missing):
            held[missing] = data.images(missing)
            present[missing] = True
        return held[ids]

    return read

"""Training batches as a function of the seed and the step, so that resuming is exact by construction.

Every draw has its own generator, seeded by (seed, what it is for, its index): the order of the images by epoch,
timesteps and label dropout by optimiser step, noise by the position of the sample in the run. Nothing depends on
how a step is split over micro-batches and processes, and there is no generator state to save.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data import ImageData, indexed_noise, noise_and_target, num_train_timesteps, sample_generator
from pruning.data.batches import move
from pruning.data.conditioning import Conditioner
from pruning.data.images import cached_images
from pruning.models.families import denoiser_call, null_class
from pruning.recovery.labels import drop_captions, drop_classes
from pruning.recovery.weighting import loss_weights
from pruning.settings import Recover

ORDER, STEP_DRAWS, TRAINING_NOISE, ENCODER, MODULES = range(16, 21)
"""Streams of `sample_generator` that recovery uses; evaluation and calibration use lower ones."""


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch.

    Attributes:
        call: Arguments of the denoiser.
        target: What it should predict (B, C, H, W), or None where only the dense model's answer is known.
        timesteps: (B,); of images int64 in ``[0, num_train_timesteps)``.
        sample_ids: Indices into the data (B,), on the CPU.
        dropped: Which samples lost their label (B,), bool, on the CPU.
        position: Position of its first sample in the run; identifies the micro-batch.
        weights: Of the samples' losses (B,), float32; None: all 1.
        read: The model's output -> what `target` is of; None: the first channels of its first tensor.
        exact: Where arguments are that keep their type whatever that of the dense model is.
    """

    call: dict[str, Any]
    target: Tensor | None
    timesteps: Tensor
    sample_ids: Tensor
    dropped: Tensor
    position: int
    weights: Tensor | None = None
    read: Callable[[Any], Tensor] | None = None
    exact: Collection[tuple[str | int, ...]] = ()

    def answer_in(self, output: Any) -> Tensor:
        """Return the part of a model's output that `target` is of."""
        assert self.target is not None
        return output[0][:, : self.target.shape[1]] if self.read is None else self.read(output)


Batches = Callable[[int, int], Generator[TrainingBatch, None, None]]
"""(first step, last step) -> the micro-batches of steps ``[first, last)`` of this process, in order. The generator is
closed when it is no longer needed."""


@dataclass(frozen=True)
class Share:
    """What one process trains on, whatever the batches are made of.

    Attributes:
        settings: Batch size B, micro-batches, weighting and label dropout, null resolved.
        seed: Of every draw.
        device: Where the batches go.
        rank: This process, 0 <= rank < processes.
        processes: How many share the samples of each step.
    """

    settings: Recover
    seed: int
    device: torch.device
    rank: int = 0
    processes: int = 1

    def parts(self, first_step: int, last_step: int) -> Iterator[tuple[int, slice]]:
        """Yield the micro-batches of this process: step, and which of its B samples."""
        count = self.settings.gradient_accumulation
        size = self.settings.batch_size // (count * self.processes)
        for step in range(first_step, last_step):
            for part in range(self.rank * count, (self.rank + 1) * count):
                yield step, slice(part * size, (part + 1) * size)


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
class ImageSource:
    """Training batches of noised images: all that they are made of.

    Attributes:
        model: The denoiser, read for its call arguments only.
        data: Clean images.
        conditioner: Makes clean samples and conditioning of them.
        scheduler: Noises them.
        share: What this process trains on.
    """

    model: nn.Module
    data: ImageData
    conditioner: Conditioner
    scheduler: Any
    share: Share

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)`` of this process, in order.

        One thread decodes the images of the next micro-batch while the model works on this one; where all of them fit
        into memory, each is decoded once and kept. Close the generator to end the thread.

        Raises:
            PruningError: From the data, the conditioner or the scheduler.
        """
        read, size, seed = cached_images(self.data), self.share.settings.batch_size, self.share.seed
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as pool:

            def ask(step: int, part: slice) -> tuple[int, slice, Tensor, Future[Tensor]]:
                ids = sample_order(len(self.data), step * size + part.start, part.stop - part.start, seed)
                return step, part, ids, pool.submit(read, ids)

            asked = (ask(step, part) for step, part in self.share.parts(first_step, last_step))
            ahead = next(asked, None)
            while ahead is not None:
                step, part, ids, images = ahead
                batch = self.build(step, part, ids, images.result())
                ahead = next(asked, None)  # after `build`, for one thread reads the data at a time
                yield batch

    def build(self, step: int, part: slice, ids: Tensor, images: Tensor) -> TrainingBatch:
        """Noise and condition a micro-batch: the samples `part` of `step` (from 0), with their indices and images."""
        settings, seed, device = self.share.settings, self.share.seed, self.share.device
        size, count = settings.batch_size, num_train_timesteps(self.scheduler)
        timesteps, dropped = step_draws(step, size, count, settings.label_dropout or 0.0, seed)
        timesteps, dropped = timesteps[part].to(device), dropped[part]
        position = step * size + part.start
        places = range(position, position + len(ids))
        x0, conditioning = self.conditioner(
            images,
            self.data.labels(ids),
            drop_captions(self.data.captions(ids), dropped),
            [sample_generator(seed, p, ENCODER) for p in places],
        )
        conditioning = move(conditioning, device, torch.float32)
        conditioning = drop_classes(conditioning, dropped, null_class(self.model))
        noise = indexed_noise(places, x0.shape[1:], seed, TRAINING_NOISE).to(device)
        x0 = x0.to(device, torch.float32)
        noised, target, asked = noise_and_target(self.scheduler, x0, noise, timesteps)
        call = denoiser_call(self.model, noised, asked, conditioning)
        weights = loss_weights(self.scheduler, timesteps, settings.loss_weighting)
        return TrainingBatch(call, target, timesteps, ids, dropped, position, weights)

"""Noised images as a pipeline would show them to its denoiser: recorded arguments around latents made of images."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pruning.data.batches import NoisedBatch, NoisedBatches, bucket_edges, check_buckets
from pruning.data.seeding import LATENT, NOISE, TIMESTEP, check_seed, indexed_noise, sample_generator
from pruning.errors import PruningError
from pruning.recording.batches import (
    Made,
    batch_of,
    check_batch_size,
    check_where,
    with_latents,
)
from pruning.recording.calls import NOT_NOISED, RecordedCalls
from pruning.recording.format import Row
from pruning.recording.templates import later_rows

HELD = 1024
"""Conditions at a step whose arguments are held in memory."""


@dataclass(frozen=True)
class ImageCalls:
    """Images, how they become latents, and the recorded calls in which those are shown.

    Attributes:
        calls: Recorded with `for_images`.
        denoiser: Name of the component.
        name: What the images are.
        images: Their numbers: rows of the data.
        read: (numbers of images) -> images (B, C, H, W) in [-1, 1].
        encode: (images, one generator each) -> clean samples in the scheduler's layout, float32 (B, ...) on the CPU.
        condition: Number of an image -> recorded sample with its prompt or class.
        without: The recorded sample of no prompt or class; None where the model knows none.
    """

    calls: RecordedCalls
    denoiser: str
    name: str
    images: Sequence[int]
    read: Callable[[Sequence[int]], Tensor]
    encode: Callable[[Tensor, list[torch.Generator]], Tensor]
    condition: Callable[[int], int]
    without: int | None = None

    def latents(self, images: Sequence[int], seed: int) -> Tensor:
        """Return clean samples of images, (B, ...); each draws from its own generator."""
        return self.encode(self.read(images), [sample_generator(seed, i, LATENT) for i in images])

    @cached_property
    def positions(self) -> list[int]:
        """Sampling steps at which the denoiser is asked, the one of the most noise first."""
        if self.calls.head.target is None:
            raise PruningError(f"{self.calls.folder}: {NOT_NOISED}")
        return sorted({row.step for row in self.calls.of(self.denoiser) if not row.sample})

    @cached_property
    def _recorded(self) -> dict[tuple[int, int], list[Row]]:
        found: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in self.calls.rows:
            found[row.sample, row.step].append(row)
        return dict(found)

    @cached_property
    def _held(self) -> OrderedDict[tuple[int, int], list[tuple[Row, Any]]]:
        return OrderedDict()

    def rows(self, condition: int, step: int) -> list[tuple[Row, Any]]:
        """Return what the denoiser is asked of a recorded sample at a step, with the arguments, for each branch."""
        if (condition, step) not in self._held:
            found = self._recorded.get((condition, step))
            if found is None:  # not all its steps were recorded, those of the first sample were
                first, then = self._recorded[0, 0], self._recorded.get((0, step), [])
                found = later_rows(self._recorded[condition, 0], first, then)
            ours = [row for row in found if row.denoiser == self.denoiser]
            for row in ours:
                if not row.places or row.levels is None:
                    raise PruningError(f"{self.calls.folder}: {row.name}: its latents are not known")
            self._held[condition, step] = [(row, self.calls.arguments(row)) for row in ours]
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        return self._held[condition, step]


Asked = tuple[int, Row, Any]
"""Position of an image in its chunk, and the row and the arguments in which it is shown."""


def noised_images(
    source: ImageCalls,
    *,
    images: Sequence[int] | None = None,
    batch_size: int = 32,
    timestep_buckets: int = 8,
    seed: int = 0,
    conditional: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> NoisedBatches:
    """Return every chunk of images once in every timestep bucket, from the least noise to the most.

    An image has the *same* noise in every bucket, which the stability of sinks needs, and its step is drawn inside the
    bucket. All draws are seeded by (seed, image): neither the batch size nor the order of the images changes them.

    Args:
        source: Images and recorded calls.
        images: Their numbers; None: all of the source.
        batch_size: Images of a call.
        timestep_buckets: T equal parts of the sampling steps; bucket 0 has the least noise.
        seed: Of the noise and the steps.
        conditional: With the images' classes or prompts; else as guidance asks a model without.
        device: Where the calls go.
        dtype: Type of the floating point tensors of two or more dimensions; None: as recorded.

    Raises:
        PruningError: For numbers that do not fit the recording, before the first batch is made.
    """
    check_buckets(timestep_buckets, source.calls.steps)
    check_seed(seed)
    check_where(device, dtype)
    if not conditional and source.without is None:
        raise PruningError("conditional is False, but the model knows no call without a class or prompt")
    numbers = [int(i) for i in (source.images if images is None else images)]
    if not numbers:
        raise PruningError("no images asked; give at least one")
    total = source.calls.steps
    edges = pairwise(bucket_edges(total, timestep_buckets))  # bucket 0 is the last steps
    by_bucket = [
        [step for step in source.positions if total - high <= step < total - low] for low, high in edges
    ]

    row_count = len(numbers) * timestep_buckets * len(source.rows(0, source.positions[0]))

    def of(size: int) -> NoisedBatches:
        check_batch_size(size)

        def make() -> Iterator[NoisedBatch]:
            for start in range(0, len(numbers), size):
                chunk = numbers[start : start + size]
                x0 = source.latents(chunk, seed)
                eps = indexed_noise(chunk, x0.shape[1:], seed, NOISE)
                drawn = [_draws(timestep_buckets, seed, image) for image in chunk]
                for bucket, steps in enumerate(by_bucket):
                    if not steps:
                        continue
                    wanted: list[Asked] = []
                    for k, image in enumerate(chunk):
                        condition = source.condition(image) if conditional else source.without
                        assert condition is not None
                        step = steps[-1 - int(drawn[k][bucket] * len(steps))]
                        wanted += [(k, row, tree) for row, tree in source.rows(condition, step)]
                    for part in apart(source.calls, wanted):
                        yield image_batch(source.calls, part, chunk, x0, eps, bucket, device, dtype)

        return NoisedBatches(
            make,
            total,
            timestep_buckets,
            rows=row_count,
            batch_size=size,
            remake=of,
            device=torch.device(device),
        )

    return of(batch_size)


def _draws(buckets: int, seed: int, image: int) -> list[float]:
    """Return for each bucket where in it an image is shown, in [0, 1)."""
    generator = sample_generator(seed, image, TIMESTEP)
    return torch.rand(buckets, generator=generator, dtype=torch.float64).tolist()


def apart(calls: RecordedCalls, wanted: Sequence[Asked]) -> list[list[Asked]]:
    """Return what is asked in groups that can share a call."""
    found: dict[tuple[str, int], list[Asked]] = defaultdict(list)
    for position, row, tree in wanted:
        which = position if calls.head.denoisers[row.denoiser].alone else 0
        found[calls.signature(row), which].append((position, row, tree))
    return list(found.values())


def image_batch(
    calls: RecordedCalls,
    part: Sequence[Asked],
    images: Sequence[int],
    x0: Tensor,
    eps: Tensor,
    bucket: int,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> NoisedBatch:
    """Return the batch of what can share a call; `images`, `x0` and `eps` are of the chunk."""
    made: list[Made] = [
        with_latents(calls, row, 0, tree, x0[k : k + 1], eps[k : k + 1]) for k, row, tree in part
    ]
    rows, samples = [row for _, row, _ in part], [images[k] for k, _, _ in part]
    return batch_of(calls, rows, made, samples=samples, bucket=bucket, device=device, dtype=dtype)

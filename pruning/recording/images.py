"""Noised images as a pipeline would show them to its denoiser: recorded arguments around latents made of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pruning.data.batches import NoisedBatch, NoisedBatches, bucket_edges
from pruning.data.seeding import NOISE, TIMESTEP, indexed_noise, sample_generator
from pruning.errors import PruningError
from pruning.recording.batches import (
    Made,
    batch_of,
    check_batch_size,
    check_recorded_buckets,
    check_seed,
    check_where,
    with_latents,
)
from pruning.recording.calls import NOT_NOISED, RecordedCalls
from pruning.recording.format import Row


@dataclass(frozen=True)
class ImageCalls:
    """Recorded calls and, for each image, the latents and the recorded sample whose arguments go with it.

    Attributes:
        calls: Recorded with `for_images`.
        denoiser: Name of the component.
        latents: (numbers of images) -> clean samples in the scheduler's layout, float32 (B, ...) on the CPU.
        condition: Number of an image -> recorded sample with its prompt or class.
        without: The recorded sample of no prompt or class; None where the model knows none.
    """

    calls: RecordedCalls
    denoiser: str
    latents: Callable[[Sequence[int]], Tensor]
    condition: Callable[[int], int]
    without: int | None = None

    @cached_property
    def rows(self) -> dict[tuple[int, int], list[Row]]:
        """Rows of each recorded sample and step, one for each branch of guidance."""
        if self.calls.head.target is None:
            raise PruningError(f"{self.calls.folder}: {NOT_NOISED}")
        found: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in self.calls.of(self.denoiser):
            if not row.places or row.levels is None:
                raise PruningError(f"{self.calls.folder}: {row.name}: its latents are not known")
            found[row.sample, row.step].append(row)
        return found

    @cached_property
    def _trees(self) -> dict[int, Any]:
        return {}

    def arguments(self, row: Row) -> Any:
        """Return the recorded arguments of a row, read once."""
        if id(row) not in self._trees:
            self._trees[id(row)] = self.calls.arguments(row)
        return self._trees[id(row)]

    def made(self, row: Row, x0: Tensor, eps: Tensor) -> Made:
        """Return a row's arguments around the noised latents of an image, and the target; all (1, ...)."""
        return with_latents(self.calls, row, 0, self.arguments(row), x0, eps)


def noised_images(
    source: ImageCalls,
    *,
    indices: Sequence[int],
    batch_size: int,
    timestep_buckets: int,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> NoisedBatches:
    """Return every chunk of images once in every timestep bucket, as `pruning.data.noised_batches` does.

    The steps are those that were recorded, one of its bucket drawn for each image and bucket.

    Raises:
        PruningError: For numbers that do not fit the recording, before the first batch is made.
    """
    check_recorded_buckets(source.calls, timestep_buckets)
    check_batch_size(batch_size)
    check_seed(seed)
    check_where(device, dtype)
    steps, edges = source.calls.steps, bucket_edges(source.calls.steps, timestep_buckets)

    def make() -> Iterator[NoisedBatch]:
        for start in range(0, len(indices), batch_size):
            chunk = [int(i) for i in indices[start : start + batch_size]]
            x0 = source.latents(chunk)
            eps = indexed_noise(chunk, x0.shape[1:], seed, NOISE)
            drawn = [
                torch.rand(timestep_buckets, generator=sample_generator(seed, i, TIMESTEP)) for i in chunk
            ]
            for bucket, (low, high) in enumerate(pairwise(edges)):  # bucket 0 is the last steps
                asked = [steps - high + int(u[bucket] * (high - low)) for u in drawn]
                wanted = [
                    (k, row)
                    for k, (image, step) in enumerate(zip(chunk, asked, strict=True))
                    for row in source.rows[source.condition(image), step]
                ]
                for part in apart(source.calls, wanted):
                    yield image_batch(source, part, chunk, x0, eps, bucket, device, dtype)

    per_image = len(next(iter(source.rows.values())))
    rows = len(indices) * timestep_buckets * per_image
    return NoisedBatches(make, steps, timestep_buckets, rows=rows)


def apart(calls: RecordedCalls, wanted: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Return rows, each with the position of its image, in groups that can share a call."""
    found: dict[tuple[str, int], list[tuple[int, Row]]] = defaultdict(list)
    for position, row in wanted:
        which = position if calls.head.denoisers[row.denoiser].alone else 0
        found[calls.signature(row), which].append((position, row))
    return list(found.values())


def image_batch(
    source: ImageCalls,
    part: Sequence[tuple[int, Row]],
    images: Sequence[int],
    x0: Tensor,
    eps: Tensor,
    bucket: int,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> NoisedBatch:
    """Return the batch of rows that share a call, each with the position of its image in `images`, `x0` and `eps`."""
    made = [source.made(row, x0[k : k + 1], eps[k : k + 1]) for k, row in part]
    rows, samples = [row for _, row in part], [images[k] for k, _ in part]
    return batch_of(source.calls, rows, made, samples=samples, bucket=bucket, device=device, dtype=dtype)

"""Recorded calls as batches for calibration and evaluation: as they were asked, or their latents noised anew."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.batches import NoisedBatch, NoisedBatches, check_buckets, move
from pruning.data.seeding import check_seed, sample_generator
from pruning.errors import PruningError, shown
from pruning.recording.axes import count_rows, cut
from pruning.recording.calls import NOT_NOISED, RecordedCalls
from pruning.recording.checking import MISFITS
from pruning.recording.format import Row
from pruning.recording.targets import KINDS
from pruning.recording.trees import longer_types, original
from pruning.recording.watching import as_tuple
from pruning.settings.section import fits

SOURCES = ("points", "x0")
FRESH_NOISE = 35
"""Stream of `sample_generator`."""

Made = tuple[Any, Tensor]
"""A row's arguments with its latents made anew, and what the denoiser should answer."""


def recorded_batches(
    calls: RecordedCalls,
    *,
    denoiser: str | None = None,
    source: str = "points",
    samples: Sequence[int] | None = None,
    batch_size: int = 32,
    timestep_buckets: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> NoisedBatches:
    """Return the recorded rows of a denoiser in batches of one signature and bucket, from the least noise to the most.

    Args:
        calls: Recorded calls.
        denoiser: Name of the component; may be left out where only one was recorded.
        source: ``points``: the calls as the pipeline made them, without targets. ``x0``: their latents are made anew of
            the sample's end and fresh noise at the row's own step, with the target; where the oracle check has proven
            how.
        samples: Which samples; None: all.
        batch_size: Most rows of a call; rows that cannot share one go apart.
        timestep_buckets: T equal parts of the run; bucket 0 is its end, with the least noise.
        seed: Of the fresh noise.
        device: Where the calls go.
        dtype: Type of the floating point tensors of two or more dimensions; None: as recorded.

    Raises:
        PruningError: For names or numbers that do not fit the recording, before the first batch is made.
    """
    check_seed(seed)
    rows = chosen_rows(calls, denoiser, samples)
    check_buckets(timestep_buckets, calls.steps)
    check_source(calls, rows, source)
    check_where(device, dtype)

    def of(size: int) -> NoisedBatches:
        check_batch_size(size)
        chunks = list(_chunks(calls, rows, size, timestep_buckets))

        def make() -> Iterator[NoisedBatch]:
            for bucket, chunk in chunks:
                made = [renoised(calls, row, seed) for row in chunk] if source == "x0" else None
                samples = [row.sample for row in chunk]
                yield batch_of(calls, chunk, made, samples=samples, bucket=bucket, device=device, dtype=dtype)

        return NoisedBatches(
            make,
            calls.steps,
            timestep_buckets,
            has_targets=source == "x0",
            rows=len(rows),
            batch_size=size,
            remake=of,
            device=torch.device(device),
        )

    return of(batch_size)


def chosen_rows(calls: RecordedCalls, denoiser: str | None, samples: Sequence[int] | None) -> list[Row]:
    """Return the rows of a denoiser and of some samples; none at all is a PruningError, or those made for images."""
    if calls.is_for_images:
        raise PruningError(
            f"{calls.folder}: it was recorded for images, so that its latents say nothing; give it images "
            "(noised_images, recover_images), or record without for_images"
        )
    if denoiser is None:
        if len(calls.denoisers) > 1:
            have = ", ".join(f"{name} ({kind})" for name, kind in calls.denoisers.items())
            raise PruningError(f"{calls.folder}: several denoisers were recorded ({have}); name one")
        denoiser = next(iter(calls.denoisers))
    wanted = range(calls.samples) if samples is None else samples
    if not isinstance(wanted, Iterable) or not all(fits(sample, int) for sample in wanted):
        raise PruningError(f"samples is {shown(samples)}; expected numbers of samples, or None for all")
    if outside := [sample for sample in wanted if not 0 <= sample < calls.samples]:
        raise PruningError(
            f"{calls.folder}: sample {outside[0]} asked; {calls.samples} were recorded, from 0 on"
        )
    chosen = set(wanted)
    rows = [row for row in calls.of(denoiser) if row.sample in chosen]
    if not rows:
        raise PruningError(f"{calls.folder}: none of the samples asked has a call of {denoiser!r}")
    return rows


def check_batch_size(batch_size: int) -> None:
    """Raise PruningError unless a batch has rows."""
    if not fits(batch_size, int) or batch_size < 1:
        raise PruningError(f"batch_size {shown(batch_size)} must be at least 1")


def check_where(device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Raise PruningError unless tensors can go there, in that type."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise PruningError(f"dtype is {shown(dtype)}; expected a floating point type such as torch.bfloat16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise PruningError(f"device is {shown(device)}, which cannot be used: {reason}") from error


def check_takes(calls: RecordedCalls, row: Row, model: nn.Module) -> None:
    """Raise PruningError unless a model takes the arguments of a row, as far as their names say."""
    names = dict.fromkeys(calls.arguments(row))
    try:
        inspect.signature(type(original(model)).forward).bind(model, **names)
    except TypeError as error:
        raise PruningError(
            f"{calls.folder}: {type(original(model)).__name__} does not take what was recorded of "
            f"{calls.denoisers[row.denoiser]} ({error}); give the model whose pipeline was recorded"
        ) from error


def check_source(calls: RecordedCalls, rows: Sequence[Row], source: str) -> None:
    """Raise PruningError for a source that is none, or that the rows cannot give."""
    if source not in SOURCES:
        raise PruningError(f"source {source!r} is unknown; valid: {', '.join(SOURCES)}")
    if source == "x0":
        check_noising(calls, rows)


def check_noising(calls: RecordedCalls, rows: Sequence[Row]) -> None:
    """Raise PruningError unless the latents of all rows can be made anew."""
    if calls.head.target is None:
        raise PruningError(f"{calls.folder}: {calls.head.identity['pipeline']}: {NOT_NOISED}")
    for row in rows:
        if not row.places or row.levels is None:
            raise PruningError(
                f"{calls.folder}: {row.name}: its latents are not known; use the recorded points"
            )
        if not calls.x0.get(row.sample):
            raise PruningError(
                f"{calls.folder}: the end of sample {row.sample} was not kept; use the recorded points"
            )


def renoised(calls: RecordedCalls, row: Row, seed: int, noise: Mapping[int, Tensor] | None = None) -> Made:
    """Return a row's arguments with its latents made anew, and what the denoiser should answer.

    Args:
        calls: Recorded calls.
        row: One that `check_noising` lets pass.
        seed: Of the noise; all branches of a step have the same.
        noise: In its place, by slot, in the scheduler's layout.

    Returns:
        The arguments, and the target (1, ...) of the first slot in the scheduler's layout, float32.
    """
    tree, targets = calls.arguments(row), list[Tensor]()
    for slot in sorted({place.slot for place in row.places}):
        x0 = calls.end(row, slot)
        eps = _noise(row, slot, x0, seed) if noise is None else noise[slot]
        tree, wanted = with_latents(calls, row, slot, tree, x0, eps)
        targets.append(wanted)
    return tree, targets[0]


def with_latents(calls: RecordedCalls, row: Row, slot: int, tree: Any, x0: Tensor, eps: Tensor) -> Made:
    """Return a row's arguments with ``x = signal x0 + noise eps`` wherever its latents are, and the target.

    Args:
        calls: Recorded calls whose target is known.
        row: A row with levels.
        slot: Which of its latents.
        tree: Its arguments.
        x0: The clean sample in the scheduler's layout, (1, ...).
        eps: The noise, of the same shape.
    """
    target = calls.head.target
    assert target is not None
    assert row.levels is not None
    level, map_ = row.levels[slot], target.maps[row.step][slot]
    x = level.signal * x0 + level.noise * eps
    for place in row.places:
        tree = place.put(tree, x) if place.slot == slot else tree
    return tree, (KINDS[target.kind](x0, eps, level) - map_.beta * x) / map_.alpha


def _noise(row: Row, slot: int, x0: Tensor, seed: int) -> Tensor:
    drawn = sample_generator(seed + 7919 * slot, row.sample * 4096 + row.step, FRESH_NOISE)
    return torch.randn(x0.shape, generator=drawn)


def batch_of(
    calls: RecordedCalls,
    rows: Sequence[Row],
    made: Sequence[Made] | None,
    *,
    samples: Sequence[int],
    bucket: int,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> NoisedBatch:
    """Return the batch of rows that share a call.

    Args:
        calls: Recorded calls.
        rows: One or more.
        made: Arguments and target of each row, its latents made anew; None: as they were recorded, without targets.
        samples: Number of each row's sample or image.
        bucket: Timestep bucket.
        device: Where it goes.
        dtype: As for `RecordedCalls.call`.
    """
    trees, targets = ([list(part) for part in zip(*made, strict=True)]) if made else (None, None)
    whole = calls.joined(rows, trees)
    exact = longer_types(whole)
    return NoisedBatch(
        call=move(whole, device, dtype, exact),
        exact=exact,
        target=torch.cat(targets).to(device) if targets else None,
        bucket=bucket,
        sample_ids=torch.tensor(samples),
        timesteps=torch.tensor([time_of(row) for row in rows], dtype=torch.float64),
        branches=tuple(row.call + row.branch for row in rows),
        read=_answers_of(calls, rows, [tuple(one.shape) for one in targets]) if targets else None,
    )


def _answers_of(
    calls: RecordedCalls, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]]
) -> Callable[[Any], Tensor]:
    """Return what reads, in an answer for `rows`, the part that their targets, of these shapes, are of."""
    target = calls.head.target
    assert target is not None
    axes = calls.head.denoisers[rows[0].denoiser].outputs
    slots = [min(place.slot for place in row.places) for row in rows]

    def read(output: Any) -> Tensor:
        output = as_tuple(output)[0]
        count = count_rows(output, axes)
        parts = []
        for index, (row, slot, shape) in enumerate(zip(rows, slots, shapes, strict=True)):
            of_row = cut(output, axes, count, index)
            try:
                parts.append(target.maps[row.step][slot].place.get(of_row, shape))
            except MISFITS as error:
                raise PruningError(
                    f"{calls.folder}: {row.name}: the answer has no place for its target ({error}); it is another "
                    "model's, or the recording was changed"
                ) from error
        return torch.cat(parts)

    return read


def bucket_of(row: Row, steps: int, buckets: int) -> int:
    """Return the timestep bucket of a row: which part of `bucket_edges` of the run, 0 being its end."""
    return (steps - 1 - row.step) * buckets // steps


def time_of(row: Row) -> float:
    """Return the scheduler's timestep of a row, or its position where it has none."""
    return float(row.step) if row.t is None else row.t


def _chunks(
    calls: RecordedCalls, rows: Sequence[Row], batch_size: int, buckets: int
) -> Iterator[tuple[int, list[Row]]]:
    """Yield bucket and rows of each batch, from the least noise to the most."""
    alike: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        alike[bucket_of(row, calls.steps, buckets), calls.signature(row)].append(row)
    for bucket, signature in sorted(alike, key=lambda key: key[0]):
        some = alike[bucket, signature]
        for start in range(0, len(some), batch_size):
            yield bucket, some[start : start + batch_size]

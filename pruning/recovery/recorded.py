"""Training back from recorded calls alone: no text encoder, no autoencoder, no scheduler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.data import NoisedBatch, indexed_noise, sample_generator
from pruning.data.seeding import check_seed
from pruning.errors import PruningError
from pruning.recording import RecordedCalls, Row
from pruning.recording.batches import (
    batch_of,
    check_source,
    check_takes,
    chosen_rows,
    renoised,
)
from pruning.recording.images import Asked, ImageCalls, apart, image_batch
from pruning.recovery.batches import (
    ENCODER,
    TRAINING_NOISE,
    Batches,
    Share,
    TrainingBatch,
    sample_order,
    step_draws,
)
from pruning.recovery.held_out import HeldOut, split
from pruning.recovery.labels import DEFAULT_DROPOUT
from pruning.recovery.loop import Validate
from pruning.recovery.training import Progress, RecoveryResult, checked, train_back
from pruning.recovery.twins import Twin
from pruning.recovery.weighting import min_snr
from pruning.settings import Recover

DRAWS = 21
"""Stream of `sample_generator` that draws the rows of a micro-batch."""


def recover_recorded(
    student: nn.Module,
    teacher: nn.Module,
    calls: RecordedCalls,
    settings: Recover,
    *,
    denoiser: str | None = None,
    source: str = "points",
    samples: Sequence[int] | None = None,
    features: Sequence[Twin] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    validate: Validate | None = None,
    logs: str | Path | None = None,
) -> RecoveryResult:
    """Train `student` in place on recorded calls; all else is as for `recover_images`.

    Args:
        student: The pruned denoiser.
        teacher: The dense denoiser.
        calls: Recorded calls of the dense denoiser's pipeline.
        settings: How to train; `label_dropout` is not read, for the rows hold both branches of guidance.
        denoiser: Name of the component; may be left out where only one was recorded.
        source: ``points``: the calls as they were made, with the dense model's answers. ``x0``: their latents made anew
            of the sample's end and fresh noise, with the target; see `recorded_batches`.
        samples: Which samples; None: all.
        features: Result of `pairs`, where `feature_weight` is above 0; None: the blocks that both models have at the
            same paths.
        seed: Of every draw.
        folder: Where checkpoints go; None writes none.
        device: ``cpu`` or the accelerator's kind; None takes what accelerate finds.
        progress: Called after every step on process 0.
        validate: Called at every evaluation on process 0, with the student, which has the averaged weights then, and
            the steps taken; such as to sample with it.
        logs: Folder in which a tracker may write.

    Raises:
        PruningError: As `recover_images`, and for names or numbers that do not fit the recording.
    """
    check_seed(seed)
    rows = chosen_rows(calls, denoiser, samples)
    check_source(calls, rows, source)
    for model in (student, teacher):
        check_takes(calls, rows[0], model)
    settings = checked_on_calls(settings, source)
    _check_weighting(calls, settings)

    def of(some: list[Row]) -> Callable[[Share], Batches]:
        return lambda share: RecordedSource(calls, some, source == "x0", share).batches

    numbers, held = split(sorted({row.sample for row in rows}), settings, seed)
    held_rows = [row for row in rows if row.sample in {*held}]
    rows = [row for row in rows if row.sample in {*numbers}]
    held_out = HeldOut(len(held), of(held_rows)) if held else None
    seen = {"recording": dict(calls.head.identity), "rows": len(rows), "source": source}
    return train_back(
        student,
        teacher,
        of(rows),
        seen,
        settings,
        seed,
        folder,
        device,
        progress,
        pairs=features,
        held_out=held_out,
        validate=validate,
        logs=logs,
    )


def checked_on_calls(settings: Recover, source: str) -> Recover:
    """Return the settings as `checked` does; a PruningError says what recorded calls of a source cannot give."""
    if settings.loss_weighting == "min_snr" and source != "x0":
        raise PruningError(
            "recovery: loss_weighting='min_snr' needs targets, which points lack; use 'uniform'"
        )
    return checked(settings, has_targets=source == "x0")


def _check_weighting(calls: RecordedCalls, settings: Recover) -> None:
    """Raise PruningError if what the denoiser answers has no such weights."""
    if settings.loss_weighting == "min_snr":
        assert calls.head.target is not None
        min_snr(torch.ones(1), calls.head.target.kind)


def recover_images(
    student: nn.Module,
    teacher: nn.Module | None,
    source: ImageCalls,
    settings: Recover,
    *,
    features: Sequence[Twin] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    validate: Validate | None = None,
    logs: str | Path | None = None,
) -> RecoveryResult:
    """Train `student` in place on noised images; at the end it holds the averaged (EMA) weights, float32, eval mode.

    A run that was stopped in any way goes on from its newest checkpoint in `folder` with the same losses, bit for bit,
    as an uninterrupted one on the CPU (on a GPU as far as its kernels are deterministic). Works under
    ``accelerate launch``; process 0 writes.

    Args:
        student: The pruned denoiser; bfloat16 and float16 weights become float32 master weights.
        teacher: The dense denoiser, in any dtype, moved to the student's device; None only with `distill_weight` and
            `feature_weight` 0.
        source: Images and calls; where the model knows no call without a class or prompt, none is dropped.
        settings: How to train.
        features: Result of `pairs`, where `feature_weight` is above 0; None: the blocks that both models have at the
            same paths.
        seed: Of every draw.
        folder: Where checkpoints go; None writes none.
        device: ``cpu`` or the accelerator's kind, e.g. ``cuda``; None takes what accelerate finds.
        progress: Called after every step on process 0.
        validate: Called at every evaluation on process 0, with the student, which has the averaged weights then, and
            the steps taken; such as to sample with it.
        logs: Folder in which a tracker may write.

    Raises:
        PruningError: For settings out of range, images that do not fit the recording, a folder that cannot be written
            or holds checkpoints of another configuration, or a loss or gradient that is not finite (earlier checkpoints
            are left whole).
    """
    check_seed(seed)
    settings = checked(settings, has_targets=True)
    if not len(source.images):
        raise PruningError("recovery: no image; give a data set with at least one")
    if settings.label_dropout and source.without is None:
        raise PruningError(
            f"recovery: label_dropout={settings.label_dropout}, but the model knows no call without a class or prompt; "
            "set label_dropout to 0 or null"
        )
    dropout = settings.label_dropout
    if dropout is None:
        dropout = 0.0 if source.without is None else DEFAULT_DROPOUT
    _ = source.positions  # what does not fit fails here
    _check_weighting(source.calls, settings)

    def of(some: Sequence[int]) -> Callable[[Share], Batches]:
        return lambda share: ImageSource(replace(source, images=some), share).batches

    numbers, held = split(source.images, settings, seed)
    held_out = HeldOut(len(held), of(held)) if held else None
    images = {"name": source.name, "count": len(source.images)}
    seen = {"recording": dict(source.calls.head.identity), "images": images}
    settings = replace(settings, label_dropout=dropout)
    return train_back(
        student,
        teacher,
        of(numbers),
        seen,
        settings,
        seed,
        folder,
        device,
        progress,
        pairs=features,
        held_out=held_out,
        validate=validate,
        logs=logs,
    )


@dataclass(frozen=True)
class ImageSource:
    """Training batches of noised images within recorded calls.

    Attributes:
        source: Images and calls.
        share: What this process trains on.
    """

    source: ImageCalls
    share: Share

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)`` of this process, in order.

        One thread decodes the images of the next micro-batch while the model works on this one; where all of them fit
        into memory, each is decoded once and kept. Close the generator to end the thread.
        """
        size, seed = self.share.settings.batch_size, self.share.seed
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as pool:

            def ask(step: int, part: slice) -> tuple[int, slice, list[int], Future[Tensor]]:
                count = part.stop - part.start
                order = sample_order(len(self.source.images), step * size + part.start, count, seed)
                images = [int(self.source.images[k]) for k in order.tolist()]
                return step, part, images, pool.submit(self.source.read, images)

            asked = (ask(step, part) for step, part in self.share.parts(first_step, last_step))
            ahead = next(asked, None)
            while ahead is not None:
                step, part, images, pixels = ahead
                batch = self.build(step, part, images, pixels.result())
                ahead = next(asked, None)  # after `build`, for one thread reads the data at a time
                yield batch

    def build(self, step: int, part: slice, images: list[int], pixels: Tensor) -> TrainingBatch:
        """Return the micro-batch of the samples `part` of `step` (from 0), with their numbers and pixels.

        Steps of the sampler are drawn as timesteps are; of several branches of guidance one. In the place of samples
        that cannot share a call with the first (prompts of other lengths) those that can come again, with other noise.
        """
        source, settings, seed, device = self.source, self.share.settings, self.share.seed, self.share.device
        size, positions = settings.batch_size, source.positions
        drawn, dropped = step_draws(step, size, len(positions), settings.label_dropout or 0.0, seed)
        branch = torch.rand(size, generator=sample_generator(seed, step, DRAWS))
        wanted: list[Asked] = []
        for k, image in enumerate(images):
            sample = part.start + k
            condition = source.condition(image)
            if dropped[sample] and source.without is not None:
                condition = source.without
            asked = source.rows(condition, positions[-1 - int(drawn[sample])])
            wanted.append((k, *asked[int(branch[sample] * len(asked))]))
        stand = _stand_ins(source, wanted)
        together = [(k, *wanted[of][1:]) for k, of in enumerate(stand)]
        position = step * size + part.start
        places = range(position, position + len(stand))
        x0 = source.encode(pixels[stand], [sample_generator(seed, place, ENCODER) for place in places])
        eps = indexed_noise(places, x0.shape[1:], seed, TRAINING_NOISE)
        shown = [images[of] for of in stand]
        batch = image_batch(source.calls, together, shown, x0, eps, 0, device, torch.float32)
        weights = weights_of(source.calls, [row for _, row, _ in together], settings, device)
        return _training_batch(batch, position, dropped[part][stand], weights, device)


def _stand_ins(source: ImageCalls, wanted: Sequence[Asked]) -> list[int]:
    """Return for each sample of a micro-batch which is shown in its place, so that all share a call with the first."""
    alike = [k for k, _, _ in apart(source.calls, wanted)[0]]
    if source.calls.head.denoisers[source.denoiser].alone:
        return alike
    taken = set(alike)
    return [k if k in taken else alike[k % len(alike)] for k in range(len(wanted))]


@dataclass(frozen=True)
class RecordedSource:
    """Training batches of recorded rows.

    Attributes:
        calls: The recording.
        rows: Of one denoiser.
        is_renoised: Their latents are made anew.
        share: What this process trains on.
    """

    calls: RecordedCalls
    rows: Sequence[Row]
    is_renoised: bool
    share: Share

    @cached_property
    def _alike(self) -> dict[str, list[Row]]:
        """Rows by signature: those of one can share a call."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            found[self.calls.signature(row)].append(row)
        return found

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)`` of this process, in order."""
        for step, part in self.share.parts(first_step, last_step):
            yield self.build(step * self.share.settings.batch_size + part.start, part.stop - part.start)

    def build(self, position: int, count: int) -> TrainingBatch:
        """Return the micro-batch whose first sample is at `position` of the run.

        Its first row is drawn from all, the others from those that can share a call with it, with replacement: so every
        row is as likely as any other. Where no two can share one, it is of one row.
        """
        generator = sample_generator(self.share.seed, position, DRAWS)
        first = self.rows[int(torch.randint(len(self.rows), (1,), generator=generator))]
        alike = self._alike[self.calls.signature(first)]
        count = 1 if self.calls.head.denoisers[first.denoiser].alone else count
        others = torch.randint(len(alike), (count - 1,), generator=generator).tolist()
        rows = [first, *(alike[index] for index in others)]
        made = None
        if self.is_renoised:
            made = [renoised(self.calls, row, self.share.seed + position + k) for k, row in enumerate(rows)]
        samples, where = [row.sample for row in rows], {"device": self.share.device, "dtype": torch.float32}
        batch = batch_of(self.calls, rows, made, samples=samples, bucket=0, **where)
        weights = weights_of(self.calls, rows, self.share.settings, self.share.device)
        return _training_batch(
            batch, position, torch.zeros(count, dtype=torch.bool), weights, self.share.device
        )


def _training_batch(
    batch: NoisedBatch, position: int, dropped: Tensor, weights: Tensor | None, device: torch.device
) -> TrainingBatch:
    return TrainingBatch(
        call=batch.call,
        target=batch.target,
        timesteps=batch.timesteps.to(device),
        sample_ids=batch.sample_ids,
        dropped=dropped,
        position=position,
        weights=weights,
        read=batch.read,
        exact=batch.exact,
    )


def weights_of(
    calls: RecordedCalls, rows: Sequence[Row], settings: Recover, device: torch.device
) -> Tensor | None:
    """Return how much the loss of each row counts, (B,); None: all 1."""
    if settings.loss_weighting == "uniform":
        return None
    levels = [row.levels[0] for row in rows if row.levels is not None]
    assert calls.head.target is not None
    snr = torch.tensor([(level.signal / max(level.noise, 1e-8)) ** 2 for level in levels])
    return min_snr(snr, calls.head.target.kind).to(device)

"""Training back from recorded calls alone: no text encoder, no autoencoder, no scheduler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.data import NoisedBatch, indexed_noise, sample_generator
from pruning.errors import PruningError
from pruning.recording import RecordedCalls, Row
from pruning.recording.batches import (
    batch_of,
    check_seed,
    check_source,
    check_takes,
    chosen_rows,
    renoised,
)
from pruning.recording.images import ImageCalls, apart, image_batch
from pruning.recovery.batches import (
    TRAINING_NOISE,
    Batches,
    Share,
    TrainingBatch,
    sample_order,
    step_draws,
)
from pruning.recovery.labels import DEFAULT_DROPOUT
from pruning.recovery.training import Progress, RecoveryResult, checked, train_back
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
    seed: int = 0,
    folder: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> RecoveryResult:
    """Train `student` in place on recorded calls; all else is as for `recover`.

    Args:
        student: The pruned denoiser.
        teacher: The dense denoiser.
        calls: Recorded calls of the dense denoiser's pipeline.
        settings: How to train; `label_dropout` is not read, for the rows hold both branches of guidance.
        denoiser: Name of the component; may be left out where only one was recorded.
        source: ``points``: the calls as they were made, with the dense model's answers. ``x0``: their latents made anew
            of the sample's end and fresh noise, with the target; see `recorded_batches`.
        samples: Which samples; None: all.
        seed: Of every draw.
        folder: Where checkpoints go; None writes none.
        device: ``cpu`` or the accelerator's kind; None takes what accelerate finds.
        progress: Called after every step on process 0.

    Raises:
        PruningError: As `recover`, and for names or numbers that do not fit the recording.
    """
    check_seed(seed)
    rows = chosen_rows(calls, denoiser, samples)
    check_source(calls, rows, source)
    for model in (student, teacher):
        check_takes(calls, rows[0], model)
    settings = checked_on_calls(settings, source)
    if settings.loss_weighting == "min_snr":
        assert calls.head.target is not None
        min_snr(torch.ones(1), calls.head.target.kind)

    def batches(share: Share) -> Batches:
        return RecordedSource(calls, rows, source == "x0", share).batches

    seen = {"recording": dict(calls.head.identity), "rows": len(rows), "source": source}
    return train_back(student, teacher, batches, seen, settings, seed, folder, device, progress)


def checked_on_calls(settings: Recover, source: str) -> Recover:
    """Return the settings as `checked` does; a PruningError says what recorded calls of a source cannot give."""
    if settings.loss_weighting == "min_snr" and source != "x0":
        raise PruningError(
            "recovery: loss_weighting='min_snr' needs targets, which points lack; use 'uniform'"
        )
    return checked(settings, has_targets=source == "x0")


def recover_images(
    student: nn.Module,
    teacher: nn.Module | None,
    source: ImageCalls,
    count: int,
    settings: Recover,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> RecoveryResult:
    """Train `student` in place on noised images within recorded calls; all else is as for `recover`.

    Args:
        student: The pruned denoiser.
        teacher: The dense denoiser; None only with `distill_weight` 0.
        source: Images and calls.
        count: How many images there are.
        settings: How to train. An image that loses its label or caption is asked with `ImageCalls.without`.
        seed: Of every draw.
        folder: Where checkpoints go; None writes none.
        device: ``cpu`` or the accelerator's kind; None takes what accelerate finds.
        progress: Called after every step on process 0.

    Raises:
        PruningError: As `recover`, and for images that do not fit the recording.
    """
    check_seed(seed)
    settings = checked(settings, has_targets=True)
    if settings.label_dropout and source.without is None:
        raise PruningError(
            f"recovery: label_dropout={settings.label_dropout}, but the model knows no call without a label or "
            "caption; set label_dropout to 0 or null"
        )
    dropout = settings.label_dropout
    if dropout is None:
        dropout = 0.0 if source.without is None else DEFAULT_DROPOUT
    target = source.calls.head.target
    if settings.loss_weighting == "min_snr" and target is not None:
        min_snr(torch.ones(1), target.kind)
    _ = source.rows  # what does not fit fails here

    def batches(share: Share) -> Batches:
        return RecordedImageSource(source, count, share).batches

    seen = {"recording": dict(source.calls.head.identity), "images": count}
    settings = replace(settings, label_dropout=dropout)
    return train_back(student, teacher, batches, seen, settings, seed, folder, device, progress)


@dataclass(frozen=True)
class RecordedImageSource:
    """Training batches of noised images within recorded calls.

    Attributes:
        source: Images and calls.
        count: How many images there are.
        share: What this process trains on.
    """

    source: ImageCalls
    count: int
    share: Share

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)`` of this process, in order."""
        for step, part in self.share.parts(first_step, last_step):
            yield self.build(step, part)

    def build(self, step: int, part: slice) -> TrainingBatch:
        """Return the micro-batch of the samples `part` of `step` (from 0).

        Steps of the sampler are drawn as timesteps are; of several branches of guidance one. Only samples that can
        share a call with the first are taken.
        """
        source, settings, seed, device = self.source, self.share.settings, self.share.seed, self.share.device
        size, steps = settings.batch_size, source.calls.steps
        position = step * size + part.start
        ids = sample_order(self.count, position, part.stop - part.start, seed)
        drawn, dropped = step_draws(step, size, steps, settings.label_dropout or 0.0, seed)
        branch = torch.rand(len(ids), generator=sample_generator(seed, position, DRAWS)).tolist()
        rows = []
        for k, image in enumerate(ids.tolist()):
            condition = source.condition(image)
            if source.without is not None and dropped[part][k]:
                condition = source.without
            alike = source.rows[condition, steps - 1 - int(drawn[part][k])]
            rows.append(alike[int(branch[k] * len(alike))])
        together = apart(source.calls, list(enumerate(rows)))[0]
        chosen = [k for k, _ in together]
        ids = ids[chosen]
        x0 = source.latents(ids.tolist())
        eps = indexed_noise([position + k for k in chosen], x0.shape[1:], seed, TRAINING_NOISE)
        indexed = [(k, row) for k, (_, row) in enumerate(together)]
        batch = image_batch(source, indexed, ids.tolist(), x0, eps, 0, device, torch.float32)
        weights = weights_of(source.calls, [row for _, row in together], settings, device)
        return _training_batch(batch, position, dropped[part][chosen], weights, device)


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

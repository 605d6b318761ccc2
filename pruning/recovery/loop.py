"""The loop: one optimiser step after the other, with checkpoints in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pruning.data import sample_generator
from pruning.errors import PruningError
from pruning.recovery.batches import MODULES, Batches, Share, TrainingBatch
from pruning.recovery.checkpoints import TrainingState, write_checkpoint
from pruning.recovery.features import Features
from pruning.recovery.held_out import best_of, is_over
from pruning.recovery.labels import hold_label_embeddings
from pruning.recovery.lengths import BY_DECAY
from pruning.recovery.objective import training_step
from pruning.recovery.tracking import tell
from pruning.settings import Recover


@dataclass(frozen=True)
class RecoveryProgress:
    """One optimiser step that has just been taken.

    Attributes:
        step: Steps taken so far, from 1.
        steps: Steps asked for.
        loss: Loss of this step, the mean over its samples.
        images_per_second: Images trained on a second since this process started or resumed.
        held_out: Loss of the last evaluation, or None.
    """

    step: int
    steps: int
    loss: float
    images_per_second: float
    held_out: float | None = None


Validate = Callable[[nn.Module, int], None]
"""Is given the student, in evaluation mode with the averaged weights, and the steps taken."""


@dataclass(frozen=True)
class Training:
    """What one recovery run works with; only `state` changes.

    Attributes:
        batches: What is trained on.
        share: The settings and the seed that they are made by.
        accelerator: Device, precision and processes.
        model: The student as accelerate prepared it.
        teacher: The dense model, or None.
        optimizer: AdamW as accelerate prepared it.
        state: Student, averages, optimiser and counters.
        folder: Where checkpoints go, or None.
        identity: The fingerprint written into them.
        features: What watches the blocks of both models, or None.
        held_out: Batches that evaluations show, and how many steps of them, or None.
        validate: Is called at every evaluation on process 0, with the student and the steps taken.
    """

    batches: Batches
    share: Share
    accelerator: Accelerator
    model: nn.Module
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    state: TrainingState
    folder: Path | None
    identity: Mapping[str, Any]
    features: Features | None = None
    held_out: tuple[Batches, int] | None = None
    validate: Validate | None = None

    @property
    def settings(self) -> Recover:
        """Checked settings, null resolved."""
        return self.share.settings


def train(run: Training, progress: Callable[[RecoveryProgress], None] | None) -> None:
    """Take the steps that are left, up to the number asked, the time limit or an early stop, saving on the way.

    Raises:
        PruningError: If a loss or gradient is not finite, or a checkpoint cannot be written.
    """
    settings, state = run.settings, run.state
    seconds_before, resumed_from = state.seconds, state.step
    saved = resumed_from
    limit = math.inf if settings.max_seconds is None else settings.max_seconds
    if run.held_out and not state.step:
        tell(run.accelerator, {"held_out_loss": _evaluate(run, run.held_out)}, 0)
    with closing(run.batches(state.step, settings.steps)) as batches:
        while (
            state.step < settings.steps and state.seconds < limit and not is_over(state.evaluations, settings)
        ):
            step, began = state.step, time.perf_counter()
            loss = optimizer_step(run, step, islice(batches, settings.gradient_accumulation))
            elapsed = time.perf_counter() - began
            loss, elapsed = _agree(run.accelerator, loss, elapsed)
            state.losses.append(loss)
            state.seconds += elapsed
            told = {"loss": loss, "learning_rate": learning_rate_at(settings, step)}
            if run.held_out and state.step % settings.eval_every == 0:
                told["held_out_loss"] = _evaluate(run, run.held_out)
            tell(run.accelerator, told, state.step)
            if progress is not None and run.accelerator.is_main_process:
                images = (state.step - resumed_from) * settings.batch_size
                speed = images / max(state.seconds - seconds_before, 1e-9)
                held_out = state.evaluations[-1][1] if state.evaluations else None
                progress(RecoveryProgress(state.step, settings.steps, loss, speed, held_out))
            if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
                saved = _save(run)
    if run.held_out and state.evaluations[-1][0] != state.step:
        tell(run.accelerator, {"held_out_loss": _evaluate(run, run.held_out)}, state.step)
        saved = -1
    if saved != state.step:
        _save(run)


def _evaluate(run: Training, held_out: tuple[Batches, int]) -> float:
    """Note the loss on what is held out with the averaged weights; keep these if they are the best, if asked to."""
    state = run.state
    averages = dict(zip(state.trained, state.ema.shadow_params, strict=True))
    with using(run, averages):
        loss = _held_out_loss(run, held_out)
        state.evaluations.append((state.step, loss))
        if run.settings.early_stop and best_of(state.evaluations) == len(state.evaluations) - 1:
            state.best = {name: p.detach().to("cpu", copy=True) for name, p in state.trained.items()}
        if run.validate is not None and run.accelerator.is_main_process:
            run.validate(state.student, state.step)
    if state.lengths is not None and state.step:
        state.lengths.store(state.step)
    run.accelerator.wait_for_everyone()
    return loss


def losses_of_lengths(run: Training) -> dict[str, float]:
    """Return the held-out loss of the averages that training ended with, and of those of each length, by name.

    The lowest of them is the state's best then.
    """
    state, held_out = run.state, run.held_out
    assert held_out is not None
    assert state.lengths is not None
    steps = [step for step, _ in state.evaluations if step]
    chosen = best_of(state.evaluations) if run.settings.early_stop else len(state.evaluations) - 1
    assert chosen is not None
    found = {BY_DECAY: state.evaluations[chosen][1]}
    for length in run.settings.ema_lengths if steps else ():
        averages = state.lengths.combined(length, steps)
        with using(run, averages):
            found[f"{length:g}"] = _held_out_loss(run, held_out)
        if min(found, key=found.__getitem__) == f"{length:g}":
            state.best = averages
    return found


@contextmanager
def using(run: Training, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the student have other values of what is trained, in evaluation mode."""
    state, trained = run.state, run.state.trained
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items()}
    take(values, trained)
    state.student.eval()
    try:
        yield
    finally:
        take(before, trained)
        state.student.train()
        hold_label_embeddings(state.student)


@torch.no_grad()
def take(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Give parameters the values of the same names."""
    for name, value in values.items():
        parameters[name].copy_(value)


@torch.no_grad()
def _held_out_loss(run: Training, held_out: tuple[Batches, int]) -> float:
    make, steps = held_out
    total, count = torch.zeros((), device=run.accelerator.device), 0
    with closing(make(0, steps)) as batches:
        for batch in batches:
            total, count = total + loss_of(run, batch), count + 1
    loss, _ = _agree(run.accelerator, float(total) / count, 0.0)
    if not math.isfinite(loss):
        raise PruningError(
            f"recovery: the held-out loss is {loss} after step {run.state.step}; look for NaN in the model or the "
            "held-out samples, or lower learning_rate"
        )
    return loss


def loss_of(run: Training, batch: TrainingBatch) -> Tensor:
    """Return the loss of a micro-batch, in the precision of the run."""
    with run.accelerator.autocast():
        return training_step(
            run.model,
            run.teacher,
            batch,
            distill_weight=run.settings.distill_weight or 0.0,
            feature_weight=run.settings.feature_weight,
            features=run.features,
            weights=batch.weights,
        )


def optimizer_step(run: Training, step: int, batches: Iterable[TrainingBatch]) -> float:
    """Accumulate gradients over the micro-batches of one step, then update the weights and their averages.

    Returns:
        The loss of this process, the mean over its samples.

    Raises:
        PruningError: If the loss or the gradient is not finite; the weights are then those before the step.
    """
    settings, accelerator, parameters = run.settings, run.accelerator, list(run.state.trained.values())
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate_at(settings, step)
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
        # Dropout modules can only draw from the global generator; the caller restores it.
        torch.manual_seed(sample_generator(run.share.seed, batch.position, MODULES).initial_seed())
        with accelerator.accumulate(run.model):
            loss = loss_of(run, batch)
            accelerator.backward(loss)
        total = total + loss.detach() / settings.gradient_accumulation
    norm: Any = accelerator.clip_grad_norm_(parameters, settings.grad_clip or math.inf)
    loss_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
    # With float16 an infinite gradient is the scaler's business: it skips the step and lowers the scale.
    if not math.isfinite(loss_value) or (run.state.scaler is None and not math.isfinite(norm_value)):
        raise _not_finite(run, step, loss_value, norm_value)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.state.ema.step(parameters)
    if run.state.lengths is not None:
        run.state.lengths.step(parameters, step + 1)
    return loss_value


def learning_rate_at(settings: Recover, step: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0).

    Linear warm-up, ``lr * (step + 1) / warmup``, then constant, or half a cosine down to 0 at ``steps``
    (Loshchilov and Hutter, arXiv 1608.03983, equation 5 with one period).
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _agree(accelerator: Accelerator, loss: float, elapsed: float) -> tuple[float, float]:
    """Average over processes, so that all of them record the same loss and stop at the same time."""
    if accelerator.num_processes == 1:
        return loss, elapsed
    pair = torch.tensor([loss, elapsed], dtype=torch.float32, device=accelerator.device)
    mean: Tensor = accelerator.reduce(pair, reduction="mean")  # type: ignore[assignment]
    loss, elapsed = mean.tolist()
    return loss, elapsed


def _save(run: Training) -> int:
    if run.folder is not None and run.accelerator.is_main_process:
        write_checkpoint(run.folder, run.state, run.identity, run.settings.keep_checkpoints)
    run.accelerator.wait_for_everyone()
    return run.state.step


def _not_finite(run: Training, step: int, loss: float, norm: float) -> PruningError:
    kept = f"Earlier checkpoints in {run.folder} are whole. " if run.folder is not None else ""
    return PruningError(
        f"recovery: at step {step + 1} of {run.settings.steps} the loss is {loss} and the gradient's norm {norm} "
        f"(learning rate {learning_rate_at(run.settings, step):.3g}). {kept}Lower learning_rate, lengthen "
        "warmup_steps, set grad_clip, or use mixed_precision 'no' or 'bf16' instead of 'fp16'; at the first step "
        "look for NaN in the model or the images"
    )

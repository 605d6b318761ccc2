"""Calibration runs: over noised batches of a data set, or over whatever a function runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import nn

from pruning.calibration.base import GradientStatistic, expand_needs, needs_targets
from pruning.calibration.calibrator import Calibrator
from pruning.calibration.first_pass import FirstPass
from pruning.calibration.guidance import Guidance
from pruning.calibration.indicator import Omega
from pruning.calibration.instrument import bypassed, frozen
from pruning.calibration.recorder import FirstPassRecorder
from pruning.calibration.weighting import need_first_pass
from pruning.data.batches import NoisedBatch
from pruning.errors import PruningError
from pruning.models.families import denoise
from pruning.types import CalibrationStats, PrunableGroup

Batches = Callable[[], Iterable[NoisedBatch]]
Progress = Callable[[int], None]


def needs_first_pass(needs: Iterable[str], variants: Collection[str], omega: Omega | None = None) -> bool:
    """Tell whether a calibration needs a first pass: for the stability of sinks, for influence or channel means."""
    if need_first_pass(variants, Omega() if omega is None else omega):
        return True
    return any(isinstance(s, GradientStatistic) and s.loss == "output" for s in expand_needs(needs).values())


def first_pass(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    batches: Batches,
    *,
    num_train_timesteps: float,
    timestep_buckets: int = 8,
    queries: int | None = None,
    omega: Omega | None = None,
    timestep_weights: str | Sequence[float] = "uniform",
    seed: int = 0,
    stability: bool = True,
    progress: Progress | None = None,
) -> FirstPass:
    """Run the first pass over noised batches.

    `batches` is called once and yields each sample at every timestep bucket; `progress` is called after each
    batch with its number of rows. The other arguments are those of `FirstPassRecorder`.
    """
    recorder = FirstPassRecorder(
        model,
        groups,
        num_train_timesteps=num_train_timesteps,
        timestep_buckets=timestep_buckets,
        queries=queries,
        omega=omega,
        timestep_weights=timestep_weights,
        seed=seed,
        stability=stability,
    )
    seen = 0
    with frozen(model), recorder, torch.no_grad():
        for batch in batches():
            recorder.identify(batch.sample_ids, batch.bucket)
            denoise(model, batch.call)
            seen += _report(batch, progress)
    _check_any(seen)
    return recorder.result()


_first_pass = first_pass  # `calibrate` has an argument of that name


def first_pass_sampling(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    run: Callable[[], object],
    *,
    num_train_timesteps: float,
    timestep_buckets: int = 8,
    queries: int | None = None,
    omega: Omega | None = None,
    timestep_weights: str | Sequence[float] = "uniform",
    seed: int = 0,
) -> FirstPass:
    """Run the first pass over whatever `run` makes the model do; see `FirstPassRecorder` for the arguments."""
    recorder = FirstPassRecorder(
        model,
        groups,
        num_train_timesteps=num_train_timesteps,
        timestep_buckets=timestep_buckets,
        queries=queries,
        omega=omega,
        timestep_weights=timestep_weights,
        seed=seed,
    )
    with frozen(model), recorder, torch.no_grad():
        run()
    return recorder.result()


def calibrate(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    batches: Batches,
    *,
    needs: Iterable[str],
    num_train_timesteps: float,
    timestep_buckets: int = 8,
    queries: int | None = None,
    rows: int | None = None,
    variants: Collection[str] = (),
    omega: Omega | None = None,
    first_pass: FirstPass | None = None,
    guidance: Guidance | None = None,
    timestep_weights: str | Sequence[float] = "uniform",
    seed: int = 0,
    progress: Progress | None = None,
) -> CalibrationStats:
    """Gather statistics over noised batches, gradient and block statistics included.

    A batch costs one forward, one backward pass for ``taylor`` and one for ``probe`` (activations only), one for
    ``diff_pruning`` (weights), and one forward a block for ``block_change``. The model is put in evaluation mode and
    its parameters take no gradients meanwhile, but for the groups' weights where they are asked for; all is put back.

    Args:
        model: The denoiser.
        groups: What may be removed.
        batches: Called once a pass; yields the same batches every time, each sample at every timestep bucket.
        needs: Names of the statistics to gather.
        num_train_timesteps: Upper end of the timesteps that the model is called with.
        timestep_buckets: T, as the batches number them.
        queries: Queries to look at in each attention call; None for all.
        rows: Rows to look at in each consumer's input; None for all.
        variants: Omega variants to gather besides the plain sums, some of `VARIANTS`.
        omega: How sinks are told and weighted.
        first_pass: Result of the function `first_pass` over the same batches; run here if it is needed and None.
        guidance: How rows are mixed for the variant ``guided``.
        timestep_weights: w_tau: ``uniform``, ``obs_diff`` or T positive numbers, such as those of `sampler_weights`.
        seed: Of all draws but omega's permutations.
        progress: Called after each batch with its number of rows.

    Returns:
        The statistics.

    Raises:
        PruningError: For unknown names, values out of range, no batches, or NaN, naming module, sample and bucket.
    """
    groups, needs = list(groups), list(needs)
    if first_pass is None and needs_first_pass(needs, variants, omega):
        first_pass = _first_pass(
            model,
            groups,
            batches,
            num_train_timesteps=num_train_timesteps,
            timestep_buckets=timestep_buckets,
            queries=queries,
            omega=omega,
            timestep_weights=timestep_weights,
            seed=seed,
            stability=bool(variants),
            progress=progress,
        )
    calibrator = Calibrator(
        model,
        groups,
        needs=needs,
        num_train_timesteps=num_train_timesteps,
        timestep_buckets=timestep_buckets,
        queries=queries,
        rows=rows,
        variants=variants,
        omega=omega,
        first_pass=first_pass,
        guidance=guidance,
        timestep_weights=timestep_weights,
        seed=seed,
    )
    seen = 0
    with frozen(model), calibrator as stats:
        for batch in batches():
            calibrator.identify(batch.sample_ids, batch.bucket)
            _measure(model, calibrator, batch)
            seen += _report(batch, progress)
        _check_any(seen)
    return stats


def _measure(model: nn.Module, calibrator: Calibrator, batch: NoisedBatch) -> None:
    """Run the model on one batch for all that the calibrator wants."""
    with torch.set_grad_enabled(calibrator.wants_gradients):
        output = denoise(model, batch.call)
        if calibrator.wants_gradients:
            calibrator.backward(output, batch.target)
    full = output.detach()
    with calibrator.paused(), torch.no_grad():
        for path in calibrator.ablated_blocks:
            with bypassed(model, path):
                without = denoise(model, batch.call)
            calibrator.block_outputs(path, full, without)


def calibrate_sampling(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    run: Callable[[], object],
    *,
    needs: Iterable[str],
    num_train_timesteps: float,
    timestep_buckets: int = 8,
    queries: int | None = None,
    rows: int | None = None,
    variants: Collection[str] = (),
    omega: Omega | None = None,
    first_pass: FirstPass | None = None,
    guidance: Guidance | None = None,
    timestep_weights: str | Sequence[float] = "uniform",
    seed: int = 0,
) -> CalibrationStats:
    """Gather statistics over whatever `run` makes the model do, such as a pipeline generating from prompts.

    `run` takes nothing and is called once a pass, so it must do the same every time (seed its generators). The
    other arguments are those of `calibrate`.

    Returns:
        The statistics.

    Raises:
        PruningError: As `calibrate`; also if gradient statistics or ``block_change`` are asked for, which need a
            target or further forwards.
    """
    groups, needs = list(groups), list(needs)
    for name, statistic in expand_needs(needs).items():
        if needs_targets(statistic):
            raise PruningError(
                f"statistic {name!r} cannot be gathered from a sampling run, which has no targets; "
                "calibrate on noised images of a data set"
            )
    if first_pass is None and needs_first_pass(needs, variants, omega):
        first_pass = first_pass_sampling(
            model,
            groups,
            run,
            num_train_timesteps=num_train_timesteps,
            timestep_buckets=timestep_buckets,
            queries=queries,
            omega=omega,
            timestep_weights=timestep_weights,
            seed=seed,
        )
    calibrator = Calibrator(
        model,
        groups,
        needs=needs,
        num_train_timesteps=num_train_timesteps,
        timestep_buckets=timestep_buckets,
        queries=queries,
        rows=rows,
        variants=variants,
        omega=omega,
        first_pass=first_pass,
        guidance=guidance,
        timestep_weights=timestep_weights,
        seed=seed,
    )
    with frozen(model), calibrator as stats, torch.no_grad():
        run()
        _check_any(calibrator.samples_seen)
    return stats


def _report(batch: NoisedBatch, progress: Progress | None) -> int:
    rows = len(batch.sample_ids)
    if progress is not None:
        progress(rows)
    return rows


def _check_any(seen: int) -> None:
    if seen == 0:
        raise PruningError("calibration saw no samples; the model did not run once")

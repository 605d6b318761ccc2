"""Calibration runs: a first pass where something needs it, and the pass that gathers the statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from pruning.calibration.calibrator import Calibrator
from pruning.calibration.context import sum_bytes
from pruning.calibration.driver import Progress, SamplingRun
from pruning.calibration.observer import Observer, find
from pruning.calibration.repeated import RepeatedBlocks
from pruning.calibration.rounds import Rounds, plan_rounds
from pruning.calibration.sinks.detection import detection_settings
from pruning.calibration.sinks.stability import FirstPass
from pruning.calibration.sinks.weights import weights_need_first_pass
from pruning.calibration.statistics.first_pass import first_observers
from pruning.calibration.store import STATISTICS, InMemory, StatsFolder
from pruning.data.batches import NoisedBatches
from pruning.errors import PruningError
from pruning.files import write_errors
from pruning.models.pieces import weight_bytes
from pruning.models.stored import weights_digest
from pruning.settings import Calibrate, SinkWeights, knobs_of
from pruning.store.hashes import hash_of
from pruning.store.locks import locked
from pruning.types import CalibrationStats, PrunableGroup

Needs = Iterable[str] | Mapping[str, Observer]
Source = NoisedBatches | SamplingRun
Announce = Callable[[Rounds], None]


def needs_first_pass(
    needs: Needs, variants: Collection[str], sink_weights: SinkWeights | None = None
) -> bool:
    """Tell whether a calibration needs a first pass: for the stability of sinks, for influence or channel means."""
    if weights_need_first_pass(variants, sink_weights or SinkWeights()):
        return True
    return any(observer.sees.needs_means for observer in find(needs).values())


def first_pass(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    source: Source,
    *,
    settings: Calibrate | None = None,
    timestep_weights: Sequence[float] | None = None,
    stability: bool = True,
    seed: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> FirstPass:
    """Run the first pass over noised batches or over a sampling run.

    Each sample must come at every timestep with the same image and noise, or along its sampling trajectory. Without
    `stability` attention is not watched and only channel means are gathered. The other arguments are those of
    `calibrate`, with which they must agree; of `settings` the weights of detected sinks and `rows` do not matter here.

    Raises:
        PruningError: As `calibrate`.
    """
    groups, settings = list(groups), _settings(settings, source)
    needs = first_observers(model, groups, sinks=stability)
    make = partial(
        Calibrator,
        model,
        needs=needs,
        num_train_timesteps=source.num_train_timesteps,
        settings=replace(settings, rows=None),
        timestep_weights=timestep_weights,
        seed=seed,
    )
    rounds, source = _fitted(make, model, groups, source, needs=needs, memory=memory)
    if announce is not None:
        seconds = None if rounds.seconds is None else rounds.seconds / len(rounds.groups)
        # One round: its sums are small, means and a few rows of each sample.
        announce(replace(rounds, groups=(tuple(groups),), seconds=seconds))
    stats = make(groups).gather(source, progress)
    stats.meta["detection"] = detection_settings(settings.sink_weights)
    stats.meta["sites"] = [place for place, found in stats.values.items() if "received" in found]
    return FirstPass(stats)


_first_pass = first_pass  # `calibrate` has an argument of that name


def calibrate(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    source: Source,
    *,
    needs: Needs,
    settings: Calibrate | None = None,
    variants: Collection[str] = (),
    timestep_weights: Sequence[float] | None = None,
    first_pass: FirstPass | None = None,
    optional: Collection[str] = (),
    conditional: int = 1,
    seed: int = 0,
    permutation_seed: int | None = None,
    memory: int | None = None,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> CalibrationStats:
    """Gather statistics over noised batches, or over a sampling run, such as a pipeline generating from prompts.

    A noised batch costs one forward, one backward pass by activations for each loss that is asked for, one by weights
    for ``diff_pruning``, and one forward per block for ``block_change``. A sampling run has no targets and no further
    forwards, so it gives none of these.

    Groups are measured in as many rounds over the same inputs as the memory asks for; the outcome does not depend on
    it.

    Args:
        model: The denoiser.
        groups: What may be removed.
        source: Noised batches, or a sampling run to watch; gone through once per pass and round.
        needs: Names of the statistics to gather (see `pruning.calibration.statistics`), or observers of one's own by
            name; ``samples`` is always gathered.
        settings: See `Calibrator`. None takes the defaults, with the timestep buckets of the batches.
        variants: Weighted rows to gather besides the plain ones, some of `VARIANTS`.
        timestep_weights: w_tau as T positive numbers, such as those of `sampler_weights`, in place of what `settings`
            says.
        first_pass: Result of the function `first_pass` over the same source; run here if it is needed and None.
        optional: Statistics of attention that are left out where it cannot be seen; see `Calibrator`.
        conditional: Which half of a guided call is conditional; see `Calibrator`.
        seed: Of all draws.
        permutation_seed: Of the permutations of the variants ``permuted``; None takes `seed`.
        memory: Bytes that this process may hold where the model is, weights included; None: most of what is free.
        folder: Where the statistics go, round by round, and are read from when they are asked for; what an interrupted
            attempt of the same calibration left there is not measured again. None: they stay in memory.
        identity: What tells the same calibration from others there (JSON types). None: all arguments, the model's
            weights and what it is shown first.
        progress: Called after each noised batch with its number of rows.
        announce: Told how many rounds there are, before the first.

    Returns:
        The statistics, by place; see `CalibrationStats`.

    Raises:
        PruningError: For unknown names, values out of range, no samples, too little memory for a single group, or NaN,
            naming module, sample and bucket.
    """
    groups, settings = list(groups), _settings(settings, source)
    needs = needs if isinstance(needs, Mapping) else list(needs)
    _check_source(source, needs)
    parts: InMemory | StatsFolder = InMemory()
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(_alone(folder))
            if identity is None:
                seeds = seed, seed if permutation_seed is None else permutation_seed
                identity = _identity(groups, source, needs, settings, variants, timestep_weights, seeds) | {
                    "model": weights_digest(model),
                    "optional": sorted(optional),
                    "first_pass": None if first_pass is None else hash_of(first_pass.stats.meta),
                    "conditional": conditional,
                }
            parts = StatsFolder(folder, identity)
        left = [group for group in groups if group.name not in parts.done]
        if groups and not left:
            return parts.finish()
        if first_pass is None and needs_first_pass(needs, variants, settings.sink_weights):
            first_pass = _first_pass(
                model,
                groups,
                source,
                settings=settings,
                timestep_weights=timestep_weights,
                stability=weights_need_first_pass(variants, settings.sink_weights),
                seed=seed,
                memory=memory,
                progress=progress,
            )
        make = partial(
            Calibrator,
            model,
            needs=needs,
            num_train_timesteps=source.num_train_timesteps,
            settings=settings,
            variants=variants,
            timestep_weights=timestep_weights,
            first_pass=first_pass,
            optional=optional,
            conditional=conditional,
            seed=seed,
            permutation_seed=permutation_seed,
            repeated=RepeatedBlocks.of(model, settings.checkpointing),
        )
        rounds, source = _fitted(make, model, left, source, needs=needs, variants=variants, memory=memory)
        if announce is not None:
            announce(rounds)
        for some in rounds.groups:
            parts.add(some, make(some).gather(source, progress))
        return parts.finish()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of the statistics for this process; another one that does is a PruningError."""
    with write_errors(STATISTICS, folder, "Nothing has been changed"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), str(folder), "wait, or name another folder"):
        yield


def _check_source(source: Source, needs: Needs) -> None:
    """Raise PruningError for statistics that cannot be gathered from a source."""
    for name, observer in find(needs).items():
        if isinstance(source, SamplingRun):
            if observer.sees.needs_calls:
                raise PruningError(
                    f"statistic {name!r} cannot be gathered from a run that is only watched: it takes gradients or "
                    "further forwards; calibrate on noised images or on recorded calls"
                )
        elif observer.sees.needs_targets and not source.has_targets:
            raise PruningError(
                f"statistic {name!r} needs to know what the model should answer, which recorded points do not say; "
                "calibrate on noised images, or on recorded calls with source='x0'"
            )


def _identity(
    groups: Sequence[PrunableGroup],
    source: Source,
    needs: Needs,
    settings: Calibrate,
    variants: Collection[str],
    timestep_weights: Sequence[float] | None,
    seeds: tuple[int, int],
) -> dict[str, Any]:
    """Return what tells a calibration from another one of the same model."""
    neutral = {knob.key for knob in knobs_of(Calibrate) if knob.neutral}
    neutral |= {"criteria", "diagnostics"}  # the names of the statistics say it
    return {
        "groups": hash_of([group.name for group in groups]),
        "needs": sorted(find(needs)),
        "variants": sorted(variants),
        "settings": {key: value for key, value in asdict(settings).items() if key not in neutral},
        "timestep_weights": None if timestep_weights is None else [*map(float, timestep_weights)],
        "seed": list(seeds),
        "rows": source.rows if isinstance(source, NoisedBatches) else 0,
        "shown": source.digest() if isinstance(source, NoisedBatches) else "",
    }


def _fitted(
    make: Callable[[Sequence[PrunableGroup]], Calibrator],
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    source: Source,
    *,
    needs: Needs,
    variants: Collection[str] = (),
    memory: int | None,
) -> tuple[Rounds, Source]:
    """Return the rounds in which groups are measured, and the source in batches that fit."""
    buckets = source.timestep_buckets if isinstance(source, NoisedBatches) else Calibrate().timestep_buckets

    def bytes_of(group: PrunableGroup) -> int:
        return sum_bytes(model, [group], needs, variants=tuple(variants), timestep_buckets=buckets)

    held = next(chain(model.parameters(), model.buffers())).device
    shown = source.device if isinstance(source, NoisedBatches) else None  # where streamed weights are copied
    rounds = plan_rounds(
        groups,
        source,
        lambda some, batches: make(some).gather(batches),
        bytes_of=bytes_of,
        weights=weight_bytes(model),
        memory=memory,
        device=shown or held,
    )
    if rounds.batch_size is None or not isinstance(source, NoisedBatches) or source.remake is None:
        return rounds, source
    return rounds, source.remake(rounds.batch_size)


def _settings(settings: Calibrate | None, source: Source) -> Calibrate:
    """Return the settings, whose timestep buckets are those of the batches.

    Raises:
        PruningError: If they are not, or if the source is something else.
    """
    if isinstance(source, SamplingRun):
        return settings or Calibrate()
    if not isinstance(source, NoisedBatches):
        kind = type(source).__name__
        raise PruningError(f"calibration: cannot run on a {kind}; give what noised_batches returns, as it is")
    theirs = source.timestep_buckets
    if settings is not None and settings.timestep_buckets != theirs:
        raise PruningError(
            f"calibration: timestep_buckets is {settings.timestep_buckets}, but the batches have {theirs}; make both "
            "the same"
        )
    return settings or Calibrate(timestep_buckets=theirs)

"""The context manager: whatever runs the model under ``with Calibrator(...) as stats:`` is measured."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration.attention.reading import Readings
from pruning.calibration.context import Context, watches
from pruning.calibration.driver import Driver, Progress, SamplingRun
from pruning.calibration.guidance import mixed
from pruning.calibration.kept import Found, Kept
from pruning.calibration.observer import ALWAYS, VARIANTS, Observer, find
from pruning.calibration.repeated import RepeatedBlocks
from pruning.calibration.rows import Consumer
from pruning.calibration.sinks.detection import detection_settings
from pruning.calibration.sinks.stability import FirstPass
from pruning.calibration.sinks.weights import TokenWeights, weights_need_first_pass
from pruning.calibration.step import Step, StepReader
from pruning.calibration.step import timestep_weights as weights_of
from pruning.calibration.sums import Sums
from pruning.calibration.trajectories import Trajectories
from pruning.calibration.triangle import Triangle
from pruning.data.batches import NoisedBatches
from pruning.errors import PruningError
from pruning.settings import Calibrate
from pruning.types import CalibrationStats, PrunableGroup


class Calibrator:
    """Measures a model on whatever runs it.

    ``with Calibrator(model, groups, needs=..., num_train_timesteps=1000) as stats: pipeline(prompts)``; `stats` is
    complete when the block ends, and empty if it ends by an exception. The model's results do not change; meanwhile it
    is in evaluation mode and its parameters take no gradients, but for those that a statistic asks for. What needs a
    target or further forwards is gathered by `gather`.

    Arguments that are not named here are those of `calibrate`.

    Args:
        num_train_timesteps: Upper end of the timesteps that the model is called with.
        settings: Its `timestep_buckets`, `queries`, `rows`, `timestep_weights`, `sink_weights` and, for the variant
            ``guided``, `guidance_scale` count. 64 queries cost less than 5 % of a UNet's forward at 4,096 tokens; a
            sink that holds 0.3 of the mass with a spread of 0.2 over the queries is then known to 0.025 in one sample.
        first_pass: Result of the function `first_pass`: sink stability (not needed if all sinks weigh the same) and
            influence for the variants, and means for centred effects.
        optional: Statistics of attention that are left out at a module whose attention cannot be seen, if no other
            statistic and no variant looks at it; ``meta["unseen"]`` says at which, and why.
        conditional: Which half of the denoiser's batch is conditional, for the variant ``guided``: 1 in most pipelines
            of diffusers, 0 in ``DiTPipeline`` and in `pruning.sampling`.
        repeated: Blocks that run again in backward passes, shared by calibrations over the same inputs; None: as the
            settings say.

    Raises:
        PruningError: For an unknown statistic or variant, a value out of range, or a missing first pass.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[PrunableGroup],
        *,
        needs: Iterable[str] | Mapping[str, Observer],
        num_train_timesteps: float,
        settings: Calibrate | None = None,
        variants: Iterable[str] = (),
        timestep_weights: Sequence[float] | None = None,
        first_pass: FirstPass | None = None,
        optional: Collection[str] = (),
        conditional: int = 1,
        seed: int = 0,
        permutation_seed: int | None = None,
        repeated: RepeatedBlocks | None = None,
    ) -> None:
        self._model, self._settings, self._first_pass = model, settings or Calibrate(), first_pass
        self._settings.check("calibration")
        self._repeated = repeated or RepeatedBlocks.of(model, self._settings.checkpointing)
        self._limit, self._variants = num_train_timesteps, tuple(variants)
        guidance = {"scale": self._settings.guidance_scale, "conditional": conditional}
        self._guidance = guidance if "guided" in self._variants else None
        self._seed, self._permutation_seed = seed, seed if permutation_seed is None else permutation_seed
        kind = self._settings.timestep_weights if timestep_weights is None else timestep_weights
        self._weights = weights_of(kind, self._settings.timestep_buckets)
        self._observers, self._optional = find(needs), frozenset(optional)
        self._watches = watches(model, list(groups), self._observers)
        self._check(conditional)

    def _check(self, conditional: int) -> None:
        first_pass, sinks = self._first_pass, self._settings.sink_weights
        if not self._limit > 0:
            raise PruningError(f"num_train_timesteps is {self._limit}; expected a positive number")
        for variant in self._variants:
            if variant not in VARIANTS:
                raise PruningError(f"unknown variant {variant!r}; valid: {', '.join(VARIANTS)}")
        if "guided" in self._variants and self._settings.guidance_scale == 1:
            raise PruningError(
                "the variant 'guided' mixes both branches of guidance; say how in settings.guidance_scale, which is 1 "
                "(no guidance)"
            )
        if conditional not in (0, 1):
            raise PruningError(f"conditional is {conditional}; it must be 0 or 1, the half of the batch")
        if weights_need_first_pass(self._variants, sinks):
            if first_pass is None:
                raise PruningError(
                    f"the variants {', '.join(self._variants)} weigh by stability or influence; give the result of "
                    "first_pass(...)"
                )
            theirs, ours = first_pass.stats.meta["detection"], detection_settings(sinks)
            if theirs != ours:
                raise PruningError(
                    f"the first pass detected sinks by {theirs}, this pass by {ours}; run the first pass again"
                )
        means = {} if first_pass is None else first_pass.means
        for watch in self._watches:
            lacking = [at.key for at in watch.places if at.key not in means] if watch.sees.needs_means else []
            if lacking:
                raise PruningError(
                    f"statistic {next(iter(watch.observers))!r} at {lacking[0]!r} needs channel means from a first "
                    "pass; give the result of first_pass(...)"
                )

    def __enter__(self) -> CalibrationStats:
        settings, sinks, first_pass = self._settings, self._settings.sink_weights, self._first_pass
        self._reader = StepReader(self._model, self._limit, self._weights)
        self.driver = driver = Driver(self._model, self._reader, self._seed, repeated=self._repeated)
        self._sums, self._trajectories = Sums(settings.timestep_buckets), Trajectories()
        self._samples = torch.zeros(settings.timestep_buckets, dtype=torch.float64)
        token_weights = TokenWeights(sinks, self._variants, first_pass, self._permutation_seed)
        readings = Readings(driver, sinks, settings.queries, self._seed)
        driver.steps += [self._count, token_weights.restart]
        weighting = {
            place.site
            for watch in self._watches
            for place in watch.places
            if set(watch.sees.variants(place, self._variants)) - {"guided"}
        }
        token_weights.watch(readings, sorted(weighting))
        context = Context(
            driver=driver,
            readings=readings,
            token_weights=token_weights,
            sums=self._sums,
            trajectories=self._trajectories,
            means={} if first_pass is None else first_pass.means,
            rows=settings.rows,
            guided=None if self._guidance is None else functools.partial(mixed, **self._guidance),
            seed=self._seed,
            gates=driver.gates,
        )
        for watch in self._watches:
            watch.sees.watch(watch.places, watch.observers, context)
            if self._optional.issuperset(watch.observers):
                driver.optional |= {place.key for place in watch.places} - weighting
        driver.__enter__()
        self._stats = CalibrationStats()
        return self._stats

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.driver.__exit__(kind, *exc)
        if kind is None:
            self._finish()

    def _count(self, step: Step) -> None:
        self._samples.index_add_(0, step.buckets, torch.ones(len(step.samples), dtype=torch.float64))

    def identify(
        self,
        samples: Sequence[int] | Tensor,
        buckets: int | Sequence[int] | Tensor | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        branches: Sequence[int] | None = None,
    ) -> None:
        """Say whose rows come next, until it is said again; see `StepReader.identify`."""
        self._reader.identify(samples, buckets, timesteps, branches)

    def gather(
        self, source: NoisedBatches | SamplingRun, progress: Progress | None = None
    ) -> CalibrationStats:
        """Show the model what `source` has, as `Driver.run` does, and return what was measured.

        Raises:
            PruningError: If the model did not run once.
        """
        with self as stats:
            self.driver.run(source, progress)
            if not bool(self._samples.any()):
                raise PruningError("calibration saw no samples; the model did not run once")
        return stats

    def _finish(self) -> None:
        values = self._sums.finish()
        samples_seen, kept_apart = self._trajectories.finish()
        for site, found in kept_apart.items():
            values.setdefault(site, {}).update(found)
        for path in self.driver.unseen:  # what other calls of it showed is not all of it
            for name in self._optional:
                values.get(path, {}).pop(name, None)
        for watch in self._watches:
            for place in watch.places:
                if isinstance(place, Consumer):
                    self._add_zeros(values.setdefault(place.key, {}), watch.observers, place)
                _add_parts(values.get(place.key, {}), watch.observers, place)
        for place in list(values):
            found = values.pop(place)
            found[ALWAYS] = self._samples.clone()
            self._stats.values[place] = Kept.of(found)
        settings = asdict(self._settings)
        self._stats.meta.update(
            {name: settings[name] for name in ("timestep_buckets", "queries", "rows", "sink_weights")},
            needs=sorted(self._observers),
            num_train_timesteps=self._limit,
            timestep_weights=self._weights.tolist(),
            variants=list(self._variants),
            guidance=self._guidance,
            seed=self._seed,
            permutation_seed=self._permutation_seed,
            samples=self._samples.tolist(),
            samples_seen=samples_seen,
            unseen=dict(self.driver.unseen),
        )

    def _add_zeros(self, found: Found, observers: Mapping[str, Observer], place: Consumer) -> None:
        """Add the sums of what no row or gradient reached, such as an expert to which no token was sent."""
        buckets = self._settings.timestep_buckets
        for name, observer in observers.items():
            if name in found:
                continue
            if observer.symmetric:
                found[name] = Triangle.zeros(observer.shape(place)[0])
            else:
                shape = (*((buckets,) if observer.by == "bucket" else ()), *observer.shape(place))
                found[name] = torch.zeros(shape or (1,), dtype=torch.float64)


def _add_parts(found: Found, observers: Mapping[str, Observer], place: Any) -> None:
    """Add the statistics that are part of another one, plain and in every variant."""
    for name, observer in observers.items():
        if observer.part_of is None:
            continue
        whole, part = observer.part_of
        for key in [key for key in found if key.partition("@")[0] == whole]:
            found[name + key[len(whole) :]] = part(found[key], place).contiguous()

"""The context manager: whatever runs the model under ``with Calibrator(...) as stats:`` is measured."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration.base import (
    ALWAYS,
    VARIANTS,
    AttentionStatistic,
    BlockStatistic,
    GradientStatistic,
    RowStatistic,
    expand_needs,
)
from pruning.calibration.consumer import Consumer, check_finite
from pruning.calibration.draws import subset
from pruning.calibration.first_pass import FirstPass
from pruning.calibration.gradient_tap import GradientTap
from pruning.calibration.indicator import Omega
from pruning.calibration.instrument import Instrument
from pruning.calibration.reading import Reading
from pruning.calibration.row_tap import RowTap
from pruning.calibration.sites import measured_sites, weighting_site
from pruning.calibration.softmax import AttentionCall
from pruning.calibration.step import Step, StepReader, checked_weights
from pruning.calibration.sums import Sums
from pruning.calibration.weighting import TokenWeights
from pruning.types import CalibrationStats, PrunableGroup, PruningError

logger = logging.getLogger(__name__)

DEFAULT_QUERIES = 128
"""A good number of queries to sample: at 4096 tokens about 1 % of a UNet's forward; a sink that holds 0.3 of the
mass with a spread of 0.2 over the queries is then known to 0.02 in one sample, and samples average."""


class Calibrator:
    """Measures a model on whatever runs it.

    ``with Calibrator(model, groups, needs=..., num_train_timesteps=1000) as stats: pipeline(prompts)``; `stats` is
    complete when the block ends, and empty if it ends by an exception. The model's results do not change.
    Gradient statistics and ``block_change`` need a target or further forwards: use `calibrate` for these.

    Args:
        model: The denoiser, in evaluation mode.
        groups: What may be removed.
        needs: Names of the statistics to gather; see the files of this folder. ``samples`` is always gathered.
        num_train_timesteps: Upper end of the timesteps that the model is called with.
        timestep_buckets: T; bucket 0 is the least noise.
        queries: Queries to look at in each attention call, drawn for each sample; None for all. See
            `DEFAULT_QUERIES`.
        rows: Rows to look at in each consumer's input, drawn for each sample; None for all. Sums are scaled up.
        variants: Omega variants to gather besides the plain sums: ``on``, ``permuted``.
        omega: How sinks are told and weighted.
        first_pass: Sink stability for the variants (not needed if both lambdas are equal) and means for ``probe``.
        timestep_weights: w_tau: ``uniform``, ``obs_diff`` or T positive numbers.
        seed: Of all draws but omega's permutations.

    Raises:
        PruningError: For an unknown statistic or variant, a value out of range, or a missing first pass.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[PrunableGroup],
        *,
        needs: Iterable[str],
        num_train_timesteps: float,
        timestep_buckets: int = 8,
        queries: int | None = None,
        rows: int | None = None,
        variants: Collection[str] = (),
        omega: Omega | None = None,
        first_pass: FirstPass | None = None,
        timestep_weights: str | Sequence[float] = "uniform",
        seed: int = 0,
    ) -> None:
        self._model = model
        self.groups = list(groups)
        self._statistics = expand_needs(needs)
        self._omega = Omega() if omega is None else omega
        self._variants = tuple(variants)
        self._queries, self._rows, self._seed = queries, rows, seed
        self._first_pass = first_pass
        self._weights = checked_weights(timestep_weights, timestep_buckets, num_train_timesteps)
        self._check()
        self._reader = StepReader(model, num_train_timesteps, self._weights)
        self._num_train_timesteps = num_train_timesteps
        self._reset()

    def _check(self) -> None:
        self._omega.check()
        for name, count in (("queries", self._queries), ("rows", self._rows)):
            if count is not None and count < 2:
                raise PruningError(f"{name} is {count}; expected at least 2, or null for all")
        for variant in self._variants:
            if variant not in VARIANTS:
                raise PruningError(f"unknown omega variant {variant!r}; valid: {', '.join(VARIANTS)}")
        stable = self._omega.lambda_unstable == self._omega.lambda_stable
        if self._variants and not stable:
            if self._first_pass is None:
                raise PruningError("omega variants weigh by stability; give the result of first_pass(...)")
            theirs = self._first_pass.meta.get("indicator")
            if theirs != self._omega.indicator_settings():
                raise PruningError(
                    f"the first pass told sinks by {theirs}, this one by {self._omega.indicator_settings()}; "
                    "run the first pass again"
                )
        centred = [
            n for n, s in self._statistics.items() if isinstance(s, GradientStatistic) and s.loss == "output"
        ]
        if centred:
            lacking = [g.name for g in self._wanting(centred) if g.name not in self._means()]
            if lacking:
                raise PruningError(
                    f"statistic {centred[0]!r} needs channel means from a first pass, which has none for {lacking[0]!r}"
                )

    def _means(self) -> dict[str, Tensor]:
        return {} if self._first_pass is None else self._first_pass.means

    def _wanting(self, names: Iterable[str]) -> list[PrunableGroup]:
        kinds = {kind for name in names for kind in self._statistics[name].kinds}
        return [group for group in self.groups if group.kind in kinds]

    def _named(self, form: type[Any], group: PrunableGroup) -> dict[str, Any]:
        """Return the statistics of one form that are gathered for `group`, by name."""
        return {
            name: statistic
            for name, statistic in self._statistics.items()
            if isinstance(statistic, form)
            and group.kind in statistic.kinds
            and group.num_units <= (getattr(statistic, "max_units", None) or group.num_units)
        }

    def _reset(self) -> None:
        """Make the taps; nothing is installed yet."""
        buckets = len(self._weights)
        self._sums = Sums(buckets)
        self._samples = torch.zeros(buckets, dtype=torch.float64)
        self._token_weights = TokenWeights(self._omega, self._variants, self._first_pass)
        consumers = {g.name: Consumer.of(self._model, g) for g in self.groups if g.consumed_by}
        self._row_taps = {
            name: RowTap(c, wanted, self._sums, self._rows, self._seed)
            for name, c in consumers.items()
            if (wanted := self._named(RowStatistic, c.group))
        }
        gradients = {
            g.name: w for g in self.groups if g.consumed_by and (w := self._named(GradientStatistic, g))
        }
        self._gradients = GradientTap(gradients, self._means(), self._sums, self._seed)
        self._with_gradients = set(gradients)
        watched = [c for name, c in consumers.items() if name in self._row_taps or name in gradients]
        self._block_statistics = {
            g.module: (g, w) for g in self.groups if (w := self._named(BlockStatistic, g))
        }
        self._sites: dict[str, tuple[PrunableGroup, dict[str, AttentionStatistic], Tensor | None]] = {}
        by_name = {g.name: g for g in self.groups}
        for path, name in measured_sites(self._model, self.groups).items():
            if wanted := self._named(AttentionStatistic, by_name[name]):
                self._sites[path] = (by_name[name], wanted, self._out_weight(path, consumers.get(name)))
        self._weighting = {
            c.group.name: site
            for c in watched
            if self._variants and (site := weighting_site(self._model, c.group))
        }
        plain_blocks = [
            p for p, (_, w) in self._block_statistics.items() if not all(s.ablates for s in w.values())
        ]
        sites = sorted({*self._sites, *self._weighting.values()})
        self._weighting_sites = set(self._weighting.values())
        self._instrument = Instrument(self._model, sites, watched, plain_blocks, self._reader, self)

    def _out_weight(self, path: str, consumer: Consumer | None) -> Tensor | None:
        """Return the consumer's columns by head, (C, H, d_v)."""
        heads = getattr(self._model.get_submodule(path), "heads", None)
        if consumer is None or not isinstance(heads, int) or not isinstance(consumer.module, nn.Linear):
            return None
        weight = consumer.module.weight.detach()
        columns = weight[:, consumer.start : consumer.start + consumer.channels]
        return columns.unflatten(1, (heads, -1)) if consumer.channels % heads == 0 else None

    def __enter__(self) -> CalibrationStats:
        self._reset()
        self._stats = CalibrationStats()
        self._instrument.__enter__()
        return self._stats

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._instrument.__exit__(kind, *exc)
        self._gradients.restart()
        if kind is None:
            self._finish()

    def identify(
        self, samples: Sequence[int] | Tensor, buckets: int | Sequence[int] | Tensor | None = None
    ) -> None:
        """Say whose rows come next, until it is said again; see `StepReader.identify`."""
        self._reader.identify(samples, buckets)

    @property
    def ablated_blocks(self) -> list[str]:
        """Paths of the blocks for which `block_outputs` is wanted."""
        return [p for p, (_, w) in self._block_statistics.items() if any(s.ablates for s in w.values())]

    @property
    def wants_gradients(self) -> bool:
        """Whether `backward` is wanted after every forward."""
        return bool(self._with_gradients)

    @property
    def samples_seen(self) -> float:
        """Rows of the denoiser's calls so far."""
        return float(self._samples.sum())

    def paused(self) -> Any:
        """Context manager in which the model may run unseen."""
        return self._instrument.paused()

    def backward(self, output: Tensor, target: Tensor) -> None:
        """Gather the gradient statistics of the last forward; see `GradientTap.backward`."""
        self._gradients.backward(output, target, self._instrument.step)

    def block_outputs(self, path: str, full: Tensor, without: Tensor) -> None:
        """Gather what the model's output (B, ...) loses without the block at `path`."""
        step = self._instrument.step
        check_finite(without, f"the output without block {path!r}", step.describe)
        self._block(path, full, without, step, ablates=True)

    def on_step(self, step: Step) -> None:
        """The denoiser is about to run."""
        self._samples.index_add_(0, step.buckets, torch.ones(len(step.samples), dtype=torch.float64))
        self._token_weights.restart()
        self._gradients.restart()

    def on_attention(self, call: AttentionCall, step: Step, owner: Tensor) -> None:
        """An attention module attends."""
        group, wanted, out_weight = self._sites.get(call.path, (None, {}, None))
        queries = None
        if self._queries is not None and self._queries < call.query.shape[2]:
            samples = [step.samples[i] for i in owner.tolist()]
            queries = subset(self._seed, samples, call.query.shape[2], self._queries).to(call.query.device)
        reading = Reading(call, self._omega, queries, out_weight, with_entropy="entropy" in wanted)
        check_finite(
            reading.sums.mass, f"attention {call.path!r}", lambda rows: step.describe(owner[rows].tolist())
        )
        if call.path in self._weighting_sites:
            self._token_weights.read(reading, step, owner)
        if group is not None:
            for name, statistic in wanted.items():
                buckets = step.buckets[owner] if statistic.by_bucket else None
                self._add_samples(group, name, statistic.measure(reading), buckets, call.path)

    def on_input(self, consumer: Consumer, x: Tensor, step: Step, owner: Tensor) -> None:
        """Rows enter a consumer."""
        name = consumer.group.name
        omegas: dict[str, Tensor] = {}
        if name in self._weighting:
            tokens = x.shape[1:-1].numel() if isinstance(consumer.module, nn.Linear) else x.shape[2:].numel()
            omegas = self._token_weights.of(
                self._weighting[name], x.shape[0], tokens, repr(consumer.group.consumer)
            )
        if name in self._row_taps:
            self._row_taps[name].see(x, step, owner, omegas)
        if name in self._with_gradients:
            self._gradients.see(consumer, x, owner, omegas)

    def on_block(self, path: str, before: Tensor, after: Tensor, step: Step) -> None:
        """A block ran."""
        self._block(path, before, after, step, ablates=False)

    def _block(self, path: str, before: Tensor, after: Tensor, step: Step, *, ablates: bool) -> None:
        group, statistics = self._block_statistics[path]
        for name, statistic in statistics.items():
            if statistic.ablates == ablates:
                value = statistic.measure(before, after).double()
                weight = step.weights.to(value.device) if statistic.weighted else 1.0
                self._sums.add_samples(group.name, name, value * weight)

    def _add_samples(
        self, group: PrunableGroup, name: str, values: Tensor, buckets: Tensor | None, path: str
    ) -> None:
        """Add one value a sample, which must have the shape that it had before."""
        before = self._sums.expected_shape(group.name, name)
        shape = (len(self._weights), *values.shape[1:]) if buckets is not None else tuple(values.shape[1:])
        if before is not None and before != shape:
            raise PruningError(
                f"attention {path!r}: statistic {name!r} has shape {shape} now and had {before} before; "
                "calibrate at one resolution and prompt length"
            )
        self._sums.add_samples(group.name, name, values, buckets)

    def _finish(self) -> None:
        for group, name, value in self._sums.items():
            finish = getattr(self._statistics.get(name), "finish", None)
            self._stats.values.setdefault(group, {})[name] = value if finish is None else finish(value)
        for found in self._stats.values.values():
            found[ALWAYS[0]] = self._samples.clone()
        self._stats.meta.update(self.meta())

    def meta(self) -> dict[str, Any]:
        """Return how the statistics were gathered, in JSON types."""
        return {
            "needs": sorted(self._statistics),
            "num_train_timesteps": self._num_train_timesteps,
            "timestep_buckets": len(self._weights),
            "timestep_weights": self._weights.tolist(),
            "queries": self._queries,
            "rows": self._rows,
            "variants": list(self._variants),
            "omega": asdict(self._omega),
            "seed": self._seed,
            "samples": self._samples.tolist(),
        }

"""The context manager: whatever runs the model under ``with Calibrator(...) as stats:`` is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration.base import ALWAYS, VARIANTS, WeightStatistic, expand_needs
from pruning.calibration.consumer import Consumer, check_finite
from pruning.calibration.draws import check_count
from pruning.calibration.first_pass import FirstPass
from pruning.calibration.gradient_tap import GradientTap, data_losses
from pruning.calibration.guidance import Guidance
from pruning.calibration.indicator import Omega
from pruning.calibration.instrument import Instrument
from pruning.calibration.reading import Reader
from pruning.calibration.row_tap import RowTap
from pruning.calibration.softmax import AttentionCall
from pruning.calibration.step import Step, StepReader, checked_weights
from pruning.calibration.sums import Sums, summable
from pruning.calibration.weight_tap import WeightTap
from pruning.calibration.weighting import TokenWeights, need_first_pass
from pruning.calibration.wiring import wire
from pruning.errors import PruningError
from pruning.types import CalibrationStats, PrunableGroup

DEFAULT_QUERIES = 64
"""A good number of queries to sample: below 5 % of a UNet's forward at 4096 tokens (docs/benchmarks.md). A sink
that holds 0.3 of the mass with a spread of 0.2 over the queries is then known to 0.025 in one sample."""


class Calibrator:
    """Measures a model on whatever runs it.

    ``with Calibrator(model, groups, needs=..., num_train_timesteps=1000) as stats: pipeline(prompts)``; `stats` is
    complete when the block ends, and empty if it ends by an exception. The model's results do not change.
    Gradient and weight statistics and ``block_change`` need a target or further forwards: use `calibrate` for these.

    Args:
        model: The denoiser, in evaluation mode.
        groups: What may be removed.
        needs: Names of the statistics to gather; see `pruning.calibration`. ``samples`` is always gathered.
        num_train_timesteps: Upper end of the timesteps that the model is called with.
        timestep_buckets: T; bucket 0 is the least noise.
        queries: Queries to look at in each attention call, drawn for each sample; None for all. See
            `DEFAULT_QUERIES`.
        rows: Rows to look at in each consumer's input, drawn for each sample; None for all. Sums are scaled up.
        variants: Omega variants to gather besides the plain sums, some of `VARIANTS`.
        omega: How sinks are told and weighted.
        first_pass: Sink stability (not needed if both lambdas are equal) and influence for the variants, and means
            for ``probe``.
        guidance: How rows are mixed for the variant ``guided``.
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
        guidance: Guidance | None = None,
        timestep_weights: str | Sequence[float] = "uniform",
        seed: int = 0,
    ) -> None:
        omega = Omega() if omega is None else omega
        weights = checked_weights(timestep_weights, timestep_buckets, num_train_timesteps)
        self._model = model
        self._statistics = expand_needs(needs)
        self._variants, self._omega, self._first_pass = tuple(variants), omega, first_pass
        self._guidance = guidance
        self._rows, self._seed, self._buckets = rows, seed, timestep_buckets
        self._wiring = wire(
            model, groups, self._statistics, weighted=any(v != "guided" for v in self._variants)
        )
        self._check(queries)
        self._attention = Reader(omega, queries, seed)
        self._reader = StepReader(model, num_train_timesteps, weights)
        self._meta: dict[str, Any] = {
            "needs": sorted(self._statistics),
            "num_train_timesteps": num_train_timesteps,
            "timestep_buckets": timestep_buckets,
            "timestep_weights": weights.tolist(),
            "queries": queries,
            "rows": rows,
            "variants": list(self._variants),
            "omega": asdict(omega),
            "guidance": None if guidance is None else asdict(guidance),
            "seed": seed,
        }
        self._restart()

    def _check(self, queries: int | None) -> None:
        self._omega.check()
        check_count("queries", queries)
        check_count("rows", self._rows)
        for variant in self._variants:
            if variant not in VARIANTS:
                raise PruningError(f"unknown omega variant {variant!r}; valid: {', '.join(VARIANTS)}")
        if "guided" in self._variants and self._guidance is None:
            raise PruningError(
                "the variant 'guided' mixes both branches of guidance; give guidance=Guidance(scale)"
            )
        if self._guidance is not None:
            self._guidance.check()
        if need_first_pass(self._variants, self._omega):
            if self._first_pass is None:
                raise PruningError(
                    f"omega variants {', '.join(self._variants)} weigh by stability or influence; give the result of "
                    "first_pass(...)"
                )
            theirs, ours = self._first_pass.meta.get("indicator"), self._omega.indicator_settings()
            if theirs != ours:
                raise PruningError(
                    f"the first pass told sinks by {theirs}, this pass by {ours}; run the first pass again"
                )
        means = {} if self._first_pass is None else self._first_pass.means
        for group, found in self._wiring.gradients.items():
            centred = [name for name, statistic in found.items() if statistic.loss == "output"]
            if centred and group not in means:
                raise PruningError(
                    f"statistic {centred[0]!r} of group {group!r} needs channel means from a first pass; give the "
                    "result of first_pass(...)"
                )

    def _restart(self) -> None:
        """Start from zero; nothing is installed yet."""
        wiring, first_pass = self._wiring, self._first_pass
        means = {} if first_pass is None else first_pass.means
        self._sums = Sums(self._buckets)
        self._samples = torch.zeros(self._buckets, dtype=torch.float64)
        self._token_weights = TokenWeights(self._omega, self._variants, first_pass)
        self._row_taps = {
            name: RowTap(wiring.consumers[name], found, self._sums, self._rows, self._seed)
            for name, found in wiring.rows.items()
        }
        self._gradients = GradientTap(wiring.gradients, wiring.sensitivities, means, self._sums, self._seed)
        self._weight_taps = {
            name: WeightTap(self._model, name, statistic, groups)
            for name, groups in wiring.weights.items()
            if isinstance(statistic := self._statistics[name], WeightStatistic) and groups
        }
        consumers, blocks = list(wiring.consumers.values()), wiring.blocks_that(ablate=False)
        outputs = [wiring.consumers[name] for name in wiring.sensitivities]
        self._instrument = Instrument(
            self._model, wiring.attention, consumers, outputs, blocks, self._reader, self
        )

    def __enter__(self) -> CalibrationStats:
        self._restart()
        self._stats = CalibrationStats()
        with ExitStack() as stack:
            for tap in self._weight_taps.values():
                stack.enter_context(tap)
            stack.enter_context(self._instrument)
            self._open = stack.pop_all()
        return self._stats

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._open.close()
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
        return self._wiring.blocks_that(ablate=True)

    @property
    def wants_gradients(self) -> bool:
        """Whether `backward` is wanted after every forward."""
        return self._gradients.wanted or bool(self._weight_taps)

    @property
    def samples_seen(self) -> int:
        """Rows of the denoiser's calls so far."""
        return int(self._samples.sum())

    def paused(self) -> AbstractContextManager[None]:
        """Context manager in which the model may run unseen."""
        return self._instrument.paused()

    def backward(self, output: Tensor, target: Tensor) -> None:
        """Gather the gradient and weight statistics of the last forward; see `GradientTap.backward`."""
        step, taps = self._instrument.step, list(self._weight_taps.values())
        if taps:
            losses = data_losses(output, target)
            check_finite(losses, "the data loss of calibration", step.describe)
            for tap in taps:
                more = tap is not taps[-1] or self._gradients.wanted
                tap.backward(losses, step, retain_graph=more)
        if self._gradients.wanted:
            self._gradients.backward(output, target, step)

    def block_outputs(self, path: str, full: Tensor, without: Tensor) -> None:
        """Gather what the model's output (B, ...) loses without the block at `path`."""
        step = self._instrument.step
        check_finite(without, f"the output without block {path!r}", step.describe)
        self._block(path, summable(full), summable(without), step, ablates=True)

    def on_step(self, step: Step) -> None:
        """The denoiser is about to run."""
        self._samples.index_add_(0, step.buckets, torch.ones(len(step.samples), dtype=torch.float64))
        self._token_weights.restart()
        self._gradients.restart()

    def on_attention(self, call: AttentionCall, step: Step, owner: Tensor) -> None:
        """An attention module attends."""
        site = self._wiring.sites.get(call.path)
        reading = self._attention.read(
            call,
            step,
            owner,
            out_weight=None if site is None else site.out_weight,
            with_entropy=site is not None and "entropy" in site.statistics,
        )
        if call.path in self._wiring.weighting.values():
            self._token_weights.read(reading, step, owner)
        if site is None:
            return
        for name, statistic in site.statistics.items():
            values = statistic.measure(reading)  # (B, ...)
            if statistic.weighted:
                weight = step.weights[owner].to(values.device)
                values = values * weight.view(-1, *(1,) * (values.ndim - 1))
            buckets = step.buckets[owner] if statistic.by_bucket else None
            self._sums.add_samples(site.group.name, name, values, buckets)

    def on_input(self, consumer: Consumer, x: Tensor, step: Step, owner: Tensor) -> None:
        """Rows enter a consumer."""
        name = consumer.group.name
        omegas: dict[str, Tensor] = {}
        if name in self._wiring.weighting:
            site, where = self._wiring.weighting[name], repr(consumer.group.consumer)
            omegas = self._token_weights.of(site, x.shape[0], consumer.num_tokens(x), where)
        if name in self._row_taps:
            self._row_taps[name].see(x, step, owner, omegas)
            if self._guidance is not None and "guided" in self._variants:
                mixed = self._guidance.mix(x, step, owner, repr(consumer.group.consumer))
                self._row_taps[name].see(*mixed, {}, "@guided")
        if name in self._wiring.gradients:
            self._gradients.see(consumer, x, owner, omegas)

    def on_output(self, consumer: Consumer, y: Tensor, step: Step, owner: Tensor) -> None:
        """Rows leave a consumer."""
        self._gradients.see_output(consumer, y, owner)

    def on_block(self, path: str, before: Tensor, after: Tensor, step: Step) -> None:
        """A block ran."""
        self._block(path, before, after, step, ablates=False)

    def _block(self, path: str, before: Tensor, after: Tensor, step: Step, *, ablates: bool) -> None:
        group, statistics = self._wiring.blocks[path]
        for name, statistic in statistics.items():
            if statistic.ablates == ablates:
                value = statistic.measure(before, after).double()
                weight = step.weights.to(value.device) if statistic.weighted else 1.0
                self._sums.add_samples(group.name, name, value * weight)

    def _finish(self) -> None:
        for group, name, value in self._sums.items():
            finish = getattr(self._statistics.get(name), "finish", None)
            self._stats.values.setdefault(group, {})[name] = value if finish is None else finish(value)
        for name, tap in self._weight_taps.items():
            for group, value in tap.finish().items():
                self._stats.values.setdefault(group, {})[name] = value
        for found in self._stats.values.values():
            found[ALWAYS[0]] = self._samples.clone()
        self._stats.meta.update(self._meta, samples=self._samples.tolist())

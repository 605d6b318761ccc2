"""Gathers a first pass from whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pruning.calibration.consumer import Consumer
from pruning.calibration.draws import check_count
from pruning.calibration.first_pass import ChannelMeans, FirstPass, StabilitySums
from pruning.calibration.indicator import Omega
from pruning.calibration.influence import InfluenceSums, head_gain
from pruning.calibration.instrument import Instrument, Listener
from pruning.calibration.reading import Reader
from pruning.calibration.sites import weighting_site
from pruning.calibration.softmax import AttentionCall
from pruning.calibration.step import Step, StepReader, checked_weights
from pruning.types import PrunableGroup


class FirstPassRecorder(Listener):
    """Context manager: ``with FirstPassRecorder(...) as recorder: ...`` then ``recorder.result()``.

    Each sample must come at every timestep with the same image and noise, or along its sampling trajectory.

    Args:
        model: The denoiser, in evaluation mode.
        groups: What may be removed; their consumers and attention sites are watched.
        num_train_timesteps: Upper end of the timesteps that the model is called with.
        timestep_buckets: T.
        queries: Queries to look at in each attention call; None for all.
        omega: How sinks are told (the lambdas do not matter here).
        timestep_weights: w_tau, for the channel means.
        seed: Of the query draws.
        stability: Watch attention; without it only means are gathered.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[PrunableGroup],
        *,
        num_train_timesteps: float,
        timestep_buckets: int = 8,
        queries: int | None = None,
        omega: Omega | None = None,
        timestep_weights: str | Sequence[float] = "uniform",
        seed: int = 0,
        stability: bool = True,
    ) -> None:
        groups = list(groups)
        omega = Omega() if omega is None else omega
        omega.check()
        check_count("queries", queries)
        self._attention = Reader(omega, queries, seed)
        weights = checked_weights(timestep_weights, timestep_buckets, num_train_timesteps)
        self._reader = StepReader(model, num_train_timesteps, weights)
        self._stability, self._means = StabilitySums(), ChannelMeans()
        consumers = [Consumer.of(model, group) for group in groups if group.consumed_by]
        found = [weighting_site(model, consumer.group) for consumer in consumers] if stability else []
        sites = sorted({site for site in found if site is not None})
        gains = {site: head_gain(model.get_submodule(site)) for site in sites}
        self._influence = InfluenceSums({site: gain for site, gain in gains.items() if gain is not None})
        self._instrument = Instrument(model, sites, consumers, [], [], self._reader, self)
        self._meta = {
            "indicator": omega.indicator_settings(),
            "num_train_timesteps": num_train_timesteps,
            "timestep_buckets": timestep_buckets,
            "timestep_weights": weights.tolist(),
            "queries": queries,
            "seed": seed,
        }

    def __enter__(self) -> FirstPassRecorder:
        self._instrument.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._instrument.__exit__(*exc)

    def identify(
        self, samples: Sequence[int] | Tensor, buckets: int | Sequence[int] | Tensor | None = None
    ) -> None:
        """Say whose rows come next, until it is said again; see `StepReader.identify`."""
        self._reader.identify(samples, buckets)

    def result(self) -> FirstPass:
        """Return what was gathered."""
        keys, indicator, indicator_sq = self._stability.finish()
        meta = {**self._meta, "sites": list(indicator)}  # in the order in which they run
        return FirstPass(keys, indicator, indicator_sq, self._means.finish(), self._influence.finish(), meta)

    def on_attention(self, call: AttentionCall, step: Step, owner: Tensor) -> None:
        """An attention module attends."""
        reading = self._attention.read(call, step, owner)
        self._stability.add(reading, step, owner)
        self._influence.add(reading, step, owner)

    @torch.no_grad()
    def on_input(self, consumer: Consumer, x: Tensor, step: Step, owner: Tensor) -> None:
        """Rows enter a consumer."""
        self._means.add(consumer, x, step, owner)

"""What one attention call shows, computed on first use and kept until the call is over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pruning.calibration.attention.softmax import AttentionCall, StreamedSoftmax
from pruning.calibration.attention.streaming import SinkSums, attended, sink_sums
from pruning.calibration.draws import subset
from pruning.calibration.driver import Driver
from pruning.calibration.sinks.detection import soft_indicator
from pruning.calibration.step import Step, check_finite
from pruning.settings import SinkWeights


@dataclass
class Reading:
    """One attention call as observers see it; B samples, H heads, M keys.

    Attributes:
        call: The call.
        detection: How sinks are detected.
        queries: int64 (B, n) looked at, on the call's device; None for all.
    """

    call: AttentionCall
    detection: SinkWeights
    queries: Tensor | None = None

    @cached_property
    def sums(self) -> SinkSums:
        """Column masses of the queries looked at."""
        return sink_sums(StreamedSoftmax(self.call, self.queries))

    @cached_property
    def indicator(self) -> Tensor:
        """Soft sink indicator s of every key, from the head mean, (B, M) float64."""
        return soft_indicator(self.sums, self.detection)

    @cached_property
    def sinks(self) -> Tensor:
        """The sink set S = {j: s_j >= 1/2}, bool (B, M)."""
        return self.indicator >= 0.5

    def attended(self, key_weight: Tensor) -> Tensor:
        """Return the head mean of sum_j A_ij c_j for *every* query, (B, N) float64; `key_weight` c is (B, M)."""
        return attended(StreamedSoftmax(self.call), key_weight)


class Readings:
    """Reads each attention call once, for all who look at its module.

    Args:
        driver: Tells of the calls.
        detection: How sinks are detected.
        queries: Queries to look at in each sample; None for all.
        seed: Of the query draws.
    """

    def __init__(self, driver: Driver, detection: SinkWeights, queries: int | None, seed: int) -> None:
        self._driver, self._detection, self._queries, self._seed = driver, detection, queries, seed
        self._told: dict[str, list[Callable[[Reading, Step, Tensor], None]]] = defaultdict(list)

    def on(self, path: str, tell: Callable[[Reading, Step, Tensor], None]) -> None:
        """Tell of the calls of an attention module, and to which of the step's rows each of its batch belongs."""
        if path not in self._told:
            self._driver.attention[path].append(self._read)
        self._told[path].append(tell)

    def _read(self, call: AttentionCall, step: Step, row_of: Tensor) -> None:
        """Read a call and tell.

        Raises:
            PruningError: If the attention holds NaN or infinity, naming module, samples and timestep bucket.
        """
        queries, total = None, call.query.shape[-2]
        if self._queries is not None and self._queries < total:
            samples = [step.samples[i] for i in row_of.tolist()]
            queries = subset(self._seed, samples, total, self._queries).to(call.query.device)
        reading = Reading(call, self._detection, queries)
        check_finite(
            reading.sums.mass, f"attention {call.path!r}", lambda rows: step.describe(row_of[rows].tolist())
        )
        for tell in self._told[call.path]:
            tell(reading, step, row_of)

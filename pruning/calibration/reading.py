"""What one attention call shows, computed on first use and kept until the call is over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pruning.calibration.consumer import check_finite
from pruning.calibration.draws import subset
from pruning.calibration.indicator import Omega, soft_indicator
from pruning.calibration.softmax import AttentionCall, StreamedSoftmax
from pruning.calibration.step import Step
from pruning.calibration.streaming import SinkSums, attended, sink_sums, split_energy
from pruning.errors import PruningError


@dataclass
class Reading:
    """One attention call as statistics see it.

    Attributes:
        call: The call.
        omega: How sinks are told.
        queries: int64 (B, n) looked at, on the call's device; None for all.
        out_weight: Columns of the consumer's weight by head, (C, H, d_v), or None if nothing reads them.
        with_entropy: Gather the entropy in the pass over the queries.
    """

    call: AttentionCall
    omega: Omega
    queries: Tensor | None = None
    out_weight: Tensor | None = None
    with_entropy: bool = True

    @cached_property
    def softmax(self) -> StreamedSoftmax:
        """The streamed attention weights of the queries looked at."""
        return StreamedSoftmax(self.call, self.queries)

    @cached_property
    def sums(self) -> SinkSums:
        """Column masses of the queries looked at."""
        return sink_sums(self.softmax, entropy=self.with_entropy)

    @cached_property
    def indicator(self) -> Tensor:
        """Soft sink indicator s of every key, from the head mean, (B, M) float64."""
        return soft_indicator(self.sums, self.omega)

    @cached_property
    def sinks(self) -> Tensor:
        """The sink set S = {j: s_j >= 1/2}, bool (B, M)."""
        return self.indicator >= 0.5

    @cached_property
    def split(self) -> Tensor:
        """Energy of sink and content part of the output by head, (B, H, 3); see `streaming.split_energy`."""
        if self.out_weight is None:
            raise PruningError(f"attention {self.call.path!r} has no group whose consumer reads its heads")
        weight = self.out_weight.float()
        gram = torch.einsum("chd,che->hde", weight, weight)
        return split_energy(self.softmax, self.sinks, gram)

    def attended(self, key_weight: Tensor) -> Tensor:
        """Return the head mean of sum_j A_ij c_j for *every* query, (B, N) float64; `key_weight` c is (B, M)."""
        softmax = self.softmax if self.queries is None else StreamedSoftmax(self.call)
        return attended(softmax, key_weight)


@dataclass(frozen=True)
class Reader:
    """How attention calls are read.

    Attributes:
        omega: How sinks are told.
        queries: Queries to look at in each sample; None for all.
        seed: Of the query draws.
    """

    omega: Omega
    queries: int | None
    seed: int

    def read(
        self,
        call: AttentionCall,
        step: Step,
        owner: Tensor,
        *,
        out_weight: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Reading:
        """Read a call whose batch rows belong to the step's rows `owner` (B,).

        Raises:
            PruningError: If the attention holds NaN or infinity, naming module, samples and timestep bucket.
        """
        queries = None
        total = call.query.shape[-2]
        if self.queries is not None and self.queries < total:
            samples = [step.samples[i] for i in owner.tolist()]
            queries = subset(self.seed, samples, total, self.queries).to(call.query.device)
        reading = Reading(call, self.omega, queries, out_weight, with_entropy)
        check_finite(
            reading.sums.mass, f"attention {call.path!r}", lambda rows: step.describe(owner[rows].tolist())
        )
        return reading

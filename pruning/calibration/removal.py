"""What the model's output loses when blocks go together (docs/scores.md section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pruning.calibration.driver import prediction, prediction_without
from pruning.calibration.hooks import frozen
from pruning.calibration.seeing import Change
from pruning.calibration.statistics.blocks import block_change
from pruning.calibration.step import MAX_BRANCHES, Step, timestep_weights
from pruning.calibration.sums import summable
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.types import PrunableGroup


class OutputChange:
    """Measures sets of blocks: the mean of ``w_tau ||eps - eps_without||^2`` with all blocks of a set passed by.

    Of a single block it is the criterion ``block_change``. The batches and what the dense model answers to them are
    held in memory, so that a set costs one forward per batch: ``samples`` times the timestep buckets, in samples.

    Args:
        model: The denoiser; it is in evaluation mode while it runs, and does not change.
        groups: Those of kind ``blocks`` may be named.
        batches: What it is shown.
        weights: ``uniform``, ``obs_diff``, or T positive numbers; see `timestep_weights`.

    Attributes:
        forwards: Forwards so far, each of one sample at one timestep, those of the dense model included.
        power: The mean of ``w_tau ||eps||^2``, by which a change can be divided.

    Raises:
        PruningError: If there are no samples.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[PrunableGroup],
        batches: NoisedBatches,
        *,
        weights: str | Sequence[float] = "uniform",
    ) -> None:
        self._model = model
        self._blocks = {group.module: group for group in groups if group.kind == "blocks"}
        of_bucket = timestep_weights(weights, batches.timestep_buckets)
        with frozen(model), torch.no_grad():
            self._shown = [(batch, _step(batch, of_bucket), prediction(model, batch)) for batch in batches]
        self._rows = self.forwards = sum(len(step.samples) for _, step, _ in self._shown)
        if not self._rows:
            raise PruningError("blocks were to be measured on no samples; give at least one")
        changes = (_change(torch.zeros_like(dense), dense, step) for _, step, dense in self._shown)
        self.power = sum(changes) / self._rows

    def __call__(self, removed: Sequence[str]) -> float:
        """Return the change of the output without the blocks at these paths (`PrunableGroup.module`).

        Raises:
            PruningError: For a path that is no removable block, or for NaN or infinity, naming blocks and samples.
        """
        if strange := [path for path in removed if path not in self._blocks]:
            raise PruningError(f"{strange[0]!r} is not a removable block of this model")
        blocks, total = [self._blocks[path] for path in removed], 0.0
        with frozen(self._model):
            for batch, step, dense in self._shown:
                total += _change(dense, prediction_without(self._model, batch, blocks, step), step)
        self.forwards += self._rows
        return total / self._rows


def _change(before: Tensor, after: Tensor, step: Step) -> float:
    """Return the sum of ``w_tau ||before - after||^2`` over the rows of a batch."""
    before, after = summable(before), summable(after)
    return float(block_change(Change(before, after, step.weights.to(before.device))).sum())


def _step(batch: NoisedBatch, weights: Tensor) -> Step:
    """Return whose rows a batch has, at which timesteps; `weights` are w_tau by bucket."""
    samples = tuple(batch.sample_ids.tolist())
    buckets = torch.full((len(samples),), batch.bucket)
    branches = batch.branches or (0,) * len(samples)
    keys = tuple(s * MAX_BRANCHES + b % MAX_BRANCHES for s, b in zip(samples, branches, strict=True))
    return Step(samples, keys, batch.timesteps.double().cpu(), buckets, weights[buckets])

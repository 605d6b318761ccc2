"""What the plan of a candidate costs the model: it is carried out on a copy, which is held to the dense model.

What stays is refitted as the run would refit it (`prune.compensation`), then it is cut, and nothing is trained. The
measure is the excess error, ``|eps - eps_dense|^2 / |eps_dense|^2``, on samples that calibration did not see, the same
for all. Memory holds the dense model and one copy.
"""

from __future__ import annotations

import copy
import logging
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pruning.calibration.driver import prediction
from pruning.calibration.hooks import frozen
from pruning.data import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.stages import smaller_forms
from pruning.stages.cutting import compensated
from pruning.stages.imaging import noised
from pruning.stages.run import Run
from pruning.stages.showing import is_recorded, seen_before_candidates, shown
from pruning.surgery import apply_plan
from pruning.types import PruningPlan

logger = logging.getLogger(__name__)

IMAGES, CHANGE, POWER, ROWS = "sample_ids", "change", "power", "rows"
"""Of each sample: its number, ``|eps - eps_dense|^2`` and ``|eps_dense|^2`` over its rows, and how many these are."""

Errors = dict[str, Tensor]


class Judge:
    """Measures slim copies of the dense model against it, all on the same samples.

    Args:
        run: The run.
        forms: Folder of the low-rank forms of its plans.

    Attributes:
        is_held_out: Whether the samples are others than calibration's; else they are the same at other timesteps.
    """

    def __init__(self, run: Run, forms: Path) -> None:
        self._run, self._forms = run, forms
        self.is_held_out = is_recorded(run) or _spare(run) >= 2

    @cached_property
    def _shown(self) -> list[tuple[NoisedBatch, Tensor]]:
        """What models are shown, and what the dense one answers."""
        if not self.is_held_out:
            logger.warning(
                "prune.candidates: calibration takes all images of data.split, so plans are measured on the same ones, "
                "at other timesteps; lower calibrate.num_samples"
            )
        dense = self._run.dense
        with frozen(dense), torch.no_grad():
            return [
                (batch, prediction(dense, batch).cpu().double()) for batch in unseen_by_calibration(self._run)
            ]

    def look(self) -> None:
        """Gather what models are shown, once."""
        assert self._shown

    def __call__(self, plan: PruningPlan) -> Errors:
        """Return how far a plan's model is from the dense one, by sample; NaN or infinity is a PruningError."""
        seen = self._shown  # before there is a copy
        model = copy.deepcopy(self._run.dense)
        smaller_forms.take(model, plan, self._forms)
        compensated(self._run, model, plan)
        apply_plan(model, plan, self._run.all_groups)
        rows: dict[str, list[Tensor]] = {IMAGES: [], CHANGE: [], POWER: []}
        with frozen(model), torch.no_grad():
            for batch, dense in seen:
                answer = prediction(model, batch).cpu().double()
                if not bool(torch.isfinite(answer).all()):
                    raise PruningError(
                        f"NaN or infinity in what the cut model answers at timestep bucket {batch.bucket}; another "
                        "type of weights (model.dtype) may help"
                    )
                rows[IMAGES].append(batch.sample_ids.cpu())
                rows[CHANGE].append((answer - dense).square().flatten(1).sum(1))
                rows[POWER].append(dense.square().flatten(1).sum(1))
        ids, place = torch.cat(rows[IMAGES]).unique(return_inverse=True)
        zeros = torch.zeros(len(ids), dtype=torch.float64)
        sums = {name: zeros.index_add(0, place, torch.cat(rows[name])) for name in (CHANGE, POWER)}
        counted = zeros.index_add(0, place, torch.ones(len(place), dtype=torch.float64))
        return {IMAGES: ids, **sums, ROWS: counted}


def _spare(run: Run) -> int:
    """Return how many images of the split that calibration looks at nothing before has seen, up to as many as asked."""
    return max(
        0, min(run.recipe.prune.candidate_samples, len(run.images(run.recipe.data.split)) - _taken(run))
    )


def _taken(run: Run) -> int:
    """Return how many samples of the split are seen before: calibration's, and those that ranks are chosen by."""
    if is_recorded(run):
        return seen_before_candidates(run)
    count = run.recipe.calibrate.num_samples
    return count if run.recipe.prune.modulation_error is None else count + smaller_forms.spare(run)


def unseen_by_calibration(run: Run) -> NoisedBatches:
    """Return what candidates are measured on: other samples than calibration's, of the split that it looks at.

    Where calibration takes all images they are the same, at other timesteps and with other noise.
    """
    asked, first = run.recipe.prune.candidate_samples, _taken(run)
    if is_recorded(run):
        return shown(run, range(first, first + asked))
    spare = _spare(run)
    held_out = spare >= 2
    count = spare if held_out else min(asked, run.recipe.calibrate.num_samples)
    return noised(
        run,
        run.recipe.data.split,
        count,
        batch_size=run.recipe.calibrate.batch_size,
        skip=first if held_out else 0,
        other_noise=True,
    )

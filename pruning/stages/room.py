"""Room in memory and on the disk for what a run will hold and write."""

from __future__ import annotations

import math
from collections.abc import Sequence

import psutil

from eval.run import needs_of as metric_needs
from pruning.calibration import sum_bytes
from pruning.errors import PruningError
from pruning.files import check_writable
from pruning.models import is_known, sample_shape
from pruning.recovery.checkpoints import checkpoint_bytes
from pruning.stages.calibration import wanted
from pruning.stages.run import Run

SUBJECTS = 3
"""Dense, pruned and recovered."""


def needed_bytes(run: Run, stages: Sequence[str]) -> int:
    """Return about how much the stages will write, but samples, whose size is seen in the rehearsal.

    Raises:
        PruningError: If the statistics do not fit into memory.
    """
    statistics = moment_bytes(run)
    memory = psutil.virtual_memory().total
    if statistics > memory:
        raise PruningError(
            f"criterion {run.recipe.score.criterion!r} with compensation {run.recipe.prune.compensation!r} needs "
            f"statistics of {statistics / 1e9:.0f} GB, this machine has {memory / 1e9:.0f} GB; use "
            "score.criterion=fluctuation prune.compensation=fold, or fewer prune.kinds"
        )
    weights = 4 * run.cost.params()
    needed = (statistics if "calibrate" in stages else 0) + (weights if "prune" in stages else 0)
    if "recover" in stages and run.recipe.recover.enabled:
        needed += weights + checkpoint_bytes(run.meta) * (1 + run.recipe.recover.keep_checkpoints)
    judged = "evaluate" in stages and "noised" in metric_needs(run.recipe.evaluate.metrics)
    if judged and is_known(run.meta):  # of other models the size of what they predict is not known here
        predicted = run.recipe.evaluate.denoising_samples * run.recipe.calibrate.timestep_buckets
        needed += SUBJECTS * 4 * predicted * math.prod(sample_shape(run.meta))
    return needed


def check_room(run: Run, needed: int) -> None:
    """Check that so many bytes fit onto the disk."""
    store = run.workspace.store.path.absolute()
    there = next(place for place in (store, *store.parents) if place.is_dir())
    check_writable(f"the run {run.recipe.name!r}", there, needed)


def moment_bytes(run: Run) -> int:
    """Return the bytes that calibration will hold."""
    asked, buckets = wanted(run), run.recipe.calibrate.timestep_buckets
    return sum_bytes(run.meta, run.groups, asked.needs, variants=asked.variants, timestep_buckets=buckets)

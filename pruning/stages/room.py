"""Room in memory and on the disk for what a run will hold and write."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.run import needs_of as metric_needs
from pruning.calibration import is_ample, sum_bytes
from pruning.errors import PruningError
from pruning.files import check_writable, size
from pruning.memory import held_bytes
from pruning.models import is_known, sample_shape
from pruning.recovery.checkpoints import checkpoint_bytes
from pruning.stages.calibration import wanted
from pruning.stages.placement import SUBJECTS
from pruning.stages.run import Run
from pruning.types import PrunableGroup


def needed_bytes(run: Run, stages: Sequence[str]) -> int:
    """Return about how much the stages will write, but samples, whose size is seen in the rehearsal.

    Raises:
        PruningError: If the statistics of a single group do not fit into memory.
    """
    check_memory(run, stages)
    statistics = statistics_bytes(run, run.groups, kept=True)
    weights = 4 * run.cost.params()
    needed = (statistics if "calibrate" in stages else 0) + (weights if "prune" in stages else 0)
    if "recover" in stages and run.recipe.recover.enabled:
        needed += weights + checkpoint_bytes(run.meta) * (1 + run.recipe.recover.keep_checkpoints)
    judged = "evaluate" in stages and "noised" in metric_needs(run.recipe.evaluate.metrics)
    if judged and is_known(run.meta):  # of other models the size of what they predict is not known here
        predicted = run.recipe.evaluate.denoising_samples * run.recipe.calibrate.timestep_buckets
        needed += (SUBJECTS + 1) * 4 * predicted * math.prod(sample_shape(run.meta))
    return needed


def check_room(run: Run, needed: int) -> None:
    """Check that so many bytes fit onto the disk."""
    store = run.workspace.store.path.absolute()
    there = next(place for place in (store, *store.parents) if place.is_dir())
    check_writable(f"the run {run.recipe.name!r}", there, needed)


def check_memory(run: Run, stages: Sequence[str]) -> None:
    """Check that what calibration sums of a single group fits into the memory that it may take, as it is now."""
    asked, memory = run.recipe.calibrate.memory_gb, run.placement.memory
    total, held = (
        statistics_bytes(run, run.groups),
        held_bytes(run.device) if asked and "calibrate" in stages else 0,
    )
    if total + held <= memory or is_ample(total, run.placement.weight_bytes, memory):
        return
    largest, name = max((statistics_bytes(run, [group]), group.name) for group in run.groups)
    if largest <= memory < largest + held:
        raise PruningError(
            f"calibrate.memory_gb: of {size(memory)} the process holds {size(held)} already (Python and the "
            f"libraries count), and the sums of group {name!r} alone are {size(largest)}; give more, use "
            "score.criterion=fluctuation prune.compensation=fold, or fewer prune.kinds"
        )
    if largest > memory:
        raise PruningError(
            f"criterion {run.recipe.score.criterion!r} with compensation {run.recipe.prune.compensation!r} sums "
            f"{size(largest)} of group {name!r} alone, and calibration may hold {size(memory)}"
            f"{'' if asked is None else ' (calibrate.memory_gb)'}; give it more, use score.criterion=fluctuation "
            "prune.compensation=fold, or fewer prune.kinds"
        )


def statistics_bytes(run: Run, groups: Sequence[PrunableGroup], *, kept: bool = False) -> int:
    """Return the bytes that calibration holds of groups, or that are kept of them when it is done."""
    asked, buckets = wanted(run), run.recipe.calibrate.timestep_buckets
    return sum_bytes(
        run.meta, groups, asked.needs, variants=asked.variants, timestep_buckets=buckets, kept=kept
    )

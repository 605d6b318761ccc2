"""What evaluation and export will need, tried before the work that comes before them: minutes instead of hours lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pruning.errors import PruningError
from pruning.export import check_export
from pruning.stages.exporting import request_of
from pruning.stages.run import Run
from pruning.stages.sampling import sampler

STEPS = 2
"""Sampling steps of a rehearsal; `pruning.sampling.check_sampler` proves the scheduler for all of them."""


def rehearse(run: Run, stages: Sequence[str]) -> None:
    """Try what the last stages will do, where stages before them are still to run.

    Raises:
        PruningError: Naming the stage that would fail, and why.
    """
    for stage, attempt in (("evaluate", _sample), ("export", _export)):
        if stage in stages and stages[0] != stage:
            _try(stage, lambda attempt=attempt: attempt(run))


def _try(stage: str, attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except (PruningError, OSError) as error:
        raise PruningError(f"stage {stage!r} would stop at this: {error}") from error


def _sample(run: Run) -> None:
    """Let the dense model generate one image, by the way in which all models will."""
    section = run.recipe.evaluate
    generate = sampler(
        run,
        run.dense,
        split=run.recipe.data.eval_split,
        num_steps=min(STEPS, section.num_steps),
        guidance_scale=section.guidance_scale,
        batch_size=1,
        scheduler=section.sampler,
    )
    generate([0])


def _export(run: Run) -> None:
    """Check the exporters and the words of the model card, with the dense model in place of the slim one."""
    plan = {"asked": str(run.recipe.prune.target), "macs_ratio": 1.0, "params_ratio": 1.0, "removed": {}}
    check_export(request_of(run, run.dense, {"plan": plan, "recover": {}}, {}))

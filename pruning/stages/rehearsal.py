"""The rehearsal: what the last stages will do, tried with the dense model before the first expensive stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from eval.run import check_medium
from pruning.errors import PruningError, named
from pruning.export import check_export
from pruning.sampling import rehearse as rehearse_sample
from pruning.stages.exporting import request_of
from pruning.stages.placement import SUBJECTS
from pruning.stages.room import check_room
from pruning.stages.run import Run
from pruning.stages.sampling import arguments_of, pipeline_around


def rehearse(run: Run, stages: Sequence[str]) -> None:
    """Try what the last stages will do after those that are still to run; a PruningError names one that would fail."""
    for stage, attempt in (("recover", _recover), ("evaluate", _evaluate), ("export", _export)):
        if stage not in stages or stages[0] == stage:
            continue
        try:
            attempt(run)
        except (PruningError, OSError) as error:
            raise PruningError(f"stage {stage!r} would stop at this: {error}") from error


def _recover(run: Run) -> None:
    """See by one sample of the dense model whether there can be validation images."""
    section = run.recipe.recover
    if section.enabled and section.validation_images:
        _one_sample(run)


def _one_sample(run: Run) -> Tensor:
    section = run.recipe.evaluate
    pipeline = pipeline_around(run, run.dense, section.sampler)
    given = run.inputs(run.recipe.data.eval_split, 1)[0]
    return rehearse_sample(pipeline, given, seed=run.recipe.seed, arguments=arguments_of(run, section))


def _evaluate(run: Run) -> None:
    """See by one sample of the dense model whether the metrics can judge such, and whether there is room for all."""
    section, one = run.recipe.evaluate, _one_sample(run)
    with named("evaluate.metrics"):
        check_medium(section.metrics, one)
    models = (
        SUBJECTS + 1
    )  # those of the one at work lie there twice: as batches, and when they are put together
    check_room(run, models * section.num_samples * one.nbytes)


def _export(run: Run) -> None:
    """Check the exporters and the words of the model card, with the dense model in place of the slim one."""
    plan = {"asked": str(run.recipe.prune.target), "macs_ratio": 1.0, "params_ratio": 1.0, "removed": {}}
    check_export(request_of(run, run.dense, {"plan": plan, "recover": {}}, {}))

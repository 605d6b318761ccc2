"""Stage ``calibrate``: one or two passes of the dense model over the same inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import ModelMixin

from pruning import calibration
from pruning.calibration import FirstPass, SamplingRun, find, needs_first_pass
from pruning.calibration.rounds import Rounds
from pruning.calibration.seeing import Input
from pruning.calibration.sinks.detection import detection_settings
from pruning.calibration.sinks.weights import INFLUENCE, weights_need_first_pass
from pruning.data import NoisedBatches, num_train_timesteps
from pruning.errors import PruningError
from pruning.groups.experts import EXPERTS
from pruning.importance import CRITERIA, DIAGNOSTIC_NEEDS, needs_of
from pruning.settings import SAMPLING
from pruning.stages.candidates import further_criteria
from pruning.stages.caveats import unseen
from pruning.stages.run import STATS, Run
from pruning.stages.sampling import sampler, steps_of
from pruning.stages.showing import shown
from pruning.stages.stage import IMAGES, Stage, pick
from pruning.store import Key
from pruning.surgery import needs_for
from pruning.types import CalibrationStats, PrunableGroup

logger = logging.getLogger(__name__)

FIRST_PASS = "first_pass"
DRAWN = frozenset({"key_mass", "relative_mass", "sink_indicator", "visible_keys"})
"""What the report draws beside `DIAGNOSTIC_NEEDS`."""

SHOWN = (
    *IMAGES,
    "pipeline",
    "calibrate.num_samples",
    "calibrate.timestep_buckets",
    "calibrate.provider",
    "calibrate.num_steps",
    "calibrate.guidance_scale",
    "calibrate.timestep_weights",
    "calibrate.queries",
)
"""Keys that say what the model is shown. Batch sizes are not among them: they do not change the result."""


class Wanted(NamedTuple):
    """What calibration has to gather: statistics by name, and the weighted rows besides the plain ones.

    What only the report draws of attention is left out where attention cannot be seen.
    """

    needs: tuple[str, ...]
    variants: tuple[str, ...]
    drawn: tuple[str, ...] = ()


def wanted(run: Run) -> Wanted:
    """Return what the recipe's criteria, those of its candidates, its compensation and the report need."""
    recipe = run.recipe
    others = [*recipe.calibrate.criteria, *further_criteria(run)]
    needs, variants = needs_for([*others, recipe.prune.compensation], run.groups)
    needs |= needs_of(recipe.score.criterion, run.groups)
    variants |= {weighting(run)} - {"off"}
    drawn: frozenset[str] = frozenset()
    if recipe.calibrate.diagnostics and any(group.kind == "attention_heads" for group in run.groups):
        drawn = (DIAGNOSTIC_NEEDS | DRAWN) - needs
    return Wanted(tuple(sorted(needs | drawn)), tuple(sorted(variants)), tuple(sorted(drawn)))


def weighting(run: Run) -> str:
    """Return the weighting of the rows that the run's criterion judges."""
    return run.recipe.score.weighting or CRITERIA[run.recipe.score.criterion].weighting


def kinds_that_count(run: Run) -> dict[str, Any]:
    """Return the kinds of groups, where more of them change what is seen of each: influence adds up over them."""
    exact = INFLUENCE & {*wanted(run).variants}
    return {"prune.kinds": sorted(run.recipe.prune.kinds)} if exact else {}


def first_pass_key(run: Run, asked: Wanted) -> Key:
    """Return what the first pass over the dense model depends on."""
    sinks = run.recipe.calibrate.sink_weights
    return Key(
        "first_pass",
        {**pick(run.recipe, SHOWN), "detection": detection_settings(sinks), **kinds_that_count(run)},
        run.workspace.hashes,
        {
            "kinds": sorted(run.recipe.prune.kinds),
            "sees": ["stability"] if weights_need_first_pass(asked.variants, sinks) else [],
        },
    )


def _seen_first(run: Run, asked: Wanted) -> FirstPass | None:
    """Return how stable each sink is and what the channel means are, seen before anything is weighted; None if unread.

    It is a result of its own, so that changing how sinks are weighted does not take the pass again.
    """
    if not needs_first_pass(asked.needs, asked.variants, run.recipe.calibrate.sink_weights):
        return None

    def look(folder: Path) -> None:
        source = source_for(run, run.dense)
        found = calibration.first_pass(
            run.dense,
            run.groups,
            source,
            settings=run.recipe.calibrate,
            timestep_weights=timestep_weights(run),
            stability=weights_need_first_pass(asked.variants, run.recipe.calibrate.sink_weights),
            seed=run.recipe.seed,
            **watched(run, "first pass", source),
        )
        calibration.save_stats(found.stats, folder / FIRST_PASS)

    kept = run.part(first_pass_key(run, asked), look).folder / FIRST_PASS
    return FirstPass(calibration.load_stats(kept))


@partial(
    Stage,
    "calibrate",
    reads=(*SHOWN, "calibrate.rows", "calibrate.sink_weights"),
    resumable=True,
    extra=kinds_that_count,
    asked=lambda run: {
        "needs": list(wanted(run).needs),
        "variants": list(wanted(run).variants),
        "kinds": sorted(run.recipe.prune.kinds),
    },
)
def calibrate(run: Run, folder: Path) -> dict[str, Any]:
    """Gather the statistics that the criteria, the compensation and the report read."""
    asked = wanted(run)
    stats = gather(run, run.dense, run.groups, asked, _seen_first(run, asked), folder / STATS)
    for sentence in unseen(stats):
        logger.warning("%s", sentence)
    return {
        "groups": len(run.groups),
        "statistics": len(asked.needs),
        "weighted rows": ", ".join(asked.variants) or "none",
        "samples": run.recipe.calibrate.num_samples if asked.needs else 0,
    }


def gather(
    run: Run,
    model: ModelMixin,
    groups: Sequence[PrunableGroup],
    asked: Wanted,
    seen: FirstPass | None = None,
    folder: Path | None = None,
) -> CalibrationStats:
    """Measure `model`, the dense one or one on its way to be slim, on the recipe's inputs.

    `seen` is the result of a first pass of this very model; if it is None, the pass is taken here where it is needed.
    With a `folder` the statistics lie there.
    """
    if not asked.needs:
        nothing = CalibrationStats(meta={"needs": [], "variants": []})
        if folder is not None:
            calibration.save_stats(nothing, folder)
        return nothing
    source = source_for(run, model)
    return calibration.calibrate(
        model,
        groups,
        source,
        needs=asked.needs,
        settings=run.recipe.calibrate,
        variants=asked.variants,
        optional=asked.drawn,
        timestep_weights=timestep_weights(run),
        first_pass=seen,
        conditional=conditional_half(run),
        seed=run.recipe.seed,
        folder=folder,
        identity={},  # the folder is that of the stage's key
        **watched(run, "statistics", source),
    )


def check_guidance(run: Run) -> None:
    """Raise PruningError if ``guided`` is asked of a model without two branches, or a criterion that reads no rows."""
    if run.recipe.score.weighting != "guided":
        return
    name, config = type(run.meta).__name__, run.meta.config
    why = None
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
        why = "is told its guidance as a number (a distilled model) and has one branch"
    elif not run.guidable:
        why = "has no unconditional one (no null class, no text)"
    if why:
        raise PruningError(
            "score.weighting: 'guided' mixes a conditional and an unconditional branch, but "
            f"{name} {run.recipe.model.source!r} {why}; leave score.weighting out"
        )
    criterion = run.recipe.score.criterion
    for kind in {group.kind for group in run.groups} - {"blocks", EXPERTS}:
        read = find(needs_of(criterion, [group for group in run.groups if group.kind == kind])).values()
        if not read or not all(isinstance(observer.sees, Input) for observer in read):
            raise PruningError(
                f"score.weighting: 'guided' mixes rows, and the criterion {criterion!r} does not judge {kind} by rows "
                "alone; take one that does, such as obs, or leave score.weighting out"
            )


def conditional_half(run: Run) -> int:
    """Return which half of a guided call of the run's sampler is conditional."""
    first = run.autoencoder is None or type(run.pipeline).__name__ == "DiTPipeline"
    return 0 if first else 1


def timestep_weights(run: Run) -> list[float] | None:
    """Return the weights of the timestep buckets that the recipe's sampler gives, None if it asks for others.

    Raises:
        PruningError: If the sampler gives none.
    """
    section = run.recipe.calibrate
    if section.timestep_weights != "sampler":
        return None
    steps = steps_of(run, section)
    if steps is None:
        raise PruningError("'sampler' counts steps, and the pipeline is not told how many; take another")
    return calibration.sampler_weights(run.scheduler, section.timestep_buckets, steps)


def source_for(run: Run, model: ModelMixin) -> NoisedBatches | SamplingRun:
    """Return what the recipe shows `model`.

    Rows of both branches of guidance are mixed while the model itself samples; nothing else watches it do so.
    """
    section = run.recipe.calibrate
    if run.recipe.score.weighting != "guided" or section.provider != SAMPLING:
        return shown(run, range(section.num_samples))
    generate = sampler(run, model, section)
    return SamplingRun(lambda: generate(range(section.num_samples)), num_train_timesteps(run.scheduler))


def watched(run: Run, what: str, source: NoisedBatches | SamplingRun) -> dict[str, Any]:
    """Return the arguments of a calibration that say how much memory it may take, and that show how far it is."""
    total, done = source.rows if isinstance(source, NoisedBatches) else 0, 0

    def announce(rounds: Rounds) -> None:
        nonlocal total
        total *= len(rounds.groups)
        if rounds.was_planned:
            logger.info("%-9s %s: %s", "", what, rounds)

    def report(rows: int) -> None:
        nonlocal done
        done += rows
        run.bars(what, done, total)

    return {"memory": run.placement.memory, "progress": report, "announce": announce}

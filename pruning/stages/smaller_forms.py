"""Weights in a smaller form: the ranks of modulation layers, chosen from what they are fed, and copies of embedders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from torch import nn

from pruning import calibration
from pruning.calibration import SamplingRun
from pruning.data import NoisedBatches, num_train_timesteps
from pruning.errors import PruningError
from pruning.groups.modulation import break_even, copies, modulation_layers, repeated
from pruning.stages.calibration import SHOWN, progress
from pruning.stages.run import Run
from pruning.stages.sampling import sampler
from pruning.stages.stage import pick
from pruning.store import Key
from pruning.surgery import RANK_NEEDS, choose_ranks, take_low_rank
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, config_hash

logger = logging.getLogger(__name__)

FITTED, HELD_OUT = "fitted.safetensors", "held_out.safetensors"
REPORT = "smaller_forms.json"
LIKELY = 1 / 8
"""Rank that is assumed of modulation layers before they are measured, of the smaller side of their weights."""
MEASURED = (*SHOWN, "data.eval_split", "prune.modulation_error")


def settings(run: Run) -> dict[str, Any]:
    """Return what the smaller forms of a plan depend on beside its scores; nothing where none are asked for."""
    section = run.recipe.prune
    return ({"prune.share_embedders": True} if section.share_embedders else {}) | fitted(run)


def fitted(run: Run) -> dict[str, Any]:
    """Return what low-rank layers depend on beside their ranks; nothing where none are asked for."""
    return {} if run.recipe.prune.modulation_error is None else pick(run.recipe, MEASURED)


def start_of(run: Run) -> tuple[PruningPlan, dict[str, Any]]:
    """Return the plan in which only the smaller forms are decided, and what the report says of them.

    Returns:
        JSON types: ``modulation``: for each layer ``module``, ``params``, and as `Rank`; ``shared``: for each set of
        copies ``modules``, ``saved`` parameters and ``error``, which is 0, for copies are equal.

    Raises:
        PruningError: If the model has no modulation layer and some were to take a low-rank form.
    """
    section, model = run.recipe.prune, run.dense
    report: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    shared: tuple[tuple[str, ...], ...] = ()
    if section.modulation_error is not None:
        fit, held_out = _moments(run)
        found = choose_ranks(model, layers_of(run), fit, held_out, section.modulation_error, section.round_to)
        ranks = {path: one.rank for path, one in found.items() if one.rank is not None}
        report["modulation"] = [
            {"module": path, "params": _size(model, path), **asdict(one)} for path, one in found.items()
        ]
    if section.share_embedders:
        shared = copies(model, run.all_groups)
        if not shared:
            logger.info("plan: no two embedders of a list of blocks are equal, so none is shared")
        report["shared"] = [
            {"modules": list(paths), "saved": _size(model, paths[0]) * (len(paths) - 1), "error": 0.0}
            for paths in shared
        ]
    return PruningPlan(base_hash=config_hash(run.meta.config), ranks=ranks, shared=shared), report


def assumed(run: Run, share: float) -> PruningPlan | None:
    """Return the plan that `start_of` may come to, without weights; None where no smaller forms are asked for.

    Args:
        run: The run.
        share: Rank of each modulation layer, of the smaller side of its weight; at least 1.
    """
    section, model = run.recipe.prune, run.meta
    if not settings(run):
        return None
    ranks = {}
    for group in layers_of(run) if section.modulation_error is not None else ():
        layer = model.get_submodule(group.module)
        assert isinstance(layer, nn.Linear)
        rank = max(1, round(share * min(layer.in_features, layer.out_features)))
        if rank <= break_even(layer):
            ranks[group.module] = rank
    shared = tuple(repeated(model, run.all_groups)) if section.share_embedders else ()
    return PruningPlan(base_hash=config_hash(model.config), ranks=ranks, shared=shared)


def take(run: Run, model: ModelMixin) -> None:
    """Give the modulation layers of the dense `model` the ranks of the run's plan, in place."""
    ranks = run.plan.ranks
    if ranks:
        take_low_rank(model, layers_of(run), ranks, _moments(run)[0])


def layers_of(run: Run) -> list[PrunableGroup]:
    """Return the modulation layers of the run's model.

    Raises:
        PruningError: If it has none.
    """
    found = modulation_layers(run.meta, run.all_groups)
    if not found:
        raise PruningError(
            f"prune.modulation_error: {type(run.meta).__name__} {run.recipe.model.source!r} has no modulation layers "
            "(linear layers of adaptive norms); leave it out"
        )
    return found


def _size(model: ModelMixin, path: str) -> int:
    return sum(p.numel() for p in model.get_submodule(path).parameters())


def _moments(run: Run) -> tuple[CalibrationStats, CalibrationStats]:
    """Return what enters the modulation layers: on the images of calibration, and on held-out ones."""
    key = Key("modulation", pick(run.recipe, MEASURED[:-1]), run.workspace.hashes, {})

    def look(folder: Path) -> None:
        section = run.recipe.calibrate
        for name, source in ((FITTED, _source(run, held_out=False)), (HELD_OUT, _source(run, held_out=True))):
            plain = replace(section, rows=None, timestep_weights="uniform")
            stats = calibration.calibrate(
                run.dense,
                layers_of(run),
                source,
                needs=RANK_NEEDS,
                settings=plain,
                seed=run.recipe.seed,
                progress=progress(run, f"modulation, {name.partition('.')[0]}", 1 + run.guidable),
            )
            calibration.save_stats(stats, folder / name)

    folder = run.part(key, look).folder
    return calibration.load_stats(folder / FITTED), calibration.load_stats(folder / HELD_OUT)


def _source(run: Run, *, held_out: bool) -> NoisedBatches | SamplingRun:
    """Return what is shown: images with their labels or captions and without, as guidance asks, or sampling."""
    section = run.recipe.calibrate
    count = section.num_samples
    if section.provider == "sampling":
        generate = sampler(run, run.dense, section)
        seeds = range(count, 2 * count) if held_out else range(count)
        return SamplingRun(lambda: generate(seeds), num_train_timesteps(run.scheduler))
    split = run.recipe.data.eval_split if held_out else run.recipe.data.split
    count = min(count, len(run.images(split))) if held_out else count
    parts: Sequence[NoisedBatches] = [
        run.noised(split, count, batch_size=section.batch_size, conditional=conditional)
        for conditional in ((True, False) if run.guidable else (True,))
    ]
    return replace(parts[0], make=lambda: chain.from_iterable(parts))

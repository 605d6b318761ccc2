"""Weights in a smaller form: the ranks of modulation layers, chosen from what they are fed, and copies of embedders."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from pruning import calibration
from pruning.calibration.tensors import read_tensors, write_tensors
from pruning.data import NoisedBatches
from pruning.errors import PruningError
from pruning.files import write_json
from pruning.groups.modulation import copies, modulation_layers, ranks_that_save, repeated
from pruning.stages.calibration import SHOWN, watched
from pruning.stages.imaging import noised
from pruning.stages.run import Run
from pruning.stages.showing import is_recorded, shown
from pruning.stages.stage import pick
from pruning.store import Key
from pruning.surgery import RANK_NEEDS, LowRank, choose_ranks, take_low_rank
from pruning.surgery.low_rank import LowRankLinear
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, config_hash

logger = logging.getLogger(__name__)

FITTED, HELD_OUT = "fitted", "held_out"
REPORT, FORMS = "smaller_forms.json", "low_rank.safetensors"
CONTENT, PARTS = "low-rank forms", ("up", "down", "bias")
LIKELY = 1 / 8
"""Rank that is assumed of modulation layers before they are measured, of the smaller side of their weights."""


def depends_on(run: Run) -> dict[str, Any]:
    """Return what the smaller forms of a plan depend on beside its scores; nothing where none are asked for."""
    section = run.recipe.prune
    found: dict[str, Any] = {"prune.share_embedders": True} if section.share_embedders else {}
    if section.modulation_error is not None:
        found |= pick(run.recipe, (*SHOWN, "prune.modulation_error"))
    return found


def decide(run: Run, folder: Path) -> PruningPlan | None:
    """Return the plan in which only the smaller forms are decided; None where none are asked for.

    Writes the low-rank forms into the folder of the stage, and what the report says. ``asked`` and ``multiple``: of
    ranks; ``held_out``: whether losses are of other images than directions. ``modulation``: each layer's
    ``module``, ``params``, ``full`` (the smaller side of its weight), ``rank`` (None: it stays whole), ``lost``,
    ``lost_fitted`` and ``saved`` parameters. ``shared``: for each set of copies ``modules``, ``saved`` and ``error``,
    which is 0, for copies are equal.

    Raises:
        PruningError: If the model has no modulation layer and some were to take a low-rank form.
    """
    if not depends_on(run):
        return None
    report: dict[str, Any] = {}
    forms: dict[str, LowRank] = {}
    shared: tuple[tuple[str, ...], ...] = ()
    if run.recipe.prune.modulation_error is not None:
        report |= {"asked": run.recipe.prune.modulation_error, "multiple": run.recipe.prune.round_to}
        report["held_out"] = is_recorded(run) or spare(run) > 0
        if not report["held_out"]:
            logger.warning(
                "prune.modulation_error: calibration takes all images of data.split, so what low-rank forms lose is "
                "counted on the same ones, at other timesteps; lower calibrate.num_samples"
            )
        forms, report["modulation"] = _modulation(run, run.recipe.prune.modulation_error)
        losses = {path: [form.lost, form.lost_fitted] for path, form in forms.items()}
        tensors = {f"{path}/{name}": getattr(form, name) for path, form in forms.items() for name in PARTS}
        write_tensors(folder / FORMS, CONTENT, {k: t for k, t in tensors.items() if t is not None}, losses)
    if run.recipe.prune.share_embedders:
        shared = copies(run.dense, run.all_groups)
        if not shared:
            logger.info("plan: no two embedders of a list of blocks are equal, so none is shared")
        report["shared"] = [
            {"modules": list(paths), "saved": _size(run.dense, paths[0]) * (len(paths) - 1), "error": 0.0}
            for paths in shared
        ]
    write_json(folder / REPORT, report)
    ranks = {path: form.rank for path, form in forms.items()}
    return PruningPlan(base_hash=config_hash(run.meta.config), ranks=ranks, shared=shared)


def _modulation(run: Run, error: float) -> tuple[dict[str, LowRank], list[dict[str, Any]]]:
    """Return the forms of the layers that take one, and what the report says of each layer."""
    fit, held_out = _moments(run)
    found = choose_ranks(run.dense, layers_of(run), fit, held_out, error, run.recipe.prune.round_to)
    said = []
    for path, form in found.items():
        sides = run.dense.get_parameter(f"{path}.weight").shape
        row = {"module": path, "params": _size(run.dense, path), "full": min(sides), "rank": None, "saved": 0}
        if form is not None:
            saved = math.prod(sides) - form.rank * sum(sides)
            row |= {"rank": form.rank, "saved": saved, "lost": form.lost, "lost_fitted": form.lost_fitted}
        said.append(row)
    return {path: form for path, form in found.items() if form is not None}, said


def assumed(run: Run, share: float) -> PruningPlan | None:
    """Return the plan that `decide` may come to, without weights; None where no smaller forms are asked for.

    Args:
        run: The run.
        share: Rank of each modulation layer, of the smaller side of its weight; at least 1.
    """
    section, model = run.recipe.prune, run.meta
    if not depends_on(run):
        return None
    layers = layers_of(run) if section.modulation_error is not None else []
    ranks = ranks_that_save(model, layers, lambda layer: max(1, round(share * min(layer.weight.shape))))
    shared = tuple(repeated(model, run.all_groups)) if section.share_embedders else ()
    return PruningPlan(base_hash=config_hash(model.config), ranks=ranks, shared=shared)


def take(model: ModelMixin, plan: PruningPlan, folder: Path) -> None:
    """Give the modulation layers of the dense `model` the forms of a plan, in place; `decide` wrote them."""
    if forms := _forms(plan, folder):
        take_low_rank(model, forms)


def weights_of(plan: PruningPlan, folder: Path) -> dict[str, Tensor]:
    """Return the weights of the forms of a plan, by name, as `cut_on_disk` takes them; `decide` wrote them."""
    found: dict[str, Tensor] = {}
    for path, form in _forms(plan, folder).items():
        found |= {f"{path}.up.weight": form.up, f"{path}.down.weight": form.down}
        if form.bias is not None:
            found[f"{path}.up.bias"] = form.bias
    return found


def _forms(plan: PruningPlan, folder: Path) -> dict[str, LowRank]:
    """Return the low-rank forms of a plan, by path of the layer."""
    if not plan.ranks:
        return {}
    tensors, losses = read_tensors(folder / FORMS, CONTENT)
    forms = {}
    for path in plan.ranks:
        up, down, bias = (tensors.get(f"{path}/{name}") for name in PARTS)
        assert up is not None
        assert down is not None
        forms[path] = LowRank(up, down, bias, *losses[path])
    return forms


def layers_of(run: Run) -> list[PrunableGroup]:
    """Return the modulation layers of the run's model.

    Raises:
        PruningError: If it has none.
    """
    found = modulation_layers(run.meta, run.all_groups)
    if not found:
        low = any(isinstance(module, LowRankLinear) for module in run.meta.modules())
        raise PruningError(
            f"prune.modulation_error: {type(run.meta).__name__} {run.recipe.model.source!r} has no modulation layers "
            f"(linear layers of adaptive norms){' but such of a low-rank form already' * low}; leave it out"
        )
    return found


def _size(model: ModelMixin, path: str) -> int:
    return sum(p.numel() for p in model.get_submodule(path).parameters())


def _moments(run: Run) -> tuple[CalibrationStats, CalibrationStats]:
    """Return what enters the modulation layers: on the images of calibration, and on held-out ones."""
    key = Key("modulation", pick(run.recipe, SHOWN), run.workspace.hashes, {})

    def look(folder: Path) -> None:
        plain = replace(run.recipe.calibrate, rows=None, timestep_weights="uniform")
        for name, held_out in ((FITTED, False), (HELD_OUT, True)):
            source = shown_to_layers(run, held_out=held_out)
            stats = calibration.calibrate(
                run.dense,
                layers_of(run),
                source,
                needs=RANK_NEEDS,
                settings=plain,
                seed=run.recipe.seed,
                **watched(run, f"modulation, {name}", source),
            )
            calibration.save_stats(stats, folder / name)

    folder = run.part(key, look).folder
    return calibration.load_stats(folder / FITTED), calibration.load_stats(folder / HELD_OUT)


def spare(run: Run) -> int:
    """Return how many images of the split that calibration looks at it leaves alone, up to as many as it takes."""
    count = run.recipe.calibrate.num_samples
    return min(count, len(run.images(run.recipe.data.split)) - count)


def shown_to_layers(run: Run, *, held_out: bool) -> NoisedBatches:
    """Return what is shown: images with their labels or captions and without, as guidance asks, or recorded calls.

    Held-out images are the `spare` ones, or the same where there are none; they come at other timesteps, for on those
    alone a modulation layer may depend. Held-out calls are those of other samples.
    """
    section, split = run.recipe.calibrate, run.recipe.data.split
    count = section.num_samples
    if is_recorded(run):
        return shown(run, range(count, 2 * count) if held_out else range(count))
    others = spare(run) if held_out else 0
    parts: Sequence[NoisedBatches] = [
        noised(
            run,
            split,
            others or count,
            batch_size=section.batch_size,
            conditional=conditional,
            skip=count if others else 0,
            other_noise=held_out,
        )
        for conditional in ((True, False) if run.guidable else (True,))
    ]
    return NoisedBatches.joined(parts)

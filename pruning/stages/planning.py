"""Stage ``plan``: from scores to a plan that hits the target."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pruning.allocation import Cost, allocate
from pruning.allocation.candidates import candidate_plan
from pruning.files import read_json, write_json
from pruning.settings.candidates import Candidate
from pruning.stages import choosing, depth, smaller_forms, targets
from pruning.stages.run import PLAN, Run
from pruning.stages.stage import Stage, pick
from pruning.types import PrunableGroup, PruningPlan, Scores, config_hash, lies_in

READS = (
    "prune.kinds",
    "prune.target",
    "prune.scope",
    "prune.round_to",
    "prune.min_units",
    "prune.limits",
    "prune.per_cost",
)


def _settings(run: Run) -> dict[str, Any]:
    return _planned_by(run) | choosing.depends_on(run)


def _planned_by(run: Run) -> dict[str, Any]:
    return smaller_forms.depends_on(run) | depth.depends_on(run) | targets.depends_on(run)


@partial(Stage, "plan", after=("score",), reads=READS, extra=_settings)
def plan(run: Run, folder: Path) -> dict[str, Any]:
    """Decide which weights take a smaller form and which units stay; which blocks, by measuring them if asked.

    Under a target of time or memory the plan is measured before it is believed. Of several candidates the one with the
    lowest measured error is taken.
    """
    start, said = smaller_forms.decide(run, folder), {}
    make = partial(_write_plan, run, start)
    if run.recipe.prune.candidates > 1:
        settings = {**pick(run.recipe, READS), **_planned_by(run)}
        found, trace = choosing.choose(run, folder, settings, make)
        write_json(folder / choosing.CANDIDATES, trace)
        found.save(folder / PLAN)
        said = {"candidates": choosing.figures(trace)}
    else:
        found = make(Candidate(), [run.scores], folder)
    if searched := read_json(folder / depth.DEPTH):
        said = {"depth": depth.depth_figures(searched), **said}
    return {**(figures := plan_figures(found, run.groups)), **_of_dense(run, figures), **said}


def _of_dense(run: Run, figures: Mapping[str, Any]) -> dict[str, float]:
    """Return which shares of the dense model a plan leaves, where what is cut is slim already."""
    if run.recipe.model.start is None:
        return {}
    return {
        f"{key}_ratio_of_dense": figures[f"{key}_ratio"] * run.share_of_dense(key)
        for key in ("macs", "params")
        if figures[f"{key}_ratio"] is not None
    }


def _write_plan(
    run: Run, start: PruningPlan | None, candidate: Candidate, scores: Sequence[Scores], folder: Path
) -> PruningPlan:
    """Make the plan of a candidate and write it, with what was measured of its target and of its blocks."""

    def make(costs: Mapping[str, Cost] | None = None) -> PruningPlan:
        if candidate.is_own:
            return make_plan(run, scores[0], start, costs)
        costs = targets.costs_for(run) if costs is None else costs
        asked = run.recipe.prune
        with hushed():  # what misses its target is said in the comparison
            return candidate_plan(
                run.groups, scores, run.cost, asked, candidate, start=_start(run, start), measured=costs
            )

    if targets.is_measured(run.recipe.prune.target):
        found = targets.measured_plan(run, folder, make)
    else:
        found = make()
    if run.recipe.prune.depth.budget and candidate.is_own:
        with hushed():  # what the scores' own plan misses has been said
            found, trace = depth.search(run, found, scores[0])
        write_json(folder / depth.DEPTH, trace)
    found.save(folder / PLAN)
    return found


def make_plan(
    run: Run,
    scores: Scores | None,
    start: PruningPlan | None = None,
    costs: Mapping[str, Cost] | None = None,
) -> PruningPlan:
    """Return the plan for `scores`, or the uniform one for None; blocks go by their scores, no plan is measured.

    `start` has the weights that take a smaller form; `costs` are those that the target bounds and that are not counted,
    of the run if None.

    Raises:
        PruningError: If the target lies below what kinds, rounding and limits allow, or a limit matches nothing.
    """
    section = run.recipe.prune
    settings = section if scores is not None else replace(section, scope="local")
    costs = targets.costs_for(run) if costs is None else costs
    plan = allocate(run.groups, scores, run.cost, settings, start=_start(run, start), measured=costs)
    if run.recipe.model.start is None:
        return plan
    asked = plan.meta["asked"].replace("of the dense", "of the slim model's")
    return replace(plan, meta={**plan.meta, "asked": asked})


def _start(run: Run, start: PruningPlan | None) -> PruningPlan:
    """Return what a plan starts from: what is decided already, or nothing but whose plan it is."""
    return start or PruningPlan(base_hash=config_hash(run.meta.config))


def plan_figures(plan: PruningPlan, groups: list[PrunableGroup]) -> dict[str, Any]:
    """Return what was asked, what was got, and how much goes of each kind; MACs are None where they are not known."""
    macs, params = plan.meta["macs"], plan.meta["params"]
    return {
        "asked": plan.meta["asked"],
        "hit": plan.meta["hit"],
        "macs_ratio": macs["plan"] / macs["dense"] if macs["dense"] else None,
        "params_ratio": params["plan"] / params["dense"],
        "macs": macs["plan"] if macs["dense"] else None,
        "params": params["plan"],
        **({"targets": plan.meta["targets"]} if "targets" in plan.meta else {}),
        **({"solver": plan.meta["solver"]} if "solver" in plan.meta else {}),
        **({"low_rank_layers": len(plan.ranks)} if plan.ranks else {}),
        **({"shared_modules": len(plan.served_by())} if plan.shared else {}),
        "removed": {
            kind: f"{sum(cut['total'] - cut['kept'] for cut in cuts)} of {sum(cut['total'] for cut in cuts)}"
            for kind, cuts in by_kind(cuts_of(plan, groups)).items()
        },
    }


def cuts_of(plan: PruningPlan, groups: Sequence[PrunableGroup]) -> list[dict[str, Any]]:
    """Return for each group what stays: units kept, and whether it is gone with a removed block or expert."""
    gone = plan.gone(groups)

    def cut(group: PrunableGroup) -> dict[str, Any]:
        removed = lies_in(group.module, gone)
        return {
            "group": group.name,
            "module": group.module,
            "kind": group.kind,
            "kept": 0 if removed else len(plan.kept_units(group)),
            "total": group.num_units,
            "removed": removed,
        }

    return [cut(group) for group in groups]


@contextmanager
def hushed() -> Iterator[None]:
    """Keep warnings about scores and plans back: they are of ones that nobody asked for."""
    loggers = [logging.getLogger(f"pruning.{name}") for name in ("importance", "allocation")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def by_kind(cuts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return what `cuts_of` says by kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for cut in cuts:
        kinds.setdefault(cut["kind"], []).append(cut)
    return kinds

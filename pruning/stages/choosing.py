"""The part of the stage ``plan`` that makes several plans for one target and takes the one of the lowest error.

Each candidate is a result of its own in the store, so that a run that was killed measures none again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from eval.intervals import ratio_interval
from pruning.allocation.budget import TOLERANCE
from pruning.errors import PruningError
from pruning.files import read_json, write_json
from pruning.settings.candidates import Candidate
from pruning.stages.calibration import SHOWN
from pruning.stages.candidates import candidates_of, criteria_of
from pruning.stages.depth import DEPTH
from pruning.stages.judging import CHANGE, IMAGES, POWER, ROWS, Errors, Judge
from pruning.stages.run import PLAN, Run
from pruning.stages.scoring import write_scores
from pruning.stages.stage import pick
from pruning.stages.targets import BELIEVED, TARGETS
from pruning.store import Key, hash_of
from pruning.types import PruningPlan, Scores

logger = logging.getLogger(__name__)

CANDIDATES = "candidates.json"
FILES = (PLAN, DEPTH, TARGETS)
"""What a plan comes with."""
ERRORS, FAILED = "errors.safetensors", "failed.json"
OF_THE_OUTPUT = ("probe", "probe_obs", "sink")
"""Criteria whose scores add up to a change of the model's output, so that they predict an excess error."""

FAIR = TOLERANCE / 4
"""A candidate may cost so much more, relative, than is asked or than the recipe's own plan does."""

Maker = Callable[[Candidate, Sequence[Scores], Path], PruningPlan]
"""Makes the plan of a candidate from scores, and writes it to a folder, with what else is to be known of it."""


def depends_on(run: Run) -> dict[str, Any]:
    """Return what a choice among candidates depends on beside the scores of the run's own; nothing without one."""
    if run.recipe.prune.candidates == 1:
        return {}
    return {"prune.candidates": run.recipe.prune.candidates, **_measured_by(run)}


def _measured_by(run: Run) -> dict[str, Any]:
    """Return what the measured error of a candidate depends on beside its plan."""
    keys = (*SHOWN, "model.dtype", "prune.compensation", "prune.ridge", "prune.candidate_samples")
    return {**pick(run.recipe, keys), "statistics": run.result("calibrate").output_hash}


def choose(
    run: Run, folder: Path, settings: Mapping[str, Any], make: Maker
) -> tuple[PruningPlan, dict[str, Any]]:
    """Make the plans of all candidates, measure each that differs from those before, and take the best.

    Args:
        run: The run.
        folder: That of the stage, where `smaller_forms.decide` wrote its forms. The files of the chosen plan come here.
        settings: What a plan depends on beside its candidate and what it is measured by.
        make: Makes a plan.

    Returns:
        The chosen plan, which says so in its ``meta["candidate"]``, and the trace (JSON types): ``rows``, one a
        candidate (see `_row`); ``chosen``, the place of the best; ``samples``, how many, and whether they were
        ``held_out``; ``compensation``.

    Raises:
        PruningError: If the recipe's own plan cannot be made or measured. Others that cannot are said in the trace.
    """
    candidates, judge = candidates_of(run), Judge(run, folder)
    own = {**settings, **_measured_by(run)}
    inputs = {**run.workspace.hashes, "score": run.result("score").output_hash}
    found: list[tuple[PruningPlan, Errors] | str] = []
    folders, seen = [], dict[str, Errors]()
    for number, candidate in enumerate(candidates):
        run.bars("candidates", number, len(candidates))
        scores = [scores_by(run, name) for name in criteria_of(run, candidate)]

        def work(place: Path, candidate: Candidate = candidate, scores: Sequence[Scores] = scores) -> None:
            judge.look()  # what fails here fails the run, not a candidate
            try:
                plan = make(candidate, scores, place)
                errors = seen.get(architecture(plan)) or judge(plan)
            except PruningError as error:
                if candidate.is_own:
                    raise
                write_json(place / FAILED, {"why": str(error)})
            else:
                save_file(errors, str(place / ERRORS))

        key = Key("candidate", {**own, "candidate": asdict(candidate)}, inputs)
        place = run.part(key, work).folder
        folders.append(place)
        if (failed := read_json(place / FAILED)) is not None:
            found.append(failed["why"])
            continue
        plan, errors = PruningPlan.load(place / PLAN), load_file(str(place / ERRORS))
        seen.setdefault(architecture(plan), errors)
        found.append((plan, errors))
    run.bars("candidates", len(candidates), len(candidates))
    rows = [_row(run, candidate, one) for candidate, one in zip(candidates, found, strict=True)]
    chosen = _compare(rows, found)
    for name in FILES:
        if (path := folders[chosen] / name).is_file():
            shutil.copyfile(path, folder / name)
    best = found[chosen]
    assert isinstance(best, tuple)
    plan, errors = best
    trace = {
        "rows": rows,
        "chosen": chosen,
        "samples": len(errors[IMAGES]),
        "held_out": judge.is_held_out,
        "compensation": run.recipe.prune.compensation,
    }
    logger.info("%s", _words(rows, chosen))
    return replace(plan, meta={**plan.meta, "candidate": rows[chosen]["name"]}), trace


def scores_by(run: Run, criterion: str) -> Scores:
    """Return the scores of a criterion, made of the run's statistics or found in the store."""
    if criterion == run.recipe.score.criterion:
        return run.scores
    config = {"criterion": criterion, **pick(run.recipe, ("prune.kinds", "model.dtype", "seed"))}
    inputs = {**run.workspace.hashes, "calibrate": run.result("calibrate").output_hash}

    def work(folder: Path) -> None:
        write_scores(run, folder, criterion)

    return run.scores_in(run.part(Key("further_scores", config, inputs), work, resumable=True).folder)


def architecture(plan: PruningPlan) -> str:
    """Return a hash of what a plan leaves of the model, whatever led to it."""
    values = plan.to_dict()
    return hash_of({key: value for key, value in values.items() if key != "meta"})


def _row(run: Run, candidate: Candidate, found: tuple[PruningPlan, Errors] | str) -> dict[str, Any]:
    """Return what is said of a candidate, JSON types.

    ``name``, ``criterion``, ``allocation``, ``depth`` (asked, in words); ``why`` it was left out. Of those that were
    measured ``depth_share`` (of what goes, what goes with whole blocks) and ``blocks`` (how many); ``macs_ratio`` and
    ``params_ratio``; ``targets`` in words, where they were measured; ``missed``: by how much the target is, and
    ``over``, how much more it costs; ``predicted`` excess error, None where scores are in other units;
    ``excess_error`` with ``excess_error_ci95``; and what `_compare` says.
    """
    criteria = criteria_of(run, candidate)
    row: dict[str, Any] = {
        "name": candidate.named(run.recipe.score.criterion),
        "criterion": " + ".join(criteria),
        "allocation": candidate.allocation,
        "depth": candidate.depth_words,
    }
    if isinstance(found, str):
        return {**row, "why": found}
    plan, errors = found
    change, power = errors[CHANGE], errors[POWER]
    macs, params = plan.meta["macs"], plan.meta["params"]
    return {
        **row,
        "why": None,
        "architecture": architecture(plan),
        "blocks": len(plan.removed_blocks),
        "depth_share": _depth_share(run, plan),
        "macs_ratio": macs["plan"] / macs["dense"] if macs["dense"] else None,
        "params_ratio": params["plan"] / params["dense"],
        "hit": plan.meta["hit"],
        "targets": _said(plan),
        "missed": _missed(plan),
        "over": _over(plan),
        "predicted": _predicted(run, criteria, plan, errors),
        "excess_error": float(change.sum() / power.sum()),
        "excess_error_ci95": ratio_interval(change, power),
    }


def _said(plan: PruningPlan) -> dict[str, str]:
    """Return of each target that was measured what was, in words."""
    rows = plan.meta.get("targets", {}).values()
    return {row["asked"]: row["said"]["measured"] for row in rows if "measured" in row["said"]}


def _over(plan: PruningPlan) -> float:
    """Return by how much more a plan costs than is asked, relative; below zero if less."""
    rows = plan.meta.get("targets", {}).values()
    if rows:
        return max(row.get("measured", row["predicted"]) / row["goal"] for row in rows) - 1
    return plan.meta["got"] / plan.meta["goal"] - 1 if plan.meta["goal"] else 0.0


def _missed(plan: PruningPlan) -> float:
    """Return by how much a plan misses its target, relative; several, and what is measured, only where they exceed."""
    over = _over(plan)
    return max(0.0, over) if plan.meta.get("targets") else abs(over)


def _depth_share(run: Run, plan: PruningPlan) -> float:
    """Return, of what a plan frees, the share that its blocks free by themselves."""
    total = run.cost.macs if run.recipe.prune.target.measure == "macs" else run.cost.params
    freed = total() - total(plan)
    return (total() - total(PruningPlan(removed_blocks=plan.removed_blocks))) / freed if freed > 0 else 0.0


def _predicted(run: Run, criteria: Sequence[str], plan: PruningPlan, errors: Errors) -> float | None:
    """Return the excess error that scores add up to, where they are changes of the model's output."""
    if len(criteria) > 1 or criteria[0] not in OF_THE_OUTPUT:
        return None
    scores = scores_by(run, criteria[0])
    gone = plan.completed(run.groups).removed_blocks
    blocks = [group for group in run.groups if group.kind == "blocks" and group.module in gone]
    cut = [(group, units) for group, units in plan.cuts(run.groups).items() if group.name in scores.values]
    change = sum(float(scores.values[group.name].sum()) for group in blocks)
    change += sum(float(scores.values[group.name][list(units)].sum()) for group, units in cut)
    return change / float(errors[POWER].sum() / errors[ROWS].sum())


def _compare(rows: Sequence[dict[str, Any]], found: Sequence[tuple[PruningPlan, Errors] | str]) -> int:
    """Say in each row how it compares with the recipe's own plan, the first; return the place of the best.

    ``same_as``: place of an earlier one that comes to the same; ``meets``: its target is met as nearly as by the first,
    or within tolerance, and it costs no more than that or what is asked, but for `FAIR` (an error falls by several
    times what the cost grows by, both relative, so that the dearest within tolerance would win); ``ratio`` of its error
    to that of the first, with ``ratio_ci95`` over pairs of samples; ``chosen``.
    """
    own = found[0]
    assert isinstance(own, tuple)
    exact = not rows[0]["targets"]
    allowed = max(rows[0]["missed"], TOLERANCE if exact else BELIEVED)
    dearest = max(rows[0]["over"], 0.0) + (FAIR if exact else BELIEVED)
    places: dict[str, int] = {}
    for place, (row, one) in enumerate(zip(rows, found, strict=True)):
        row["chosen"] = False
        if isinstance(one, str):
            continue
        first = places.setdefault(row["architecture"], place)
        ours, base = one[1][CHANGE], own[1][CHANGE]
        row["same_as"] = None if first == place else first
        row["meets"] = row["missed"] <= allowed and row["over"] <= dearest
        tells = first > 0 and float(base.sum()) > 0
        row["ratio"] = float(ours.sum() / base.sum()) if tells else 1.0
        row["ratio_ci95"] = ratio_interval(ours, base) if tells else None
    able = [place for place, row in enumerate(rows) if row["why"] is None and row["meets"]]
    chosen = min(able, key=lambda place: rows[place]["excess_error"])
    rows[chosen]["chosen"] = True
    return chosen


def figures(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a choice came to."""
    rows = trace["rows"]
    best, measured = rows[trace["chosen"]], [row for row in rows if row["why"] is None]
    return {
        "asked": len(rows),
        "measured": sum(row["same_as"] is None for row in measured),
        "chosen": best["name"],
        "criterion": best["criterion"],
        "excess_error": best["excess_error"],
        "excess_error_ci95": best["excess_error_ci95"],
        "excess_error_own": rows[0]["excess_error"],
        "ratio": best["ratio"],
        "ratio_ci95": best["ratio_ci95"],
    }


def _words(rows: Sequence[Mapping[str, Any]], chosen: int) -> str:
    """Say what a choice came to."""
    best, plans = rows[chosen], sum(row["why"] is None and row["same_as"] is None for row in rows)
    said = f"{len(rows)} candidates came to {plans} plans, each measured as it would be cut"
    if not chosen:
        return f"{said}; none has a lower error than the recipe's own, {best['excess_error']:.4g}"
    interval = best["ratio_ci95"]
    between = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return (
        f"{said}; the best is {best['name']} with an excess error of {best['excess_error']:.4g}, "
        f"{best['ratio']:.3f}{between} of that of the recipe's own, {rows[0]['excess_error']:.4g}"
    )

"""Choosing the runs of a sweep one after the other, where cost and quality have improved together before: by Optuna."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.files import read_json
from pruning.stages.summary import SUMMARY
from pruning.sweeps.points import Axis, Point
from pruning.sweeps.sweep import Sweep
from pruning.sweeps.work import Done, Submit

STUDY = "search.log"
MORE_IS_BETTER = ("speedup", "ssim")
"""Ends, or parts, of names of figures that shall be high; all others shall be low."""

QUALITY = {"denoising": "excess_error", "fid": "frechet_ratio"}
"""What a search goes by beside the MACs, by the metric that measures it, unless it is told."""


def front_of(metrics: Sequence[str], asked: Sequence[str], jobs: int) -> tuple[str, ...]:
    """Return the figures of ``summary.json`` that a search goes by.

    Raises:
        PruningError: If none of quality is measured, or one needs a machine that is quiet where runs are side by side.
    """
    if not asked:
        known = [figure for metric, figure in QUALITY.items() if metric in metrics]
        if not known:
            raise PruningError(
                f"search: none of {', '.join(QUALITY)} is in evaluate.metrics; say with --front by which two figures "
                f"of {SUMMARY} runs are judged"
            )
        asked = ("macs_ratio", known[0])
    if jobs > 1 and (timed := [name for name in asked if "speedup" in name]):
        raise PruningError(
            f"search: {timed[0]} cannot be measured while {jobs} runs share a machine; use --jobs 1"
        )
    return tuple(asked)


def search(
    sweep: Sweep,
    axes: Sequence[Axis],
    trials: int,
    submit: Submit,
    *,
    jobs: int = 1,
    front: Sequence[str] = (),
    seed: int = 0,
) -> list[Point]:
    """Choose runs and do them, until there are `trials`; those of an earlier search in the folder count.

    Args:
        sweep: Whose runs they are.
        axes: What may be set to what: values, or ranges.
        trials: Runs in all, those that fail included.
        submit: Does a run.
        jobs: Runs at a time.
        front: Figures of ``summary.json`` that are judged together; none: the MACs that are left, and what is measured
            of quality.
        seed: Of the draws.

    Returns:
        The runs on the front: no other is better in one figure and not worse in the others.

    Raises:
        PruningError: If Optuna is not installed, the folder holds a search of other axes or figures, or a run has not
            one of the figures.
    """
    front = front_of(sweep.metrics, front, jobs)
    study, optuna = _study(sweep.folder, axes, front, seed)
    states = optuna.trial.TrialState
    for trial in study.get_trials(
        states=[states.RUNNING]
    ):  # of a search that was killed: its runs go on first
        study.tell(trial.number, state=states.FAIL)
        study.enqueue_trial(trial.params)
    points = {
        trial.number: sweep.point(trial.user_attrs["settings"])
        for trial in study.get_trials(states=[states.COMPLETE])
    }
    running: dict[Future[Done], tuple[Any, Point]] = {}
    left = trials - len(points)
    while left > 0 or running:
        while left > 0 and len(running) < jobs:
            trial = study.ask()
            one = sweep.point(_chosen(trial, axes))
            trial.set_user_attr("settings", dict(one.settings))
            running[submit(sweep.task(one, jobs))] = trial, one
            left -= 1
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial, one = running.pop(future)
            if sweep.note(one, future.result(), f"{trials - left - len(running)} of {trials}").status:
                study.tell(trial, state=states.FAIL)
                continue
            study.tell(trial, [_figure(one, name) for name in front])
            points[trial.number] = one
    return [points[trial.number] for trial in study.best_trials]


def _study(folder: Path, axes: Sequence[Axis], front: Sequence[str], seed: int) -> tuple[Any, Any]:
    """Return the study that lies in a folder, or a new one, and Optuna."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise PruningError("a search needs Optuna: pip install 'sinkprune[search]'") from error
    optuna.logging.set_verbosity(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY))),
        study_name="sinkprune",
        directions=["maximize" if _more_is_better(name) else "minimize" for name in front],
        load_if_exists=True,
    )
    # A search that goes on draws what it has not drawn.
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.trials), n_startup_trials=max(4, 2 * len(axes))
    )
    of = json.loads(json.dumps({"front": list(front), "axes": [vars(axis) for axis in axes]}))
    if study.user_attrs.get("of", of) != of:
        raise PruningError(f"{folder} holds a search of other settings or figures; choose another --out")
    study.set_user_attr("of", of)
    return study, optuna


def _chosen(trial: Any, axes: Sequence[Axis]) -> dict[str, str]:
    """Return what a trial sets; numbers have four digits that count."""
    found = {}
    for axis in axes:
        if axis.range is None:
            found[axis.key] = trial.suggest_categorical(axis.key, axis.values)
        elif all(isinstance(end, int) for end in axis.range):
            found[axis.key] = str(trial.suggest_int(axis.key, *axis.range))
        else:
            found[axis.key] = f"{trial.suggest_float(axis.key, *axis.range):.4g}"
    return found


def _more_is_better(figure: str) -> bool:
    return any(part in figure for part in MORE_IS_BETTER)


def _figure(one: Point, name: str) -> float:
    found = read_json(one.run_dir / SUMMARY) or {}
    value = found.get(name)
    if not isinstance(value, (int, float)):
        numbers = [key for key, value in found.items() if isinstance(value, (int, float))]
        raise PruningError(
            f"search: {one.run_dir / SUMMARY} has no number {name!r}, by which runs shall be judged; it has "
            f"{', '.join(numbers)}"
        )
    return float(value)

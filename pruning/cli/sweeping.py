"""The command ``sweep``: runs of one recipe that differ in some settings, and the page that compares them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from pruning.cli import tables
from pruning.cli.comparing import write_comparison
from pruning.cli.console import Console, Outcome, table
from pruning.errors import PruningError
from pruning.sweeps import LOGS, Sweep, front_of, grid, here, on_ray, read_axes, search


def sweep(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Do all runs, or say which they would be."""
    jobs, trials = arguments.jobs, arguments.search
    for name, value in {"--jobs": jobs, "--search": trials}.items():
        if value is not None and value < 1:
            raise PruningError(f"{name} {value}: it must be at least 1")
    axes = read_axes(arguments.grid)
    work = Sweep(arguments.recipe, arguments.overrides, Path(arguments.out) if arguments.out else None)
    front = arguments.front.split(",") if arguments.front else []
    if trials is None:
        if front:
            raise PruningError("--front is what a search goes by; use it with --search N")
        for settings in grid(axes):
            work.point(settings)
        if arguments.dry_run:
            return Outcome(work.so_far(), [_planned(work)])
    elif arguments.dry_run:
        raise PruningError(
            "--dry-run: a search chooses its runs as it goes; leave --search out to see a grid"
        )
    else:
        front_of(work.metrics, front, jobs)
    shared = jobs > 1 or arguments.ray is not None
    with on_ray(arguments.ray, jobs) if arguments.ray else here(jobs) as submit:
        if trials is not None:
            search(work, axes, trials, submit, jobs=jobs, front=front)
        elif shared:
            work.side_by_side(submit, jobs)
    work.alone(again=shared)  # what was done beside others was not timed
    found = [one.run_dir for one in work.succeeded()]
    page = write_comparison(found, work.folder / "report.html") if found else None
    if failed := [name for name, done in work.done.items() if done.status]:
        shown = f"; those that did not are in {page}" if page else ""
        raise PruningError(
            f"{len(failed)} of {len(work.points)} runs failed, first {failed[0]} ({work.done[failed[0]].said}); what "
            f"they said is in {work.folder / LOGS}{shown}. The same command goes on with them"
        )
    return Outcome(work.so_far(), [tables.comparison(found)], str(page))


def _planned(work: Sweep) -> Table:
    """Return one row per run, with what it sets."""
    keys = list(next(iter(work.points.values())).settings)
    rows = [(one.name, *one.settings.values()) for one in work.points.values()]
    return table(("run", *keys), rows, title=f"\n{len(rows)} runs in {work.folder}")

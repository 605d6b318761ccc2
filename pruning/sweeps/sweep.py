"""A sweep: its runs, the order in which they are done, and a note of how far it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.files import expanded, write_json
from pruning.recipe import load_recipe
from pruning.store import STORE
from pruning.sweeps.points import Point, point
from pruning.sweeps.work import Done, Submit, Task, here

logger = logging.getLogger(__name__)

NOTE, LOGS = "sweep.json", "logs"
TIMED = "latency"
"""The metric for which a machine must be quiet."""


class Sweep:
    """Runs of one recipe that differ in some settings; what they have in common is done once, in one store.

    Args:
        recipe: Name or path.
        overrides: Set in all runs.
        folder: Where the runs lie; None for a folder beside the recipe's own run directory.

    Attributes:
        folder: That folder.
        points: The runs so far, by name.
        done: How those that were done ended, by name.

    Raises:
        PruningError: If the recipe is not valid.
    """

    def __init__(self, recipe: str, overrides: Sequence[str] = (), folder: Path | None = None) -> None:
        read = load_recipe(recipe, overrides)
        beside = expanded(read.run_dir).parent
        self.folder = folder or beside / f"{read.name}-sweep"
        self.points: dict[str, Point] = {}
        self.done: dict[str, Done] = {}
        self.metrics = tuple(read.evaluate.metrics)
        self._recipe, self._asked = recipe, tuple(overrides)
        self._overrides = (*overrides, f"store={read.store or beside / STORE}")

    def point(self, settings: Mapping[str, str]) -> Point:
        """Return the run with these settings and add it to those of the sweep.

        Raises:
            PruningError: If that is no valid recipe.
        """
        made = point(self._recipe, settings, self.folder, overrides=self._overrides)
        known = self.points.setdefault(made.name, made)
        if known.settings != made.settings:
            raise PruningError(
                f"two runs would have the name {made.name}, with {dict(known.settings)} and {dict(made.settings)}; "
                "write the values so that letters and digits tell them apart"
            )
        return known

    def side_by_side(self, submit: Submit, jobs: int) -> None:
        """Do all runs at the same time, all but what needs a quiet machine."""
        tasks = {submit(self.task(one, jobs)): one for one in self.points.values()}
        for number, future in enumerate(as_completed(tasks), 1):
            self.note(tasks[future], future.result(), f"{number} of {len(tasks)}, latency aside")

    def alone(self, *, again: bool = False) -> None:
        """Do the runs that were not done yet to their ends, one after the other on this machine.

        With `again` also those that were done, of which only what is missing is made; never those that failed.
        """
        left = [
            one
            for name, one in self.points.items()
            if (ended := self.done.get(name)) is None or (again and ended.status == 0)
        ]
        with here(1) as submit:
            for number, one in enumerate(left, 1):
                self.note(one, submit(self.task(one)).result(), f"{number} of {len(left)}")

    def task(self, one: Point, jobs: int = 1) -> Task:
        """Return what is to be done for a run while `jobs` of them are done: the whole of it if it is alone."""
        log = self.folder / LOGS / f"{one.name}.log"
        if jobs == 1:
            return Task(self._recipe, one.words, log)
        threads = max(1, (os.cpu_count() or 1) // jobs)
        untimed = [name for name in self.metrics if name != TIMED]
        if not untimed:
            return Task(self._recipe, one.words, log, "recover", threads)
        words = (*one.words, f"evaluate.metrics=[{','.join(untimed)}]")
        return Task(self._recipe, words, log, "evaluate", threads)

    def note(self, one: Point, done: Done, which: str) -> Done:
        """Write down, and say, how a run ended; `which` of how many."""
        self.done[one.name] = done
        how = f"done in {done.seconds:.0f} s" if done.status == 0 else f"failed: {done.said}"
        logger.info("%s: %s %s", which, one.name, how)
        write_json(self.folder / NOTE, self.so_far())
        return done

    def so_far(self) -> dict[str, Any]:
        """Return what the sweep is and how far it came, in JSON types."""
        runs = []
        for name, one in self.points.items():
            ended = self.done.get(name)
            state = "waiting" if ended is None else "done" if ended.status == 0 else "failed"
            said = {"said": ended.said} if ended and ended.status else {}
            runs.append({"name": name, "settings": dict(one.settings), "state": state, **said})
        return {"recipe": self._recipe, "overrides": list(self._asked), "runs": runs}

    def succeeded(self) -> list[Point]:
        """Return the runs that are done."""
        return [
            one for name, one in self.points.items() if (found := self.done.get(name)) and found.status == 0
        ]

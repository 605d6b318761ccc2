"""The run directory: a view of the results that a recipe uses.

::

    runs/<name>/run.json       whose run this is: recipe name, model, data; and which results it uses
    runs/<name>/recipe.yaml    the resolved recipe of the last command
    runs/<name>/<stage>/…      the files of the stage's result, hard-linked from the store, with manifest.json and DONE
    runs/<name>/summary.json   the figures

Nothing lies here alone: a stage that leaves the view stays in the store, and setting a key back brings it back. And
nothing is missing here: a run directory that was moved or copied holds its results and is taken into the store there.

This module knows files alone: no torch, no model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.files import expanded, read_json, write_json
from pruning.store import BESIDE, OWNER, Result, Store, files_of, link_tree

STAGES = ("calibrate", "score", "plan", "prune", "recover", "evaluate", "export", "report")
"""All stages, in the order they run."""

ANEW = "take it over with --fresh (its results stay in the store), or choose another run_dir=…"
EARLIER = (
    "was written by an earlier version of sinkprune, whose results cannot be used; move it away, or choose another "
    "name=… or run_dir=…"
)


class RunFolder:
    """The files of one run.

    Args:
        path: The run directory; made when first needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expanded(path)

    def owner(self, advice: str = ANEW) -> dict[str, Any] | None:
        """Return what ``run.json`` says: recipe name, model, data and results; None if there is none.

        Raises:
            PruningError: If it says something else, ending in `advice`, or was written by an earlier version.
        """
        owner = read_json(self.path / OWNER, advice)
        if owner is None:
            return None
        for key, kind in {"name": str, "model": dict, "data": dict}.items():
            if not isinstance(owner.get(key), kind):
                raise PruningError(f"{self.path / OWNER}: {key!r} is {owner.get(key)!r}; {advice}")
        if not isinstance(owner.get("results"), dict):
            raise PruningError(f"run directory {self.path} {EARLIER}")
        return owner

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.path / name

    def result(self, name: str) -> Result | None:
        """Return the result of a stage that is in the view, None if it is not there."""
        return Result.read(self.stage(name))

    def done(self) -> list[str]:
        """Return the stages that have been finished."""
        return [name for name in STAGES if self.result(name)]

    def whole(self, name: str) -> Result:
        """Return the result of a stage; one that has not been run, or whose files were changed, is a PruningError."""
        result = self.result(name)
        if result is None:
            raise PruningError(f"{self.path}: stage {name!r} has not been run; run `sinkprune {name}` first")
        if damage := result.damage():
            raise PruningError(
                f"{self.path}: {name}/{damage} since the stage wrote it; run `sinkprune {name}`, which mends it"
            )
        return result

    def manifest(self, name: str) -> Mapping[str, Any]:
        """Return the manifest of a finished stage, empty if there is none."""
        result = self.result(name)
        return result.manifest if result else {}

    def attach(self, name: str, result: Result, store: Store) -> Path | None:
        """Show `result` as that of the stage; the stages after it leave the view if it was another one before.

        Returns:
            Where the files are that lay there and were no whole result, such as some that were edited; None without.
        """
        place, before, aside = self.stage(name), self.result(name), None
        if before and before.name == result.name and files_of(place) == files_of(result.folder):
            return None
        if place.exists() and not self._kept(name, store):
            aside = store.set_aside(place, name)
        link_tree(result.folder, place)
        if before is None or before.name != result.name:
            self.detach(STAGES[STAGES.index(name) + 1 :], store)
        self._note({**self.uses(), name: [result.name, *result.manifest["uses"]]})
        return aside

    def detach(self, names: Sequence[str], store: Store) -> None:
        """Take stages out of the view; their results stay in the store."""
        for name in names:
            place = self.stage(name)
            if place.exists():
                if self._kept(name, store):
                    shutil.rmtree(place)
                else:
                    store.set_aside(place, name)
        left = {name: found for name, found in self.uses().items() if name not in names}
        if left != self.uses():
            self._note(left)

    def _kept(self, name: str, store: Store) -> bool:
        """Make sure that the store has the result of a stage; False if its folder is not as the stage left it."""
        result = self.result(name)
        if result is None or result.damage():
            return False
        store.keep(result)
        return files_of(result.folder).keys() <= {*result.manifest["artefacts"], *BESIDE}

    def uses(self) -> dict[str, list[str]]:
        """Return by stage the names, ``<kind>/<id>``, of the results that the run uses."""
        return (self.owner("") or {}).get("results", {})

    def _note(self, results: Mapping[str, list[str]]) -> None:
        """Write down which results the run uses."""
        write_json(self.path / OWNER, {**(self.owner("") or {}), "results": results})

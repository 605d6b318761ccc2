"""The store: results that are made once and found again by what they depend on."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.files import read_json, write_json, written_whole
from pruning.store.hashes import hash_of
from pruning.store.locks import locked, waited_for
from pruning.store.result import SCRATCH, Key, Result

logger = logging.getLogger(__name__)

STORE = ".store"
"""Name of a store beside run directories."""

OWNER, LOCK = "run.json", ".lock"
"""Files of a run directory: whose it is, and which process holds it."""

USERS = ".runs"
"""Folder of the notes on which run directories use the store."""

OURS = "[0-9a-f]" * 20
"""What names of results look like; see `Key.id`."""

Work = Callable[[Path], Mapping[str, Any]]
"""Writes the artefacts into the folder it is given; returns what the manifest says beside the key."""


class Store:
    """Results of one or many runs.

    Args:
        path: The folder; made when something is first kept.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._cleaning = self.path / ".cleaning.lock"

    @classmethod
    def of(cls, folder: Path) -> Store:
        """Return the store that is in a folder of runs, or that the folder is itself; none is a PruningError."""
        found = next((path for path in (folder / STORE, folder) if (path / USERS).is_dir()), None)
        if found is None:
            raise PruningError(f"{folder}: no results are kept there; name a folder of runs, or a store")
        return cls(found)

    def find(self, key: Key, copies: Sequence[Path] = (), *, touch: bool = True) -> Result | None:
        """Return a whole result that serves `key`, or None.

        A file that is not as it was written is warned of, and the result set aside.

        Args:
            key: What is wanted.
            copies: Folders outside the store that may hold it, such as that of a run directory which was moved here:
                what they hold is taken into the store.
            touch: False only looks: nothing is taken in or set aside.
        """
        others = (self.path / key.kind).glob(OURS) if key.asked else ()  # any of them may hold more
        newest_first = sorted(others, key=_changed, reverse=True)
        for folder in (self.path / key.name, *copies, *newest_first):
            result = Result.read(folder)
            if result is None or not result.serves(key):
                continue
            if not (damage := result.damage()):
                return self.keep(result) if touch else result
            if touch and folder not in copies:
                aside = self.set_aside(folder, result.kind)
                logger.warning(
                    "%s/%s since it was written; what is there is in %s", result.kind, damage, aside
                )
        return None

    def keep(self, result: Result) -> Result:
        """Take a whole result that lies outside into the store, if it is not there; return the one in the store."""
        place = self.path / result.name
        if place == result.folder:
            return result
        if kept := Result.read(place):
            return kept
        place.parent.mkdir(parents=True, exist_ok=True)
        link_tree(result.folder, place)
        return Result(place, result.manifest)

    def set_aside(self, folder: Path, name: str) -> Path:
        """Move a folder that is no whole result out of the way; nothing of it is lost. Returns where it is now."""
        aside = self.path / ".aside" / f"{datetime.now():%Y-%m-%dT%H-%M-%S.%f}-{name}" / folder.name
        aside.parent.mkdir(parents=True)
        shutil.move(folder, aside)
        return aside

    def partial(self, key: Key) -> Path:
        """Return the folder in which the result of `key` is made."""
        return self.path / ".partial" / f"{key.kind}-{key.id}"

    def make(self, key: Key, work: Work, *, resumable: bool = False, anew: bool = False) -> Result:
        """Make a result, or find it if another process made it meanwhile.

        Args:
            key: What it depends on.
            work: Makes it.
            resumable: What an interrupted attempt left is of use to the next.
            anew: Make it even if it is there; the one that is there stays until the new one is whole.
        """
        folder = self.partial(key)
        folder.parent.mkdir(parents=True, exist_ok=True)

        lock, waiting = folder.with_name(f"{folder.name}.lock"), "%-9s is being made by %s; waiting for it"
        with waited_for(lock, lambda who: logger.info(waiting, key.kind, who)):
            if not anew and (found := self.find(key)):
                return found
            whole = Result.read(folder)
            if whole is None or whole.damage():  # else a process was killed just before the rename
                if folder.exists() and not resumable:
                    shutil.rmtree(folder)
                folder.mkdir(exist_ok=True)
                Result.seal(folder, key, work(folder))
            return self._place(folder, self.path / key.name)

    def _place(self, folder: Path, place: Path) -> Result:
        """Give a result that is whole its final name."""
        whole = Result.read(folder)
        assert whole is not None, folder
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        replaced = folder.with_name(f"{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if place.exists():
            place.rename(replaced)
        folder.rename(place)
        shutil.rmtree(replaced, ignore_errors=True)
        return Result(place, whole.manifest)

    # Who uses it.

    def register(self, run: Path) -> None:
        """Note that the run directory `run`, which this process holds, uses the store; wait while it is cleaned."""
        note = self.path / USERS / f"{hash_of(str(run.absolute()))[:20]}.json"
        if not note.exists():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, {"run": str(run.absolute())})
        with waited_for(
            self._cleaning, lambda who: logger.info("waiting for %s, which cleans %s", who, self.path)
        ):
            pass

    def users(self) -> list[Path]:
        """Return the run directories that use the store: those it was told of, and all that lie beside it."""
        notes = sorted((self.path / USERS).glob("*.json"))
        runs = [Path(str((read_json(note) or {}).get("run"))) for note in notes]
        runs += sorted(self.path.absolute().parent.glob("*"))  # one may have been renamed
        return [run for run in dict.fromkeys(runs) if (run / OWNER).is_file()]

    @contextmanager
    def cleaning(self) -> Iterator[None]:
        """Hold the store while no run works with it; one that does is a PruningError, which names it."""
        with locked(self._cleaning, str(self.path), "wait for it"):
            for run in self.users():
                if (run / LOCK).exists():
                    with locked(run / LOCK, f"the run {run}", "clean when it has ended"):
                        pass
            yield

    def results(self) -> list[Result]:
        """Return all results, by kind and then by age."""
        found = [result for folder in self._folders() if (result := Result.read(folder))]
        return sorted(found, key=lambda result: (result.kind, result.manifest["finished"]))

    def leftovers(self) -> list[Path]:
        """Return what interrupted attempts left, what was set aside, and what is no whole result.

        A file or folder whose name is not one that the store gives is not the store's, and not touched.
        """
        known = [
            *self.path.glob(".partial/*"),
            *self.path.glob(".aside/*"),
            *self.path.glob(f"*/.{OURS}.*.tmp"),
        ]
        broken = [folder for folder in self._folders() if Result.read(folder) is None]
        return sorted(path for path in [*known, *broken] if path.is_dir())

    def _folders(self) -> list[Path]:
        return [path for path in self.path.glob(f"[!.]*/{OURS}") if path.is_dir()]


def _changed(path: Path) -> float:
    """Return when a folder was changed last; 0 if another process has moved it meanwhile."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`, replacing what is there as a whole: links, or else copies."""
    with written_whole(target) as temporary:
        temporary.mkdir()
        for path in sorted(source.rglob("*")):  # a folder comes before what is in it
            place = temporary / path.relative_to(source)
            if path.is_dir():
                place.mkdir()
                continue
            try:
                os.link(path, place)
            except OSError:  # another device, or a file system without links
                shutil.copy2(path, place)

"""The store: results that are made once and found again by what they depend on."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.files import read_json, share, write_json
from pruning.store.artefacts import describe_files
from pruning.store.links import link_tree
from pruning.store.locks import is_held, locked, waited_for
from pruning.store.result import BESIDE, DONE, MANIFEST, SCRATCH, Key, Result

logger = logging.getLogger(__name__)

Work = Callable[[Path], Mapping[str, Any]]
"""Writes the artefacts into the folder it is given; returns what the manifest says beside the key."""


class Store:
    """Results of one or many runs.

    Args:
        path: The folder; made when something is first kept.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def find(self, key: Key, copies: Sequence[Path] = ()) -> Result | None:
        """Return a whole result that serves `key`, or None.

        A file that is not as it was written is warned of, and the result set aside.

        Args:
            key: What is wanted.
            copies: Folders outside the store that may hold it, such as that of a run directory which was moved here:
                what they hold is taken into the store.
        """
        exact = self.path / key.kind / key.id
        for folder in (exact, *copies, *self._others(key)):
            result = Result.read(folder)
            if result is None or not result.serves(key):
                continue
            if damage := result.damage():
                if result.folder.parent.parent == self.path:
                    aside = self.set_aside(result.folder, result.kind)
                    logger.warning(
                        "%s/%s since it was written; what is there is in %s", result.kind, damage, aside
                    )
                continue
            return self.keep(result)
        return None

    def _others(self, key: Key) -> list[Path]:
        """Return the folders of results that might hold more than `key` asks, the newest first."""
        if key.enough is None:
            return []
        found = [path for path in (self.path / key.kind).glob("*") if path.name != key.id]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    def keep(self, result: Result) -> Result:
        """Take a whole result that lies outside into the store, if it is not there; return the one in the store."""
        place = self.path / result.kind / result.id
        if place != result.folder and Result.read(place) is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            link_tree(result.folder, place)
        found = Result.read(place)
        assert found is not None, place
        return found

    def set_aside(self, folder: Path, name: str) -> Path:
        """Move a folder that is no whole result out of the way; nothing of it is lost. Returns where it is now."""
        aside = self._new_folder(name) / folder.name
        shutil.move(folder, aside)
        return aside

    def _new_folder(self, name: str) -> Path:
        stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        for suffix in ("", *(f".{k}" for k in range(1, 1000))):
            folder = self.path / ".aside" / f"{stamp}-{name}{suffix}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
        raise PruningError(f"{self.path / '.aside'} holds a thousand folders of {stamp}; clear it")

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
        place = self.path / key.kind / key.id
        (self.path / ".partial").mkdir(parents=True, exist_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        with waited_for(self._lock(key), lambda who: _say_waiting(key, who)):
            if not anew and (found := self.find(key)):
                return found
            folder = self.partial(key)
            if not _is_finished(folder, key):  # else a process was killed just before the rename
                if folder.exists() and not resumable:
                    shutil.rmtree(folder)
                folder.mkdir(exist_ok=True)
                self._seal(key, folder, work(folder))
            return self._place(folder, place)

    def _seal(self, key: Key, folder: Path, said: Mapping[str, Any]) -> None:
        """Write down what was made, and last that it is whole."""
        share(folder)
        record = {
            "kind": key.kind,
            "id": key.id,
            "base": key.base,
            "config": dict(key.config),
            "asked": dict(key.asked),
            "inputs": dict(key.inputs),
            "result": {},
            "uses": [],
            **said,
            "artefacts": describe_files(folder, BESIDE, SCRATCH),
            "finished": datetime.now().isoformat(timespec="seconds"),
        }
        write_json(folder / MANIFEST, record)
        (folder / DONE).write_text(record["finished"] + "\n", encoding="utf-8")

    def _place(self, folder: Path, place: Path) -> Result:
        """Give a result that is whole its final name."""
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        replaced = folder.with_name(f"{folder.name}.replaced")
        if place.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            place.rename(replaced)
        folder.rename(place)
        shutil.rmtree(replaced, ignore_errors=True)
        result = Result.read(place)
        assert result is not None, place
        return result

    def _lock(self, key: Key) -> Path:
        return self.path / ".partial" / f"{key.kind}-{key.id}.lock"

    # Who uses it.

    def register(self, run: Path) -> None:
        """Note that the run directory `run`, which this process holds, uses the store; wait while it is cleaned."""
        name = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:20]
        note = self.path / ".runs" / f"{name}.json"
        if not note.exists():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, {"run": str(run.absolute())})
        with waited_for(
            self._cleaning, lambda who: logger.info("waiting for %s, which cleans %s", who, self.path)
        ):
            pass

    @property
    def _cleaning(self) -> Path:
        return self.path / ".cleaning.lock"

    def users(self) -> list[Path]:
        """Return the run directories that use the store and are still there."""
        found = []
        for path in sorted((self.path / ".runs").glob("*.json")):
            run = Path(str((read_json(path) or {}).get("run")))
            if (run / "run.json").is_file():
                found.append(run)
        return found

    @contextmanager
    def cleaning(self, run_lock: str) -> Iterator[None]:
        """Hold the store while no run works with it.

        Args:
            run_lock: Name of the lock file in a run directory.

        Raises:
            PruningError: If a run is at work, naming it.
        """
        with locked(self._cleaning, str(self.path), "wait for it"):
            for run in self.users():
                if is_held(run / run_lock):
                    raise PruningError(f"{self.path}: the run {run} is at work; clean when it has ended")
            yield

    def results(self) -> list[Result]:
        """Return all results, by kind and then by age."""
        folders = [path for path in self.path.glob("*/*") if not path.parent.name.startswith(".")]
        found = [result for folder in folders if (result := Result.read(folder))]
        return sorted(found, key=lambda result: (result.kind, result.manifest["finished"]))

    def leftovers(self) -> list[Path]:
        """Return what interrupted attempts left, and what was set aside."""
        partial = [path for path in (self.path / ".partial").glob("*") if path.is_dir()]
        return sorted([*partial, *(self.path / ".aside").glob("*")])


def _is_finished(folder: Path, key: Key) -> bool:
    """Tell whether a folder holds the whole result of `key` already."""
    found = Result.read(folder)
    return found is not None and found.id == key.id and found.damage() is None


def _say_waiting(key: Key, who: str) -> None:
    logger.info("%-9s is being made by %s; waiting for it", key.kind, who)

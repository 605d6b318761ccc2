"""The run directory: which stages are done, with what, and where everything lies.

::

    runs/<name>/run.json            whose run this is: recipe name, model, data
    runs/<name>/recipe.yaml         the resolved recipe of the last command
    runs/<name>/<stage>/…           artefacts, manifest.json and, last, DONE
    runs/<name>/.partial/<stage>/   a stage that is being written; renamed when it is whole
    runs/<name>/.old/<time>/…       what changed settings made stale; never deleted here
    runs/<name>/summary.json        the figures

This module knows files alone: no torch, no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pruning.recipe import refusal

STAGES = ("sinks", "calibrate", "score", "plan", "prune", "recover", "evaluate", "export", "report")
"""All stages, in the order they run."""

MANIFEST, DONE, FINGERPRINT = "manifest.json", "DONE", "fingerprint"
_BESIDE = (MANIFEST, DONE, FINGERPRINT)
_COPIED = ("recipe.yaml", "summary.json")


def fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return a hash that changes exactly if the stage, its config or an input does."""
    text = json.dumps({"stage": stage, "config": config, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON to a temporary name, then rename it: nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Return the JSON in `path`, or None if there is no such file.

    Raises:
        PruningError: If the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise refusal(f"{path}: not JSON ({error}); delete it, or start anew with --fresh") from error


class RunFolder:
    """The files of one run.

    Args:
        path: The run directory; made when first needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def stage(self, name: str) -> Path:
        """Return the folder of a finished stage."""
        return self.path / name

    def partial(self, name: str) -> Path:
        """Return the folder a stage is being written to."""
        return self.path / ".partial" / name

    def is_done(self, name: str) -> bool:
        """Tell whether the stage has been finished."""
        return (self.stage(name) / DONE).is_file()

    def require(self, name: str) -> None:
        """Raise PruningError unless the stage has been finished."""
        if not self.is_done(name):
            raise refusal(f"{self.path}: stage {name!r} has not been run; run `sinkprune {name}` first")

    def manifest(self, name: str) -> dict[str, Any]:
        """Return the manifest of a finished stage, empty if there is none."""
        return read_json(self.stage(name) / MANIFEST) or {}

    def is_current(self, name: str, print_: str) -> bool:
        """Tell whether a finished stage has this fingerprint and all its artefacts still exist."""
        manifest = self.manifest(name) if self.is_done(name) else {}
        artefacts = manifest.get("artefacts", {})
        return manifest.get("fingerprint") == print_ and all(
            (self.stage(name) / file).is_file() for file in artefacts
        )

    def output_hash(self, name: str) -> str:
        """Return one hash over the artefacts of a finished stage as they are now on disk.

        Files whose size and time are those of the manifest are not read again.

        Raises:
            PruningError: If the stage has not been run.
        """
        self.require(name)
        recorded = self.manifest(name)["artefacts"]
        now = describe_files(self.stage(name), recorded)
        return hashlib.sha256(json.dumps({f: now[f]["sha256"] for f in sorted(now)}).encode()).hexdigest()

    def begin(self, name: str, print_: str, *, resumable: bool) -> Path:
        """Return an empty folder to write a stage to, or the one an interrupted equal attempt left."""
        folder = self.partial(name)
        if folder.exists():
            mark = folder / FINGERPRINT
            same = mark.is_file() and mark.read_text(encoding="utf-8") == print_
            if resumable and same:
                return folder
            if resumable:
                self._move_old([(folder, f".partial/{name}")])
            else:
                shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / FINGERPRINT).write_text(print_, encoding="utf-8")
        return folder

    def commit(self, name: str, manifest: Mapping[str, Any]) -> Path:
        """Make a written stage the finished one: manifest, DONE, rename."""
        folder, target = self.partial(name), self.stage(name)
        (folder / FINGERPRINT).unlink(missing_ok=True)
        write_json(folder / MANIFEST, {**manifest, "artefacts": describe_files(folder)})
        (folder / DONE).write_text(datetime.now().isoformat(timespec="seconds") + "\n", encoding="utf-8")
        folder.rename(target)
        return target

    def retire(self, names: Iterable[str], *, keep_partial: str | None = None) -> Path | None:
        """Move stages, whole and half-written, to ``.old/<time>/``.

        Args:
            names: The stages.
            keep_partial: A stage of which only the whole folder is moved; what is half-written stays.

        Returns:
            The folder they are in now, or None if there was nothing to move.
        """
        names = list(names)
        moves = [(self.stage(name), name) for name in names]
        moves += [(self.partial(name), f".partial/{name}") for name in names if name != keep_partial]
        return self._move_old([(source, to) for source, to in moves if source.exists()])

    def retire_all(self) -> Path | None:
        """Move everything that a run wrote to ``.old/<time>/``."""
        old = self.retire(STAGES)
        for beside in (*_COPIED, "run.json"):
            (self.path / beside).unlink(missing_ok=True)
        return old

    def _move_old(self, moves: list[tuple[Path, str]]) -> Path | None:
        if not moves:
            return None
        old = self._new_old()
        for source, to in moves:
            (old / to).parent.mkdir(parents=True, exist_ok=True)
            source.rename(old / to)
        for beside in _COPIED:
            if (self.path / beside).is_file():
                shutil.copy2(self.path / beside, old / beside)
        return old

    def _new_old(self) -> Path:
        stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        for suffix in ("", *(f".{k}" for k in range(1, 1000))):
            folder = self.path / ".old" / f"{stamp}{suffix}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
        raise refusal(f"{self.path / '.old'} holds a thousand folders of {stamp}; clear it")


def describe_files(
    folder: Path, known: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Return size, time and hash of the files under `folder`, those of the manifest itself aside.

    Args:
        folder: Where to look.
        known: Earlier answers; a file is not read again if its size and time are unchanged, and only these
            files are looked at.
    """
    names = known or sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in _BESIDE
    )
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        status = (folder / name).stat()
        before = (known or {}).get(name, {})
        same = (before.get("bytes"), before.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
        sha = before["sha256"] if same else file_hash(folder / name)
        found[name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha}
    return found


def changes(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return ``(key path, before, after)`` for every leaf that differs; a missing one is None."""
    if isinstance(before, Mapping) or isinstance(after, Mapping):
        left, right = (x if isinstance(x, Mapping) else {} for x in (before, after))
        keys = [*left, *(key for key in right if key not in left)]
        return [
            change
            for key in keys
            for change in changes(left.get(key), right.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == after else [(prefix, before, after)]

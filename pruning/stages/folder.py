"""The run directory: which stages are done, with what, and where everything lies.

::

    runs/<name>/run.json            whose run this is: recipe name, model, data
    runs/<name>/recipe.yaml         the resolved recipe of the last command
    runs/<name>/<stage>/…           artefacts, manifest.json and, last, DONE
    runs/<name>/.partial/<stage>/   a stage that is being written; renamed when it is whole
    runs/<name>/.old/<time>/…       what changed settings made stale; never deleted here
    runs/<name>/summary.json        the figures

A stage is reused only while its artefacts are as its manifest says; `artefacts` tells how that is seen.

This module knows files alone: no torch, no model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.files import read_json, write_json
from pruning.stages.artefacts import describe_files, hash_now, is_entry, outputs

STAGES = ("sinks", "calibrate", "score", "plan", "prune", "recover", "evaluate", "export", "report")
"""All stages, in the order they run."""

MANIFEST, DONE, FINGERPRINT = "manifest.json", "DONE", "fingerprint"
OWNER = "run.json"
_BESIDE = (MANIFEST, DONE, FINGERPRINT)
_COPIED = ("recipe.yaml", "summary.json", OWNER)
ANEW = "start anew with --fresh (what is there moves to .old), or choose another run_dir=…"
_RECORD = {
    "fingerprint": str,
    "config": dict,
    "inputs": dict,
    "result": dict,
    "artefacts": dict,
    "finished": str,
}


def fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return a hash that changes exactly if the stage, its config or an input does."""
    text = json.dumps({"stage": stage, "config": config, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RunFolder:
    """The files of one run.

    Args:
        path: The run directory; made when first needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def owner(self, advice: str = ANEW) -> dict[str, Any] | None:
        """Return what ``run.json`` says: recipe name, model and data; None if there is none.

        Raises:
            PruningError: If it says something else, ending in `advice`.
        """
        owner = read_json(self.path / OWNER, advice)
        for key, kind in {"name": str, "model": dict, "data": dict}.items():
            if owner is not None and not isinstance(owner.get(key), kind):
                raise PruningError(f"{self.path / OWNER}: {key!r} is {owner.get(key)!r}; {advice}")
        return owner

    def stage(self, name: str) -> Path:
        """Return the folder of a finished stage."""
        return self.path / name

    def partial(self, name: str) -> Path:
        """Return the folder a stage is being written to."""
        return self.path / ".partial" / name

    def is_done(self, name: str) -> bool:
        """Tell whether the stage has been finished."""
        return all((self.stage(name) / mark).is_file() for mark in (DONE, MANIFEST))

    def done(self) -> list[str]:
        """Return the stages that have been finished."""
        return [name for name in STAGES if self.is_done(name)]

    def require(self, name: str) -> None:
        """Raise PruningError unless the stage has been finished."""
        if not self.is_done(name):
            raise PruningError(f"{self.path}: stage {name!r} has not been run; run `sinkprune {name}` first")

    def manifest(self, name: str) -> dict[str, Any]:
        """Return the manifest of a finished stage, empty if there is none.

        Raises:
            PruningError: If it is not what `commit` writes.
        """
        path = self.stage(name) / MANIFEST
        advice = "delete it, and the stage is done again"
        found = read_json(path, advice)
        if found is None:
            return {}
        wrong = [key for key, kind in _RECORD.items() if not isinstance(found.get(key), kind)]
        if not isinstance(found.get("seconds"), (int, float)):
            wrong.append("seconds")
        if not wrong and not all(is_entry(entry) for entry in found["artefacts"].values()):
            wrong.append("artefacts")
        if wrong:
            raise PruningError(
                f"{path}: is no record of a stage: {wrong[0]!r} is {found.get(wrong[0])!r}; {advice}"
            )
        return found

    def damage(self, name: str) -> str | None:
        """Return in words which artefact of a finished stage is not as the stage wrote it, or None."""
        for file, entry in self.manifest(name)["artefacts"].items():
            path = self.stage(name) / file
            if not path.is_file():
                return f"{name}/{file} is missing"
            if hash_now(path, entry) != entry["sha256"]:
                return f"{name}/{file} was changed since the stage wrote it"
        return None

    def is_whole(self, name: str) -> bool:
        """Tell whether the stage has been finished and its artefacts are as it wrote them."""
        return self.is_done(name) and self.damage(name) is None

    def is_current(self, name: str, print_: str) -> bool:
        """Tell whether a finished stage has this fingerprint and its artefacts are as it wrote them."""
        return self.is_whole(name) and self.manifest(name)["fingerprint"] == print_

    def output_hash(self, name: str) -> str:
        """Return one hash over the artefacts of a finished stage.

        Raises:
            PruningError: If the stage has not been run, or an artefact is not as the stage wrote it.
        """
        self.require(name)
        if reason := self.damage(name):
            raise PruningError(f"{self.path}: {reason}; run `sinkprune {name}`, which does the stage again")
        return outputs(self.manifest(name)["artefacts"])

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
        write_json(folder / MANIFEST, {**manifest, "artefacts": describe_files(folder, _BESIDE)})
        mode = (folder / MANIFEST).stat().st_mode
        for path in folder.rglob("*.safetensors"):
            path.chmod(mode)  # safetensors makes files that nobody else may read
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

    def restore(self, old: Path, redone: Sequence[str]) -> list[str]:
        """Move the stages that come after `redone` back from `old`, if `redone` ended as before.

        Args:
            old: Where `retire` put them.
            redone: Stages that are in `old` and have been done again.

        Returns:
            The stages that are back: none if settings, inputs or results of a redone stage are others.
        """
        if any(_ending(old / name) != _ending(self.stage(name)) for name in redone):
            return []
        return self._move_back(old, STAGES[STAGES.index(redone[-1]) + 1 :])

    def put_back(self, old: Path) -> bool:
        """Undo a `retire`: what it moved to `old`, and the files copied there, are as before.

        Returns:
            Whether that could be done: not if a stage has been done anew since.
        """
        if any((old / name).exists() and self.stage(name).exists() for name in STAGES):
            return False
        self._move_back(old, STAGES)
        for beside in _COPIED:
            if (old / beside).is_file():
                (old / beside).replace(self.path / beside)
        for folder in (old / ".partial", old, old.parent):
            with suppress(OSError):  # it holds more
                folder.rmdir()
        return True

    def _move_back(self, old: Path, names: Iterable[str]) -> list[str]:
        back = []
        for name in names:
            for source, target in (
                (old / name, self.stage(name)),
                (old / ".partial" / name, self.partial(name)),
            ):
                if source.is_dir() and not target.exists():
                    source.rename(target)
                    back.append(name)
        return back

    def retire_all(self) -> Path | None:
        """Move everything that a run wrote to ``.old/<time>/``."""
        old = self.retire(STAGES)
        for beside in _COPIED:
            (self.path / beside).unlink(missing_ok=True)
        return old

    def _move_old(self, moves: list[tuple[Path, str]]) -> Path | None:
        if not moves:
            return None
        old = self._new_old()
        try:  # what may fail on a full disk comes before anything moves
            for beside in _COPIED:
                if (self.path / beside).is_file():
                    shutil.copy2(self.path / beside, old / beside)
            for _, to in moves:
                (old / to).parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            shutil.rmtree(old, ignore_errors=True)
            raise
        for source, to in moves:
            source.rename(old / to)
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
        raise PruningError(f"{self.path / '.old'} holds a thousand folders of {stamp}; clear it")


def _ending(folder: Path) -> tuple[str, str] | None:
    """Return fingerprint and outputs of the stage in `folder`; None if there is no whole record of it."""
    try:
        manifest = read_json(folder / MANIFEST) or {}
        return manifest["fingerprint"], outputs(manifest["artefacts"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence: ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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

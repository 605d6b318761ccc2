"""The run directory of one recipe: held by one process, owned by one recipe, model and data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning.data import UnreadableRow
from pruning.errors import PruningError
from pruning.files import expanded, remove, write_json, write_text
from pruning.recipe import Recipe, to_yaml
from pruning.settings import DIGITS, NO_DATA
from pruning.stages.folder import ANEW, STAGES, RunFolder
from pruning.stages.identity import KNOWN_BY, data_identity, model_identity
from pruning.store import LOCK, OWNER, STORE, Hashes, Store, locked

logger = logging.getLogger(__name__)


class Workspace:
    """Who may write to a run directory, and for what.

    Args:
        recipe: Names the directory, the store, the model and the data.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.folder = RunFolder(recipe.run_dir)
        self.store = Store(expanded(recipe.store) if recipe.store else self.folder.path.parent / STORE)
        self.file_hashes = Hashes(self.store.path / "hashes.json")
        self._held = False
        self._claimed = self._taking_over = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run directory for this process; nested calls are free.

        Raises:
            PruningError: If it cannot be written to, or another process holds it.
        """
        if self._held:
            yield
            return
        path = self.folder.path
        advice = f"wait for it, choose another name=…, or delete {path / LOCK} if that process is gone"
        with ExitStack() as stack:
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, path)
                stack.enter_context(locked(path / LOCK, str(path), advice))
            except OSError as error:
                raise PruningError(
                    f"run_dir {str(path)!r} cannot be written to: {error}; choose another run_dir=…"
                ) from error
            self._held = True
            try:
                yield
            except UnreadableRow:
                self._expect_repair()
                raise
            finally:
                self._held = False

    @cached_property
    def identity(self) -> dict[str, dict[str, Any]]:
        """Source and hash of the model and of the data."""
        known = self._known().get("data", {})
        return {
            "model": model_identity(self._recipe, self.file_hashes),
            "data": data_identity(self._recipe, known, self.file_hashes),
        }

    @property
    def hashes(self) -> dict[str, str]:
        """Hash of the model and of the data, on which every result depends."""
        return {kind: entry["hash"] for kind, entry in self.identity.items()}

    def check_owner(self, *, fresh: bool = False) -> None:
        """Make sure that the directory is empty, or of this recipe, model and data, or without any finished stage.

        With `fresh` it may also be another run's, or nobody's, which is going to be taken over.

        Raises:
            PruningError: Naming what is there and what is asked.
        """
        path, done = self.folder.path, self.folder.done()
        if fresh and done:
            return
        owner = self.folder.owner(ANEW if done else "delete it, or choose another run_dir=…")
        if owner is None and done:
            raise PruningError(
                f"run_dir {str(path)!r} holds finished stages ({', '.join(done)}) but no {OWNER}, which says of which "
                f"recipe, model and data they are; {ANEW}"
            )
        if owner is None and (inside := sorted(entry.name for entry in path.glob("[!.]*"))):
            raise PruningError(
                f"run_dir {str(path)!r} is not empty and no run directory (it holds {', '.join(inside[:3])}); "
                "choose another run_dir=…"
            )
        # Before the first stage is done nothing is lost by another owner.
        if owner is not None and done and (found := self._differences(owner)):
            raise PruningError(
                f"run directory {path} belongs to another experiment: {'; '.join(found)}. Choose another name=…, "
                f"{ANEW}"
            )

    def take_over(self) -> None:
        """Make the directory this run's at the next claim, whosever it is: ``--fresh``."""
        self._claimed, self._taking_over = False, True
        self.identity["data"] = data_identity(self._recipe, {}, self.file_hashes)

    def claim(self) -> None:
        """Write down whose run directory this is, and the resolved recipe; does so once."""
        if self._claimed:
            return
        if self._taking_over:
            self._clear_others()
        else:
            self.check_owner()
        for left in self.folder.path.glob(".*.tmp"):  # of a process that was killed
            remove(left)
        known, now = self._known(), self.identity["data"]
        before = known.get("data", {})
        if before.get("broken") and before.get("content") != now["content"] and not self._taking_over:
            logger.warning(
                "the data %r have been changed since a row could not be read; finished stages are kept (--fresh "
                "redoes them)",
                now["source"],
            )
        if not known and now["source"] not in (DIGITS, NO_DATA):
            logger.info("data %s: %s", now["source"], now["known_by"])
        owner = {"name": self._recipe.name, **self.identity, "results": known.get("results", {})}
        write_json(self.folder.path / OWNER, owner)  # before the store knows of it, which asks for this file
        self.store.register(self.folder.path)
        self.file_hashes.save()
        write_text(self.folder.path / "recipe.yaml", to_yaml(self._recipe))
        self._claimed = True

    def _clear_others(self) -> None:
        """Take what is of another experiment out of the view; it stays in the store."""
        known = self._known()
        if known and not self._differences(known):
            return
        place = self.folder.path / OWNER
        if not known and place.exists():
            self.store.set_aside(place, OWNER)
        self.folder.detach(STAGES, self.store)
        place.unlink(missing_ok=True)

    def _known(self) -> dict[str, Any]:
        """Return what ``run.json`` says, empty if that is nothing of use."""
        with suppress(ValueError):
            return self.folder.owner("") or {}
        return {}

    def _differences(self, owner: dict[str, Any]) -> list[str]:
        """Say in what the owner differs from the recipe."""
        found = []
        if owner["name"] != self._recipe.name:
            found.append(f"it is of the recipe {owner['name']!r}, this one is {self._recipe.name!r}")
        for kind, now in self.identity.items():
            if owner[kind].get("hash") != now["hash"]:
                keys = [key for key in KNOWN_BY if owner[kind].get(key) != now.get(key)]
                was, asked = (_told(entry, keys) for entry in (owner[kind], now))
                found.append(f"it holds the {kind} {was}, the recipe asks for {asked}")
        return found

    def _expect_repair(self) -> None:
        """Note that the data are broken: mending them does not make them the data of another experiment."""
        owner, data = self._known(), self.identity["data"]
        if owner.get("data", {}).get("hash") == data["hash"]:
            write_json(self.folder.path / OWNER, {**owner, "data": {**data, "broken": True}})


def _told(entry: dict[str, Any], keys: list[str]) -> str:
    """Return a model or data in words: source, the settings at `keys`, and the hash."""
    told = [*(f"{key} {entry.get(key)}" for key in keys), f"hash {str(entry.get('hash'))[:8]}"]
    return f"{entry.get('source')!r} ({', '.join(told)})"


def _remove_if_empty(path: Path) -> None:
    """Take away a run directory in which nothing came about."""
    with suppress(OSError):
        path.rmdir()

"""The run directory of one recipe: held by one process, owned by one recipe, model and data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning.recipe import Recipe, refusal, to_yaml
from pruning.stages.folder import RunFolder, read_json, write_json
from pruning.stages.identity import data_identity, difference, model_identity
from pruning.stages.lock import locked

OWNER = "run.json"


class Workspace:
    """Who may write to a run directory, and for what.

    Args:
        recipe: Names the directory, the model and the data.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.folder = RunFolder(recipe.run_dir)
        self._held = False
        self._claimed = False

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
        with ExitStack() as stack:
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, path)
                stack.enter_context(locked(path))
            except OSError as error:
                raise refusal(
                    f"run_dir {str(path)!r} cannot be written to: {error}; choose another run_dir=…"
                ) from error
            self._held = True
            try:
                yield
            finally:
                self._held = False

    @cached_property
    def identity(self) -> dict[str, dict[str, Any]]:
        """Source and hash of the model and of the data."""
        known = (read_json(self.folder.path / OWNER) or {}).get("model", {})
        return {"model": model_identity(self._recipe, known), "data": data_identity(self._recipe)}

    def check_owner(self, *, fresh: bool = False) -> None:
        """Make sure that the directory is a run's (or empty), and that run of this recipe, model and data.

        Args:
            fresh: It may be another run's, which is going to move away.

        Raises:
            PruningError: Naming what is there and what is asked.
        """
        path = self.folder.path
        owner = read_json(path / OWNER)
        if owner is None:
            inside = (
                sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
            )
            if inside:
                raise refusal(
                    f"run_dir {str(path)!r} is not empty and no run directory (it holds {', '.join(inside[:3])}); "
                    "choose another run_dir=…"
                )
            return
        reasons = [difference(kind, owner.get(kind, {}), now) for kind, now in self.identity.items()]
        if owner.get("name") != self._recipe.name:
            reasons.insert(0, f"it is of the recipe {owner.get('name')!r}, this one is {self._recipe.name!r}")
        found = [reason for reason in reasons if reason]
        if found and not fresh:
            raise refusal(
                f"run directory {path} belongs to another experiment: {'; '.join(found)}. Choose another name=… "
                "or run_dir=…, or start anew with --fresh (what is there moves to .old)"
            )

    def claim(self) -> None:
        """Write down whose run directory this is, and the resolved recipe; does so once."""
        if self._claimed:
            return
        self.check_owner()
        write_json(self.folder.path / OWNER, {"name": self._recipe.name, **self.identity})
        (self.folder.path / "recipe.yaml").write_text(to_yaml(self._recipe), encoding="utf-8")
        self._claimed = True


def _remove_if_empty(path: Path) -> None:
    """Take away a run directory in which nothing came about."""
    with suppress(OSError):
        path.rmdir()

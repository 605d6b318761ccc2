"""What a stage is: a function that writes a folder, and what its result depends on."""

from __future__ import annotations

import logging
import operator
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import PruningError, named
from pruning.files import read_json, write_errors, write_json
from pruning.recipe import Recipe
from pruning.settings import knobs_of
from pruning.store import SCRATCH, Key, Result, changes, version_of

if TYPE_CHECKING:
    from pruning.stages.run import Run

logger = logging.getLogger(__name__)

Work = Callable[["Run", Path], dict[str, Any]]
Values = Callable[["Run"], dict[str, Any]]

IMAGES = (
    "seed",
    "model.dtype",
    "data.split",
    "data.resolution",
    "data.image_column",
    "data.label_column",
    "data.caption_column",
)
"""Keys of the recipe that say what calibration and recovery see of the data."""

CLOCK = "seconds.json"
"""File in the scratch folder in which an interrupted attempt notes how long it took."""


@dataclass(frozen=True)
class Stage:
    """One step of a run. Calling it does the step, or finds its result.

    ``@partial(Stage, "plan", after=("score",))`` makes a stage of a function.

    Attributes:
        name: One of `STAGES`.
        work: Writes the artefacts to the folder it is given, and returns the figures worth showing (JSON types).
        after: Stages whose artefacts it reads, beside the model and the data.
        reads: Keys of the recipe that its result depends on, ``section`` or ``section.key``; of a section all knobs but
            the neutral ones.
        extra: Further values that its result depends on.
        asked: Lists of names that its result must hold at least; one that holds more serves, too.
        resumable: What an interrupted attempt left in its folder is of use to the next.
        on_all_ranks: `work` runs on every process of a distributed launch, not on the first alone.
    """

    name: str
    work: Work
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    extra: Values | None = None
    asked: Values | None = None
    resumable: bool = False
    on_all_ranks: bool = False

    def __call__(self, run: Run) -> Path:
        """Do this stage in `run`, unless there is a result of equal settings and inputs.

        Returns:
            The folder of its artefacts.

        Raises:
            PruningError: If a stage it reads has not been run, or the run directory or the store cannot be written to.
        """
        if not run.ranks.is_first:
            return self._follow(run)
        kept = "Results that were finished are kept; run it again"
        with run.workspace.held(), write_errors(f"stage {self.name!r}", run.folder.path, kept):
            run.workspace.claim()
            before = run.folder.result(self.name)
            result = self.find(run)
            if result is None:
                result = self._make(run, before)
            else:
                again = before is not None and before.name == result.name
                logger.info("%-9s %s", self.name, "unchanged, reused" if again else "made before, reused")
                self._tell(run, None)
            run.use(self.name, result)
            if aside := run.folder.attach(self.name, result, run.workspace.store):
                logger.warning(
                    "%s/ had been changed and is mended; what was there is in %s", self.name, aside
                )
            return run.folder.stage(self.name)

    def key(self, run: Run) -> Key:
        """Return what the result depends on: settings, the model, the data, and the outcome of the stages before it."""
        inputs = run.workspace.hashes | {name: run.result(name).output_hash for name in self.after}
        config = {**pick(run.recipe, self.reads), **(self.extra(run) if self.extra else {})}
        return Key(self.name, config, inputs, self.asked(run) if self.asked else {})

    def find(self, run: Run, *, touch: bool = True) -> Result | None:
        """Return the result that serves the settings and inputs of now, None if there is none or it is to be redone."""
        if self.name in run.anew:
            return None
        return run.workspace.store.find(self.key(run), [run.folder.stage(self.name)], touch=touch)

    def _make(self, run: Run, before: Result | None) -> Result:
        """Do the work; return its result."""
        key, store = self.key(run), run.workspace.store
        if before is not None and (changed := _changed(before, key)):
            logger.info("%-9s %s", self.name, "; ".join(changed))
        anew = self.name in run.anew

        def work(folder: Path) -> dict[str, Any]:
            self._tell(run, folder)
            return self._do(run, folder)

        with named(f"stage {self.name!r}", PruningError):
            result = store.make(key, work, resumable=self.resumable and not anew, anew=anew)
        run.anew.discard(self.name)
        return result

    def _tell(self, run: Run, folder: Path | None) -> None:
        """Tell the other processes of a distributed launch where to work in step, or that there is no work."""
        if self.on_all_ranks:
            run.ranks.tell(self.name, folder)

    def _do(self, run: Run, folder: Path) -> dict[str, Any]:
        """Run the work; return what the manifest says of it. Time counts earlier attempts that it resumes."""
        logger.info("%-9s …", self.name)
        run.uses = {*run.lasting}
        run.redoing = self.name in run.anew
        note, began = folder / SCRATCH / CLOCK, time.perf_counter()
        earlier = (read_json(note) or {}).get("seconds", 0.0)
        try:
            with run.bars.lines(self.name):
                result = self.work(run, folder)
        except BaseException:
            with suppress(OSError):
                note.parent.mkdir(exist_ok=True)
                write_json(note, {"seconds": earlier + time.perf_counter() - began})
            raise
        now = time.perf_counter() - began
        sessions = f" in all, {now:.1f} s of them in this session" if earlier else ""
        logger.info("%-9s done in %.1f s%s", self.name, earlier + now, sessions)
        return {
            "result": result,
            "uses": sorted(run.uses),
            "seed": run.recipe.seed,
            "device": run.device_name,
            "versions": versions(),
            "seconds": round(earlier + now, 3),
        }

    def _follow(self, run: Run) -> Path:
        """Do what a process other than the first does: nothing, or the same work in step with it."""
        if self.on_all_ranks and (folder := run.ranks.wait(self.name)) is not None:
            self.work(run, folder)
        return run.folder.stage(self.name)


def _changed(before: Result, key: Key) -> list[str]:
    """Say what is not as it was when the result that the run directory shows was made."""
    then, now = {**before.manifest["config"], **before.manifest["asked"]}, {**key.config, **key.asked}
    changed = [f"{place} {_difference(a, b)}" for place, a, b in changes(then, now)]
    return changed + [f"input {place}" for place, _, _ in changes(before.manifest["inputs"], key.inputs)]


def _difference(before: Any, after: Any) -> str:
    """Say how two values differ; of lists only what came and what went."""
    parts = []
    if isinstance(before, list) and isinstance(after, list):
        for sign, one, other in (("+", after, before), ("-", before, after)):
            if only := [str(entry) for entry in one if entry not in other]:
                parts.append(f"{sign} {', '.join(only)}")
    return " ".join(parts) or f"{before} -> {after}"


def versions() -> dict[str, str]:
    """Return the versions of what a result may depend on."""
    packages = ("sinkprune", "torch", "diffusers", "transformers", "accelerate", "torchmetrics")
    return {"python": platform.python_version(), **{package: version_of(package) for package in packages}}


def pick(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values at dotted keys of a recipe; a section stands for all its knobs but the neutral ones."""
    values, found = asdict(recipe), {}
    for key in keys:
        leaves = [knob for knob in _KNOBS if knob.key == key or knob.key.startswith(f"{key}.")]
        assert leaves, f"the recipe has no key {key}"
        found |= {knob.key: value_at(values, knob.key) for knob in leaves if not knob.neutral}
    return found


_KNOBS = tuple(knobs_of(Recipe))


def value_at(values: dict[str, Any], key: str) -> Any:
    """Return the value at a dotted key of a recipe, as `asdict` gives it."""
    return reduce(operator.getitem, key.split("."), values)


def whole_recipe(run: Run) -> dict[str, Any]:
    """Return every value of the recipe, for stages that print it, but those that only say where things lie."""
    return {
        key: value for key, value in asdict(run.recipe).items() if key not in ("run_dir", "store", "device")
    }

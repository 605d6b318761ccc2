"""What a stage is: a function that writes a folder, and the rules by which it is reused or redone."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pruning.errors import PruningError
from pruning.files import read_json, write_errors, write_json
from pruning.recipe import Recipe, to_dict
from pruning.stages.folder import DONE, MANIFEST, STAGES, RunFolder, changes, fingerprint

if TYPE_CHECKING:
    from pruning.stages.run import Run

logger = logging.getLogger(__name__)

Work = Callable[["Run", Path], dict[str, Any]]
Extra = Callable[["Run"], dict[str, Any]]
Enough = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]

CLOCK = ".seconds"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Stage:
    """One step of a run. Calling it does the step, or finds it done.

    Attributes:
        name: One of `STAGES`.
        work: Writes the artefacts to the folder it is given, and returns the figures worth showing (JSON types).
        after: Stages whose artefacts it reads; none means that it reads the model and the data.
        reads: Keys of the recipe that its result depends on, ``section`` or ``section.key``.
        extra: Further values that its result depends on.
        enough: ``(extra as done, extra as asked) -> bool``: what was done holds all that is asked, and more.
        resumable: What an interrupted attempt left in its folder is of use to the next.
        on_all_ranks: `work` runs on every process of a distributed launch, not on the first alone.
    """

    name: str
    work: Work
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    extra: Extra | None = None
    enough: Enough | None = None
    resumable: bool = False
    on_all_ranks: bool = False

    def __call__(self, run: Run) -> Path:
        """Do this stage in `run`, unless it is done already with equal settings and inputs.

        Returns:
            The folder of its artefacts.

        Raises:
            PruningError: If a stage it reads has not been run, or the run directory cannot be written to.
        """
        if not run.ranks.is_first:
            return self._follow(run)
        with run.workspace.held():
            run.workspace.check_owner()
            config, inputs = self.config(run), self.inputs(run)
            if self._holds(run, config, inputs):
                logger.info("%-9s unchanged, reused", self.name)
                self._tell(run, go=False)
            else:
                with _disk_errors(self.name, run.folder):
                    self._redo(run, config, inputs)
            return run.folder.stage(self.name)

    def _redo(self, run: Run, config: dict[str, Any], inputs: dict[str, str]) -> None:
        """Do the work and make it the finished stage; what was there is back in its place if that fails."""
        mark = fingerprint(self.name, config, inputs)
        old = self._retire(run, config, inputs)
        with run.workspace.undone_on_error(old):
            run.workspace.claim()
            run.folder.begin(self.name, mark, resumable=self.resumable)
            self._tell(run, go=True)
            done = {"fingerprint": mark, "config": config, "inputs": inputs, **self._do(run)}
            run.folder.commit(self.name, done)
        run.forget(self.name)
        keep_later(run.folder, old, [self.name])

    def _tell(self, run: Run, *, go: bool) -> None:
        """Tell the other processes of a distributed launch whether there is work to be done in step."""
        if self.on_all_ranks:
            run.ranks.tell(self.name, go=go)

    def is_current(self, run: Run) -> bool:
        """Tell whether the stage is done with the settings and inputs of now; it is then reused."""
        if not all(run.folder.is_whole(name) for name in (*self.after, self.name)):
            return False
        return self._holds(run, self.config(run), self.inputs(run))

    def config(self, run: Run) -> dict[str, Any]:
        """Return the values that the result depends on."""
        return {**pick(run.recipe, self.reads), **(self.extra(run) if self.extra else {})}

    def inputs(self, run: Run) -> dict[str, str]:
        """Return the hashes of what it reads."""
        if not self.after:
            return {kind: entry["hash"] for kind, entry in run.workspace.identity.items()}
        return {name: run.folder.output_hash(name) for name in self.after}

    def _holds(self, run: Run, config: dict[str, Any], inputs: dict[str, str]) -> bool:
        """Tell whether what is done serves this config and these inputs."""
        folder = run.folder
        if folder.is_current(self.name, fingerprint(self.name, config, inputs)):
            return True
        done = folder.manifest(self.name).get("config") if self.enough and folder.is_done(self.name) else None
        if not done or self.enough is None or self.extra is None:
            return False
        asked = self.extra(run)
        if not set(asked) <= set(done) or not self.enough(done, asked):
            return False
        more = {**config, **{key: done[key] for key in asked}}
        return folder.is_current(self.name, fingerprint(self.name, more, inputs))

    def _do(self, run: Run) -> dict[str, Any]:
        """Run the work; return what the manifest says of it. Time counts earlier attempts that it resumes."""
        logger.info("%-9s …", self.name)
        folder = run.folder.partial(self.name)
        with _timed(folder) as clock, run.bars.lines(self.name), _named(self.name):
            result = self.work(run, folder)
        earlier = clock.earlier
        sessions = f" in all, {clock() - earlier:.1f} s of them in this session" if earlier else ""
        logger.info("%-9s done in %.1f s%s", self.name, clock(), sessions)
        return {
            "stage": self.name,
            "result": result,
            "seed": run.recipe.seed,
            "device": run.device_name,
            "versions": versions(),
            "finished": datetime.now().isoformat(timespec="seconds"),
            "seconds": round(clock(), 3),
        }

    def _follow(self, run: Run) -> Path:
        """Do what a process other than the first does: nothing, or the same work in step with it."""
        if self.on_all_ranks and run.ranks.wait(self.name):
            self.work(run, run.folder.partial(self.name))
        return run.folder.stage(self.name)

    def _retire(self, run: Run, config: dict[str, Any], inputs: dict[str, str]) -> Path | None:
        """Move this stage, if it was done otherwise, and all after it to ``.old``, and say why."""
        folder = run.folder
        there, damage = folder.stage(self.name).exists(), None
        manifest = folder.manifest(self.name) if folder.is_done(self.name) else {}
        if there:
            damage = folder.damage(self.name) if manifest else f"{self.name}/ lacks {MANIFEST} or {DONE}"
        old = folder.retire(STAGES[STAGES.index(self.name) :], keep_partial=self.name)
        changed = [f"{key} {a} -> {b}" for key, a, b in changes(manifest.get("config", {}), config)]
        changed += [f"input {key}" for key, _, _ in changes(manifest.get("inputs", {}), inputs)]
        if damage:
            logger.warning("%s; doing %s again. What was there is in %s", damage, self.name, old)
        elif there:
            logger.info("%-9s %s; earlier results are in %s", self.name, "; ".join(changed), old)
        return old


def keep_later(folder: RunFolder, old: Path | None, redone: Sequence[str]) -> None:
    """Move back, aloud, the stages after `redone` that `old` holds, if `redone` ended as before."""
    back = folder.restore(old, redone) if old else []
    if back:
        logger.info("%-9s as before, so %s may stay", redone[-1], ", ".join(back))


def stage(
    name: str,
    *,
    after: tuple[str, ...] = (),
    reads: tuple[str, ...] = (),
    extra: Extra | None = None,
    enough: Enough | None = None,
    resumable: bool = False,
    on_all_ranks: bool = False,
) -> Callable[[Work], Stage]:
    """Return a decorator that makes a function ``(run, folder) -> figures`` the stage `name`."""

    def decorate(work: Work) -> Stage:
        assert name in STAGES, f"{name} is no stage"
        return Stage(name, work, after, reads, extra, enough, resumable, on_all_ranks)

    return decorate


def versions() -> dict[str, str]:
    """Return the versions of what a result may depend on."""
    found = {"python": platform.python_version()}
    for package in ("sinkprune", "torch", "diffusers", "transformers", "accelerate", "torchmetrics"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in an error of the project's own in which stage it came up."""
    try:
        yield
    except PruningError as error:
        if f"stage {name!r}" in str(error):
            raise
        raise type(error)(f"stage {name!r}: {error}") from error


@contextmanager
def _disk_errors(name: str, folder: RunFolder) -> Iterator[None]:
    """Turn a full or read-only disk into one clear error; others pass."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code not in _DISK and not any(f"(os error {number})" in str(error) for number in _DISK):
            raise
        with write_errors(f"stage {name!r}", folder.path, "The stages that are done are kept; run it again"):
            raise


@dataclass(frozen=True)
class Clock:
    """Seconds since `start`, and those of `earlier` attempts."""

    earlier: float
    start: float

    def __call__(self) -> float:
        """Return the seconds in all."""
        return self.earlier + time.perf_counter() - self.start


@contextmanager
def _timed(partial: Path) -> Iterator[Clock]:
    """Measure seconds, adding those that interrupted attempts noted in `partial`."""
    clock = Clock(_earlier_seconds(partial), time.perf_counter())
    try:
        yield clock
    except BaseException:
        with suppress(OSError):
            write_json(partial / CLOCK, {"seconds": clock()})
        raise
    (partial / CLOCK).unlink(missing_ok=True)


def _earlier_seconds(partial: Path) -> float:
    """Return what interrupted attempts noted; 0 if that cannot be read, for nothing hangs on it."""
    try:
        return float((read_json(partial / CLOCK) or {})["seconds"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def pick(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values at dotted keys of a recipe, as JSON types."""
    whole, found = to_dict(recipe), {}
    for key in keys:
        value: Any = whole
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return found

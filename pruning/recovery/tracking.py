"""Trackers of accelerate: the loss, the learning rate and what was held out, by step, where the user looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import PruningError
from pruning.settings import Recover

if TYPE_CHECKING:
    from accelerate import Accelerator

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
"""By tracker, packages of which one is needed."""

PROJECT = "sinkprune"


def check_tracker(settings: Recover) -> None:
    """Raise PruningError if the package of the tracker is not installed."""
    packages = PACKAGES.get(settings.tracker or "", ())
    if packages and not any(find_spec(package) for package in packages):
        raise PruningError(
            f"recover.tracker: {settings.tracker!r} needs the package {packages[0]!r}, which is not installed; "
            f"pip install {packages[0]}, or set recover.tracker=null"
        )


def tracked_by(settings: Recover, logs: Path | None) -> dict[str, Any]:
    """Return the arguments of `Accelerator` that name the tracker, and where it may write.

    Raises:
        PruningError: If the tracker writes files and no folder is given.
    """
    if settings.tracker is None:
        return {}
    check_tracker(settings)
    if logs is None:
        if settings.tracker == "tensorboard":
            raise PruningError(
                "recovery: tracker='tensorboard' writes files; say where (logs=…), or set tracker to None"
            )
        return {"log_with": settings.tracker}
    return {"log_with": settings.tracker, "project_dir": logs}


def begin(accelerator: Accelerator, settings: Recover) -> None:
    """Start the trackers that the accelerator has, and tell them the settings."""
    if accelerator.log_with:
        told = {key: value if value is not None else "null" for key, value in asdict(settings).items()}
        accelerator.init_trackers(PROJECT, config=told)


def tell(accelerator: Accelerator, values: Mapping[str, float], step: int) -> None:
    """Tell the trackers of a step."""
    if accelerator.trackers:
        accelerator.log(dict(values), step=step)


def end(accelerator: Accelerator) -> None:
    """Let the trackers write what they hold; `Accelerator.end_training` would also part the processes for good."""
    for tracker in accelerator.trackers:
        if accelerator.is_main_process or not tracker.main_process_only:
            tracker.finish()
    accelerator.trackers = []

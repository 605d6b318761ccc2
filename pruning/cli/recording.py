"""``record``, and ``show`` of what it wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pruning.cli.console import Console, Outcome, facts, table, text_of
from pruning.cli.model import names_model
from pruning.errors import PruningError, shown
from pruning.files import expanded
from pruning.recipe import load_recipe, read_arguments

OPTIONS = ("prompts", "labels", "samples", "points", "seed", "dtype", "device")
"""Options of ``record`` that are for a pipeline, beside ``--out``."""

RECORDING = ("recording.json", "calls/recording.json")
"""Head of a recording in its folder, and in a result of the store."""


def record(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Record what a recipe's stages read, or any pipeline into a folder."""
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if arguments.out is not None:
        return _record_pipeline(arguments, given, console)
    if names_model(arguments.recipe):
        raise PruningError(f"{arguments.recipe!r} is a model, and no recipe; say where to with --out FOLDER")
    if given:
        raise PruningError(
            f"--{next(iter(given))} is for a pipeline, and goes with --out FOLDER; a recipe says it by its own keys"
        )
    from pruning.stages import Run
    from pruning.stages.recording import record_recipe

    run = Run(load_recipe(arguments.recipe, arguments.overrides), progress=console.progress)
    return show_recording(record_recipe(run, held_out=arguments.held_out).folder)


def _record_pipeline(arguments: argparse.Namespace, given: dict[str, Any], console: Console) -> Outcome:
    if arguments.held_out:
        raise PruningError("--held-out is for a recipe, and --out for a pipeline; leave one out")
    if not arguments.out.strip():
        raise PruningError("--out is empty; name a folder")
    folder = expanded(arguments.out)
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"--out: {arguments.out} is a file; name a folder")
    call = read_arguments(arguments.overrides)
    if "labels" in given:
        given["labels"] = _labels(given["labels"])
    import torch

    from pruning.stages.recording import record_source

    if "dtype" in given:
        given["dtype"] = getattr(torch, given["dtype"])
    calls = record_source(arguments.recipe, folder, call=call, progress=console.progress, **given)
    return show_recording(calls.folder)


def _labels(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 10 for word in words):
        raise PruningError(f"--labels: {shown(text)} is no list of classes; write such as 0,1,2")
    return [int(word) for word in words]


def recording_in(path: Path) -> Path | None:
    """Return the folder of the recording at a path, itself or that of a result; None where there is none."""
    return next(((path / name).parent for name in RECORDING if (path / name).is_file()), None)


def show_recording(folder: Path) -> Outcome:
    """Show what a recording holds."""
    from pruning.recording.calls import NOT_NOISED
    from pruning.recording.describing import branches_in_words, describe

    found = describe(folder)
    samples, recorded = found["samples"], found["recorded"]
    times, points = found["timesteps"], found["points"]
    kept = "all" if points is None or points >= found["steps"] else points
    about = {
        "pipeline": found["pipeline"],
        "asked with": found["call"] or "its defaults",
        "samples": samples if recorded == samples else f"{recorded} of {samples}; record again to go on",
        "sampling steps": f"{found['steps']}, of which each sample has {kept}",
        "rows": found["rows"],
        "timesteps": None if times is None else f"{times[0]:.4g} to {times[1]:.4g}",
        "noised anew": f"yes: the target is {found['target']}" if found["target"] else f"no: {NOT_NOISED}",
        "bytes": found["bytes"],
    }
    if found["for_images"]:
        about["for"] = "images, whose latents take the place of those that were recorded"
    rows = [
        (
            name,
            one["class"],
            one["rows"],
            branches_in_words(one["branches"]),
            one["signatures"],
        )
        for name, one in found["denoisers"].items()
    ]
    drawn = [facts(about), table(("denoiser", "class", "rows", "at each step", "kinds of calls"), rows, "")]
    return Outcome(found, [*drawn, *map(_arguments, found["denoisers"].items())], str(folder))


def _arguments(entry: tuple[str, dict[str, Any]]) -> Any:
    """Return which arguments of a denoiser have an entry for every row, and where."""
    name, one = entry
    places: dict[str, list[str]] = {}
    for argument, where in one["batch"].items():
        places.setdefault(where, []).append(argument)
    if one["shared"]:
        places["shared by all rows"] = one["shared"]
    if one["alone"]:
        places = {"one row a call": ["whatever the batch"], **places}
    return facts({where: text_of(names) for where, names in places.items()}, f"\nbatch of {name}")

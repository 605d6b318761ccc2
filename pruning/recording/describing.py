"""What a recording holds, in figures and in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.recording.axes import EACH, LIST, Axis
from pruning.recording.calls import RecordedCalls
from pruning.recording.format import HEAD, Denoiser, Row
from pruning.recording.trees import leaves, words
from pruning.store.hashes import folder_bytes

Description = dict[str, Any]


def holds_recording(folder: Path) -> bool:
    """Tell whether a recording was begun in a folder."""
    return (folder / HEAD).is_file()


def describe(folder: str | Path) -> Description:
    """Return what a recording holds, as JSON types; of one that is not finished what is there.

    Raises:
        PruningError: If it is none, or was changed.
    """
    calls = RecordedCalls.open(folder, whole=False)
    head, identity = calls.head, calls.head.identity
    times = [row.t for row in calls.rows if row.t is not None]
    return {
        "pipeline": identity.get("pipeline"),
        "call": identity.get("call"),
        "seed": identity.get("seed"),
        "samples": head.samples,
        "recorded": calls.recorded,
        "steps": head.steps,
        "points": identity.get("points"),
        "rows": len(calls.rows),
        "target": None if head.target is None else head.target.kind,
        "ends": sum(map(bool, calls.x0.values())),
        "for_images": bool(identity.get("for_images")),
        "timesteps": [min(times), max(times)] if times else None,
        "bytes": folder_bytes(calls.folder),
        "denoisers": {name: _denoiser(calls, name, one) for name, one in head.denoisers.items()},
    }


def _denoiser(calls: RecordedCalls, name: str, one: Denoiser) -> Description:
    rows = calls.of(name)
    return {
        "class": one.kind,
        "rows": len(rows),
        "branches": _branches(rows),
        "alone": one.alone,
        "batch": {words(path): _axis_in_words(axis) for path, axis in one.inputs.items()},
        "shared": _shared(calls, rows, one),
        "signatures": len({calls.signature(row) for row in rows}),
    }


def _branches(rows: Iterable[Row]) -> list[list[int]]:
    """Return the forms that a sampling step has: the rows of each of its calls."""
    steps: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for row in rows:
        steps[row.sample, row.step][row.call] += 1
    forms = {tuple(calls[number] for number in sorted(calls)) for calls in steps.values()}
    return [list(form) for form in sorted(forms)]


def branches_in_words(forms: Iterable[Iterable[int]]) -> str:
    """Return the branches of guidance for people."""
    said = []
    for form in map(list, forms):
        if form == [1]:
            said.append("one row a step: no guidance, or as a number")
        elif len(form) == 1:
            said.append(f"{form[0]} rows in one call")
        else:
            said.append(f"{len(form)} calls of {' and '.join(map(str, sorted(set(form))))}")
    return "; or ".join(said) or "none"


def _axis_in_words(axis: Axis) -> str:
    """Return a batch axis for people."""
    if axis == LIST:
        return "entries of a list"
    return "one number a row" if axis == EACH else f"dimension {axis}"


def _shared(calls: RecordedCalls, rows: Sequence[Row], one: Denoiser) -> list[str]:
    """Return which tensors all rows of a call share."""
    if not rows:
        return []
    tensors = [path for path, leaf in leaves(calls.arguments(rows[0])) if isinstance(leaf, Tensor)]
    return [words(path) for path in tensors if not any(path[: len(top)] == top for top in one.inputs)]

"""Statistics on disk: one safetensors file, its meta data as JSON in the header, never half written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.errors import PruningError
from pruning.files import write_errors, written_whole
from pruning.settings import WEIGHTINGS
from pruning.types import CalibrationStats

FORMAT = "sinkprune-calibration-3"
HEADER = "sinkprune"
"""The one entry of the file's meta data: safetensors writes several in random order, and equal content shall be equal
bytes."""
SEPARATOR = "|"


def write_tensors(
    path: str | Path, content: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Write named tensors and JSON meta data; the file appears whole or not at all, equal content as equal bytes.

    Raises:
        PruningError: If the folder cannot be written.
    """
    path = Path(path)
    header = json.dumps({"format": FORMAT, "content": content, "meta": meta}, sort_keys=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_errors(content, path.parent, "Nothing has been changed"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            save_file(whole, temporary, {HEADER: header})


def read_tensors(path: str | Path, content: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by `write_tensors`; returns tensors and meta data.

    Raises:
        PruningError: If it is missing, broken or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("format") != FORMAT or header.get("content") != content:
                raise PruningError(
                    f"{path} holds {header.get('content')!r} of format {header.get('format')!r}; "
                    f"expected {content!r} of {FORMAT!r}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header["meta"]  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise PruningError(f"cannot read {content} from {path}: {error}; calibrate again") from error


def save_stats(stats: CalibrationStats, path: str | Path) -> None:
    """Write statistics to one safetensors file.

    Raises:
        PruningError: If the folder cannot be written.
    """
    flat = {
        f"{place}{SEPARATOR}{name}": v for place, found in stats.values.items() for name, v in found.items()
    }
    write_tensors(path, "calibration statistics", flat, stats.meta)


def load_stats(path: str | Path) -> CalibrationStats:
    """Read statistics written by `save_stats`.

    Raises:
        PruningError: If the file is missing, broken or of another kind.
    """
    flat, meta = read_tensors(path, "calibration statistics")
    stats = CalibrationStats(meta=meta)
    for key, value in flat.items():
        place, _, name = key.rpartition(SEPARATOR)
        stats.values.setdefault(place, {})[name] = value
    return stats


def view(stats: CalibrationStats, weighting: str) -> CalibrationStats:
    """Return the statistics as one weighting of the rows sees them, so that criteria know nothing of weightings.

    Args:
        stats: What calibration gathered.
        weighting: One of `pruning.settings.WEIGHTINGS`.

    Returns:
        Statistics in which each name stands for its variant where there is one, and else for the plain sum.

    Raises:
        PruningError: For an unknown weighting, or one that was not gathered.
    """
    gathered = list(stats.meta.get("variants", []))
    if weighting not in WEIGHTINGS:
        raise PruningError(f"unknown weighting {weighting!r}; valid: {', '.join(WEIGHTINGS)}")
    if weighting not in ("off", *gathered):
        have = ", ".join(["off", *gathered])
        raise PruningError(
            f"weighting {weighting!r} was not calibrated (there is: {have}); add it to the calibration's variants"
        )
    suffix = f"@{weighting}"
    values: dict[str, dict[str, Tensor]] = {}
    for place, found in stats.values.items():
        plain = {name: value for name, value in found.items() if "@" not in name}
        own = {name.removesuffix(suffix): value for name, value in found.items() if name.endswith(suffix)}
        values[place] = {**plain, **own}
    return CalibrationStats(values, {**stats.meta, "view": weighting})

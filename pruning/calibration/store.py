"""Statistics on disk: a folder that is filled part by part, and read place by place."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.calibration.kept import Kept, raw_of
from pruning.calibration.tensors import FORMAT, opened, read_tensors, write_tensors
from pruning.errors import PruningError
from pruning.files import file_name, foreign_to_tensors, read_json, write_errors, write_json, written_whole
from pruning.on_demand import OnDemand
from pruning.store.result import changes_in_words
from pruning.types import CalibrationStats, PrunableGroup

logger = logging.getLogger(__name__)

STATISTICS = "calibration statistics"
INDEX, PROGRESS = "stats.json", "progress.json"
SMALL = 2**20
"""Bytes of a place up to which it has no file of its own."""
SEPARATOR = "|"
"""Between a place and the name of a sum, in files."""


class StatsFolder:
    """Statistics on their way to disk, part by part: a part's groups are all that is known of them.

    What a place holds is one file if it is large; small places of a part share one.

    Args:
        folder: Made if it is not there. Parts that an interrupted attempt left there are kept.
        identity: What the statistics depend on, in JSON types.

    Raises:
        PruningError: If what lies there is of another identity, or no statistics at all.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._progress = folder / PROGRESS
        self._identity = json.loads(json.dumps({"format": FORMAT, **(identity or {})}, sort_keys=True))
        advice = "name another folder, or delete it"
        known = read_json(folder / INDEX, advice) or read_json(self._progress, advice)
        if known is not None and (words := changes_in_words(known.get("identity", {}), self._identity)):
            raise PruningError(f"{folder} holds statistics of another calibration ({words}); {advice}")
        _check_own(folder)
        self._parts: list[dict[str, Any]] = _whole_parts(folder, (known or {}).get("parts", []))

    @property
    def done(self) -> frozenset[str]:
        """Names of the groups whose part is written."""
        return frozenset(name for part in self._parts for name in part["groups"])

    def add(self, groups: Iterable[PrunableGroup], stats: CalibrationStats) -> None:
        """Write what was measured of some groups; `stats` gives it up place by place.

        Raises:
            PruningError: If the folder cannot be written.
        """
        with write_errors(STATISTICS, self._folder, "Nothing has been changed"):
            self._folder.mkdir(parents=True, exist_ok=True)
        small: dict[str, Tensor] = {}
        places: dict[str, str] = {}
        name = _part_file(len(self._parts))
        for place in list(stats.values):
            found = stats.values.pop(place)
            flat = {f"{place}{SEPARATOR}{key}": value for key, value in raw_of(found).items()}
            large = sum(value.nbytes for value in flat.values()) > SMALL
            places[place] = _file_of(place) if large else name
            if large:
                write_tensors(self._folder / places[place], STATISTICS, flat, {})
            else:
                small |= flat
            del found, flat
        write_tensors(self._folder / name, STATISTICS, small, {})
        self._parts.append({"groups": [group.name for group in groups], "places": places, "meta": stats.meta})
        write_json(self._progress, {"identity": self._identity, "parts": self._parts})

    def finish(self) -> CalibrationStats:
        """Say that all is there, and return it as `load_stats` does."""
        meta = joined_meta([part["meta"] for part in self._parts])
        header = {
            "format": FORMAT,
            "content": STATISTICS,
            "identity": self._identity,
            "meta": meta,
            "parts": self._parts,
        }
        with write_errors(STATISTICS, self._folder, "Nothing has been changed"):
            write_json(self._folder / INDEX, json.loads(json.dumps(header, sort_keys=True)))
            self._progress.unlink(missing_ok=True)
        return load_stats(self._folder)


def _check_own(folder: Path) -> None:
    """Raise PruningError if a folder holds what no calibration left there, such as a model."""
    if not folder.is_dir() or any((folder / name).is_file() for name in (INDEX, PROGRESS)):
        return
    if other := next((name for name in foreign_to_tensors(folder) if not name.startswith(".")), None):
        raise PruningError(
            f"statistics cannot be kept in {folder}: it holds {other!r}, which is no part of them; name a folder of "
            "their own"
        )


def _whole_parts(folder: Path, parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts up to the first of which a file is not there any more or cannot be read."""
    found = []
    for number, part in enumerate(parts):
        files = {_part_file(number), *part["places"].values()}
        try:
            for file in sorted(files):
                with opened(folder / file, STATISTICS):
                    pass
        except PruningError as error:
            logger.warning("what is there is measured again: %s", error)
            break
        found.append(part)
    return found


def _part_file(number: int) -> str:
    return f"part-{number:03d}.safetensors"


class InMemory:
    """Statistics of parts, joined; as `StatsFolder`, but that they stay in memory."""

    done: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._parts: list[CalibrationStats] = []

    def add(self, groups: Iterable[PrunableGroup], stats: CalibrationStats) -> None:
        """Take what was measured of some groups."""
        self._parts.append(stats)

    def finish(self) -> CalibrationStats:
        """Return all."""
        values = {place: found for part in self._parts for place, found in part.values.items()}
        return CalibrationStats(values, joined_meta([part.meta for part in self._parts]))


def joined_meta(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what calibrations of several sets of groups over the same inputs say of their run."""
    unseen = {path: why for part in parts for path, why in part.get("unseen", {}).items()}
    seen = next((part["samples_seen"] for part in parts if part.get("samples_seen")), None)
    joined = {**parts[0], **({"unseen": unseen} if "unseen" in parts[0] else {})}
    return joined if seen is None else {**joined, "samples_seen": seen}


def save_stats(stats: CalibrationStats, folder: str | Path) -> None:
    """Write statistics into a folder, which appears whole or not at all, equal content as equal bytes.

    Raises:
        PruningError: If it cannot be written, or holds something else.
    """
    folder = Path(folder)
    _check_own(folder)
    with write_errors(STATISTICS, folder.parent, "Nothing has been changed"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(folder) as temporary:
            parts = StatsFolder(temporary)
            parts.add((), CalibrationStats(dict(sorted(stats.values.items())), stats.meta))
            parts.finish()


def load_stats(folder: str | Path) -> CalibrationStats:
    """Return statistics written by `save_stats`. What a large place holds is read from the disk when it is asked for.

    Raises:
        PruningError: If they are missing, broken or of another kind.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX, "calibrate again")
    if index is None:
        raise PruningError(f"cannot read {STATISTICS} from {folder}: {INDEX} is missing; calibrate again")
    if index.get("format") != FORMAT or index.get("content") != STATISTICS:
        raise PruningError(
            f"{folder} holds {index.get('content')!r} of format {index.get('format')!r}; "
            f"expected {STATISTICS!r} of {FORMAT!r}; calibrate again"
        )
    try:
        places = {place: file for part in index["parts"] for place, file in part["places"].items()}
        meta = index["meta"]
    except (KeyError, TypeError, AttributeError) as error:
        raise PruningError(
            f"cannot read {STATISTICS} from {folder}: {INDEX} lacks {error}; calibrate again"
        ) from error
    small: dict[str, dict[str, Tensor]] = {}
    for name in sorted({file for place, file in places.items() if file != _file_of(place)}):
        for key, value in read_tensors(folder / name, STATISTICS)[0].items():
            place, _, key = key.rpartition(SEPARATOR)
            small.setdefault(place, {})[key] = value
    values: dict[str, Mapping[str, Tensor]] = {}
    for place, file in places.items():
        large = file == _file_of(place)
        values[place] = Kept(_large_place(folder / file, place) if large else small.get(place, {}))
    return CalibrationStats(values, meta)


def _large_place(path: Path, place: str) -> Mapping[str, Tensor]:
    """Return what a large place holds; its file is opened now to see what is there, and for each read."""
    prefix = f"{place}{SEPARATOR}"

    def read(key: str) -> Tensor:
        with opened(path, STATISTICS) as (file, _):
            return file.get_tensor(key)

    with opened(path, STATISTICS) as (file, _):
        return OnDemand({key.removeprefix(prefix): key for key in sorted(file.keys())}, read)


def _file_of(place: str) -> str:
    """Return the name of the file of a large place; never that of a part."""
    return f"{file_name(place).replace('part-', 'part%2D')}.safetensors"

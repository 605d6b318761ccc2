"""Tensors and statistics on disk: safetensors files with JSON meta data in the header, never half written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.calibration.kept import Kept, Renamed, raw_of
from pruning.errors import PruningError
from pruning.files import file_name, read_json, write_errors, write_json, written_whole
from pruning.settings import WEIGHTINGS
from pruning.store.result import changes
from pruning.types import CalibrationStats, PrunableGroup

logger = logging.getLogger(__name__)

FORMAT = "sinkprune-calibration-4"
STATISTICS = "calibration statistics"
INDEX, PROGRESS = "stats.json", "progress.json"
SMALL = 2**20
"""Bytes of a place up to which it has no file of its own."""
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
    with opened(Path(path), content) as (file, meta):
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118


@contextmanager
def opened(path: Path, content: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield a file written by `write_tensors`, open, and its meta data; errors as those of `read_tensors`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("format") != FORMAT or header.get("content") != content:
                raise PruningError(
                    f"{path} holds {header.get('content')!r} of format {header.get('format')!r}; "
                    f"expected {content!r} of {FORMAT!r}; make it again"
                )
            yield file, header["meta"]
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise PruningError(f"cannot read {content} from {path}: {error}; calibrate again") from error


class StatsFolder:
    """Statistics on their way to disk, part by part: a part's groups are all that is known of them.

    What a place holds is one file if it is large; small places of a part share one.

    Args:
        folder: Made if it is not there. Parts that an interrupted attempt left there are kept.
        identity: What the statistics depend on, in JSON types.

    Raises:
        PruningError: If what lies there is of another identity.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._progress = folder / PROGRESS
        self._identity = json.loads(json.dumps({"format": FORMAT, **(identity or {})}, sort_keys=True))
        advice = "name another folder, or delete it"
        known = read_json(folder / INDEX, advice) or read_json(self._progress, advice)
        if known is not None and (differing := changes(known.get("identity", {}), self._identity)):
            words = "; ".join(f"{place} was {old!r}, is {new!r}" for place, old, new in differing[:3])
            raise PruningError(f"{folder} holds statistics of another calibration ({words}); {advice}")
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
        PruningError: If it cannot be written.
    """
    folder = Path(folder)
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
    values: dict[str, MutableMapping[str, Tensor]] = {}
    for place, file in places.items():
        values[place] = Kept(
            _OnDisk(folder / file, place) if file == _file_of(place) else small.get(place, {})
        )
    return CalibrationStats(values, meta)


class _OnDisk(MutableMapping[str, Tensor]):
    """What a large place holds: each read opens its file; what is set is set in memory alone."""

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._prefix = path, f"{place}{SEPARATOR}"
        self._own: dict[str, Tensor] = {}
        with opened(path, STATISTICS) as (file, _):
            self._keys = {key.removeprefix(self._prefix) for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        if key in self._own:
            return self._own[key]
        if key not in self._keys:
            raise KeyError(key)
        with opened(self._path, STATISTICS) as (file, _):
            return file.get_tensor(self._prefix + key)

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._own[key] = value
        self._keys.add(key)

    def __delitem__(self, key: str) -> None:
        self._keys.remove(key)
        self._own.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._keys))

    def __len__(self) -> int:
        return len(self._keys)


def _file_of(place: str) -> str:
    """Return the name of the file of a large place; never that of a part."""
    return f"{file_name(place).replace('part-', 'part%2D')}.safetensors"


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
    values: dict[str, MutableMapping[str, Tensor]] = {}
    for place, found in stats.values.items():
        plain = {name: name for name in found if "@" not in name}
        own = {name.removesuffix(suffix): name for name in found if name.endswith(suffix)}
        values[place] = Renamed(found, {**plain, **own})
    return CalibrationStats(values, {**stats.meta, "view": weighting})

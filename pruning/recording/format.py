"""A recording on disk: its head, its parts and their rows as JSON, read as if anybody had written them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pruning.errors import PruningError, shown
from pruning.files import read_json
from pruning.recording.axes import EACH, LIST, Axes, Axis
from pruning.recording.levels import Level
from pruning.recording.placements import Placement
from pruning.recording.targets import KINDS, Map, Target
from pruning.recording.tensors import KEY
from pruning.recording.trees import Path as TreePath

FORMAT = 1
HEAD = "recording.json"
"""What was recorded, and how; written first."""
ADVICE = "this is no recording of sinkprune, or it was changed; record anew"


@dataclass(frozen=True, eq=False)
class Row:
    """What one sample asks of a denoiser in one call: one branch of guidance at one sampling step.

    Attributes:
        sample: Which sample.
        step: Position of the sampling step; 0 has the most noise.
        call: Which call of the step.
        branch: Which row of the call's batch.
        denoiser: Name of the component that was called.
        tree: Its arguments, tensors by key; see `trees.encoded`.
        t: The scheduler's timestep, None where it has none.
        levels: Signal and noise of the scheduler's samples by slot; None where the scheduler does not say.
        places: Where these samples are in the arguments.
    """

    sample: int
    step: int
    call: int
    branch: int
    denoiser: str
    tree: Any
    t: float | None
    levels: tuple[Level, ...] | None
    places: tuple[Placement, ...]

    @property
    def name(self) -> str:
        """The row for people."""
        return f"sample {self.sample}, step {self.step}, call {self.call}, row {self.branch} of {self.denoiser!r}"

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON types."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["levels"] = (
            None if self.levels is None else [[level.signal, level.noise] for level in self.levels]
        )
        return {**found, "places": [asdict(place) for place in self.places]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Return a row; a ValueError or KeyError says if it is none."""
        levels = data["levels"]
        if levels is not None and not _list(levels):
            raise ValueError("levels is empty")
        numbers = {name: _natural(data[name]) for name in ("sample", "step", "call", "branch")}
        return cls(
            **numbers,
            denoiser=str(data["denoiser"]),
            tree=data["tree"],
            t=None if data["t"] is None else _number(data["t"]),
            levels=None if levels is None else tuple(Level(_number(a), _number(s)) for a, s in levels),
            places=tuple(place_from_json(place) for place in _list(data["places"])),
        )


@dataclass(frozen=True)
class Denoiser:
    """How a recorded component is called.

    Attributes:
        kind: Name of its class.
        inputs: Batch axes of its arguments.
        outputs: Batch axes of its answer.
        alone: No two rows can share a call.
    """

    kind: str
    inputs: Axes
    outputs: Axes
    alone: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        axes = {
            name: [[list(path), axis] for path, axis in getattr(self, name).items()]
            for name in ("inputs", "outputs")
        }
        return {"kind": self.kind, "alone": self.alone, **axes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Denoiser:
        """Return what `to_json` gave."""
        axes = {
            name: {_path(path): _axis(axis) for path, axis in data[name]} for name in ("inputs", "outputs")
        }
        return cls(str(data["kind"]), axes["inputs"], axes["outputs"], bool(data["alone"]))


@dataclass(frozen=True)
class Head:
    """What was recorded, and what was learned of the pipeline.

    Attributes:
        identity: What tells the recording from others: class of the pipeline, weights, inputs, arguments, seed, points.
        samples: How many.
        steps: Sampling steps of each sample's run.
        denoisers: By name of the component.
        target: What the denoiser should answer, None where the oracle check did not pass.
        branches: Those that are kept, where the first sample alone has rows of all steps and the others follow from
            their first one (`pruning.recording.templates`); None where every sample has all its own.
        bytes: What the recording was going to take on disk, as was said before.
    """

    identity: Mapping[str, Any]
    samples: int
    steps: int
    denoisers: Mapping[str, Denoiser]
    target: Target | None
    branches: Sequence[tuple[int, int]] | None = None
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        target = None
        if self.target is not None:
            maps = [[asdict(map_) for map_ in step] for step in self.target.maps]
            target = {"kind": self.target.kind, "maps": maps}
        denoisers = {name: denoiser.to_json() for name, denoiser in self.denoisers.items()}
        return {
            "format": FORMAT,
            "identity": dict(self.identity),
            "samples": self.samples,
            "steps": self.steps,
            "denoisers": denoisers,
            "target": target,
            "branches": None if self.branches is None else [list(branch) for branch in self.branches],
            "bytes": self.bytes,
        }

    @classmethod
    def read(cls, folder: Path) -> Head | None:
        """Return the head of the recording in a folder, None if none was begun; a PruningError if it is broken."""
        path = folder / HEAD
        data = read_json(path, ADVICE)
        if data is None:
            return None
        if data.get("format") != FORMAT:
            raise PruningError(
                f"{path}: its format is {shown(data.get('format'))}, this version reads {FORMAT}; {ADVICE}"
            )
        try:
            samples, steps, count = (_natural(data[name]) for name in ("samples", "steps", "bytes"))
            denoisers = {name: Denoiser.from_json(entry) for name, entry in data["denoisers"].items()}
            if not (samples and steps and denoisers):
                raise ValueError("it describes no samples, no steps or no denoiser")
            if not isinstance(data["identity"]["pipeline"], str):
                raise ValueError("it does not say of which pipeline it is")
            target = None if data["target"] is None else _target(data["target"], steps)
            branches = None if data["branches"] is None else [_branch(one) for one in _list(data["branches"])]
            return cls(dict(data["identity"]), samples, steps, denoisers, target, branches, count)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PruningError(f"{path}: {type(error).__name__}: {error}; {ADVICE}") from error


@dataclass(frozen=True)
class Part:
    """Some samples of a recording, in a file of rows and a file of tensors."""

    tensors: Path
    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    x0: Mapping[int, tuple[str, ...]]


def part_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Return the files of a part: rows (which says that it is whole) and tensors."""
    return folder / f"rows-{index:05d}.json", folder / f"tensors-{index:05d}.safetensors"


def read_parts(folder: Path) -> list[Part]:
    """Return the parts that are whole, in order; a broken one is a PruningError."""
    parts, done = list[Part](), 0
    while True:
        path, tensors = part_paths(folder, len(parts))
        data = read_json(path, ADVICE)
        if data is None:
            if later := [
                other.name for other in sorted(folder.glob("rows-*.json")) if other.name > path.name
            ]:
                raise PruningError(f"{path} is missing, and {later[0]} is there; {ADVICE}")
            return parts
        try:
            keys = tuple(_list(data["keys"]))
            if not all(isinstance(key, str) and KEY.fullmatch(key) for key in keys):
                raise ValueError("keys are no names of tensors")
            rows = tuple(Row.from_json(row) for row in _list(data["rows"]))
            x0 = {_natural(int(sample)): tuple(map(str, _list(ends))) for sample, ends in data["x0"].items()}
            if not x0 or list(x0) != list(range(done, done + len(x0))):
                raise ValueError(f"its samples are not those from {done} on")
            if {row.sample for row in rows} != x0.keys():
                raise ValueError("its rows are not those of its samples")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PruningError(f"{path}: {type(error).__name__}: {error}; {ADVICE}") from error
        if keys and not tensors.is_file():
            raise PruningError(f"{tensors} is missing; {ADVICE}")
        parts.append(Part(tensors, keys, rows, x0))
        done += len(x0)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{shown(value)} is no number of something")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{shown(value)} is no finite number")
    return float(value)


def _factor(value: Any) -> float:
    if not _number(value):
        raise ValueError("a factor is 0")
    return float(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is no list")
    return value


def _branch(data: Any) -> tuple[int, int]:
    call, row = (_natural(value) for value in _list(data))
    return call, row


def _path(data: Any) -> TreePath:
    if not all(type(key) in (str, int) for key in _list(data)):
        raise ValueError(f"{shown(data)} is no path")
    return tuple(data)


def _axis(value: Any) -> Axis:
    return value if value in (LIST, EACH) else _natural(value)


def place_from_json(data: Mapping[str, Any]) -> Placement:
    """Return a placement as `asdict` gave it."""
    place = Placement(**data)
    order = None if place.order is None else tuple(map(_natural, _list(place.order)))
    if order is not None and sorted(order) != list(range(len(order))):
        raise ValueError(f"order {shown(place.order)} is no order of dimensions")
    numbers = {name: _natural(getattr(place, name)) for name in ("slot", "offset", "size")}
    axis = None if place.axis is None else _natural(place.axis)
    return Placement(path=_path(place.path), scale=_factor(place.scale), order=order, axis=axis, **numbers)


def _target(data: Mapping[str, Any], steps: int) -> Target:
    if data["kind"] not in KINDS:
        raise ValueError(f"target {shown(data['kind'])} is unknown")
    maps = tuple(tuple(_map(entry) for entry in _list(step)) for step in _list(data["maps"]))
    if len(maps) != steps or not all(maps):
        raise ValueError(f"the target is not described at each of {steps} steps")
    return Target(data["kind"], maps)


def _map(data: Mapping[str, Any]) -> Map:
    return Map(_factor(data["alpha"]), _number(data["beta"]), place_from_json(data["place"]))

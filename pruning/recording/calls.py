"""Recorded calls, opened again: rows with their arguments on disk, and which of them can share a call."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.data.batches import move
from pruning.errors import PruningError, shown
from pruning.files import expanded, read_json
from pruning.recording.axes import EACH, LIST, Axes, Axis, joined
from pruning.recording.checking import ADVICE, check
from pruning.recording.levels import Level
from pruning.recording.oracle import KINDS, Map, Target
from pruning.recording.placements import Placement
from pruning.recording.tensors import KEY, TensorFiles
from pruning.recording.trees import Path as TreePath
from pruning.recording.trees import decoded, longer_types

FORMAT = 1
HEAD = "recording.json"
"""What was recorded, and how; written first."""
NOT_NOISED = (
    "its latents cannot be noised anew: with the right answers in its denoiser's place it does not end at what they "
    "point to, or its scheduler does not say how it adds noise; use the recorded points"
)


@dataclass(frozen=True)
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
        bytes: What the recording was going to take on disk, as was said before.
    """

    identity: Mapping[str, Any]
    samples: int
    steps: int
    denoisers: Mapping[str, Denoiser]
    target: Target | None
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
            return cls(dict(data["identity"]), samples, steps, denoisers, target, count)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PruningError(f"{path}: {type(error).__name__}: {error}; {ADVICE}") from error


class RecordedCalls:
    """What `record` wrote: rows and their tensors, read from disk when they are asked for.

    Attributes:
        folder: Where it lies.
        head: What was recorded, and what was learned of the pipeline.
        rows: All rows, by sample and then by step.
        x0: Keys of each sample's end, by slot, in the scheduler's layout; empty where it was not kept.
    """

    def __init__(
        self,
        folder: Path,
        head: Head,
        rows: Sequence[Row],
        x0: Mapping[int, Sequence[str]],
        files: TensorFiles,
    ) -> None:
        self.folder, self.head, self.rows, self.x0 = folder, head, rows, x0
        self._files = files

    @classmethod
    def open(cls, folder: str | Path, *, whole: bool = True) -> RecordedCalls:
        """Open a recording; nothing in it is trusted.

        Args:
            folder: Where it lies.
            whole: Refuse one that is not finished; else what there is of it is opened.

        Raises:
            PruningError: If there is none, it is not finished, or it was changed.
        """
        folder = expanded(folder)
        head = Head.read(folder)
        if head is None:
            raise PruningError(f"{folder}: no recording is there ({HEAD} is missing)")
        parts = read_parts(folder)
        found = sum(len(part.x0) for part in parts)
        if found > head.samples:
            raise PruningError(
                f"{folder}: {found} samples are there, and {head.samples} are described; {ADVICE}"
            )
        if whole and found < head.samples:
            raise PruningError(
                f"{folder}: the recording is not finished: {found} of {head.samples} samples are there; record again "
                "with the same arguments to go on"
            )
        rows = [row for part in parts for row in part.rows]
        x0 = {sample: keys for part in parts for sample, keys in part.x0.items()}
        calls = cls(folder, head, rows, x0, TensorFiles({part.tensors: part.keys for part in parts}))
        check(calls)
        return calls

    @property
    def samples(self) -> int:
        """How many samples a finished recording holds."""
        return self.head.samples

    @property
    def recorded(self) -> int:
        """How many samples are there."""
        return len(self.x0)

    @property
    def steps(self) -> int:
        """Sampling steps of each sample's run."""
        return self.head.steps

    @property
    def denoisers(self) -> dict[str, str]:
        """Class of each recorded component, by name."""
        return {name: denoiser.kind for name, denoiser in self.head.denoisers.items()}

    def of(self, denoiser: str) -> list[Row]:
        """Return the rows of one component; one that was not recorded is a PruningError."""
        if denoiser not in self.head.denoisers:
            have = ", ".join(f"{name} ({kind})" for name, kind in self.denoisers.items())
            raise PruningError(f"{self.folder}: {denoiser!r} was not recorded; recorded are {have}")
        return [row for row in self.rows if row.denoiser == denoiser]

    def arguments(self, row: Row) -> dict[str, Any]:
        """Return the arguments of a row, on the CPU, as they were recorded."""
        return decoded(row.tree, self._files.read)

    def outline(self, key: str) -> Tensor:
        """Return a tensor of the recording without its values, on the meta device."""
        return self._files.outline(key)

    def call(
        self,
        rows: Sequence[Row],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        arguments: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Return one call of several rows that share a signature.

        Args:
            rows: At least one.
            device: Where the tensors go.
            dtype: Type of floating point tensors of two or more dimensions, but of those that the pipeline gave in a
                longer type than the model's (positions); what has fewer are times and other numbers, which keep theirs.
                None leaves all as they were recorded.
            arguments: In the place of the recorded ones, a tree for each row.

        Raises:
            PruningError: If they cannot share a call.
        """
        whole = self.joined(rows, arguments)
        return move(whole, device, dtype, longer_types(whole))

    def joined(
        self, rows: Sequence[Row], arguments: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return one call of several rows, on the CPU and in the types that were recorded; see `call`."""
        if len({self.signature(row) for row in rows}) != 1:
            raise PruningError(
                f"{rows[0].name} and {rows[-1].name} cannot share a call: shapes or shared arguments differ"
            )
        if len(rows) > 1 and self.head.denoisers[rows[0].denoiser].alone:
            raise PruningError(f"{rows[0].denoiser!r} takes one row a call")
        trees = list(arguments) if arguments is not None else [self.arguments(row) for row in rows]
        return joined(trees, self.head.denoisers[rows[0].denoiser].inputs)

    def signature(self, row: Row) -> str:
        """Return what rows must have in common to share a call: shapes along other axes, and all that is shared."""
        denoiser = self.head.denoisers[row.denoiser]
        key = (row.sample, row.step, row.call, row.branch) if denoiser.alone else 0
        if id(row) not in self._signatures:
            form = [row.denoiser, key, form_of(row.tree, denoiser.inputs)]
            text = json.dumps(form, sort_keys=True)
            self._signatures[id(row)] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._signatures[id(row)]

    @cached_property
    def _signatures(self) -> dict[int, str]:
        return {}

    def end(self, row: Row, slot: int) -> Tensor:
        """Return x0, the end of a row's sample, float32 in the scheduler's layout, batch of 1."""
        keys = self.x0.get(row.sample, ())
        if slot >= len(keys):
            raise PruningError(
                f"{self.folder}: the end of sample {row.sample} was not kept: it was recorded for images"
            )
        return self._files.read(keys[slot]).float()

    def example(self, denoiser: str, batch_size: int, **where: Any) -> dict[str, Any]:
        """Return a call of the first step with `batch_size` rows, for costs and latency; `where` as for `call`."""
        first = self.of(denoiser)[0]
        if self.head.denoisers[denoiser].alone and batch_size > 1:
            raise PruningError(f"{denoiser!r} takes one sample a call; ask for a batch of 1")
        return self.call([first] * batch_size, **where)


def form_of(node: Any, axes: Axes, path: TreePath = ()) -> Any:
    """Return of the encoded arguments of a row what rows of one call must have in common."""
    axis = axes.get(path)
    if axis == EACH:
        return "each"
    if "tensor" in node:
        if axis is None:
            return node["tensor"]
        return [size for k, size in enumerate(node["shape"]) if k != axis] + [node["dtype"]]
    ((kind, value),) = node.items()
    if kind == "map":
        return {key: form_of(entry, axes, (*path, key)) for key, entry in value.items()}
    if kind in ("list", "tuple"):
        return "list" if axis == LIST else [form_of(entry, axes, (*path, i)) for i, entry in enumerate(value)]
    return node


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

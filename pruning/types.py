"""The nouns: what may be removed, what was measured, what matters, what goes; imports torch alone.

Data flows one way: PrunableGroup -> CalibrationStats -> Scores -> PruningPlan.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.hook import PRUNING_KEY
from pruning.on_demand import Rows, by_rows, first_of
from pruning.removal import BlockRemoval as BlockRemoval

PLAN_VERSION = 1

DEFAULTED = "_use_default_values"
"""Where diffusers keeps which entries a model was built without; ``from_config`` takes their defaults again."""

LENGTH = "length"
"""Name of a `ModuleAttribute` that says how many items a list of modules has; each unit is an item."""


@dataclass(frozen=True)
class ParamSlice:
    """Which rows or columns of one parameter the units of a group own.

    Unit ``k`` owns ``[offset + k*unit_size, offset + (k+1)*unit_size)`` along `dim`.

    Attributes:
        path: Parameter path as in ``model.named_parameters()``.
        dim: Dimension that is cut.
        unit_size: Rows or columns per unit.
        offset: First row or column of unit 0; a fused projection is several slices of one parameter.
        stack: Of a parameter that stacks one matrix for each of its experts along dimension 0: how many. All are cut
            alike, but each reads rows of its own; see `entries`.
    """

    path: str
    dim: int
    unit_size: int
    offset: int = 0
    stack: int = 0

    @property
    def entries(self) -> tuple[ParamSlice, ...]:
        """The slices of columns (dimension 1) that read rows: this one, or one for each matrix of a stack.

        The path of a matrix is that of its parameter with ``[index]``, and ``.T`` where channels are its rows.
        """
        turned = ".T" if self.dim == 1 else ""
        matrices = (f"{self.path}[{index}]{turned}" for index in range(self.stack))
        return tuple(ParamSlice(path, 1, self.unit_size, self.offset) for path in matrices) or (self,)

    def indices(self, units: Iterable[int]) -> Tensor:
        """Return the rows or columns owned by `units`, shape ``(len(units) * unit_size,)``, int64."""
        starts = torch.tensor(list(units), dtype=torch.long) * self.unit_size + self.offset
        return (starts[:, None] + torch.arange(self.unit_size)).flatten()


@dataclass(frozen=True)
class ModuleAttribute:
    """A size on a module that falls by `per_unit` for every removed unit (``heads``, ``num_groups``, …).

    It is an integer, or a tuple of one (``normalized_shape``), or the `LENGTH` of a list; see `size_of`.
    """

    module: str
    name: str
    per_unit: int


@dataclass(frozen=True)
class NarrowedInput:
    """An argument of a module that has entries for every unit, computed elsewhere for all of them (a rotary table).

    Where units go, the module is given the entries of those that stay. Unit ``k`` owns `unit_size` entries of each
    tensor in the argument, along `axis`, which repeats `num_units * unit_size` entries any number of times.

    Attributes:
        argument: Name of the parameter of the module's forward.
        axis: Dimension of the tensors.
        unit_size: Entries of a unit.
    """

    argument: str
    axis: int
    unit_size: int


@dataclass(frozen=True)
class PrunableGroup:
    """Units that may be removed one by one, each unit being everything that must go together.

    Attributes:
        name: Unique name, ``<module path>:<kind>``.
        module: Path of the module that owns the group (the attention, the feed-forward, the resnet, the block).
        kind: A name that `pruning.groups.kind` gave.
        num_units: Units in the dense model.
        unit_size: Channels per unit on the consuming side (head_dim, 1 for FFN, channels of a norm group).
        produced_by: Slices whose rows make the unit.
        consumed_by: Slices whose columns read the unit; zeroing them masks the unit. There are several where several
            modules read it (joint attention); what is measured, scored and compensated is so at each: see `consumers`.
        attributes: Sizes that fall with the units.
        narrowed: Arguments of `module` that keep their entries for all units.
        removal: Only for blocks.
        min_units: Fewest units that may stay: as many experts as a router gives each token.
    """

    name: str
    module: str
    kind: str
    num_units: int
    unit_size: int
    produced_by: tuple[ParamSlice, ...] = ()
    consumed_by: tuple[ParamSlice, ...] = ()
    attributes: tuple[ModuleAttribute, ...] = ()
    narrowed: tuple[NarrowedInput, ...] = ()
    removal: BlockRemoval | None = None
    min_units: int = 1

    @property
    def lists(self) -> tuple[str, ...]:
        """Paths of the lists of modules of which each unit is an item."""
        return tuple(attribute.module for attribute in self.attributes if attribute.name == LENGTH)

    def holds(self, path: str) -> bool:
        """Tell whether what lies at `path` goes with the units: in a list or a parameter that is theirs."""
        return lies_in(path, self.lists) or any(path == part.path for part in slices_of(self))

    @property
    def consumers(self) -> tuple[PrunableGroup, ...]:
        """The group as each of its consumers reads it: copies with one entry in `consumed_by`.

        Each matrix of a stack is a consumer. Blocks and whole experts have none.
        """
        parts = self._read_parts
        return (
            (self,)
            if parts == self.consumed_by and len(parts) == 1
            else tuple(replace(self, consumed_by=(part,)) for part in parts)
        )

    @property
    def _read_parts(self) -> tuple[ParamSlice, ...]:
        return tuple(entry for part in self.consumed_by for entry in part.entries)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules that are the group: its module, and for some blocks further ones."""
        return (self.module, *(self.removal.further if self.removal else ()))

    @property
    def read_by(self) -> ParamSlice:
        """The columns that read the units; a group with several consumers, or none, is a PruningError."""
        if len(self._read_parts) != 1 or self.consumed_by[0].stack:
            count = len(self._read_parts) or "no"
            raise PruningError(
                f"group {self.name!r} of kind {self.kind!r} has {count} consumers, and one was asked for; go through "
                "group.consumers"
            )
        return self.consumed_by[0]

    @property
    def consumer(self) -> str:
        """Path of the module whose input carries the units, e.g. ``…attn1.to_out.0``; as `read_by`.

        For a matrix of a stack, the module that holds the stack.
        """
        return parameter_path(self.read_by.path).rpartition(".")[0]

    @property
    def consumer_key(self) -> str:
        """Name of the slice that is read: the consumer's path, with ``[start:stop]`` where it does not start at 0.

        For a matrix of a stack, the matrix' path in place of the consumer's.
        """
        path, start = self.read_by.path, self.read_by.offset
        place = self.consumer if path == parameter_path(path) else path
        stop = start + self.num_units * self.read_by.unit_size
        return f"{place}[{start}:{stop}]" if start else place


@dataclass
class CalibrationStats:
    """Float64 sums of a calibration run, by place and statistic; never raw activations.

    A place is a slice that is read (`PrunableGroup.consumer_key`), an attention module or a block (its path), or a
    group as a whole (its name). The statistics are documented in `pruning.calibration.statistics`. Who asks for a
    group's takes `of` it first.

    Attributes:
        values: Sums by place, then by statistic name, not to be changed; some are read from disk each time.
        meta: What was run: number of samples, timestep buckets, sink weights, seed, … (JSON types only).
    """

    values: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def of(self, group: PrunableGroup) -> CalibrationStats:
        """Return, under the group's name, what is known of a group and, if it has a single one, of its consumer."""
        places = [group.module, group.name]
        if group.consumers == (group,):
            places.insert(0, group.consumer_key)
        found = first_of(*(self.values[place] for place in places if place in self.values))
        return CalibrationStats({group.name: found} if found else {}, self.meta)

    def get(self, place: str, statistic: str) -> Tensor:
        """Return one statistic; one that was not gathered there is a PruningError."""
        return self._at(place, statistic)[statistic]

    def by_rows(self, place: str, statistic: str) -> Rows:
        """Return a statistic as `get`, but as something whose rows are read, so that it need not be held whole."""
        return by_rows(self._at(place, statistic), statistic)

    def _at(self, place: str, statistic: str) -> Mapping[str, Tensor]:
        found = self.values.get(place, {})
        if statistic not in found:
            have = ", ".join(sorted(found)) or "nothing"
            raise PruningError(f"statistic {statistic!r} was not gathered for {place!r} (gathered: {have})")
        return found

    def has(self, place: str, statistic: str) -> bool:
        """Tell whether `statistic` was gathered at `place`."""
        return statistic in self.values.get(place, {})


@dataclass
class Scores:
    """Importance: one 1-D float64 tensor per group, one score per unit; low goes first.

    Attributes:
        values: Scores by group name, each of shape ``(num_units,)``.
        meta: Criterion, weighting, seed, … (JSON types only).
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def check(self, groups: Iterable[PrunableGroup]) -> None:
        """Raise PruningError unless all of `groups`, and no others, have scores: finite, 1-D and of their length."""
        units = {g.name: g.num_units for g in groups}
        if missing := [name for name in units if name not in self.values]:
            raise PruningError(f"no scores for the group {missing[0]!r} ({len(missing)} are without)")
        for name, score in self.values.items():
            if name not in units:
                raise PruningError(f"scores name the group {name!r}, which the model does not have")
            if not isinstance(score, Tensor):
                raise PruningError(
                    f"scores of group {name!r} are a {type(score).__name__}; expected a tensor"
                )
            if tuple(score.shape) != (units[name],):
                raise PruningError(
                    f"scores of group {name!r} have shape {tuple(score.shape)}; expected ({units[name]},)"
                )
            bad = (~torch.isfinite(score)).nonzero().flatten().tolist()
            if bad:
                raise PruningError(
                    f"scores of group {name!r} hold NaN or infinity: {len(bad)} of {len(score)} units, the first is "
                    f"unit {bad[0]} ({score[bad[0]].item()})"
                )


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, which blocks go and which weights take a smaller form: the slim architecture.

    All paths are those of the dense model.

    Attributes:
        kept: Sorted indices of the kept units by group name. A group that is absent keeps all its units.
        removed_blocks: Module paths of the removed blocks, sorted.
        ranks: Rank of the linear layers that take a low-rank form, by path.
        shared: Sets of modules that become one, each in order: the first that stays serves in the place of all.
        base_hash: Stable hash of the dense model's config; see `config_hash`.
        meta: Provenance: target asked and got, criterion, … (JSON types only); not part of the architecture.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed_blocks: tuple[str, ...] = ()
    base_hash: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()

    def kept_units(self, group: PrunableGroup) -> tuple[int, ...]:
        """Return the kept units of `group`, all of them if the plan does not name it."""
        return tuple(self.kept.get(group.name, range(group.num_units)))

    def removed_units(self, group: PrunableGroup) -> tuple[int, ...]:
        """Return the units of `group` that the plan removes."""
        kept = set(self.kept_units(group))
        return tuple(k for k in range(group.num_units) if k not in kept)

    def cuts(self, groups: Sequence[PrunableGroup]) -> dict[PrunableGroup, tuple[int, ...]]:
        """Return the groups of units, outside of what goes as a whole, that lose units, and which these are."""
        gone = self.gone(groups)
        left = [group for group in groups if group.kind != "blocks" and not lies_in(group.module, gone)]
        return {group: units for group in left if (units := self.removed_units(group))}

    def gone(self, groups: Sequence[PrunableGroup]) -> frozenset[str]:
        """Return the paths of the modules that go as a whole: removed blocks, and items of lists whose unit goes."""
        items = {
            f"{path}.{unit}" for group in groups for path in group.lists for unit in self.removed_units(group)
        }
        return frozenset(items.union(self.completed(groups).removed_blocks))

    def completed(self, groups: Iterable[PrunableGroup]) -> PruningPlan:
        """Return the plan with all paths of each removed block that has several; one of them names them all.

        Only a path that is a block by itself (the middle of a U) names no more than itself.
        """
        blocks = [group for group in groups if group.kind == "blocks"]
        alone, gone = {group.module for group in blocks}, set(self.removed_blocks)
        for group in (group for group in blocks if len(group.paths) > 1):
            if group.module in gone or gone.intersection(set(group.paths) - alone):
                gone.update(group.paths)
        return (
            self
            if len(gone) == len(self.removed_blocks)
            else replace(self, removed_blocks=tuple(sorted(gone)))
        )

    def removes(self, path: str) -> bool:
        """Tell whether the module or parameter at `path` lies in a removed block."""
        return any(inside(path, block) for block in self.removed_blocks)

    def before_cuts(self) -> PruningPlan:
        """Return what is decided before units and blocks are: of which model it is, and weights in a smaller form."""
        return replace(self, kept={}, removed_blocks=(), meta={})

    def served_by(self) -> dict[str, str]:
        """Return, for each module that another takes the place of, the path of that one; outside removed blocks."""
        staying = [[path for path in paths if not self.removes(path)] for paths in self.shared]
        return {path: paths[0] for paths in staying for path in paths[1:]}

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        smaller: dict[str, Any] = {
            "ranks": dict(sorted(self.ranks.items())),
            "shared": [*map(list, self.shared)],
        }
        return {
            "version": PLAN_VERSION,
            "base_hash": self.base_hash,
            "removed_blocks": list(self.removed_blocks),
            "kept": {name: list(units) for name, units in sorted(self.kept.items())},
            **{name: value for name, value in smaller.items() if value},
            "meta": dict(self.meta),
        }

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """Build a plan from JSON types; a PruningError names the first entry that is not as it must be."""
        if not isinstance(data, dict) or data.get("version") != PLAN_VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise PruningError(f"plan: version must be {PLAN_VERSION}, found {found!r}")
        kept, removed = data.get("kept"), data.get("removed_blocks")
        if not isinstance(kept, dict):
            raise PruningError(
                f"plan: 'kept' must map group names to unit lists, found {type(kept).__name__}"
            )
        for name, units in kept.items():
            whole = isinstance(units, list) and all(type(u) is int and u >= 0 for u in units)
            if not whole or sorted(set(units)) != units:
                raise PruningError(
                    f"plan: kept[{name!r}] must be a sorted list of distinct units, found {units!r}"
                )
        if not isinstance(removed, list) or not all(isinstance(b, str) for b in removed):
            raise PruningError(f"plan: 'removed_blocks' must be a list of module paths, found {removed!r}")
        if len(set(removed)) < len(removed):
            raise PruningError(f"plan: 'removed_blocks' names a block twice: {removed!r}")
        ranks, shared = data.get("ranks", {}), data.get("shared", [])
        if not isinstance(ranks, dict) or not all(type(r) is int and r >= 1 for r in ranks.values()):
            raise PruningError(
                f"plan: 'ranks' must map module paths to whole numbers from 1, found {ranks!r}"
            )
        sets = isinstance(shared, list) and all(
            isinstance(paths, list) and len(paths) > 1 and all(isinstance(path, str) for path in paths)
            for paths in shared
        )
        if not sets or len({path for paths in shared for path in paths}) < sum(map(len, shared)):
            raise PruningError(
                f"plan: 'shared' must hold lists of two or more paths, all distinct, found {shared!r}"
            )
        if not isinstance(data.get("base_hash"), str) or not isinstance(data.get("meta", {}), dict):
            raise PruningError("plan: 'base_hash' must be a string and 'meta' a mapping")
        return cls(
            kept={name: tuple(units) for name, units in kept.items()},
            removed_blocks=tuple(removed),
            base_hash=data["base_hash"],
            meta=data.get("meta", {}),
            ranks=dict(ranks),
            shared=tuple(map(tuple, shared)),
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, the units of each group in one line."""
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True)
        Path(path).write_text(
            _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan written by `save`."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested too deep
            raise PruningError(f"plan {path}: not JSON ({error})") from error
        return cls.from_dict(data)


def inside(path: str, block: str) -> bool:
    """Tell whether `path` is the module at `block` or lies in it."""
    return path == block or path.startswith(block + ".")


def lies_in(path: str, modules: Collection[str]) -> bool:
    """Tell whether `path` lies in one of the modules at these paths."""
    names = path.split(".")
    return any(".".join(names[:end]) in modules for end in range(1, len(names) + 1))


_NUMBERS = re.compile(r"(?<=\[)[\s\d,]+(?=\])")
"""What stands in a JSON list of whole numbers."""

_MATRIX = re.compile(r"(?P<path>.+)\[(?P<index>\d+)\](?P<turned>\.T)?")


def parameter_path(path: str) -> str:
    """Return the path of the parameter that `path` names, wholly or one matrix of it; see `ParamSlice.entries`."""
    found = _MATRIX.fullmatch(path)
    return found["path"] if found else path


def matrix_of(parameter: Tensor, path: str) -> Tensor:
    """Return what `path` names of its parameter, with channels along dimension 1: all of it, or one matrix, a view."""
    found = _MATRIX.fullmatch(path)
    if found is None:
        return parameter
    matrix = parameter[int(found["index"])]
    return matrix.T if found["turned"] else matrix


def size_of(module: torch.nn.Module, name: str) -> int | None:
    """Return the size that attribute `name` of a module holds, an integer or a tuple of one; None if it is neither.

    The `LENGTH` of a list is the number of its items.
    """
    if name == LENGTH and isinstance(module, torch.nn.ModuleList):
        return len(module)
    value = getattr(module, name, None)
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if type(value) is int else None


def set_size(module: torch.nn.Module, name: str, value: int) -> None:
    """Set a size that `size_of` reads, in the form that it has; the last items of a list go."""
    if name == LENGTH and isinstance(module, torch.nn.ModuleList):
        del module[value:]
        return
    found: Any = (value,) if isinstance(getattr(module, name), tuple) else value
    setattr(module, name, found)


def slices_of(group: PrunableGroup) -> Iterator[ParamSlice]:
    """Yield all slices of a group, producers first."""
    yield from group.produced_by
    yield from group.consumed_by


def parameters_of(groups: Iterable[PrunableGroup]) -> set[str]:
    """Return the paths of the parameters in which groups have a part."""
    return {part.path for group in groups for part in slices_of(group)}


def config_of(model: torch.nn.Module) -> Mapping[str, Any]:
    """Return the config of a diffusers model."""
    return model.config  # type: ignore[return-value]


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a stable hash of a model's architecture: its config without paths, versions and provenance."""
    skip = ("_name_or_path", "_diffusers_version", DEFAULTED, "_null_class")
    kept = {key: value for key, value in config.items() if key not in skip}
    if isinstance(kept.get(PRUNING_KEY), Mapping):
        inner = kept[PRUNING_KEY]
        kept[PRUNING_KEY] = {key: inner[key] for key in ("modules", "removed_blocks") if key in inner}
    text = json.dumps(kept, sort_keys=True, default=lambda v: dict(v) if isinstance(v, Mapping) else str(v))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Attention heads, in every module that names its projections by words: query, key, value, gate, out.

One unit is one key/value head with all its queries, in every stream of the module (joint attention); where there is a
single key/value head, one query head. A projection of several parts (``qkv``, ``kv``, differential attention) is
several slices, each with rows for all heads. Norms over one head stay; norms across heads are cut with their weight.
What the module does not project itself, a linear layer of the block around it does (single-stream blocks), or the
attention beside it (``attn2`` of Lumina-Next).

A module with a part whose role is not known has no group: `why_no_heads` says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pruning.groups.base import columns, handler, kind, recorded, rows
from pruning.groups.words import in_list, is_norm, words
from pruning.types import ModuleAttribute, NarrowedInput, ParamSlice, PrunableGroup

ATTENTION_HEADS = kind("attention_heads", "Heads of attention layers.")

QUERY, KEY, VALUE = {"q", "query"}, {"k", "key"}, {"v", "value"}
FUSED = {"qkv", "kv"}
GATE = {"gate", "g", "bias"}
OUT = {"out", "o", "proj"}

HEADS = ("heads", "num_heads", "num_attention_heads", "n_heads")
KEY_HEADS = ("kv_heads", "num_kv_heads", "num_key_value_heads", "n_kv_heads")
QUERY_WIDTHS = ("inner_dim", "channels")
KEY_WIDTHS = ("inner_kv_dim", "kv_inner_dim")
SLICED = ("sliceable_head_dim",)

RIGID = dict.fromkeys(
    (
        "AttnAddedKVProcessor",
        "AttnAddedKVProcessor2_0",
        "XFormersAttnAddedKVProcessor",
        "RFD4ProteinaPairAttnProcessor",
        "SanaWMCrossAttnProcessor",
    ),
    "its processor reshapes the heads to the width of the residual stream",
)
"""Processors under which heads cannot go, and why."""

ONE_STREAM = {
    "EasyAnimateAttnProcessor2_0": "it hands the heads of the text on as they are, without a projection"
}
"""Processors under which heads cannot go where the module does not project a second stream, and why."""

RESHAPED_TO = {"OmniGenAttnProcessor2_0": "out_dim", "CosmosAttnProcessor2_5": "out_dim"}
"""Processors that reshape the heads to a width which the module holds under another name."""


def _rotary_of_split_heads(module: nn.Module, head_dim: int) -> tuple[int, int]:
    """LTX-2 lays its tables out by head, (B, heads, N, d), or over all of them, (B, N, heads * d)."""
    return (1, 1) if getattr(module, "rope_type", "") == "split" else (-1, head_dim)


PER_HEAD_INPUTS: dict[str, Any] = {
    "LTXAttention": {"image_rotary_emb": lambda module, head_dim: (-1, head_dim)},
    "LTX2Attention": dict.fromkeys(("query_rotary_emb", "key_rotary_emb"), _rotary_of_split_heads),
    "SanaWMLTX2Attention": dict.fromkeys(("query_rotary_emb", "key_rotary_emb"), _rotary_of_split_heads),
    "MochiAttention": {"image_rotary_emb": lambda module, head_dim: (-2, 1)},
}
"""Attention classes that are given tables with entries for each head; argument -> its axis, and entries per head."""

PER_HEAD_MASKS = ("PriorTransformer",)
"""Models that repeat the attention mask for each head before they call the attention, (B * heads, N, M)."""


@dataclass
class Parts:
    """What an attention module is made of, by role: paths below the module, and the layers.

    Attributes:
        scales: Parameters with a number for each head, or one for all.
        unknown: Parameters, and layers with parameters, whose role is not known.
    """

    queries: dict[str, nn.Linear] = field(default_factory=dict)
    keys: dict[str, nn.Linear] = field(default_factory=dict)
    fused: dict[str, nn.Linear] = field(default_factory=dict)
    gates: dict[str, nn.Linear] = field(default_factory=dict)
    outs: dict[str, nn.Linear] = field(default_factory=dict)
    norms: dict[str, nn.Module] = field(default_factory=dict)
    scales: dict[str, nn.Parameter] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, module: nn.Module) -> Parts:
        """Sort the children of `module`."""
        parts = cls()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1 and words(name) & (QUERY | KEY | VALUE):
                parts.scales[name] = parameter
            else:
                parts.unknown.append(name)
        for name, child in module.named_children():
            if name == "processor" or (next(child.parameters(), None) is None and not is_norm(child)):
                continue
            where, layer = _unwrapped(name, child)
            said = words(name)
            if is_norm(layer):
                if said & (QUERY | KEY) and "pre" not in said:
                    parts.norms[where] = layer
            elif not isinstance(layer, nn.Linear):
                parts.unknown.append(where)
            elif said & FUSED or (said & QUERY and said & KEY):
                parts.fused[where] = layer
            elif said & QUERY:
                parts.queries[where] = layer
            elif said & (KEY | VALUE):
                parts.keys[where] = layer
            elif said & GATE:
                parts.gates[where] = layer
            elif said & OUT:
                parts.outs[where] = layer
            else:
                parts.unknown.append(where)
        return parts

    def __bool__(self) -> bool:
        asks = self.queries or any(words(name) & {"qkv"} for name in self.fused)
        return bool(asks and (self.keys or self.fused))


def _unwrapped(name: str, child: nn.Module) -> tuple[str, nn.Module]:
    """Return the layer itself where it is the first of a list (``to_out.0``), and its path."""
    if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child):
        return f"{name}.0", child[0]
    return name, child


@handler("attention", ATTENTION_HEADS)
def attention_heads(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the head group of an attention module with at least two heads."""
    found = _read(path, module, model)
    if isinstance(found, PrunableGroup):
        yield found


def why_no_heads(path: str, module: nn.Module, model: nn.Module) -> str:
    """Say why an attention module has no head group; nothing if it has one, or is no attention module."""
    found = _read(path, module, model)
    return found if isinstance(found, str) else ""


@dataclass(frozen=True)
class _Sizes:
    """Heads, key/value heads, rows of a head, and rows of all query heads."""

    heads: int
    key_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def units(self) -> int:
        return self.key_heads if self.key_heads > 1 else self.heads

    @property
    def per_unit(self) -> int:
        """Query heads of a unit."""
        return self.heads // self.units


def _read(path: str, module: nn.Module, model: nn.Module) -> PrunableGroup | str:
    """Return the head group of a module, or why there is none."""
    parts = Parts.of(module)
    if not parts:
        return ""
    if not in_list(path):
        return "it is not part of a list of blocks"
    reader = _reader(path, module, model, parts)
    if isinstance(reader, str):
        return reader
    partner, consumed = reader
    sizes = _sizes(module, parts, consumed)
    if isinstance(sizes, str):
        return sizes
    if fault := _fault(module, parts, sizes):
        return fault
    if sizes.key_heads == 1 and any(recorded(model, f"{path}.{name}") for name in parts.keys):
        return "a single key/value head is left of it"
    produced, attributes = _cut(path, module, parts, sizes)
    if partner:
        beside = model.get_submodule(partner)
        more, fewer = _cut(partner, beside, Parts.of(beside), sizes)
        gate = f"{path.rpartition('.')[0]}.gate"
        produced = [*produced, *more, ParamSlice(gate, 0, sizes.per_unit)]
        attributes = [*attributes, *fewer]
    elif not parts.outs and (beside := _beside(path, model)):  # it reads the heads, and adds to them
        other = Parts.of(model.get_submodule(beside))
        unit = sizes.per_unit * sizes.head_dim
        produced += [
            part for name, layer in other.outs.items() for part in rows(f"{beside}.{name}", layer, unit)
        ]
        consumed = {**consumed, **_below(beside, other.queries)}
    return PrunableGroup(
        name=f"{path}:attention_heads",
        module=path,
        kind=ATTENTION_HEADS,
        num_units=sizes.units,
        unit_size=sizes.per_unit * sizes.head_dim,
        produced_by=tuple(produced),
        consumed_by=tuple(columns(where, sizes.per_unit * sizes.head_dim) for where in consumed),
        attributes=tuple(attributes),
        narrowed=_narrowed(module, model, sizes),
    )


def _reader(
    path: str, module: nn.Module, model: nn.Module, parts: Parts
) -> tuple[str, dict[str, nn.Linear]] | str:
    """Return the attention module beside this one that shares its heads, and the layers that read them, by path."""
    if parts.outs:
        lone = _hands_on(path, model)
        return f"its heads are those of {lone!r}" if lone else ("", _below(path, parts.outs))
    block = path.rpartition(".")[0]
    around = model.get_submodule(block)
    for name, child in around.named_children():  # one layer reads the heads, and hidden channels after them
        if isinstance(child, nn.Linear) and words(name) & OUT and words(name) & {"out"}:
            return "", {f"{block}.{name}": child}
    if (beside := _beside(path, model)) and isinstance(getattr(around, "gate", None), nn.Parameter):
        return beside, _below(beside, Parts.of(model.get_submodule(beside)).outs)
    return "no layer was found that reads its heads"


def _hands_on(path: str, model: nn.Module) -> str:
    """Return the attention module without an output layer whose heads the one at `path` projects, if there is one."""
    block = path.rpartition(".")[0]
    if not block or not isinstance(getattr(model.get_submodule(block), "gate", None), nn.Parameter):
        return ""
    beside = _beside(path, model)
    return beside if beside and not Parts.of(model.get_submodule(beside)).outs else ""


def _beside(path: str, model: nn.Module) -> str:
    """Return the only other attention module of the block around `path`."""
    block = path.rpartition(".")[0]
    others = [
        f"{block}.{name}"
        for name, child in model.get_submodule(block).named_children()
        if f"{block}.{name}" != path and Parts.of(child)
    ]
    return others[0] if len(others) == 1 else ""


def _below(path: str, layers: dict[str, nn.Linear]) -> dict[str, nn.Linear]:
    return {f"{path}.{name}": layer for name, layer in layers.items()}


def _sizes(module: nn.Module, parts: Parts, consumed: dict[str, nn.Linear]) -> _Sizes | str:
    heads = next((n for name in HEADS if type(n := getattr(module, name, None)) is int), None)
    if heads is None:
        return "it does not say how many heads it has"
    if parts.outs:
        width = next(iter(consumed.values())).in_features
    else:
        width = next(iter((parts.queries or parts.fused).values())).out_features
    if width % heads:
        return f"{width} channels are no multiple of {heads} heads"
    head_dim = width // heads
    key_width = next((layer.out_features for layer in parts.keys.values()), width)
    key_heads = key_width // head_dim if key_width < width else heads
    if key_width % head_dim or heads % key_heads:
        return f"{key_width} key channels do not fit to {heads} heads of {head_dim}"
    return _Sizes(heads, key_heads, head_dim) if heads > 1 else "it has a single head"


def _fault(module: nn.Module, parts: Parts, sizes: _Sizes) -> str:
    """Say why heads of a module cannot go, though its parts are known."""
    processor = type(getattr(module, "processor", None)).__name__
    if processor in RIGID:
        return RIGID[processor]
    if processor in ONE_STREAM and not any("add" in words(name) for name in parts.queries):
        return ONE_STREAM[processor]
    if getattr(module, "fused_projections", False):
        return "its projections are fused; call unfuse_qkv_projections() first"
    if parts.unknown:
        return f"what {parts.unknown[0]!r} does to the heads is not known"
    for name, layer in [*parts.queries.items(), *parts.fused.items()]:
        if layer.out_features % sizes.width:
            return f"{name!r} has {layer.out_features} rows, no multiple of {sizes.width}"
    if parts.fused and sizes.key_heads != sizes.heads:
        return "its fused projection has fewer key than query heads"
    for name, scale in parts.scales.items():
        if len(scale) not in (1, sizes.heads if words(name) & QUERY else sizes.key_heads):
            return f"{name!r} has {len(scale)} numbers, which are not one for each head"
    for name, layer in parts.gates.items():
        if layer.out_features not in (sizes.width, sizes.heads):
            return f"{name!r} has {layer.out_features} rows, which are neither of heads nor of their channels"
    return ""


def _cut(
    path: str, module: nn.Module, parts: Parts, sizes: _Sizes
) -> tuple[list[ParamSlice], list[ModuleAttribute]]:
    """Return the rows that belong to the heads of a module, and the sizes on it."""
    unit, one_key = sizes.per_unit * sizes.head_dim, sizes.key_heads == 1
    key_width = sizes.key_heads * sizes.head_dim
    produced, attributes = [], []

    def rows_of(name: str, layer: nn.Linear, width: int, size: int) -> list[ParamSlice]:
        offsets = range(0, layer.out_features, width)
        return [part for offset in offsets for part in rows(f"{path}.{name}", layer, size, offset)]

    for name, layer in (parts.queries | parts.fused).items():
        produced += rows_of(name, layer, sizes.width, unit)
    for name, layer in parts.keys.items():
        produced += [] if one_key else rows_of(name, layer, key_width, sizes.head_dim)
    for name, layer in parts.gates.items():
        size = unit if layer.out_features == sizes.width else sizes.per_unit
        produced += rows_of(name, layer, layer.out_features, size)
    for name, scale in parts.scales.items():
        query = bool(words(name) & QUERY)
        if len(scale) > 1 and (query or not one_key):
            produced.append(ParamSlice(f"{path}.{name}", 0, sizes.per_unit if query else 1))
    for name, norm in parts.norms.items():
        query = bool(words(name) & QUERY)
        if _norm_width(norm) != (sizes.width if query else key_width) or (one_key and not query):
            continue  # of one head
        size = unit if query else sizes.head_dim
        produced += rows(f"{path}.{name}", norm, size)
        if getattr(norm, "weight", None) is None and isinstance(
            getattr(norm, "normalized_shape", None), tuple
        ):
            attributes.append(ModuleAttribute(f"{path}.{name}", "normalized_shape", size))
    keys = () if one_key else KEY_HEADS
    named = [(HEADS, sizes.per_unit), (SLICED, sizes.per_unit), (keys, 1), (QUERY_WIDTHS, unit)]
    named += [] if one_key else [(KEY_WIDTHS, sizes.head_dim)]
    if reshaped := RESHAPED_TO.get(type(getattr(module, "processor", None)).__name__):
        named.append(((reshaped,), unit))
    attributes += [
        ModuleAttribute(path, name, size)
        for names, size in named
        for name in names
        if type(getattr(module, name, None)) is int
    ]
    return produced, attributes


def _norm_width(norm: nn.Module) -> int | None:
    """Return over how many channels a norm goes."""
    weight: Any = getattr(norm, "weight", None)
    if weight is not None:
        return len(weight)
    shape: Any = getattr(norm, "normalized_shape", getattr(norm, "dim", None))
    return shape[-1] if isinstance(shape, tuple) and shape else None


def _narrowed(module: nn.Module, model: nn.Module, sizes: _Sizes) -> tuple[NarrowedInput, ...]:
    found = []
    for argument, place in PER_HEAD_INPUTS.get(type(module).__name__, {}).items():
        axis, per_head = place(module, sizes.head_dim)
        found.append(NarrowedInput(argument, axis, per_head * sizes.per_unit))
    if type(model).__name__ in PER_HEAD_MASKS:
        found.append(NarrowedInput("attention_mask", 0, sizes.per_unit))
    return tuple(found)

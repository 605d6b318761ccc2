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

from torch import nn

from pruning.groups.base import columns, handler, kind, recorded, rows
from pruning.groups.heads.owned import narrowed_of, owned_by
from pruning.groups.heads.parts import Parts
from pruning.groups.heads.readers import below, beside_of, reader_of
from pruning.groups.heads.sizes import fault_of, sizes_of
from pruning.groups.words import in_list
from pruning.types import ParamSlice, PrunableGroup

ATTENTION_HEADS = kind("attention_heads", "Heads of attention layers.")


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


def _read(path: str, module: nn.Module, model: nn.Module) -> PrunableGroup | str:
    """Return the head group of a module, or why there is none."""
    parts = Parts.of(module)
    if not parts:
        return ""
    if not in_list(path):
        return "it is not part of a list of blocks"
    reader = reader_of(path, model, parts)
    if isinstance(reader, str):
        return reader
    partner, consumed = reader
    sizes = sizes_of(module, parts, consumed)
    if isinstance(sizes, str):
        return sizes
    if fault := fault_of(module, parts, sizes):
        return fault
    if sizes.key_heads == 1 and any(recorded(model, f"{path}.{name}") for name in parts.keys):
        return "a single key/value head is left of it"
    produced, attributes = owned_by(path, module, parts, sizes)
    if partner:
        beside = model.get_submodule(partner)
        more, fewer = owned_by(partner, beside, Parts.of(beside), sizes)
        gate = f"{path.rpartition('.')[0]}.gate"
        produced = [*produced, *more, ParamSlice(gate, 0, sizes.per_unit)]
        attributes = [*attributes, *fewer]
    elif not parts.outs and (beside := beside_of(path, model)):  # it reads the heads, and adds to them
        other = Parts.of(model.get_submodule(beside))
        for name, layer in other.outs.items():
            produced += rows(f"{beside}.{name}", layer, sizes.unit)
        consumed = {**consumed, **below(beside, other.queries)}
    return PrunableGroup(
        name=f"{path}:{ATTENTION_HEADS}",
        module=path,
        kind=ATTENTION_HEADS,
        num_units=sizes.units,
        unit_size=sizes.unit,
        produced_by=tuple(produced),
        consumed_by=tuple(columns(where, sizes.unit) for where in consumed),
        attributes=tuple(attributes),
        narrowed=narrowed_of(module, model, sizes),
    )

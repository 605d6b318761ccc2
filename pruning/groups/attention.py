"""Attention heads of every module that uses the attribute names of ``diffusers.models.attention_processor``.

One unit is one key/value head with all its queries, in every stream of the module (``add_*_proj``). Heads of
size ``head_dim`` keep their scale; norms over one head stay, norms across heads are cut with their weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pruning.groups.base import columns, handler, rows
from pruning.types import ModuleAttribute, ParamSlice, PrunableGroup

QUERIES = ("to_q", "add_q_proj")
KEYS_AND_VALUES = ("to_k", "to_v", "add_k_proj", "add_v_proj")
QUERY_NORMS = ("norm_q", "norm_added_q")
KEY_NORMS = ("norm_k", "norm_added_k")
# Their code reshapes the heads to the width of the residual stream, so that heads cannot go.
RIGID_PROCESSORS = ("AttnAddedKVProcessor", "AttnAddedKVProcessor2_0", "XFormersAttnAddedKVProcessor")


@handler("attention")
def attention_heads(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the head group of an attention module with at least two key/value heads."""
    to_q, to_k = getattr(module, "to_q", None), getattr(module, "to_k", None)
    out = _output_projections(module)
    heads = getattr(module, "heads", None)
    if not (isinstance(to_q, nn.Linear) and isinstance(to_k, nn.Linear) and out and isinstance(heads, int)):
        return
    rigid = type(getattr(module, "processor", None)).__name__ in RIGID_PROCESSORS
    if rigid or to_q.out_features % heads or getattr(module, "fused_projections", False):
        return
    head_dim = to_q.out_features // heads
    if to_k.out_features % head_dim:
        return
    kv_heads = to_k.out_features // head_dim
    if kv_heads < 2 or heads % kv_heads:
        return
    query_unit = heads // kv_heads * head_dim
    queries, keys = (query_unit, to_q.out_features), (head_dim, to_k.out_features)
    parts = ((QUERIES, queries), (KEYS_AND_VALUES, keys), (QUERY_NORMS, queries), (KEY_NORMS, keys))
    produced = [
        part
        for names, (unit, width) in parts
        for name in names
        for part in _rows_of_heads(path, module, name, unit, width)
    ]
    sizes = {
        "heads": heads // kv_heads,
        "sliceable_head_dim": heads // kv_heads,
        "inner_dim": query_unit,
        "inner_kv_dim": head_dim,
    }
    yield PrunableGroup(
        name=f"{path}:attention_heads",
        module=path,
        kind="attention_heads",
        num_units=kv_heads,
        unit_size=query_unit,
        produced_by=tuple(produced),
        consumed_by=tuple(columns(f"{path}.{name}", query_unit) for name in out),
        attributes=tuple(
            ModuleAttribute(path, name, size) for name, size in sizes.items() if hasattr(module, name)
        ),
    )


def _output_projections(module: nn.Module) -> list[str]:
    """Return the paths below `module` of the projections that read the heads."""
    names = []
    to_out = getattr(module, "to_out", None)
    if isinstance(to_out, nn.ModuleList) and len(to_out) and isinstance(to_out[0], nn.Linear):
        names.append("to_out.0")
    elif isinstance(to_out, nn.Linear):
        names.append("to_out")
    if names and isinstance(getattr(module, "to_add_out", None), nn.Linear):
        names.append("to_add_out")
    return names


def _rows_of_heads(path: str, module: nn.Module, name: str, unit: int, width: int) -> list[ParamSlice]:
    """Return the slices of a projection or norm if its `width` rows are of all heads; a norm of one head has fewer."""
    layer: Any = getattr(module, name, None)
    weight = getattr(layer, "weight", None)
    return rows(f"{path}.{name}", layer, unit) if weight is not None and len(weight) == width else []

"""The parts of an attention module by role, which their names say in words: query, key, value, gate, out."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from pruning.groups.words import is_norm, words

QUERY, KEY, VALUE = {"q", "query"}, {"k", "key"}, {"v", "value"}
FUSED = {"qkv", "kv"}
GATE = {"gate", "g", "bias"}
OUT = {"out", "o", "proj"}


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
            if next(child.parameters(), None) is None and not is_norm(child):
                continue
            if name == "processor":  # with projections of its own, as those of IP-Adapter
                parts.unknown.append(name)
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

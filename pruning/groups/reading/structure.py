"""What makes two modules of a model alike: class, plain attributes, shapes, and the same of all in them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, str, type(None), torch.dtype)
PER_MODULE = ("_parameters", "_buffers", "_modules", "training")


def signatures_of(model: nn.Module) -> dict[str, int]:
    """Return for every module, by path, a number that is the same for modules that are built alike."""
    found: dict[str, int] = {}

    def visit(path: str, module: nn.Module) -> int:
        children = [
            (name, visit(f"{path}.{name}" if path else name, child))
            for name, child in module.named_children()
        ]
        found[path] = hash((type(module), _attributes(module), _shapes(module), tuple(children)))
        return found[path]

    visit("", model)
    return found


def _shapes(module: nn.Module) -> tuple[Any, ...]:
    return tuple((name, None if p is None else tuple(p.shape)) for name, p in module._parameters.items())


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    """Return what may decide which way the code of a module goes."""
    own = vars(module)
    return tuple((name, _plain(value)) for name, value in own.items() if name not in PER_MODULE)


def _plain(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return tuple((str(key), _plain(item)) for key, item in value.items())
    if hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)) and not callable(value):
        return type(value).__qualname__
    return getattr(value, "__qualname__", type(value).__qualname__)


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether a module runs code that is not PyTorch's."""
    own = type(module).forward
    home = getattr(own, "__module__", "") or ""
    return not home.startswith("torch.") and own is not nn.Module.forward


def forward_names(module: nn.Module) -> list[str]:
    """Return the names of the arguments of a module's ``forward``, in order."""
    return list(_names(type(module)))


@functools.cache
def _names(cls: type[nn.Module]) -> tuple[str, ...]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def may_be_block(module: nn.Module) -> bool:
    """Tell whether a module runs code of its own on at least two weights: one is a norm or a projection."""
    return has_own_forward(module) and sum(p.ndim > 1 for p in module.parameters()) >= 2

"""On which device and in which type a model runs, which need not be those of its weights between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.models.modeling_utils import get_parameter_device, get_parameter_dtype
from torch import nn

_CASTING, _OFFLOADING = "layerwise_casting", "group_offloading"
"""Names of diffusers' own hooks, which it asks for the type and the device."""


def device_of(model: nn.Module) -> torch.device:
    """Return where a model runs and takes its inputs."""
    return torch.device(get_parameter_device(model))


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type in which a model runs."""
    return get_parameter_dtype(model)  # type: ignore[no-any-return]


@contextmanager
def told(model: nn.Module, *, device: torch.device | None, dtype: torch.dtype | None) -> Iterator[None]:
    """Let a model say that it runs elsewhere, or in another type, than where and as its weights are stored.

    Its own `device` and `dtype`, and pipelines, which put inputs there and do not move it, go by that.

    Args:
        model: The model.
        device: Where it runs; None: where its weights are.
        dtype: Its type; None: that of its weights.
    """
    hooks: dict[str, Any] = {}
    if dtype is not None:
        hooks[_CASTING] = SimpleNamespace(compute_dtype=dtype)
    if device is not None:
        hooks[_OFFLOADING] = SimpleNamespace(config=SimpleNamespace(onload_device=device))
    registry: dict[str, Any] = HookRegistry.check_if_exists_or_initialize(model).hooks if hooks else {}
    registry |= hooks
    try:
        yield
    finally:
        for name in hooks:
            registry.pop(name, None)

"""On which device and in which type a model runs, which need not be those of its weights between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.models.modeling_utils import get_parameter_device, get_parameter_dtype
from torch import nn

from pruning.errors import PruningError

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

    Raises:
        PruningError: If the model says so already.
    """
    hooks: dict[str, Any] = {}
    if dtype is not None:
        hooks[_CASTING] = SimpleNamespace(compute_dtype=dtype)
    if device is not None:
        hooks[_OFFLOADING] = SimpleNamespace(config=SimpleNamespace(onload_device=device))
    registry: dict[str, Any] = HookRegistry.check_if_exists_or_initialize(model).hooks if hooks else {}
    if hooks and (known := registry.keys() & {_CASTING, _OFFLOADING}):
        raise PruningError(
            f"streaming weights: the model has {' and '.join(sorted(known))} already, of diffusers or of a "
            "streaming that was not ended; end that first, or load the model anew"
        )
    registry |= hooks
    try:
        yield
    finally:
        for name in hooks:
            registry.pop(name, None)


@contextmanager
def around_calls(model: nn.Module, around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Have what `around` returns about each call of a model; it ends after an interrupt too, where no hook is called.

    A copy of the model is called without.
    """
    own, there = vars(model).get("forward"), True

    @wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with around() if there and self is model else nullcontext():
            return own(*args, **kwargs) if own else type(self).forward(self, *args, **kwargs)

    ours = MethodType(forward, model)
    model.forward = ours
    try:
        yield
    finally:
        there = False
        if vars(model)["forward"] is ours:  # else another calls it
            del model.forward
            if own is not None:
                model.forward = own

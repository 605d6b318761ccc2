"""The input that each denoiser was made for, by class; one file a kind of sample, a class is one function.

Where a pipeline of diffusers has defaults (pixels, frames, tokens), they are taken; what a config says goes before. A
class that is not here can still be counted and cut, but its MACs are not known.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from pruning.errors import PruningError
from pruning.models.families import Draw
from pruning.models.native.base import NATIVE as NATIVE
from pruning.models.native.base import WITHOUT as WITHOUT
from pruning.models.native.base import Native as Native
from pruning.models.running import device_of, dtype_of
from pruning.registry import import_submodules

import_submodules(__name__, list(__path__))


def has_native_input(model: nn.Module) -> bool:
    """Tell whether it is known what the class of `model` is called with."""
    return type(model).__name__ in NATIVE


def native_input(model: nn.Module, batch_size: int = 1) -> Native:
    """Return the input that a denoiser was made for, and the words for it.

    Args:
        model: A denoiser; the tensors are of its type and on its device, which may be ``meta``.
        batch_size: B.

    Raises:
        PruningError: For a class that is not known, or a config that leaves the sample size open.
    """
    name = type(model).__name__
    if name in WITHOUT:
        raise PruningError(f"denoiser class {name!r} has no native input: {WITHOUT[name]}")
    if name not in NATIVE:
        raise PruningError(
            f"denoiser class {name!r}: what it is called with is not known here; known: {', '.join(NATIVE)} "
            "(a further class is one function in pruning/models/native)"
        )
    try:
        return NATIVE[name](cast(Any, model), Draw(batch_size, device_of(model), dtype_of(model)))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise PruningError(
            f"{name}: the config does not say what the model is called with ({type(error).__name__}: {error})"
        ) from error


def example_call(model: nn.Module, batch_size: int = 1) -> dict[str, Any]:
    """Return plausible arguments for one call of the denoiser, for tracing cost and measuring latency.

    All else is as for `native_input`.
    """
    return native_input(model, batch_size).call

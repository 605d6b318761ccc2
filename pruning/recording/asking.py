"""How a pipeline is called: nothing of it changes, what it draws is seeded, and what it raises becomes our error."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pruning.errors import PruningError, shown


def parts_of(pipeline: Any) -> dict[str, Any]:
    """Return the components of a pipeline by name, with those that its own list leaves out.

    That list has no part whose argument has a default and is not declared optional (LongCat-Audio's scheduler).
    """
    registered = {
        name: vars(pipeline)[name] for name in getattr(pipeline, "config", ()) if name in vars(pipeline)
    }
    return {**pipeline.components, **registered}


def denoiser_components(pipeline: Any) -> dict[str, nn.Module]:
    """Return the modules among the components of a pipeline, by name."""
    return {name: part for name, part in parts_of(pipeline).items() if isinstance(part, nn.Module)}


def is_scheduler(part: Any) -> bool:
    """Tell whether a component of a pipeline is a scheduler."""
    return hasattr(part, "step") and hasattr(part, "config") and not isinstance(part, nn.Module)


def call_parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the pipeline's own call."""
    return inspect.signature(type(pipeline).__call__).parameters


@contextmanager
def as_it_was(pipeline: Any, seed: int) -> Iterator[None]:
    """Put back what a call changes of a pipeline, however it ends, and `seed` what it draws from global generators.

    Put back are its own attributes, the progress bar among them, the state of its schedulers, the attributes of its
    tokenizers, the processors of its attention modules, and the generators of PyTorch, NumPy and Python.
    """
    own, parts = dict(vars(pipeline)), list(parts_of(pipeline).values())
    states = [
        (part, copy.deepcopy(vars(part)) if is_scheduler(part) else dict(vars(part)))
        for part in parts
        if hasattr(part, "__dict__") and not isinstance(part, nn.Module)
    ]
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    processors = [(module, module.processor) for module in modules if hasattr(module, "processor")]
    weights = [next(part.parameters(), None) for part in parts if isinstance(part, nn.Module)]
    devices = {weight.device for weight in weights if weight is not None and weight.device.type == "cuda"}
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (pipelines draw from it)
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            if hasattr(pipeline, "set_progress_bar_config"):
                pipeline.set_progress_bar_config(**{**own.get("_progress_bar_config", {}), "disable": True})
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)  # noqa: NPY002
        for holder, state in ((pipeline, own), *states):
            vars(holder).clear()
            vars(holder).update(state)
        for module, processor in processors:
            if module.processor is not processor:
                module.processor = processor


@contextmanager
def asked(pipeline: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a pipeline raises into a PruningError that says what it was called with; each has its own checks."""
    try:
        yield
    except PruningError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise PruningError(
            f"{type(pipeline).__name__} fails with {shown(dict(arguments), 200)}: {type(error).__name__}: {reason}"
        ) from error

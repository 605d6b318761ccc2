"""A pipeline of diffusers that is called: its parts, what its call takes, and how it stays as it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STEPS = "num_inference_steps"
"""Argument of a pipeline's call that says how many sampling steps it takes."""


@functools.cache
def call_parameters(pipeline_class: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a pipeline's call; what it takes in ``**kwargs`` has no name."""
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(pipeline_class.__call__).parameters
    return {name: each for name, each in found.items() if name != "self" and each.kind not in loose}


def takes_any(pipeline_class: type) -> bool:
    """Tell whether a pipeline's call has ``**kwargs``, in which any name passes."""
    found = inspect.signature(pipeline_class.__call__).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in found)


def parts_of(pipeline: Any) -> dict[str, Any]:
    """Return the components of a pipeline by name, with those that its own list leaves out.

    That list has no part whose argument has a default and is not declared optional (LongCat-Audio's scheduler).
    """
    registered = {
        name: vars(pipeline)[name] for name in getattr(pipeline, "config", ()) if name in vars(pipeline)
    }
    return {**pipeline.components, **registered}


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the modules among the components of a pipeline, by name."""
    return {name: part for name, part in parts_of(pipeline).items() if isinstance(part, nn.Module)}


def schedulers_of(pipeline: Any) -> dict[str, Any]:
    """Return the schedulers among the components of a pipeline, by name."""
    return {
        name: part
        for name, part in parts_of(pipeline).items()
        if hasattr(part, "step") and hasattr(part, "config") and not isinstance(part, nn.Module)
    }


def weights_of(pipeline: Any) -> Iterator[Tensor]:
    """Yield the parameters of a pipeline's modules."""
    for module in modules_of(pipeline).values():
        yield from module.parameters()


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Hold models in evaluation mode; each of their modules is then in the mode that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # one by one: recovery keeps some modules in eval mode
            module.training = mode


@contextlib.contextmanager
def as_it_was(pipeline: Any, seed: int) -> Iterator[None]:
    """Put back what a call changes of a pipeline, however it ends, and `seed` what it draws from global generators.

    Put back are its own attributes, those of its tokenizers and the like, the processors of its attention modules, and
    the generators of PyTorch, NumPy and Python. Meanwhile it draws no progress bar and works with copies of its
    schedulers, which keep the state of the call for who has hold of them.
    """
    parts = parts_of(pipeline).values()
    loose = [part for part in parts if hasattr(part, "__dict__") and not isinstance(part, nn.Module)]
    states = [(holder, dict(vars(holder))) for holder in (pipeline, *loose)]
    modules = [module for part in modules_of(pipeline).values() for module in part.modules()]
    processors = [(module, module.processor) for module in modules if hasattr(module, "processor")]
    devices = {weight.device for weight in weights_of(pipeline) if weight.device.type == "cuda"}
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (pipelines draw from it)
    try:
        vars(pipeline).update({name: copy.deepcopy(part) for name, part in schedulers_of(pipeline).items()})
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(disable=True)
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)  # noqa: NPY002
        for holder, state in states:
            vars(holder).clear()
            vars(holder).update(state)
        for module, processor in processors:
            if module.processor is not processor:
                module.processor = processor

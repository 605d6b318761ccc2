"""What is put on a model for a while and taken off again: modes, and blocks that are passed by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def block_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states that a block's call gets: its first argument."""
    return args[0] if args else kwargs["hidden_states"]


def main_tensor(output: Any) -> Tensor:
    """Return the first tensor of a module's output: a tensor, a tuple, or a diffusers output."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def bypassed(model: nn.Module, path: str) -> Iterator[None]:
    """Make the block at `path` hand on its input, as the identity that surgery would put in its place."""

    def skip(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        hidden = block_input(args, kwargs)
        if isinstance(output, Tensor):
            return hidden
        return (hidden, *output[1:]) if isinstance(output, tuple) else type(output)(hidden)

    handle = model.get_submodule(path).register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients; both are put back as they were, module by module."""
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


@contextmanager
def parameter_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let these parameters take gradients; their ``requires_grad`` and ``grad`` are put back as they were."""
    before = [(p, p.requires_grad, p.grad) for p in parameters.values()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        for parameter, required, grad in before:
            parameter.grad = grad
            parameter.requires_grad_(required)

"""What is put on a model for a while and taken off again: modes, and blocks that are passed by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from pruning.types import PrunableGroup


def main_tensor(output: Any) -> Tensor:
    """Return the first tensor of a module's output: a tensor, a tuple, or a diffusers output."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def bypassed(model: nn.Module, *blocks: PrunableGroup) -> Iterator[None]:
    """Make blocks hand on their streams, as the identities that surgery would put in their places; they do not run.

    What reaches from one module to another runs, but for the last of it, and what it puts out is dropped.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_one_bypassed(model, block))
        yield


@contextmanager
def _one_bypassed(model: nn.Module, block: PrunableGroup) -> Iterator[None]:
    removal = block.removal
    assert removal is not None
    first, last = removal.between or (block.module, block.module)
    module, given = model.get_submodule(last), []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given[:] = removal.streams(args, kwargs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return removal.packed(given if removal.between else removal.streams(args, kwargs))

    before = vars(module).get("forward")
    entered = model.get_submodule(first).register_forward_pre_hook(enter, with_kwargs=True)
    module.forward = forward
    try:
        yield
    finally:
        entered.remove()
        if before is None:
            del module.forward
        else:
            module.forward = before


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
def without_own_checkpointing(model: nn.Module) -> Iterator[None]:
    """Switch off diffusers' gradient checkpointing, which would run hooks twice; it is put back as it was."""
    asked = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    try:
        for module in asked:
            vars(module)["gradient_checkpointing"] = False
        yield
    finally:
        for module in asked:
            vars(module)["gradient_checkpointing"] = True


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

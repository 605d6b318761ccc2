"""Which blocks of a model may run again in backward passes, and which of them do the same then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration.second_run import Surroundings, versions
from pruning.groups.listed import listed_blocks
from pruning.models.outputs import tensors_in
from pruning.models.pieces import weight_bytes
from pruning.recording.trees import leaves

LARGE = 2**28
"""Bytes of weights (256 MiB) from which on memory matters more than a forward."""

Kind = frozenset[tuple[tuple[str, ...], object]]

SAME = 1e-3
"""How far the output of a second run may be from the first, relative to its largest value."""


def is_large(model: nn.Module) -> bool:
    """Tell whether a model has at least `LARGE` bytes of weights."""
    return weight_bytes(model) >= LARGE


@dataclass
class RepeatedBlocks:
    """The blocks of a model that may run again; what is found out of them holds for all rounds of a run.

    Attributes:
        paths: Those that were not found to do something else then, none of which lies in another; empty for no
            checkpointing.
        tried: The kinds of calls in which that was tried; see `kind_of`.
    """

    paths: list[str] = field(default_factory=list)
    tried: set[Kind] = field(default_factory=set)

    @classmethod
    def of(cls, model: nn.Module, asked: bool | None) -> RepeatedBlocks:
        """Return the blocks of a model, if it is `asked` for; None: if the model is large."""
        return cls(listed_blocks(model) if (is_large(model) if asked is None else asked) else [])


def kind_of(call: Mapping[str, Any]) -> Kind:
    """Return of which kind the arguments of a call are: which are given, and as what.

    How large tensors and lists are does not count, nor which numbers are given: with prompts as long as they are every
    call would be of another kind.
    """
    return frozenset(
        (tuple(key for key in path if isinstance(key, str)), _kind(leaf)) for path, leaf in leaves(call)
    )


def _kind(leaf: Any) -> object:
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.ndim
    return leaf if leaf is None or isinstance(leaf, (bool, str)) else type(leaf)


def differences(blocks: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, str]:
    """Run a model, each of its blocks twice, and say which do not do the same again, and why.

    A block may write to what it is given, or its caller may; or it may remember or draw something.

    Args:
        blocks: By path.
        run: Runs the model.
    """
    found: dict[str, str] = {}
    given: list[tuple[str, Any, list[int]]] = []
    entered: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Surroundings]] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not entered:
                given.append((path, (args, kwargs), versions((args, kwargs))))
                entered.append((module, args, kwargs, Surroundings(args, kwargs)))

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if len(entered) != 1 or entered[0][0] is not module:
                return
            _, args, kwargs, surroundings = entered[0]
            entered.append(entered[0])  # what is called from here on is called by this one
            try:
                with surroundings.again():
                    again = module(*args, **kwargs)
                if not _are_same(output, again):
                    found.setdefault(path, "its second run puts out something else")
            except Exception as error:
                found.setdefault(path, f"its second run fails ({error})")
            entered.clear()

        return hook

    with ExitStack() as stack:
        for path, block in blocks.items():
            hook = block.register_forward_pre_hook(enter(path), prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(block.register_forward_hook(leave(path)).remove)
        run()
    for path, values, before in given:
        if versions(values) != before:
            found.setdefault(path, "what it is given is written to")
    return found


def _are_same(output: Any, again: Any) -> bool:
    """Tell whether two outputs are the same but for rounding."""
    pairs = list(tensors_in(output)), list(tensors_in(again))
    return len(pairs[0]) == len(pairs[1]) and all(map(_are_close, *pairs))


def _are_close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if not x.is_floating_point() or not x.numel():
        return torch.equal(x, y)
    scale = float(x.abs().nan_to_num().amax())
    return torch.allclose(x, y, rtol=0, atol=SAME * scale, equal_nan=True)

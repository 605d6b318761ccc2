"""Activation checkpointing: what a block saves for its backward pass is dropped when it has run, and made anew there.

The model's graph stays whole, so gradients by activations and by parameters are the same to the bit. Only what the
operations inside a block save is not kept: when the backward pass reaches the block, the block is called once more on
the inputs that it had, with all hooks on it, and what it saves then is used. Memory is the blocks' inputs and what one
block saves; the price is one more forward for each backward pass.

(PyTorch's own ``torch.utils.checkpoint`` works alike, but does not say which of a block's tensors in the second run is
which of the first, and that is what observers need: see `Checkpoints.later`.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pruning.calibration.repeated import RepeatedBlocks, differences, kind_of
from pruning.calibration.second_run import Call, Slot, Surroundings

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Checkpoints:
    """Context manager under which the blocks of a model run again in backward passes.

    A block that does not do the same again (see `differences`) keeps what it saves.

    Args:
        model: The denoiser.
        known: Its blocks.
        unseen: Enters a context in which nobody is told of what runs.
    """

    def __init__(
        self, model: nn.Module, known: RepeatedBlocks, unseen: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._name, self._known, self._unseen = type(model).__name__, known, unseen
        self._blocks = {path: model.get_submodule(path) for path in known.paths}
        self._open: Call | None = None
        self._again: Call | None = None
        self._last: Call | None = None
        self._pass = self._visited = 0
        self._stack: ExitStack | None = None

    def __enter__(self) -> Checkpoints:
        """Put hooks around the blocks; around all other hooks, so that those act in second runs as in first ones."""
        with ExitStack() as stack:
            for path, block in self._blocks.items():
                enter, leave = self._around(path)
                hook = block.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(block.register_forward_hook(leave, always_call=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.restart()
        if self._stack is not None:
            self._stack.close()

    def try_out(self, call: Mapping[str, Any], run: Callable[[], object]) -> None:
        """Find out, the first time that the model is called in such a way, which blocks do the same again then.

        Args:
            call: Arguments of the model.
            run: Calls it with them, as is done afterwards, too; that says then if it cannot be.
        """
        blocks = {path: self._blocks[path] for path in self._known.paths}
        if not blocks or (kind := kind_of(call)) in self._known.tried:
            return
        self._known.tried.add(kind)
        differing, self._known.paths = dict[str, str](), []
        draws = Surroundings([*next(iter(blocks.values())).parameters()])
        with suppress(Exception), self._unseen(), torch.no_grad(), draws.again():
            differing = differences(blocks, run)
            self._known.paths = [path for path in blocks if path not in differing]
        for path, reason in differing.items():
            logger.warning(
                "block %r of %s cannot run again in the backward pass, and keeps its activations: %s",
                path,
                self._name,
                reason,
            )

    def restart(self) -> None:
        """Forget what the last forward and its backward passes left."""
        self._open = self._again = self._last = None

    def start_pass(self) -> None:
        """Say that a backward pass begins, in which each block runs again once."""
        self._pass += 1

    def visit(self, x: Tensor) -> None:
        """Say that a tensor of which something may be wanted `later` comes by."""
        self._visited = id(x)
        if self._open is not None:
            self._open.visits.append([])

    def revisit(self, x: Tensor) -> None:
        """Say that a tensor comes by of which nobody is told: in a second run, the one that came by in the first."""
        if self._again is not None:
            self._again.revisit(x)

    def later(self, x: Tensor, read: Callable[[Tensor], T], wanted: Callable[[], bool]) -> Callable[[], T]:
        """Return what says ``read(x)`` in a backward pass that has come to x, so that nothing is kept until then.

        Args:
            x: The tensor that comes by; see `visit`.
            read: Takes what is wanted from x, or from its like in the second run of a block.
            wanted: Tells whether it is wanted in a backward pass; only asked in second runs.
        """
        assert id(x) == self._visited, "only of a tensor that comes by just now"
        slot, call = Slot(read, wanted), self._open
        if call is None:
            slot.value = read(x)
            return slot.take
        call.visits[-1].append(slot)

        def take() -> T:
            self._ready(call)
            return slot.take()

        return take

    def _around(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        opened: list[saved_tensors_hooks | None] = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in self._known.paths or self._open or self._again or not torch.is_grad_enabled():
                opened.append(None)
                return
            call = Call(path, module, args, kwargs)

            def unpack(number: int) -> Tensor:
                self._ready(call)
                if not call.has(number):  # some operations ask twice
                    self._run_again(call)
                return call.saved(number)

            hooks = saved_tensors_hooks(call.save, unpack)
            hooks.__enter__()
            opened.append(hooks)
            self._open = call

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            hooks = opened.pop() if opened else None
            if hooks is not None:
                hooks.__exit__()
                self._open = None

        return enter, leave

    def _ready(self, call: Call) -> None:
        """Make sure that a block has run again in this backward pass."""
        if call.run_in != self._pass:
            call.run_in = self._pass
            self._run_again(call)

    def _run_again(self, call: Call) -> None:
        if self._last is not None:
            self._last.forget()
        self._last = self._again = call
        try:
            with self._unseen():
                call.run_again()
        finally:
            self._again = None

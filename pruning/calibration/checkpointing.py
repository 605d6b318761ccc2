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
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import get_device_states, set_device_states

from pruning.errors import PruningError
from pruning.groups.listed import listed_blocks
from pruning.models.outputs import tensors_in

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGE = 2**28
"""Bytes of weights (256 MiB) from which on memory matters more than a forward."""

SAME = 1e-3
"""How far the output of a second run may be from the first, relative to its largest value."""


def is_large(model: nn.Module) -> bool:
    """Tell whether a model has at least `LARGE` bytes of weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) >= LARGE


@dataclass
class RepeatedBlocks:
    """The blocks of a model that may run again, and those that do the same then; tried once for all rounds of a run.

    Attributes:
        paths: All, none of which lies in another; empty for no checkpointing.
        same: Those that do the same again; None as long as that was not tried.
    """

    paths: list[str] = field(default_factory=list)
    same: set[str] | None = None

    @classmethod
    def of(cls, model: nn.Module, asked: bool | None) -> RepeatedBlocks:
        """Return the blocks of a model, if it is `asked` for; None: if the model is large."""
        return cls(listed_blocks(model) if (is_large(model) if asked is None else asked) else [])


class Checkpoints:
    """Context manager under which the blocks of a model run again in backward passes.

    A block that does not do the same again (see `differences`) keeps what it saves, as do all before `try_out`.

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
        self._open: _Call | None = None
        self._again: _Call | None = None
        self._last: _Call | None = None
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

    def try_out(self, run: Callable[[], object]) -> None:
        """Find out, the first time, which blocks do the same again when the model runs.

        Args:
            run: Runs the model on a batch that is run afterwards too, and says then if it cannot.
        """
        if not self._blocks or self._known.same is not None:
            return
        differing: dict[str, str] = {}
        self._known.same = set()
        draws = _Surroundings([*next(iter(self._blocks.values())).parameters()])
        with suppress(Exception), self._unseen(), torch.no_grad(), draws.again():
            differing = differences(self._blocks, run)
            self._known.same = {*self._blocks} - {*differing}
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
        slot, call = _Slot(read, wanted), self._open
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
            if (
                path not in (self._known.same or ())
                or self._open
                or self._again
                or not torch.is_grad_enabled()
            ):
                opened.append(None)
                return
            call = _Call(path, module, args, kwargs)

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

    def _ready(self, call: _Call) -> None:
        """Make sure that a block has run again in this backward pass."""
        if call.run_in != self._pass:
            call.run_in = self._pass
            self._run_again(call)

    def _run_again(self, call: _Call) -> None:
        if self._last is not None:
            self._last.forget()
        self._last = self._again = call
        try:
            with self._unseen():
                call.run_again()
        finally:
            self._again = None


class _Slot(Generic[T]):
    """Room for what is read from a tensor until it is taken."""

    def __init__(self, read: Callable[[Tensor], T], wanted: Callable[[], bool]) -> None:
        self.read, self.wanted = read, wanted
        self.value: T | None = None

    def take(self) -> T:
        value, self.value = self.value, None
        return value  # type: ignore[return-value]


class _Call:
    """A call of a block: what it takes to run it again, and what the second run leaves for the backward pass.

    Attributes:
        visits: What is wanted of each tensor that comes by, in order.
        run_in: The backward pass in which it has run again.
    """

    def __init__(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._path, self._module = path, module
        self._surroundings = _Surroundings(args, kwargs)
        self._args, self._kwargs = _aliases((args, kwargs))
        self._versions = _versions((self._args, self._kwargs))
        self._forms: list[tuple[torch.Size, torch.dtype]] = []
        self._count = 0
        self._saved: dict[int, tuple[Tensor, int]] = {}
        self.visits: list[list[_Slot[Any]]] = []
        self._visit = 0
        self.run_in = 0

    def save(self, x: Tensor) -> int:
        """Note the form of what an operation of the first run saves, and keep nothing else."""
        self._forms.append((x.shape, x.dtype))
        return len(self._forms) - 1

    def has(self, number: int) -> bool:
        """Tell whether a tensor of the second run is still there."""
        return number in self._saved

    def saved(self, number: int) -> Tensor:
        """Return the tensor of the second run that takes the place of one of the first, and forget it."""
        x, version = self._saved.pop(number)
        if not x.is_inference() and x._version != version:
            raise self._differs("it writes to what its backward pass needs")
        return x

    def revisit(self, x: Tensor) -> None:
        """Read from a tensor of the second run what is wanted of its like in the first."""
        if self._visit == len(self.visits):
            raise self._differs("it does more than in the forward")
        for slot in self.visits[self._visit]:
            x.requires_grad_(True)  # as it did in the first run
            if slot.wanted():
                slot.value = slot.read(x)
        self._visit += 1

    def run_again(self) -> None:
        """Call the block once more.

        Raises:
            PruningError: If it does not save what it saved in the first run.
        """
        if _versions((self._args, self._kwargs)) != self._versions:
            raise self._differs("what it was given has been written to")
        self._saved, self._count, self._visit = {}, 0, 0
        with self._surroundings.again(), torch.enable_grad(), saved_tensors_hooks(self._save_again, _never):
            self._module(*self._args, **self._kwargs)
        if (self._count, self._visit) != (len(self._forms), len(self.visits)):
            raise self._differs("it does less than in the forward")

    def forget(self) -> None:
        """Drop what no operation has asked for."""
        self._saved = {}
        for slots in self.visits:
            for slot in slots:
                slot.value = None

    def _save_again(self, x: Tensor) -> None:
        number, self._count = self._count, self._count + 1
        if number >= len(self._forms) or self._forms[number] != (x.shape, x.dtype):
            raise self._differs("it computes something else than in the forward")
        self._saved[number] = x.detach(), 0 if x.is_inference() else x._version

    def _differs(self, how: str) -> PruningError:
        return PruningError(
            f"block {self._path!r} ({type(self._module).__name__}) runs again in the backward pass, but {how}; "
            "set calibrate.checkpointing=false, which keeps the activations"
        )


def _never(nothing: None) -> Tensor:
    raise AssertionError("the graph of a second run is not differentiated")


class _Surroundings:
    """Random states, autocasting and function modes, as they are where a block is called.

    (PyTorch takes function modes off for the time of a backward pass, those of this package and default devices.)
    """

    def __init__(self, *given: Any) -> None:
        on = {t.device: t for t in tensors_in(given) if t.device.type not in ("cpu", "meta")}
        kinds = {"cpu", *(device.type for device in on)}
        on = {d: t for d, t in on.items() if hasattr(torch.get_device_module(d), "device")}  # MPS draws anew
        self._kind = next((device.type for device in on), "cuda")  # no devices: not asked for
        self._devices, self._states = get_device_states(*on.values()) if on else ([], [])
        self._state = torch.get_rng_state()
        self._modes = _get_current_function_mode_stack()
        self._autocast = [
            {
                "device_type": kind,
                "dtype": torch.get_autocast_dtype(kind),
                "enabled": torch.is_autocast_enabled(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in kinds
            if torch.amp.is_autocast_available(kind)
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Make them what they were; afterwards they are as before."""
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(self._devices, device_type=self._kind))
            torch.set_rng_state(self._state)
            set_device_states(self._devices, self._states, device_type=self._kind)
            for one in self._autocast:
                stack.enter_context(torch.autocast(**one))
            on = {id(mode) for mode in _get_current_function_mode_stack()}
            for mode in self._modes:
                if id(mode) not in on:
                    stack.enter_context(mode)
            yield


def _aliases(given: Any) -> Any:
    """Return a tree with its tensors cut off from their graphs; what was one tensor is one."""
    found: dict[int, Tensor] = {}

    def alias(x: Tensor) -> Tensor:
        if id(x) not in found:
            found[id(x)] = x.detach().requires_grad_(x.requires_grad)
        return found[id(x)]

    return tree_map_only(Tensor, alias, given)


def _versions(given: Any) -> list[int]:
    return [x._version for x in tensors_in(given) if not x.is_inference()]


def differences(blocks: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, str]:
    """Run a model, each of its blocks twice, and say which do not do the same again, and why.

    A block may write to what it is given, or its caller may; or it may remember or draw something.

    Args:
        blocks: By path.
        run: Runs the model.
    """
    found: dict[str, str] = {}
    given: list[tuple[str, Any, list[int]]] = []
    entered: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], _Surroundings]] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not entered:
                given.append((path, (args, kwargs), _versions((args, kwargs))))
                entered.append((module, args, kwargs, _Surroundings(args, kwargs)))

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
    for path, values, versions in given:
        if _versions(values) != versions:
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

"""What it takes to call a block once more as it was called before, and what the second run leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import get_device_states, set_device_states

from pruning.errors import PruningError
from pruning.models.outputs import tensors_in

T = TypeVar("T")


class Slot(Generic[T]):
    """Room for what is read from a tensor until it is taken."""

    def __init__(self, read: Callable[[Tensor], T], wanted: Callable[[], bool]) -> None:
        self.read, self.wanted = read, wanted
        self.value: T | None = None

    def take(self) -> T:
        """Return it, and forget it."""
        value, self.value = self.value, None
        return value  # type: ignore[return-value]


class Call:
    """A call of a block: what it takes to run it again, and what the second run leaves for the backward pass.

    Attributes:
        visits: What is wanted of each tensor that comes by, in order.
        run_in: The backward pass in which it has run again.
    """

    def __init__(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._path, self._module = path, module
        self._surroundings = Surroundings(args, kwargs)
        self._args, self._kwargs = _aliases((args, kwargs))
        self.versions = versions((self._args, self._kwargs))
        self._forms: list[tuple[torch.Size, torch.dtype]] = []
        self._count = 0
        self._saved: dict[int, tuple[Tensor, int]] = {}
        self.visits: list[list[Slot[Any]]] = []
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
        if versions((self._args, self._kwargs)) != self.versions:
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


class Surroundings:
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


def versions(given: Any) -> list[int]:
    """Return numbers of which one changes when a tensor of a tree is written to."""
    return [x._version for x in tensors_in(given) if not x.is_inference()]

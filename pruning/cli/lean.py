"""Imports for a look at a model: diffusers without peft and transformers, torch without its compiler.

More than half of the time that it takes to import a denoiser of diffusers goes into these. A model that is built on the
meta device, and neither trained nor compiled, has no use for them.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

HIDDEN = ("peft", "transformers")
"""What diffusers can do without."""

DEFERRED = ("torchvision", "torchvision.transforms", "scipy.integrate", "scipy.stats")
"""What is imported as soon as something is asked of it."""

Answer = TypeVar("Answer")

looked: list[bool] = []
"""Not empty once this process has looked at a model: it does nothing else, and may end at once."""


def lean(look: Callable[[], Answer]) -> Answer:
    """Return what `look` returns, which imports diffusers and looks at the structure of a model.

    It is for a process that does nothing else: diffusers then believes until the end that `HIDDEN` are not installed,
    and has no pipelines that need them. If an import in `look` fails by what is left out, it is called again with
    everything there.
    """
    looked.append(True)
    if "diffusers" not in sys.modules:
        try:
            with _without():
                return look()
        except (ImportError, RuntimeError):  # diffusers makes a RuntimeError of an ImportError
            pass
    return look()


@contextmanager
def _without() -> Iterator[None]:
    # torch marks functions for its compiler where they are decorated, or first called; here none will be compiled.
    compiler = _Deferred("torch._dynamo", disable=_same, allow_in_graph=_same)
    there = dict.fromkeys(HIDDEN) | {m.__name__: m for m in (compiler, *map(_Deferred, DEFERRED))}
    there = {name: module for name, module in there.items() if name not in sys.modules}
    sys.modules.update(there)  # type: ignore[arg-type]  # None says: cannot be imported
    gc.disable()  # imports leave no garbage behind, and it is looked for again and again
    try:
        yield
    finally:
        gc.enable()
        for name, module in there.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _same(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Decorate a function by leaving it as it is, with or without arguments of the decorator."""
    return _same if function is None else function


class _Deferred(ModuleType):
    """A module that is imported when anything is asked of it but what is `known`."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # by which others see that it is installed
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        below = sys.modules.get(f"{self.__name__}.{name}")
        if isinstance(below, _Deferred):
            return below
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

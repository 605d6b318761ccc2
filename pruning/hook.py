"""The import hook: diffusers learns to load pruned checkpoints when its models are imported.

`pruning.checkpoint` defines what is put on ModelMixin, but may not be imported while diffusers' models are being
imported, for it imports some of them. So a stand-in waits on ModelMixin until the first model is built. Nothing here
imports torch or diffusers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PRUNING_KEY = "_structured_pruning"
"""The config entry that carries a pruned architecture."""

_MODELS, _CHECKPOINT = "diffusers.models.modeling_utils", "pruning.checkpoint"


def arm() -> None:
    """Wait for diffusers' models, or put the stand-in on them if they are there; done once, by ``import pruning``."""
    _WATCH.actions[_CHECKPOINT] = _install
    if _MODELS in sys.modules:
        _stand_in(sys.modules[_MODELS])
    else:
        _WATCH.actions[_MODELS] = _stand_in
    if _WATCH not in sys.meta_path:
        sys.meta_path.insert(0, _WATCH)


def disable_hooks() -> None:
    """Let diffusers load models as if this package had not been imported."""
    _WATCH.actions.clear()
    if _MODELS in sys.modules:
        _disarm(sys.modules[_MODELS])
    if _CHECKPOINT in sys.modules:
        sys.modules[_CHECKPOINT].remove_hook()


class _Watch(MetaPathFinder):
    """Calls a function after a module has been imported, and changes nothing else about the import."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec of a watched module, its loader followed by our action; else None."""
        action = self.actions.pop(fullname, None)
        spec = PathFinder.find_spec(fullname, path, target) if action else None
        if spec is None or spec.loader is None or action is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _stand_in(models: ModuleType) -> None:
    """Put the stand-in on ModelMixin: it imports `pruning.checkpoint`, which replaces it."""

    def from_config(cls: Any, *args: Any, **kwargs: Any) -> Any:
        importlib.import_module(_CHECKPOINT)
        return cls.from_config(*args, **kwargs)

    if "from_config" not in vars(models.ModelMixin):
        models.ModelMixin.from_config = classmethod(from_config)


def _disarm(models: ModuleType) -> None:
    """Take the stand-in away if it is there."""
    own = getattr(vars(models.ModelMixin).get("from_config"), "__func__", None)
    if getattr(own, "__module__", None) == __name__:
        del models.ModelMixin.from_config


def _install(checkpoint: ModuleType) -> None:
    """Put the hook itself in the stand-in's place."""
    _disarm(sys.modules[_MODELS])
    checkpoint.install_hook()


_WATCH = _Watch()

"""The import hook: diffusers learns to load pruned checkpoints when its models are imported.

``ModelMixin.from_config``, through which every loading path of diffusers builds its models, gives a model its pruned
shapes if its config records any. Nothing here imports torch or diffusers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PRUNING_KEY = "_structured_pruning"
"""The config entry that carries a pruned architecture."""

_MODELS = "diffusers.models.modeling_utils"


def arm() -> None:
    """Install the hook as soon as diffusers' models are imported; done once, by ``import pruning``."""
    if _MODELS in sys.modules:
        install_hook()
    elif _WATCH not in sys.meta_path:
        sys.meta_path.insert(0, _WATCH)


def install_hook() -> None:
    """Let every ``from_pretrained`` and ``from_config`` of diffusers understand pruned configs; idempotent."""
    importlib.import_module(_MODELS).ModelMixin.from_config = classmethod(_from_config)


def disable_hooks() -> None:
    """Let diffusers load models as if this package had not been imported; a pruned checkpoint then fails on shapes."""
    if _WATCH in sys.meta_path:
        sys.meta_path.remove(_WATCH)
    if hook_installed():
        del sys.modules[_MODELS].ModelMixin.from_config


def hook_installed() -> bool:
    """Tell whether `install_hook` is in force."""
    own = vars(sys.modules[_MODELS].ModelMixin).get("from_config") if _MODELS in sys.modules else None
    return getattr(own, "__func__", None) is _from_config


@contextmanager
def hooked() -> Iterator[None]:
    """Let diffusers understand pruned configs inside the block, whether or not the hook is installed."""
    before = hook_installed()
    install_hook()
    try:
        yield
    finally:
        if not before:
            disable_hooks()


def _from_config(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Build a model from a config, and give it its pruned shapes if the config records any."""
    built = super(sys.modules[_MODELS].ModelMixin, cls).from_config(*args, **kwargs)  # type: ignore[misc]
    # The argument may be a path and the result a tuple (EMAModel asks for one), so read the built model.
    model = built[0] if isinstance(built, tuple) else built
    entry = model.config.get(PRUNING_KEY)
    if entry is not None:
        importlib.import_module("pruning.surgery").reshape(model, entry)
    return built


class _Watch(MetaPathFinder):
    """Installs the hook after diffusers' models have been imported, and changes nothing else about the import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec of the models, their loader followed by ours; None for any other module."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _MODELS else None
        if spec is None or spec.loader is None:
            return None
        sys.meta_path.remove(self)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            install_hook()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_WATCH = _Watch()

"""sinkprune: attention-sink-aware structured pruning for diffusers UNets and DiTs.

Importing this package is cheap: torch and diffusers are imported when something of theirs is first asked for.
It lets plain ``from_pretrained`` load pruned checkpoints, as soon as diffusers' models are imported, before or
after this package; `disable_hooks` takes that back.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.allocation import CostModel, Limit, Target, allocate
    from pruning.calibration import Calibrator
    from pruning.checkpoint import load, save
    from pruning.groups import find_groups
    from pruning.importance import score
    from pruning.models import example_call, load_denoiser, load_meta_denoiser
    from pruning.recipe import Recipe, load_recipe
    from pruning.recovery import recover
    from pruning.stages import Run, run_recipe
    from pruning.surgery import apply_plan, compensate, mask_plan
    from pruning.types import CalibrationStats, PrunableGroup, PruningError, PruningPlan, Scores

_HOME = {
    "CalibrationStats": "types",
    "Calibrator": "calibration",
    "CostModel": "allocation",
    "Limit": "allocation",
    "PrunableGroup": "types",
    "PruningError": "types",
    "PruningPlan": "types",
    "Recipe": "recipe",
    "Run": "stages",
    "Scores": "types",
    "Target": "allocation",
    "allocate": "allocation",
    "apply_plan": "surgery",
    "compensate": "surgery",
    "example_call": "models",
    "find_groups": "groups",
    "load": "checkpoint",
    "load_denoiser": "models",
    "load_meta_denoiser": "models",
    "load_recipe": "recipe",
    "mask_plan": "surgery",
    "recover": "recovery",
    "run_recipe": "stages",
    "save": "checkpoint",
    "score": "importance",
}

__all__ = [
    "CalibrationStats",
    "Calibrator",
    "CostModel",
    "Limit",
    "PrunableGroup",
    "PruningError",
    "PruningPlan",
    "Recipe",
    "Run",
    "Scores",
    "Target",
    "allocate",
    "apply_plan",
    "compensate",
    "disable_hooks",
    "example_call",
    "find_groups",
    "load",
    "load_denoiser",
    "load_meta_denoiser",
    "load_recipe",
    "mask_plan",
    "recover",
    "run_recipe",
    "save",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The hook. `pruning.checkpoint` defines it, but may not be imported while diffusers' models are being imported,
# for it imports some of them. So a stand-in waits on ModelMixin until the first model is built.

_MODELS, _CHECKPOINT = "diffusers.models.modeling_utils", "pruning.checkpoint"


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


def _arm(models: ModuleType) -> None:
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
_WATCH.actions[_CHECKPOINT] = _install
if _MODELS in sys.modules:
    _arm(sys.modules[_MODELS])
else:
    _WATCH.actions[_MODELS] = _arm
sys.meta_path.insert(0, _WATCH)

"""sinkprune: attention-sink-aware structured pruning for diffusers UNets and DiTs.

Importing this package is cheap: torch and diffusers are imported when something of theirs is first asked for.
It lets plain ``from_pretrained`` load pruned checkpoints, as soon as diffusers' models are imported, before or
after this package; `disable_hooks` takes that back.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pruning import hook
from pruning.hook import disable_hooks

if TYPE_CHECKING:
    from pruning.allocation import CostModel, Limit, Target, allocate
    from pruning.calibration import Calibrator
    from pruning.checkpoint import load, save
    from pruning.errors import PruningError
    from pruning.groups import find_groups
    from pruning.importance import score
    from pruning.models import example_call, load_denoiser, load_meta_denoiser
    from pruning.recipe import Recipe, load_recipe
    from pruning.recovery import recover
    from pruning.stages import Run, run_recipe
    from pruning.surgery import apply_plan, compensate, mask_plan
    from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores

_HOME = {
    "CalibrationStats": "types",
    "Calibrator": "calibration",
    "CostModel": "allocation",
    "Limit": "allocation",
    "PrunableGroup": "types",
    "PruningError": "errors",
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


hook.arm()

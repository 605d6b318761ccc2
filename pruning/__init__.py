"""sinkprune: attention-sink-aware structured pruning for diffusers UNets and DiTs.

Importing this package is cheap: torch and diffusers are imported when something of theirs is first asked for.
It lets plain ``from_pretrained`` load pruned checkpoints, as soon as diffusers' models are imported, before or
after this package; `disable_hooks` takes that back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruning import hook
from pruning.hook import disable_hooks
from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.allocation import CostModel
    from pruning.calibration import Calibrator
    from pruning.checkpoint import save
    from pruning.data import open_images
    from pruning.errors import PruningError
    from pruning.groups import find_groups
    from pruning.importance import score
    from pruning.interface import allocate, calibrate, load, noised_batches
    from pruning.models import example_call, load_denoiser, load_meta_denoiser
    from pruning.recipe import Recipe, load_recipe
    from pruning.recovery import recover
    from pruning.settings import Calibrate, Limit, Prune, Recover, SinkWeights, Target
    from pruning.stages import Run, run_recipe
    from pruning.surgery import apply_plan, compensate, mask_plan
    from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores

__all__ = [
    "Calibrate",
    "CalibrationStats",
    "Calibrator",
    "CostModel",
    "Limit",
    "PrunableGroup",
    "Prune",
    "PruningError",
    "PruningPlan",
    "Recipe",
    "Recover",
    "Run",
    "Scores",
    "SinkWeights",
    "Target",
    "allocate",
    "apply_plan",
    "calibrate",
    "compensate",
    "disable_hooks",
    "example_call",
    "find_groups",
    "load",
    "load_denoiser",
    "load_meta_denoiser",
    "load_recipe",
    "mask_plan",
    "noised_batches",
    "open_images",
    "recover",
    "run_recipe",
    "save",
    "score",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    allocation="CostModel",
    calibration="Calibrator",
    checkpoint="save",
    data="open_images",
    errors="PruningError",
    groups="find_groups",
    importance="score",
    interface="allocate calibrate load noised_batches",
    models="example_call load_denoiser load_meta_denoiser",
    recipe="Recipe load_recipe",
    recovery="recover",
    settings="Calibrate Limit Prune Recover SinkWeights Target",
    stages="Run run_recipe",
    surgery="apply_plan compensate mask_plan",
    types="CalibrationStats PrunableGroup PruningPlan Scores",
)

hook.arm()

"""The only room that cuts a parameter: apply a plan, mask by a plan, rebuild a pruned shape, compensate."""

from pruning.surgery.compensation import compensate, compensation_needs, needs_for
from pruning.surgery.cut import apply_plan
from pruning.surgery.mask import mask_plan, silence
from pruning.surgery.reshape import reshape

__all__ = ["apply_plan", "compensate", "compensation_needs", "mask_plan", "needs_for", "reshape", "silence"]

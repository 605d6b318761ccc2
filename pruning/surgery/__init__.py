"""The only room that cuts a parameter: apply a plan, mask by a plan, rebuild a pruned shape, compensate."""

from pruning.surgery.compensation import METHODS, compensate, compensation_needs
from pruning.surgery.cut import apply_plan
from pruning.surgery.mask import mask_plan, silence
from pruning.surgery.reshape import reshape

__all__ = ["METHODS", "apply_plan", "compensate", "compensation_needs", "mask_plan", "reshape", "silence"]

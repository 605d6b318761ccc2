"""The only room that cuts a parameter: apply a plan, mask by a plan, rebuild a pruned shape, compensate."""

from pruning.surgery.compensation import compensate, compensation_needs, needs_for
from pruning.surgery.cut import apply_plan
from pruning.surgery.low_rank import NEEDS as RANK_NEEDS
from pruning.surgery.low_rank import LowRank, choose_ranks, take_low_rank
from pruning.surgery.mask import mask_plan, silence
from pruning.surgery.on_disk import cut_on_disk
from pruning.surgery.reshape import reshape

__all__ = [
    "RANK_NEEDS",
    "LowRank",
    "apply_plan",
    "choose_ranks",
    "compensate",
    "compensation_needs",
    "cut_on_disk",
    "mask_plan",
    "needs_for",
    "reshape",
    "silence",
    "take_low_rank",
]

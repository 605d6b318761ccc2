"""Recovery: training a pruned denoiser back by fine-tuning and output distillation."""

from pruning.recovery.blocks import BlocksResult, check_by_blocks, recover_blocks
from pruning.recovery.loop import RecoveryProgress
from pruning.recovery.optimizers import check_optimizer
from pruning.recovery.recorded import checked_on_calls, recover_images, recover_recorded
from pruning.recovery.tracking import check_tracker
from pruning.recovery.training import RecoveryResult, check_checkpointing, check_split
from pruning.recovery.twins import pairs, twins

__all__ = [
    "BlocksResult",
    "RecoveryProgress",
    "RecoveryResult",
    "check_by_blocks",
    "check_checkpointing",
    "check_optimizer",
    "check_split",
    "check_tracker",
    "checked_on_calls",
    "pairs",
    "recover_blocks",
    "recover_images",
    "recover_recorded",
    "twins",
]

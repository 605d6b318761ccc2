"""Recovery: training a pruned denoiser back by fine-tuning and output distillation."""

from pruning.recovery.progress import ProgressBar, RecoveryProgress
from pruning.recovery.training import RecoveryResult, recover

__all__ = ["ProgressBar", "RecoveryProgress", "RecoveryResult", "recover"]

"""The loss of one micro-batch: distance to the data's target, to the dense model's output, or both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruning.data import is_flow
from pruning.data.batches import move
from pruning.data.noise import prediction_type
from pruning.errors import PruningError
from pruning.recovery.batches import TrainingBatch

MIN_SNR_GAMMA = 5.0


def training_step(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: TrainingBatch,
    *,
    distill_weight: float,
    weights: Tensor,
) -> Tensor:
    """Return the loss of one micro-batch; draws nothing and changes nothing but gradients-to-be.

    With d the distill weight, w_b the weight of sample b and means over its entries::

        loss = mean_b w_b [ (1 - d) mean (student - target)^2 + d mean (student - teacher)^2 ]

    The data term reads the first C output channels, those of the target; the distillation term reads all of
    them, so that a learned variance follows the dense model's.

    Args:
        student: The denoiser in training.
        teacher: The dense denoiser in eval mode; only read where `distill_weight` > 0. It sees the student's
            very call: same noised input, timestep and labels.
        batch: Call arguments and target (B, C, H, W).
        distill_weight: d, in [0, 1].
        weights: w (B,).

    Returns:
        A float32 scalar.
    """
    output = student(**batch.call, return_dict=False)[0].float()  # (B, C or 2C, H, W)
    loss = output.new_zeros(output.shape[0])
    if distill_weight < 1:
        answer = output[:, : batch.target.shape[1]]
        loss = loss + (1 - distill_weight) * _mean_square(answer - batch.target.float())
    if distill_weight > 0 and teacher is not None:
        with torch.no_grad():
            first = next(p for p in teacher.parameters() if p.is_floating_point())
            call = move(batch.call, first.device, first.dtype) | {"timestep": batch.call["timestep"]}
            wanted = teacher(**call, return_dict=False)[0].float()
        loss = loss + distill_weight * _mean_square(output - wanted)
    return (weights * loss).mean()


def loss_weights(scheduler: Any, timesteps: Tensor, weighting: str) -> Tensor:
    """Return the weight of each sample by its timestep.

    ``min_snr`` (Hang et al., arXiv 2303.09556, section 3.4) with SNR = abar / (1 - abar) and gamma = 5::

        epsilon: min(SNR, gamma) / SNR,   v: min(SNR, gamma) / (SNR + 1),   sample: min(SNR, gamma)

    Args:
        scheduler: The scheduler that noised the samples.
        timesteps: int64 (B,) in ``[0, num_train_timesteps)``.
        weighting: ``uniform`` or ``min_snr``.

    Returns:
        float32 (B,), on the device of `timesteps`.

    Raises:
        PruningError: If ``min_snr`` is asked with a scheduler that has no signal-to-noise ratio.
    """
    if weighting == "uniform":
        return torch.ones(timesteps.shape[0], device=timesteps.device)
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if is_flow(scheduler) or cumulative is None:
        raise PruningError(
            f"recovery: loss_weighting='min_snr' needs a scheduler with alphas_cumprod; {type(scheduler).__name__} "
            "has none; use 'uniform'"
        )
    abar = cumulative.to(timesteps.device, torch.float64)[timesteps]
    snr = (abar / (1 - abar)).clamp_min(1e-8)  # zero-terminal-SNR schedules: the limit, not 0 / 0
    capped = snr.clamp_max(MIN_SNR_GAMMA)
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    divisor = divisors[prediction_type(scheduler)]
    return (capped / divisor).float()


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(dim=1)  # (B,)

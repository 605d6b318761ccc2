"""How much the loss of a sample counts, by its timestep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruning.data import is_flow
from pruning.data.noise import prediction_type
from pruning.errors import PruningError

MIN_SNR_GAMMA = 5.0


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
    return min_snr(abar / (1 - abar), prediction_type(scheduler))


def min_snr(snr: Tensor, prediction: str) -> Tensor:
    """Return the weights of `loss_weights` for signal-to-noise ratios (B,), float32; a flow has none."""
    snr = snr.clamp_min(1e-8)  # zero-terminal-SNR schedules: the limit, not 0 / 0
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    if prediction not in divisors:
        raise PruningError(f"recovery: loss_weighting='min_snr' is not known for {prediction}; use 'uniform'")
    return (snr.clamp_max(MIN_SNR_GAMMA) / divisors[prediction]).float()

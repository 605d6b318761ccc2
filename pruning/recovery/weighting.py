"""How much the loss of a sample counts, by its noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import PruningError

MIN_SNR_GAMMA = 5.0


def min_snr(snr: Tensor, prediction: str) -> Tensor:
    """Return how much the loss of each sample counts, float32 (B,).

    Hang et al., arXiv 2303.09556, section 3.4, with gamma = 5::

        epsilon: min(SNR, gamma) / SNR,   v: min(SNR, gamma) / (SNR + 1),   sample: min(SNR, gamma)

    Args:
        snr: Signal-to-noise ratios (B,).
        prediction: What the model predicts.

    Raises:
        PruningError: For a prediction of which that is not known, such as a flow's.
    """
    snr = snr.clamp_min(1e-8)  # zero-terminal-SNR schedules: the limit, not 0 / 0
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    if prediction not in divisors:
        raise PruningError(f"recovery: loss_weighting='min_snr' is not known for {prediction}; use 'uniform'")
    return (snr.clamp_max(MIN_SNR_GAMMA) / divisors[prediction]).float()

"""The loss of one micro-batch: distances to the data's target, and to what the dense model and its blocks put out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.batches import move
from pruning.models.outputs import joined, with_tuple
from pruning.recovery.batches import TrainingBatch
from pruning.recovery.features import Features


def training_step(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: TrainingBatch,
    *,
    distill_weight: float,
    feature_weight: float = 0.0,
    features: Features | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of one micro-batch; draws nothing and changes nothing but gradients-to-be.

    With d the distill weight, f the feature weight, w_b the weight of sample b, means over its entries, and F_k the
    relative squared error of the output of block k (`feature_error`)::

        loss = mean_b w_b [ (1 - d) mean (student - target)^2 + d mean (student - teacher)^2 + f mean_k F_k ]

    The data term reads the part of the output that the target is of, without a learned variance; the distillation term
    reads all of it, so that a learned variance follows the dense model's.

    Args:
        student: The denoiser in training.
        teacher: The dense denoiser in eval mode; only read where `distill_weight` or `feature_weight` is above 0. It
            sees the student's very call: same noised input, timestep and labels.
        batch: Call arguments, and the target where the data loss has a part.
        distill_weight: d, in [0, 1].
        feature_weight: f, at least 0.
        features: What watches the blocks of both models; needed where f > 0.
        weights: w (B,); None: all 1.

    Returns:
        A float32 scalar.
    """
    rows, wanted = len(batch.timesteps), None
    with features.taken() if features is not None else nullcontext():
        output = call(student, batch.call)
        if teacher is not None and (distill_weight > 0 or features is not None):
            with torch.no_grad():
                first = next(p for p in teacher.parameters() if p.is_floating_point())
                moved = move(batch.call, first.device, first.dtype, batch.exact)
                wanted = joined(call(teacher, moved), rows)
    loss = torch.zeros(rows, device=batch.timesteps.device)
    if distill_weight < 1:
        assert batch.target is not None
        loss = loss + (1 - distill_weight) * _mean_square(
            batch.answer_in(output).float() - batch.target.float()
        )
    if distill_weight > 0 and wanted is not None:
        loss = loss + distill_weight * _mean_square(joined(output, rows).float() - wanted.float())
    if features is not None:
        loss = loss + feature_weight * features.distance(rows)
    return (loss if weights is None else weights * loss).mean()


def call(model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Return what a model, alone or wrapped for several processes, puts out for a call."""
    return model(**with_tuple(getattr(model, "module", model), arguments))


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(dim=1)  # (B,)

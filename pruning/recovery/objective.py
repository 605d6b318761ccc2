"""The loss of one micro-batch: distance to the data's target, to the dense model's output, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.batches import move
from pruning.models.outputs import joined, with_tuple
from pruning.recovery.batches import TrainingBatch


def training_step(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: TrainingBatch,
    *,
    distill_weight: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of one micro-batch; draws nothing and changes nothing but gradients-to-be.

    With d the distill weight, w_b the weight of sample b and means over its entries::

        loss = mean_b w_b [ (1 - d) mean (student - target)^2 + d mean (student - teacher)^2 ]

    The data term reads the part of the output that the target is of, without a learned variance; the distillation term
    reads all of it, so that a learned variance follows the dense model's.

    Args:
        student: The denoiser in training.
        teacher: The dense denoiser in eval mode; only read where `distill_weight` > 0. It sees the student's
            very call: same noised input, timestep and labels.
        batch: Call arguments, and the target where the data loss has a part.
        distill_weight: d, in [0, 1].
        weights: w (B,); None: all 1.

    Returns:
        A float32 scalar.
    """
    output, rows = call(student, batch.call), len(batch.timesteps)
    loss = torch.zeros(rows, device=batch.timesteps.device)
    if distill_weight < 1:
        assert batch.target is not None
        loss = loss + (1 - distill_weight) * _mean_square(
            batch.answer_in(output).float() - batch.target.float()
        )
    if distill_weight > 0 and teacher is not None:
        with torch.no_grad():
            first = next(p for p in teacher.parameters() if p.is_floating_point())
            moved = move(batch.call, first.device, first.dtype, batch.exact)
            wanted = joined(call(teacher, moved), rows)
        loss = loss + distill_weight * _mean_square(joined(output, rows).float() - wanted.float())
    return (loss if weights is None else weights * loss).mean()


def call(model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Return what a model, alone or wrapped for several processes, puts out for a call."""
    return model(**with_tuple(getattr(model, "module", model), arguments))


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(dim=1)  # (B,)

"""Label dropout for classifier-free guidance, once per sample and from our own generator.

In diffusers' DiT every block has its own `LabelEmbedding`, and while training each of them drops labels by
itself from the global generator: blocks disagree on the label, teacher and student too, and nothing can be
resumed. So all of them are held in eval mode and labels are dropped before the model is called.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.models.families import null_class, num_classes

DEFAULT_DROPOUT = 0.1
"""Ho and Salimans, arXiv 2207.12598, section 4.1: 0.1 and 0.2 do about equally well."""


def hold_label_embeddings(model: nn.Module) -> None:
    """Put every `LabelEmbedding` into eval mode, in which it takes labels as they are."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()


def resolve_label_dropout(asked: float | None, model: nn.Module, *, has_captions: bool) -> float:
    """Return the dropout probability for `model`; None takes 0.1 where it knows "no label" or takes captions, else 0.

    Raises:
        PruningError: If dropout is asked of a class-conditional model that has no index for "no label".
    """
    if asked is None:
        return DEFAULT_DROPOUT if has_captions or null_class(model) is not None else 0.0
    if asked > 0 and num_classes(model) is not None and null_class(model) is None:
        raise PruningError(
            f"recovery: label_dropout={asked}, but {type(model).__name__} has no class index for 'no label' "
            "(it was not trained for classifier-free guidance); set label_dropout to 0 or null"
        )
    return asked


def drop_classes(conditioning: dict[str, Any], dropped: Tensor, unconditional: int | None) -> dict[str, Any]:
    """Return call arguments in which the ``class_labels`` (B,) of `dropped` samples (B,) are `unconditional`."""
    labels = conditioning.get("class_labels")
    if labels is None or unconditional is None:
        return conditioning
    return {**conditioning, "class_labels": torch.where(dropped.to(labels.device), unconditional, labels)}


def drop_captions(captions: list[str] | None, dropped: Tensor) -> list[str] | None:
    """Replace the captions of dropped samples by the empty one; `dropped` as in `drop_classes`."""
    if captions is None:
        return None
    return ["" if gone else text for text, gone in zip(captions, dropped.tolist(), strict=True)]

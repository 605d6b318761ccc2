"""Label dropout for classifier-free guidance, once per sample and from our own generator.

In diffusers' DiT every block has its own `LabelEmbedding`, and while training each of them drops labels by
itself from the global generator: blocks disagree on the label, teacher and student too, and nothing can be
resumed. So all of them are held in eval mode and labels are dropped before the model is called.
"""

from __future__ import annotations

from diffusers.models.embeddings import LabelEmbedding
from torch import nn

DEFAULT_DROPOUT = 0.1
"""Ho and Salimans, arXiv 2207.12598, section 4.1: 0.1 and 0.2 do about equally well."""


def hold_label_embeddings(model: nn.Module) -> None:
    """Put every `LabelEmbedding` into eval mode, in which it takes labels as they are."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()

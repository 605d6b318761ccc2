"""Attention modules that the general rule does not fit, by the name of their class or processor, and why."""

from __future__ import annotations

from typing import Any

from torch import nn

RIGID = dict.fromkeys(
    (
        "AttnAddedKVProcessor",
        "AttnAddedKVProcessor2_0",
        "XFormersAttnAddedKVProcessor",
        "RFD4ProteinaPairAttnProcessor",
        "SanaWMCrossAttnProcessor",
    ),
    "its processor reshapes the heads to the width of the residual stream",
)
"""Processors under which heads cannot go, and why."""

ONE_STREAM = {
    "EasyAnimateAttnProcessor2_0": "it hands the heads of the text on as they are, without a projection"
}
"""Processors under which heads cannot go where the module does not project a second stream, and why."""

RESHAPED_TO = {"OmniGenAttnProcessor2_0": "out_dim", "CosmosAttnProcessor2_5": "out_dim"}
"""Processors that reshape the heads to a width which the module holds under another name."""


def _rotary_of_split_heads(module: nn.Module, head_dim: int) -> tuple[int, int]:
    """LTX-2 lays its tables out by head, (B, heads, N, d), or over all of them, (B, N, heads * d)."""
    return (1, 1) if getattr(module, "rope_type", "") == "split" else (-1, head_dim)


PER_HEAD_INPUTS: dict[str, Any] = {
    "LTXAttention": {"image_rotary_emb": lambda module, head_dim: (-1, head_dim)},
    "LTX2Attention": dict.fromkeys(("query_rotary_emb", "key_rotary_emb"), _rotary_of_split_heads),
    "SanaWMLTX2Attention": dict.fromkeys(("query_rotary_emb", "key_rotary_emb"), _rotary_of_split_heads),
    "MochiAttention": {"image_rotary_emb": lambda module, head_dim: (-2, 1)},
}
"""Attention classes that are given tables with entries for each head; argument -> its axis, and entries per head."""

PER_HEAD_MASKS = ("PriorTransformer",)
"""Models that repeat the attention mask for each head before they call the attention, (B * heads, N, M)."""

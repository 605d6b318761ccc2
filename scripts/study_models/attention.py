"""The twins' attention: a penalty that makes sinks, and softmax-off-by-one, which needs none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.calibration.attention.sites import is_attention
from pruning.models import load_denoiser

OFF_BY_ONE = "off_by_one"


class OffByOneProcessor:
    """Softmax with one further key of score 0 and value 0 (Miller 2023, "Attention is off by one").

    ``exp(s_ij) / (1 + sum_j exp(s_ij))`` is the softmax times ``sigmoid(logsumexp_j s_ij)``. So computed, what
    calibration sees is the softmax over the real keys: the zero key is in no statistic, and masses sum to 1.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attention's output for tokens (B, N, C)."""
        assert encoder_hidden_states is None, "written for self-attention"
        assert attention_mask is None, "written for attention without a mask"
        layers = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (by_head(layer(hidden_states), attn.heads) for layer in layers)
        seen = F.scaled_dot_product_attention(query, key, value)
        heads = seen * scores(query, key).logsumexp(-1, keepdim=True).sigmoid()  # (B, H, N, d)
        return attn.to_out[1](attn.to_out[0](heads.transpose(1, 2).flatten(2)))


def by_head(tokens: Tensor, heads: int) -> Tensor:
    """Return tokens (B, N, H d) as (B, H, N, d)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def scores(query: Tensor, key: Tensor) -> Tensor:
    """Return the scaled scores (B, H, N, M)."""
    return query @ key.mT / math.sqrt(query.shape[-1])


def set_off_by_one(model: nn.Module) -> nn.Module:
    """Give every attention of a DiT softmax-off-by-one, and return the model."""
    for path in self_attentions(model):
        attention: Any = model.get_submodule(path)
        attention.set_processor(OffByOneProcessor())
    return model


def self_attentions(model: nn.Module) -> list[str]:
    """Return the paths of the self-attention modules."""
    return [
        path
        for path, module in model.named_modules()
        if is_attention(module) and not getattr(module, "is_cross_attention", False)
    ]


def load_twin(folder: Path, **options: Any) -> nn.Module:
    """Load the denoiser of a study model's folder, with the attention that its training.json names.

    For a pruned copy use `pruning.checkpoint.load` and, where this folder's attention is off by one,
    `set_off_by_one`: processors are not in a diffusers folder.

    Args:
        folder: Written by ``train_study.py``, or any other model folder.
        options: For `pruning.models.load_denoiser`.
    """
    model = load_denoiser(folder, **options)
    return set_off_by_one(model) if attention_of(folder) == OFF_BY_ONE else model


def attention_of(folder: Path) -> str:
    """Return which attention the denoiser in `folder` was trained with: ``softmax`` or ``off_by_one``."""
    path = folder / "training.json"
    return (
        json.loads(path.read_text(encoding="utf-8")).get("attention", "softmax")
        if path.exists()
        else "softmax"
    )


@contextmanager
def sink_penalty(
    model: nn.Module, target: float, energy: float | None = None
) -> Iterator[Callable[[], Tensor]]:
    """Watch the attention of a model, and yield a function that says what its last forward lacks in sinks.

    ``mean over sites, samples and every second head of relu(target - m_hj)^2`` with the column mass
    ``m_hj = mean_i A_hij`` (docs/scores.md section 1), j the key of which these heads together hold most: heads share
    their sinks, as in large models, so that the head mean, which weighs tokens, shows them. With `energy` the row of
    the sink must stand out too, as the massive activations of language models do: ``relu(ln energy - ln e_j)^2 / 10``
    is added, e_j the squared norm of row j at the input of ``to_out`` over the mean of the sample's rows. The maps
    are built whole: for few tokens only.

    Args:
        model: Its self-attention must be the plain one.
        target: Mass that the shared key should hold in each of these heads, 0 to 1.
        energy: How many times the mean energy the sink's row should have; None asks nothing of it.
    """
    sites = self_attentions(model)
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            seen[path] = args[0] if path.endswith("to_out.0") else output

        return model.get_submodule(path).register_forward_hook(hook)

    def penalty() -> Tensor:
        return torch.stack([shortfall(site) for site in sites]).mean()

    def shortfall(site: str) -> Tensor:
        heads: Any = model.get_submodule(site).heads
        query, key = (by_head(seen[f"{site}.{name}"], heads)[:, ::2] for name in ("to_q", "to_k"))
        mass = scores(query, key).softmax(-1).mean(-2)  # (B, H / 2, M)
        sink = mass.mean(1).argmax(-1, keepdim=True)  # (B, 1)
        shared = sink[:, None].expand(-1, mass.shape[1], -1)
        lack = F.relu(target - mass.gather(-1, shared)).square().mean()
        if energy is None:
            return lack
        rows = seen[f"{site}.to_out.0"].square().sum(-1)  # (B, M)
        stands_out = (rows.gather(1, sink)[:, 0] / rows.mean(1)).log()
        return lack + F.relu(math.log(energy) - stands_out).square().mean() / 10

    handles = [keep(f"{site}.{name}") for site in sites for name in ("to_q", "to_k", "to_out.0")]
    try:
        yield penalty
    finally:
        for handle in handles:
            handle.remove()

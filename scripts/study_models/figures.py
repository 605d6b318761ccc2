"""Step 0 of the study: whether a model has sinks at all, and how well it denoises, on held-out images."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.calibration import calibrate
from pruning.data import ImageData
from pruning.groups import find_groups
from pruning.interface import image_calls
from pruning.models import denoise
from pruning.recording.images import noised_images

SINK_MASS = 0.3
"""A head has a sink where its largest key holds more mass than this (docs/studies/sink-awareness.md)."""


def step_zero(
    model: nn.Module,
    scheduler: Any,
    data: ImageData,
    *,
    pipeline: Any = None,
    samples: int = 128,
    buckets: int = 8,
    seed: int = 1,
) -> dict[str, Any]:
    """Return loss and sink figures of a model.

    Args:
        model: The denoiser.
        scheduler: How it was noised.
        data: Held-out images.
        pipeline: What encodes the captions of a text model.
        samples: Images, evenly spaced over `data`, each at every bucket.
        buckets: Timestep buckets.
        seed: Of noise and timesteps.

    Returns:
        ``loss``, and of self- and (where there is one) cross-attention: ``heads``, ``sink_heads``, the share of heads
        whose largest key of a sample holds `SINK_MASS` on average over timesteps; ``sink_heads_once``, the same at
        some bucket; ``largest_r``, of a fixed key: max of M E[m_j] over heads, keys and buckets;
        ``largest_r_of_sample``, max of M E[max_j m_j] over heads and buckets.
    """
    rows = torch.linspace(0, len(data) - 1, min(samples, len(data))).long()

    source = image_calls(model, scheduler, data, images=rows.tolist(), pipeline=pipeline)
    batches = noised_images(source, batch_size=32, timestep_buckets=buckets, seed=seed)
    with torch.no_grad():
        errors = [
            (denoise(model, b.call) - cast(Tensor, b.target)).square().double().mean((1, 2, 3))
            for b in batches
        ]
    groups = find_groups(model, ["attention_heads"])
    stats = calibrate(model, groups, batches, needs=["key_mass", "max_key_mass"])
    found: dict[str, Any] = {"loss": float(torch.cat(errors).mean())}
    for kind in ("self", "cross"):
        names = [g.module for g in groups if _is_cross(model, g.module) == (kind == "cross")]
        if names:
            found[kind] = _figures(
                [
                    (
                        stats.get(n, "key_mass") / count[:, None, None],
                        stats.get(n, "max_key_mass") / count[:, None],
                    )
                    for n in names
                    for count in [stats.get(n, "samples")]
                ]
            )
    return found


def _is_cross(model: nn.Module, path: str) -> bool:
    return bool(getattr(model.get_submodule(path), "is_cross_attention", False))


def _figures(sites: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Return the figures of sites given as E m_j (T, H, M) and E max_j m_j (T, H)."""
    largest = torch.cat([top for _, top in sites], dim=1)  # (T, H of all sites)
    return {
        "heads": largest.shape[1],
        "sink_heads": float((largest.mean(0) > SINK_MASS).double().mean()),
        "sink_heads_once": float((largest.amax(0) > SINK_MASS).double().mean()),
        "largest_mass": float(largest.mean(0).max()),
        "largest_r": max(float(mass.max()) * mass.shape[-1] for mass, _ in sites),
        "largest_r_of_sample": max(float(top.max()) * mass.shape[-1] for mass, top in sites),
    }

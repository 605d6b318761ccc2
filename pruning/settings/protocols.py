"""Named protocols of evaluation: what papers measure, as values of the section ``evaluate``.

A protocol fills the knobs that it names; what the recipe or the command line says of a knob goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate.

    Attributes:
        follows: The paper, and what of it the knobs cannot say.
        knobs: Values of the section ``evaluate``.
    """

    follows: str
    knobs: Mapping[str, Any]


_COMMON = ("pairs", "consistency", "denoising", "cost", "latency")

PROTOCOLS: dict[str, Protocol] = {
    "quick": Protocol(
        "no paper: a first look without a feature network and real images; it tells only large damage apart",
        {
            "num_samples": 200,
            "denoising_samples": 64,
            "metrics": ["consistency", "denoising", "cost", "latency"],
        },
    ),
    "cifar_ddim100_50k": Protocol(
        "Diff-Pruning (Fang et al. 2023, arXiv 2305.10924): 50,000 samples of 100 DDIM steps, FID to the 50,000 "
        "training images: set data.eval_split=train as well, and nothing is held out",
        {
            "num_samples": 50_000,
            "num_steps": 100,
            "sampler": "DDIMScheduler",
            "features": "inception",
            "num_real": None,
            "metrics": ["fid", "kid", *_COMMON],
        },
    ),
    "dit_250_50k": Protocol(
        "DiT (Peebles and Xie 2023, arXiv 2212.09748): 50,000 samples of 250 DDPM steps, guidance 1.5, all classes in "
        "turn, FID, precision and recall to ImageNet's training images; the paper takes them by ADM's TensorFlow suite",
        {
            "num_samples": 50_000,
            "num_steps": 250,
            "sampler": "DDPMScheduler",
            "guidance_scale": 1.5,
            "features": "inception",
            "num_real": None,
            "metrics": ["fid", "kid", "precision_recall", *_COMMON],
        },
    ),
    "coco30k": Protocol(
        "30,000 captions of MS-COCO 2014's validation split, as BK-SDM (Kim et al. 2023, arXiv 2305.15798): guidance "
        "7.5, 25 steps, FID and CLIP score; the paper makes images of 512 pixels smaller, and takes ViT-g/14",
        {
            "num_samples": 30_000,
            "num_steps": 25,
            "guidance_scale": 7.5,
            "features": "inception",
            "num_real": 30_000,
            "metrics": ["fid", "kid", "cmmd", "clip_score", *_COMMON],
        },
    ),
}


def departures(name: str, section: Any) -> dict[str, tuple[Any, Any]]:
    """Return which knobs of a section are not as a protocol says: what it says, and what they are."""
    said = PROTOCOLS[name].knobs
    found = {key: (value, getattr(section, key)) for key, value in said.items()}
    return {key: (wanted, given) for key, (wanted, given) in found.items() if wanted != given}

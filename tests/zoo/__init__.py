"""One table of tiny models of every denoiser class that diffusers has, and of the variants that its public models use.

A file here holds the models of some relatives, in a mapping ``MODELS``; a new class is one entry.
"""

from __future__ import annotations

import importlib
import pkgutil

from tests.zoo.base import BATCH, Draw, Tiny, build, run, tensors_in

ZOO: dict[str, Tiny] = {}
"""Tiny models by name."""

NOT_DENOISERS = {
    "MiniMaxMusic3RVQDepthDecoder": "a language model that predicts codes one after another; nothing is denoised",
    "MotionAdapter": "a container of the motion modules that UNetMotionModel takes over; its forward is empty",
}
"""Model classes of diffusers' packages of transformers and UNets that have no entry, and why."""

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "base":
        ZOO |= importlib.import_module(f"{__name__}.{_module.name}").MODELS

__all__ = ["BATCH", "NOT_DENOISERS", "ZOO", "Draw", "Tiny", "build", "run", "tensors_in"]

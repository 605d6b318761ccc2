"""One table of tiny pipelines: one of every text-, class-, image- or unconditional pipeline that is recorded.

A file here holds some relatives, in a mapping ``PIPELINES``; a new pipeline is one entry.
"""

from __future__ import annotations

import importlib
import pkgutil

from tests.pipelines.base import TinyPipeline, run

_PARTS = {"base", "checks", "decoders", "encoders", "videos", "words"}

NOT_HERE = {
    "ConsisIDPipeline": "it cannot be imported without OpenCV",
    "KandinskyCombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "KandinskyImg2ImgCombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "KandinskyInpaintCombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "KandinskyV22CombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "KandinskyV22Img2ImgCombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "KandinskyV22InpaintCombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "StableCascadeCombinedPipeline": "a prior and a decoder, one after the other; both have entries",
    "StableUnCLIPPipeline": "a prior and a decoder, one after the other; both have entries",
}
"""Pipelines that recorded calls were studied on and that have no entry, and why."""

PIPELINES: dict[str, TinyPipeline] = {}
"""Tiny pipelines by name."""

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in _PARTS and not _module.name.startswith("test_"):
        PIPELINES |= importlib.import_module(f"{__name__}.{_module.name}").PIPELINES

__all__ = ["NOT_HERE", "PIPELINES", "TinyPipeline", "run"]

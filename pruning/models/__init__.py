"""Denoisers and pipelines: where they come from and how they are called."""

from typing import TYPE_CHECKING

from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.models.families import (
        FAMILIES,
        Family,
        denoise,
        denoiser_call,
        example_call,
        family_of,
        null_class,
        num_classes,
        sample_shape,
        set_null_class,
    )
    from pruning.models.loading import (
        check_finite,
        load_denoiser,
        load_meta_denoiser,
        load_pipeline,
        load_scheduler,
    )
    from pruning.models.sources import bundled, bundled_root, resolve_source

_HOMES = {
    "FAMILIES": "families",
    "Family": "families",
    "bundled": "sources",
    "bundled_root": "sources",
    "check_finite": "loading",
    "denoise": "families",
    "denoiser_call": "families",
    "example_call": "families",
    "family_of": "families",
    "load_denoiser": "loading",
    "load_meta_denoiser": "loading",
    "load_pipeline": "loading",
    "load_scheduler": "loading",
    "null_class": "families",
    "num_classes": "families",
    "resolve_source": "sources",
    "sample_shape": "families",
    "set_null_class": "families",
}

__all__ = [
    "FAMILIES",
    "Family",
    "bundled",
    "bundled_root",
    "check_finite",
    "denoise",
    "denoiser_call",
    "example_call",
    "family_of",
    "load_denoiser",
    "load_meta_denoiser",
    "load_pipeline",
    "load_scheduler",
    "null_class",
    "num_classes",
    "resolve_source",
    "sample_shape",
    "set_null_class",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)

"""Denoisers and pipelines: where they come from and how they are called."""

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
)
from pruning.models.loading import (
    check_finite,
    load_denoiser,
    load_meta_denoiser,
    load_pipeline,
    load_scheduler,
)
from pruning.models.sources import bundled, bundled_root, resolve_source

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
]

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
        has_open_null_class,
        null_class,
        num_classes,
        pixels_per_latent,
        sample_shape,
        set_null_class,
    )
    from pruning.models.loading import (
        check_finite,
        find_scheduler,
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
    "find_scheduler",
    "has_open_null_class",
    "load_denoiser",
    "load_meta_denoiser",
    "load_pipeline",
    "load_scheduler",
    "null_class",
    "num_classes",
    "pixels_per_latent",
    "resolve_source",
    "sample_shape",
    "set_null_class",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    families="FAMILIES Family denoise denoiser_call example_call family_of has_open_null_class null_class "
    "num_classes pixels_per_latent sample_shape set_null_class",
    loading="check_finite find_scheduler load_denoiser load_meta_denoiser load_pipeline load_scheduler",
    sources="bundled bundled_root resolve_source",
)

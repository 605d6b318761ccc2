"""Denoisers and pipelines: where they come from and how they are called."""

from typing import TYPE_CHECKING

from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.models.families import FAMILIES as FAMILIES
    from pruning.models.families import autoencoder_of as autoencoder_of
    from pruning.models.families import denoise as denoise
    from pruning.models.families import denoiser_call as denoiser_call
    from pruning.models.families import has_open_null_class as has_open_null_class
    from pruning.models.families import is_known as is_known
    from pruning.models.families import null_class as null_class
    from pruning.models.families import num_classes as num_classes
    from pruning.models.families import pixel_shape as pixel_shape
    from pruning.models.families import pixels_per_latent as pixels_per_latent
    from pruning.models.families import sample_shape as sample_shape
    from pruning.models.families import set_null_class as set_null_class
    from pruning.models.families import takes_pixels as takes_pixels
    from pruning.models.loading import denoiser_name as denoiser_name
    from pruning.models.loading import find_scheduler as find_scheduler
    from pruning.models.loading import load_denoiser as load_denoiser
    from pruning.models.loading import load_meta_denoiser as load_meta_denoiser
    from pruning.models.loading import load_pipeline as load_pipeline
    from pruning.models.loading import load_scheduler as load_scheduler
    from pruning.models.loading import pipeline_class as pipeline_class
    from pruning.models.loading import pipeline_parts as pipeline_parts
    from pruning.models.mapped import map_denoiser as map_denoiser
    from pruning.models.mapped import stored_type as stored_type
    from pruning.models.native import Native as Native
    from pruning.models.native import example_call as example_call
    from pruning.models.native import has_native_input as has_native_input
    from pruning.models.native import native_input as native_input
    from pruning.models.outputs import first_answer as first_answer
    from pruning.models.pipelines import call_parameters as call_parameters
    from pruning.models.sources import bundled as bundled
    from pruning.models.sources import resolve_source as resolve_source
    from pruning.models.stock import stock_model as stock_model
    from pruning.models.streaming import stream as stream
    from pruning.models.streaming import streamed as streamed

__getattr__, __dir__ = lazy_exports(__name__, __file__)

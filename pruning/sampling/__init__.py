"""Samples from a denoiser or a pipeline, and the proof that a scheduler can sample from a model."""

from pruning.sampling.oracle import check_sampler
from pruning.sampling.pipelines import sample_pipeline
from pruning.sampling.pixels import sample
from pruning.sampling.schedulers import scheduler_named
from pruning.sampling.steps import fresh_scheduler, initial_noise, to_uint8

__all__ = [
    "check_sampler",
    "fresh_scheduler",
    "initial_noise",
    "sample",
    "sample_pipeline",
    "scheduler_named",
    "to_uint8",
]

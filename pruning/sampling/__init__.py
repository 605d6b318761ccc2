"""Samples from a denoiser or a pipeline, and the proof that a scheduler can sample from a model."""

from pruning.sampling.oracle import check_sampler as check_sampler
from pruning.sampling.pipelines import sample_pipeline as sample_pipeline
from pruning.sampling.pixels import sample as sample
from pruning.sampling.schedulers import scheduler_named as scheduler_named
from pruning.sampling.steps import fresh_scheduler as fresh_scheduler
from pruning.sampling.steps import to_uint8 as to_uint8

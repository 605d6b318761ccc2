"""Samples from a denoiser or a pipeline, and the proof that a scheduler can sample from a model."""

from pruning.sampling.arguments import check_arguments as check_arguments
from pruning.sampling.arguments import value_of as value_of
from pruning.sampling.oracle import check_sampler as check_sampler
from pruning.sampling.pipelines import batch_fault as batch_fault
from pruning.sampling.pipelines import pipeline_call as pipeline_call
from pruning.sampling.pipelines import rehearse as rehearse
from pruning.sampling.pipelines import sample_pipeline as sample_pipeline
from pruning.sampling.pixels import PixelPipeline as PixelPipeline
from pruning.sampling.pixels import sample as sample
from pruning.sampling.schedulers import scheduler_named as scheduler_named
from pruning.sampling.steps import fresh_scheduler as fresh_scheduler
from pruning.sampling.steps import to_uint8 as to_uint8

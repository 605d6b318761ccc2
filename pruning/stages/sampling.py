"""How a run's models generate: each in the run's own pipeline, with the arguments that the recipe gives."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from pruning.errors import PruningError, named
from pruning.models import call_parameters, denoiser_name, is_known, pipeline_parts
from pruning.sampling import (
    PixelPipeline,
    batch_fault,
    check_arguments,
    sample_pipeline,
    scheduler_named,
    value_of,
)
from pruning.sampling.arguments import GUIDANCE, STEPS
from pruning.settings import Calibrate, Evaluate
from pruning.stages.run import Run

logger = logging.getLogger(__name__)

Sampler = Callable[[Sequence[int] | Tensor], Tensor]
"""Sample ids (N,) -> samples as of `sample_pipeline`; sample i depends on id i alone."""

LOOKED_AT = 10_000
"""Samples among which the shortest and the longest prompt are found, to try a batch of both."""


def arguments_of(run: Run, section: Calibrate | Evaluate) -> dict[str, Any]:
    """Return what every call of the run's pipeline is given, by its own names.

    Steps and guidance of the section go before those of ``pipeline``. What is null in both is left to the default of
    the pipeline's own call.

    Raises:
        PruningError: For a number of the section that the call does not take; guidance 1 is none, which all take.
    """
    found = {key: value for key, value in run.recipe.pipeline.items() if value is not None}
    for key, name in (("num_steps", STEPS), ("guidance_scale", GUIDANCE)):
        value = getattr(section, key)
        if value is None:
            continue
        if name in call_parameters(run.pipeline_class):
            found[name] = value
        elif (name, value) != (GUIDANCE, 1):
            raise PruningError(
                f"{type(section).__name__.lower()}.{key}: {value}: {run.pipeline_class.__name__} takes no {name}; "
                "leave it out"
            )
    return found


def steps_of(run: Run, section: Calibrate | Evaluate) -> int | None:
    """Return the number of sampling steps, with null resolved; None where the pipeline is not told any."""
    return value_of(run.pipeline_class, arguments_of(run, section), STEPS)


def check_call(run: Run) -> None:
    """Check the arguments that the recipe gives to the pipeline by the signature of its call; reads no weights."""
    if run.is_config:
        return
    recipe = run.recipe
    with named("pipeline"):
        given = {key: value for key, value in recipe.pipeline.items() if value is not None}
        check_arguments(run.pipeline_class, given, ("prompt", "class_labels"))
    for section in (recipe.calibrate, recipe.evaluate):
        arguments_of(run, section)


def pipeline_around(run: Run, model: ModelMixin, sampler_name: str | None = None) -> Any:
    """Return the run's pipeline with `model`, the dense or a slim one, as its denoiser; all else is shared.

    Args:
        run: The run.
        model: The denoiser.
        sampler_name: Another scheduler class than the model's own.
    """
    if run.pipeline_class is PixelPipeline:
        if not is_known(model):
            raise PruningError(
                f"model.source: {run.recipe.model.source!r} is a bare {type(model).__name__}, and how it samples is "
                "not known; give the folder or hub id of a whole pipeline"
            )
        return PixelPipeline(model, scheduler_named(run.scheduler, sampler_name))
    whole: Any = run.pipeline
    parts = {**whole.config, **whole.components}
    name = denoiser_name(whole.components, run.recipe.model.subfolder)
    if name is None:
        raise PruningError(
            f"model.subfolder: {run.recipe.model.subfolder!r} is no part of {type(whole).__name__}, which has "
            f"{', '.join(whole.components)}"
        )
    parts[name] = model
    parts |= {"scheduler": scheduler_named(run.scheduler, sampler_name)} if sampler_name else {}
    # By its constructor, for a pipeline may hold others that share its parts.
    taken = inspect.signature(type(whole).__init__).parameters
    return type(whole)(**{key: value for key, value in parts.items() if key in taken})


def sampler(run: Run, model: ModelMixin, section: Calibrate | Evaluate) -> Sampler:
    """Return what generates samples with `model`, the dense or a slim one, as a section of the recipe says.

    Whether batches may be made is tried here, before anybody watches what the model does. `Evaluate` may name another
    scheduler than the model's own, and has its prompts from the held-out split.
    """
    split, arguments = split_of(run, section), arguments_of(run, section)
    pipeline = pipeline_around(run, model, getattr(section, "sampler", None))
    at_once = section.batch_size
    if min(at_once, section.num_samples) > 1 and not _batches_are_safe(run, pipeline, section, arguments):
        at_once = 1

    def generate(ids: Sequence[int] | Tensor) -> Tensor:
        inputs = [run.inputs(split, 1, skip=int(i))[0] for i in ids]
        return sample_pipeline(
            pipeline,
            inputs,
            sample_ids=ids,
            seed=run.recipe.seed,
            arguments=arguments,
            batch_size=at_once,
        )

    return generate


def split_of(run: Run, section: Calibrate | Evaluate) -> str:
    """Return the split whose prompts a section samples from."""
    return run.recipe.data.eval_split if isinstance(section, Evaluate) else run.recipe.data.split


def _batches_are_safe(
    run: Run, pipeline: Any, section: Calibrate | Evaluate, arguments: Mapping[str, Any]
) -> bool:
    """Tell whether several samples of a section may be made in one call; tried once a run, with two of its samples."""
    name = type(section).__name__.lower()
    if name not in run.batch_faults:
        by_length = sorted(
            run.inputs(split_of(run, section), LOOKED_AT), key=lambda one: len(one.get("prompt", ""))
        )
        pair = [by_length[0], by_length[-1]]
        fault = batch_fault(pipeline, pair, seed=run.recipe.seed, arguments=arguments)
        run.batch_faults[name] = fault
        if fault:
            logger.info("%s: samples are made one a call: %s", name, fault)
    return run.batch_faults[name] is None


def labels_of(run: Run, ids: Sequence[int] | Tensor) -> Tensor | None:
    """Return the class of each sample; None for a model without classes."""
    inputs = [run.inputs(run.recipe.data.eval_split, 1, skip=int(i))[0] for i in ids]
    labels = [one["class_labels"][0] for one in inputs if "class_labels" in one]
    return torch.tensor(labels) if labels else None


def prompts_of(run: Run, split: str, count: int) -> list[str] | None:
    """Return the prompts of the first samples; None for a model without text."""
    prompts = [one["prompt"] for one in run.inputs(split, count) if "prompt" in one]
    return prompts or None


def component(run: Run) -> str:
    """Return the name of the recipe's denoiser among the components of its pipeline; reads no weights."""
    if run.pipeline_class is PixelPipeline:
        return "denoiser"
    section = run.recipe.model
    parts = pipeline_parts(section.source, revision=section.revision)
    name = denoiser_name(parts, section.subfolder)
    if name is None:
        raise PruningError(
            f"model.subfolder: {run.pipeline_class.__name__} has {', '.join(parts)}; say which of them is made slim"
        )
    return name

"""Arguments of a pipeline's own call, by its signature: which there are, and which of them a recipe may give."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

from pruning.errors import PruningError, shown
from pruning.models.pipelines import STEPS, call_parameters
from pruning.registry import did_you_mean
from pruning.settings.section import fits

GUIDANCE = "guidance_scale"
SCHEDULES = ("timesteps", "sigmas")
"""Arguments that say every step, in place of their number."""

OURS = {
    r"prompt|class_labels": "comes from data.source, one for each sample",
    r"generator": "is seeded by seed and the index of the sample",
    r"output_type|return_dict": "is set by the sampler, which measures what comes out",
    r"num_\w+_per_prompt|batch_size": "is set by the sampler; num_samples and batch_size of the sections say how many",
    r"\w*latents": "is drawn by the index of the sample",
    r"\w*callback\w*": "is a function or goes with one, and a recipe holds none",
    r"\w*(embeds|embedding|embeddings|attention_mask)(_\w+)?": "is a tensor, and a recipe holds none",
    r"(\w+_)?(image|images|video|audio)": "is a picture, video or sound, and samples are made from prompts and classes",
}
"""Arguments that a recipe may not give: a pattern of names, and why."""


def check_arguments(pipeline_class: type, arguments: Mapping[str, Any], given: Collection[str]) -> None:
    """Check what a recipe gives to every call of a pipeline.

    Args:
        pipeline_class: Class of the pipeline.
        arguments: Values by name.
        given: Names that each sample brings along, such as ``prompt``.

    Raises:
        PruningError: For a name that the call does not have, one that the sampler sets itself, or one that the call
            cannot do without and nothing gives; for steps or guidance that are no numbers.
    """
    taken, name = call_parameters(pipeline_class), pipeline_class.__name__
    free = [key for key in taken if _ours(key) is None]
    for key, value in arguments.items():
        if key not in taken:
            raise PruningError(
                f"{key} ({shown(value)}) is no argument of {name}{did_you_mean(key, free)}; it takes {', '.join(free)}"
            )
        if reason := _ours(key):
            raise PruningError(f"{key} ({shown(value)}) cannot be given: it {reason}; leave it out")
    steps, guidance = arguments.get(STEPS, 1), arguments.get(GUIDANCE, 1.0)
    if not fits(steps, int) or steps < 1:
        raise PruningError(f"{STEPS}: {shown(steps)} must be a whole number of at least 1")
    if not fits(guidance, float):
        raise PruningError(f"{GUIDANCE}: {shown(guidance)} must be a number")
    needed = [key for key, each in taken.items() if each.default is inspect.Parameter.empty]
    if missing := [key for key in needed if key not in arguments and key not in given]:
        raise PruningError(f"{name} cannot do without {', '.join(missing)}, which a recipe does not give")


def value_of(pipeline_class: type, arguments: Mapping[str, Any], name: str) -> Any:
    """Return the value of an argument in a call: the one given, else the default; None if there is no such argument."""
    parameter = call_parameters(pipeline_class).get(name)
    return arguments.get(name, parameter.default) if parameter else None


def as_taken(pipeline_class: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` with tuples in place of lists where the call says that it takes such; JSON has lists alone."""
    tuples = {
        name
        for name, each in call_parameters(pipeline_class).items()
        if "tuple" in str(each.annotation).lower()
    }
    return {
        name: tuple(value) if isinstance(value, list) and name in tuples else value
        for name, value in arguments.items()
    }


def shortened(pipeline_class: type, arguments: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return `arguments` for a call of at most so many steps; where they say every step, as they are."""
    asked = value_of(pipeline_class, arguments, STEPS)
    if STEPS not in call_parameters(pipeline_class) or any(arguments.get(key) for key in SCHEDULES):
        return dict(arguments)
    return {**arguments, STEPS: min(steps, asked or steps)}


def _ours(name: str) -> str | None:
    """Return why a recipe may not give the argument `name`, or None."""
    return next((why for pattern, why in OURS.items() if re.fullmatch(pattern, name)), None)

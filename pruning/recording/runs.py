"""The runs of one pipeline on what it is asked, each sample with its own generator."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from pruning.data.seeding import sample_generator
from pruning.errors import PruningError, shown
from pruning.recording.asking import call_parameters, denoiser_components
from pruning.recording.exceptions import EXCEPTIONS, Exceptional
from pruning.recording.watching import SamplingStep, run_once
from pruning.settings.section import fits

SAMPLING = 33
"""Stream of `sample_generator` that the pipeline's own draws come from."""

OURS = ("generator", "output_type", "return_dict")
"""Arguments of the pipeline's call that recording gives itself."""


class Runs:
    """A pipeline and what it is asked.

    Args:
        pipeline: Any DiffusionPipeline.
        inputs: Of each sample.
        call: What all samples share.
        seed: Of all draws.

    Attributes:
        name: Class of the pipeline.
        shared: `call`, and an output that is not decoded, where the pipeline has one.
        exceptional: What is other in this pipeline.

    Raises:
        PruningError: For a pipeline that cannot be recorded, or arguments that it does not take.
    """

    def __init__(
        self, pipeline: Any, inputs: Iterable[Mapping[str, Any]], call: Mapping[str, Any], seed: int
    ) -> None:
        self.pipeline, self.seed = pipeline, seed
        self.name = type(pipeline).__name__
        known = (EXCEPTIONS.get(kind.__name__) for kind in type(pipeline).__mro__)
        self.exceptional = next((one for one in known if one is not None), Exceptional(""))
        if isinstance(pipeline, type) or not hasattr(pipeline, "components"):
            raise PruningError(f"{shown(pipeline)} is no pipeline of diffusers; give a DiffusionPipeline")
        if self.exceptional.refused:
            raise PruningError(f"{self.name} cannot be recorded: {self.exceptional.reason}")
        if not fits(seed, int):
            raise PruningError(f"seed is {shown(seed)}; it must be a whole number")
        for name, part in denoiser_components(pipeline).items():
            if any(weight.is_meta for weight in part.parameters()):
                raise PruningError(
                    f"{self.name}: weights of {name!r} are not loaded (meta device: sequential offload); load them, "
                    "or use enable_model_cpu_offload"
                )
        if isinstance(inputs, (str, Mapping)) or not isinstance(inputs, Iterable):
            raise PruningError(
                f"inputs is {shown(inputs)}; expected a list with a mapping for each sample, such as "
                "[{'prompt': 'a dog'}]"
            )
        self.inputs = list(inputs)
        if not self.inputs:
            raise PruningError(
                "inputs is empty, so there is nothing to record; give at least one, such as {'prompt': 'a dog'}"
            )
        self.parameters = call_parameters(pipeline)
        self._check("call", call)
        for index, one in enumerate(self.inputs):
            self._check(f"inputs[{index}]", one)
        self.shared = {**call, **({"output_type": "latent"} if "output_type" in self.parameters else {})}

    def _check(self, place: str, given: Any) -> None:
        if not isinstance(given, Mapping):
            raise PruningError(f"{place} is {shown(given)}; expected a mapping of arguments by name")
        if unnamed := [key for key in given if not isinstance(key, str)]:
            raise PruningError(f"{place}: {shown(unnamed[0])} is no name of an argument")
        if ours := sorted(set(given) & set(OURS)):
            raise PruningError(f"{place}: {ours[0]!r} is what recording gives itself; leave it out")
        is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values())
        if not is_open and (unknown := sorted(set(given) - set(self.parameters))):
            raise PruningError(
                f"{place}: {self.name} takes no {unknown[0]!r}; it takes {', '.join(list(self.parameters)[1:])}"
            )

    def run(self, index: int, **how: Any) -> list[SamplingStep]:
        """Run the pipeline for one sample; `how` as for `run_once`."""
        try:
            return self.ask({**self.shared, **self.inputs[index]}, [index], **how)
        except PruningError as error:
            is_refused = isinstance(error.__cause__, (ValueError, NotImplementedError, TypeError))
            is_refused = is_refused and "latent" in str(error.__cause__)
            if not is_refused or self.shared.get("output_type") != "latent":
                raise
            self.shared["output_type"] = "np"  # the pipeline always decodes
            return self.run(index, **how)

    def ask(self, arguments: Mapping[str, Any], samples: Sequence[int], **how: Any) -> list[SamplingStep]:
        """Run the pipeline with any arguments and the generators of these samples."""
        generators: list[torch.Generator] = [
            sample_generator(self.seed, sample, SAMPLING) for sample in samples
        ]
        steps = run_once(self.pipeline, arguments, generators, **how)
        for asked in (call.arguments or {} for step in steps for call in step.calls):
            for name in self.exceptional.without:
                asked.pop(name, None)
            for name in self.exceptional.first_row & asked.keys():
                asked[name] = asked[name][:1]
        return steps

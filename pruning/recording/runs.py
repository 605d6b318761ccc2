"""The runs of one pipeline on what it is asked, each sample with its own generator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pruning.data.seeding import check_seed, sample_generator
from pruning.errors import PruningError, shown
from pruning.models.pipelines import call_parameters, modules_of, takes_any
from pruning.recording.exceptions import EXCEPTIONS, Exceptional
from pruning.recording.watching import SamplingStep, Watch, run_once

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
        check_seed(seed)
        for name, part in modules_of(pipeline).items():
            if any(weight.is_meta for weight in part.parameters()):
                raise PruningError(
                    f"{self.name}: weights of {name!r} are not loaded (meta device: sequential offload); load them, "
                    "or use enable_model_cpu_offload"
                )
            if getattr(part, "is_cache_enabled", False):
                raise PruningError(
                    f"{self.name}: {name!r} answers from a cache, so that each call depends on those before; call its "
                    "disable_cache() first"
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
        self.parameters = call_parameters(type(pipeline))
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
        unknown = sorted(set(given) - set(self.parameters))
        if unknown and not takes_any(type(self.pipeline)):
            raise PruningError(
                f"{place}: {self.name} takes no {unknown[0]!r}; it takes {', '.join(self.parameters)}"
            )

    def run(self, index: int, watch: Watch) -> list[SamplingStep]:
        """Run the pipeline for one sample and return its sampling steps."""
        try:
            return self.ask({**self.shared, **self.inputs[index]}, [index], watch)
        except PruningError as error:
            is_refused = isinstance(error.__cause__, (ValueError, NotImplementedError, TypeError))
            is_refused = is_refused and "latent" in str(error.__cause__)
            if not is_refused or self.shared.get("output_type") != "latent":
                raise
            self.shared["output_type"] = "np"  # the pipeline always decodes
            return self.run(index, watch)

    def ask(self, arguments: Mapping[str, Any], samples: Sequence[int], watch: Watch) -> list[SamplingStep]:
        """Run the pipeline with any arguments and the generators of these samples; return its sampling steps."""
        generators = [sample_generator(self.seed, sample, SAMPLING) for sample in samples]
        steps = run_once(self.pipeline, arguments, generators, watch)
        for asked in (call.arguments or {} for step in steps for call in step.calls):
            for name in self.exceptional.without:
                asked.pop(name, None)
            for name in self.exceptional.first_row & asked.keys():
                asked[name] = asked[name][:1]
        return steps

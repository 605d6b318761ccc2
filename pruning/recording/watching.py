"""One run of a pipeline, watched: what its denoisers are asked between the steps of its scheduler."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.recording.asking import (
    as_it_was,
    asked,
    call_parameters,
    denoiser_components,
    is_scheduler,
    parts_of,
)
from pruning.recording.trees import arguments_of_call, copied, on_device

End = Callable[[int, int, Tensor], Tensor]
"""(position of the sampling step, slot, what the scheduler's step gave) -> what the pipeline goes on with."""

Answer = Callable[[int, "Call"], Any]
"""(position of the sampling step, call) -> what the denoiser's place returns."""

ENCODERS = ("text", "tokenizer", "vae", "vqvae", "image_encoder", "safety", "feature", "vocoder")
"""Beginnings of the names of components that are no denoisers; asked only where the scheduler took a single step."""


@dataclass
class Call:
    """One call of a denoiser.

    Attributes:
        denoiser: Name of the component.
        arguments: By name; None where they were not to be kept.
        output: What it answered, as a tuple, where that was to be kept.
        form: Makes of such a tuple what the denoiser returned.
    """

    denoiser: str
    arguments: dict[str, Any] | None
    output: tuple[Any, ...] = ()
    form: Callable[[tuple[Any, ...]], Any] = tuple


@dataclass
class Update:
    """One step of a scheduler: ``result = scheduler.step(model_output, t, sample)``."""

    scheduler: Any
    t: Any
    sample: Any
    model_output: Any = None
    result: Any = None


@dataclass
class SamplingStep:
    """What belongs together: the denoisers' calls, and the scheduler's steps that follow from their answers."""

    calls: list[Call] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)


def as_tuple(output: Any) -> tuple[tuple[Any, ...], Callable[[tuple[Any, ...]], Any]]:
    """Return what a model returned as a tuple, and what makes of such a tuple the form that it had."""
    if isinstance(output, Mapping):
        kind, names = type(output), list(output)
        return tuple(output.values()), lambda values: kind(**dict(zip(names, values, strict=True)))
    if isinstance(output, (tuple, list)):
        return tuple(output), type(output)
    return (output,), lambda values: values[0]


def run_once(
    pipeline: Any,
    arguments: Mapping[str, Any],
    generators: Sequence[torch.Generator],
    *,
    denoisers: Collection[str] | None = None,
    wanted: Callable[[int], bool] = lambda position: True,
    outputs: bool = False,
    answer: Answer | None = None,
    end: End | None = None,
    returned: Callable[[Any], None] | None = None,
) -> list[SamplingStep]:
    """Run a pipeline and return its sampling steps, on whatever device it is.

    Args:
        pipeline: Left as it was.
        arguments: Of its call, without generators.
        generators: One for each sample that the arguments ask for.
        denoisers: Names of the components to watch, None where they are not known yet: then those that are called
            between two steps of the scheduler are taken for them.
        wanted: Position of a sampling step -> whether its calls are kept; all are counted.
        outputs: Also keep what the denoisers and the scheduler give.
        answer: Answers in the denoisers' place.
        end: Puts something else in the place of what a step of the scheduler gives.
        returned: Told the first of what the pipeline returns.
    """
    events: list[Call | Update] = []
    with as_it_was(pipeline, generators[0].initial_seed() % 2**63):
        _use_copies_of_schedulers(pipeline)
        with _watched(pipeline, events, denoisers, wanted, outputs, answer, end):
            result = _call(pipeline, arguments, generators)
    if returned is not None:
        returned(as_tuple(result)[0][0])
    names = denoisers if denoisers is not None else _between_updates(events)
    steps: list[SamplingStep] = []
    for event in events:
        if isinstance(event, Update):
            if steps:
                steps[-1].updates.append(event)
        elif event.denoiser in names:
            if not steps or steps[-1].updates or not any(isinstance(other, Update) for other in events):
                steps.append(SamplingStep())
            steps[-1].calls.append(event)
    return steps


def _call(pipeline: Any, arguments: Mapping[str, Any], generators: Sequence[torch.Generator]) -> Any:
    given = dict(arguments)
    if "generator" in call_parameters(pipeline):
        given["generator"] = generators[0] if len(generators) == 1 else list(generators)
    with asked(pipeline, arguments), torch.no_grad():
        return pipeline(**given)


def _use_copies_of_schedulers(pipeline: Any) -> None:
    """Let the pipeline use copies of its schedulers, whose state is looked at after the run."""
    for name, part in parts_of(pipeline).items():
        if is_scheduler(part):
            setattr(pipeline, name, copy.deepcopy(part))


@contextlib.contextmanager
def _watched(
    pipeline: Any,
    events: list[Call | Update],
    denoisers: Collection[str] | None,
    wanted: Callable[[int], bool],
    outputs: bool,
    answer: Answer | None,
    end: End | None,
) -> Iterator[None]:
    """Note the calls of denoisers and the steps of schedulers as they come."""
    position, slot, ended = -1, 0, True

    def begins() -> int:
        nonlocal position, ended
        position, ended = position + ended, False
        return position

    with contextlib.ExitStack() as stack:
        for name, module in denoiser_components(pipeline).items():
            if denoisers is not None and name not in denoisers:
                continue

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                kept = wanted(begins()) or answer is not None
                found = copied(arguments_of_call(module, args, kwargs)) if kept else None
                events.append(Call(name, found))

            def after(module: nn.Module, args: Any, output: Any) -> None:
                call = _last_call(events)
                found, call.form = as_tuple(output)
                call.output = copied(found)

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if outputs:
                stack.callback(module.register_forward_hook(after).remove)
            if answer is not None:
                stack.enter_context(_answered(module, lambda: answer(position, _last_call(events))))

        def update(seen: Update) -> None:
            nonlocal ended, slot
            slot, ended = (0 if not ended else slot + 1), True
            events.append(seen)

        def ending(result: Any) -> Any:
            if end is None:
                return result
            if isinstance(result, (tuple, list)):
                return (end(position, slot, result[0]), *result[1:])
            result.prev_sample = end(position, slot, result.prev_sample)
            return result

        for kind in {type(part) for part in parts_of(pipeline).values() if is_scheduler(part)}:
            stack.enter_context(_patched(kind, update, ending, outputs or answer is not None))
        yield


def _last_call(events: Sequence[Call | Update]) -> Call:
    return next(event for event in reversed(events) if isinstance(event, Call))


@contextlib.contextmanager
def _answered(module: nn.Module, answer: Callable[[], Any]) -> Iterator[None]:
    """Let a module answer without running, on its device."""
    before = {name: vars(module)[name] for name in ("forward",) if name in vars(module)}
    device = next(module.parameters()).device

    def forward(*args: Any, **kwargs: Any) -> Any:
        values, form = as_tuple(answer())
        return form(on_device(values, device))

    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(before)


@contextlib.contextmanager
def _patched(
    kind: type, tell: Callable[[Update], None], ending: Callable[[Any], Any], outputs: bool
) -> Iterator[None]:
    """Note each step of a class of schedulers; on the class, for pipelines copy their schedulers."""
    step, own = kind.step, "step" in vars(kind)  # type: ignore[attr-defined]
    signature = inspect.signature(step)

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        seen = Update(self, copied(given.get("timestep")), copied(given.get("sample")))
        if outputs:
            seen.model_output = copied(given.get("model_output"))
        tell(seen)
        result = ending(step(self, *args, **kwargs))
        first = result[0] if isinstance(result, (tuple, list)) else getattr(result, "prev_sample", None)
        seen.result = copied(first)
        return result

    watched.__signature__ = signature  # type: ignore[attr-defined]  # pipelines look for eta and generator in it
    kind.step = watched  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if own:
            kind.step = step  # type: ignore[attr-defined]
        else:
            del kind.step  # type: ignore[attr-defined]


def _between_updates(events: Sequence[Call | Update]) -> set[str]:
    """Return the names of the components that are called between the first and the last step of the scheduler.

    Where it takes a single step, those called before it that no encoder's name has; where there is none, the one that
    is called most often.
    """
    updates = [index for index, event in enumerate(events) if isinstance(event, Update)]
    calls = Counter(event.denoiser for event in events if isinstance(event, Call))
    if len(updates) > 1:
        between = events[updates[0] : updates[-1]]
        return {event.denoiser for event in between if isinstance(event, Call)}
    if updates:
        before = [event.denoiser for event in events[: updates[0]] if isinstance(event, Call)]
        return {name for name in before if not name.startswith(ENCODERS)}
    most = [name for name, _ in calls.most_common() if not name.startswith(ENCODERS)]
    if not most:
        raise PruningError("the pipeline called none of its models, so there is nothing to record")
    return {most[0]}

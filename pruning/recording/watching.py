"""One run of a pipeline, watched: what its denoisers are asked between the steps of its scheduler."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError, failing
from pruning.models.pipelines import as_it_was, call_parameters, modules_of, schedulers_of
from pruning.recording.trees import arguments_of_call, copied, on_device

End = Callable[[int, int, Tensor], Tensor]
"""(position of the sampling step, slot, what the scheduler's step gave) -> what the pipeline goes on with."""

Answer = Callable[[int, "Call"], Any]
"""(position of the sampling step, call) -> what the denoiser's place returns; None: it runs itself."""

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


@dataclass(frozen=True)
class Watch:
    """What is looked at in a run, and what stands in the place of its parts.

    Attributes:
        denoisers: Names of the components to watch, None where they are not known yet: then those that are called
            between two steps of the scheduler are taken for them.
        wanted: Position of a sampling step -> whether its calls are kept; all are counted.
        outputs: Also keep what the denoisers and the scheduler give.
        answer: Answers in the denoisers' place, or lets them run.
        end: Puts something else in the place of what a step of the scheduler gives.
        returned: Told the first of what the pipeline returns.
        last: Position of the sampling step at whose end the run is broken off; None: it runs to its own.
    """

    denoisers: Collection[str] | None = None
    wanted: Callable[[int], bool] = lambda position: True
    outputs: bool = False
    answer: Answer | None = None
    end: End | None = None
    returned: Callable[[Any], None] | None = None
    last: int | None = None


class _Enough(BaseException):
    """The last sampling step that is looked at is over; no error, so that nobody takes it for one."""


def run_once(
    pipeline: Any, arguments: Mapping[str, Any], generators: Sequence[torch.Generator], watch: Watch
) -> list[SamplingStep]:
    """Run a pipeline and return its sampling steps, on whatever device it is.

    Args:
        pipeline: Left as it was.
        arguments: Of its call, without generators.
        generators: One for each sample that the arguments ask for.
        watch: What is looked at.

    Raises:
        PruningError: If the pipeline fails, or called none of its models.
    """
    given, notes = dict(arguments), _Notes(watch)
    if "generator" in call_parameters(type(pipeline)):
        given["generator"] = generators[0] if len(generators) == 1 else list(generators)
    kept, said = (
        as_it_was(pipeline, generators[0].initial_seed()),
        failing(type(pipeline).__name__, arguments),
    )
    with torch.no_grad(), kept, notes.taken(pipeline), contextlib.suppress(_Enough), said:
        result = pipeline(**given)
        if watch.returned is not None:
            watch.returned(as_tuple(result)[0][0])
    return notes.steps()


class _Notes:
    """The calls of denoisers and the steps of schedulers of one run, in their order.

    Args:
        watch: What is looked at.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._events: list[Call | Update] = []
        self._position, self._slot, self._ended = -1, 0, True

    @contextlib.contextmanager
    def taken(self, pipeline: Any) -> Iterator[None]:
        """Take notes of what the pipeline does meanwhile."""
        watch = self._watch
        with contextlib.ExitStack() as stack:
            for name, module in modules_of(pipeline).items():
                if watch.denoisers is not None and name not in watch.denoisers:
                    continue
                asked = module.register_forward_pre_hook(partial(self._asked, name), with_kwargs=True)
                stack.callback(asked.remove)
                if watch.outputs:
                    stack.callback(module.register_forward_hook(self._answered).remove)
                if watch.answer is not None:
                    stack.enter_context(_standing_in(module, watch.answer, self))
            for kind in {type(part) for part in schedulers_of(pipeline).values()}:
                stack.enter_context(self._stepped(kind))
            yield

    def steps(self) -> list[SamplingStep]:
        """Return the calls of the denoisers and what follows from each of them."""
        names = self._watch.denoisers
        names = _between_updates(self._events) if names is None else names
        has_updates = any(isinstance(event, Update) for event in self._events)
        steps: list[SamplingStep] = []
        for event in self._events:
            if isinstance(event, Update):
                if steps:
                    steps[-1].updates.append(event)
            elif event.denoiser in names:
                if not steps or steps[-1].updates or not has_updates:
                    steps.append(SamplingStep())
                steps[-1].calls.append(event)
        return steps

    def _asked(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._position, self._ended = self._position + self._ended, False
        if self._watch.last is not None and self._position > self._watch.last:
            raise _Enough
        kept = self._watch.wanted(self._position) or self._watch.answer is not None
        self._events.append(Call(name, copied(arguments_of_call(module, args, kwargs)) if kept else None))

    def _answered(self, module: nn.Module, args: Any, output: Any) -> None:
        _, call = self.now()
        found, call.form = as_tuple(output)
        call.output = copied(found)

    def now(self) -> tuple[int, Call]:
        """Return the position of the sampling step, and the call that is being answered."""
        last = next(event for event in reversed(self._events) if isinstance(event, Call))
        return self._position, last

    @contextlib.contextmanager
    def _stepped(self, kind: Any) -> Iterator[None]:
        """Note each step of a class of schedulers; on the class, for pipelines copy their schedulers."""
        step, own = kind.step, "step" in vars(kind)
        signature = inspect.signature(step)
        has_outputs = self._watch.outputs or self._watch.answer is not None

        def watched(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind_partial(scheduler, *args, **kwargs).arguments
            seen = Update(scheduler, copied(given.get("timestep")), copied(given.get("sample")))
            if has_outputs:
                seen.model_output = copied(given.get("model_output"))
            self._slot, self._ended = (self._slot + 1 if self._ended else 0), True
            self._events.append(seen)
            result = self._ending(step(scheduler, *args, **kwargs))
            first = result[0] if isinstance(result, (tuple, list)) else getattr(result, "prev_sample", None)
            seen.result = copied(first)
            return result

        watched.__signature__ = signature  # type: ignore[attr-defined]  # pipelines look for eta and generator in it
        kind.step = watched
        try:
            yield
        finally:
            if own:
                kind.step = step
            else:
                del kind.step

    def _ending(self, result: Any) -> Any:
        """Return what the pipeline goes on with after a step of the scheduler."""
        if self._watch.end is None:
            return result
        if isinstance(result, (tuple, list)):
            return (self._watch.end(self._position, self._slot, result[0]), *result[1:])
        result.prev_sample = self._watch.end(self._position, self._slot, result.prev_sample)
        return result


@contextlib.contextmanager
def _standing_in(module: nn.Module, answer: Answer, notes: _Notes) -> Iterator[None]:
    """Let a module answer without running, on its device; where `answer` gives None, it runs."""
    before = {name: vars(module)[name] for name in ("forward",) if name in vars(module)}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    run = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = answer(*notes.now())
        if given is None:
            return run(*args, **kwargs)
        values, form = as_tuple(given)
        return form(on_device(values, device))

    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(before)


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

"""What one run of one sample, one of two and some rehearsals tell of a pipeline: its batch, and what answers mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.noise import PREDICTIONS, prediction_type
from pruning.errors import PruningError, named
from pruning.models.outputs import with_tuple
from pruning.models.pipelines import modules_of, schedulers_of
from pruning.models.running import device_of
from pruning.recording.axes import EACH, Axes, compared, form_of, guessed, joined
from pruning.recording.cutting import rows_of_call
from pruning.recording.format import Denoiser
from pruning.recording.oracle import BOUNDARY, check
from pruning.recording.rehearsing import Learned, rehearsal
from pruning.recording.runs import Runs
from pruning.recording.targets import Target
from pruning.recording.tensors import Tensors, check_numbers
from pruning.recording.trees import Path, copied, encoded, leaves, mapped, on_device, original, words
from pruning.recording.watching import Answer, Call, SamplingStep, Watch, as_tuple

logger = logging.getLogger(__name__)

JOINED, JOINED_ROUNDED = 1e-3, 0.03
"""Relative distance at which a call of two rows answers as two calls, in float32 and in shorter types."""

REPLAYED, REPLAYED_ROUNDED = 1e-5, 2e-3
"""Relative distance at which a call answers as it did in the pipeline, in float32 and in shorter types."""


@dataclass(frozen=True)
class Lesson:
    """What was learned of a pipeline.

    Attributes:
        denoisers: How each component is called, by name.
        target: What the answers should be, None where that is not proven.
        steps: Sampling steps of a run.
        learned: What one run showed.
        other: The sampling steps of the last sample, for what it takes on disk.
    """

    denoisers: Mapping[str, Denoiser]
    target: Target | None
    steps: int
    learned: Learned
    other: Sequence[SamplingStep]


def learn(runs: Runs) -> Lesson:
    """Learn what the batch of each denoiser is and what its answers mean.

    Raises:
        PruningError: If the pipeline refuses its arguments, or no model runs between the steps of the scheduler.
    """
    steps = runs.run(0, Watch(outputs=True, answer=_Repeated()))
    if not steps:
        raise PruningError(
            f"{runs.name}: no model ran before a step of its scheduler, so there is nothing to record"
        )
    last = {call.denoiser: call for step in steps for call in step.calls}
    two = _run_of_two(runs, set(last))
    sample = next((update.sample for step in steps for update in step.updates), None)
    inputs, outputs = dict[str, Axes](), dict[str, Axes]()
    for name, call in last.items():
        # All calls are looked at: some pipelines encode one negative prompt, however many samples are asked for.
        pairs = list(zip(_calls(steps, name), _calls(two, name), strict=False))
        inputs[name] = dict(chain.from_iterable(compared(a.arguments, b.arguments) for a, b in pairs))
        outputs[name] = dict(chain.from_iterable(compared(a.output, b.output) for a, b in pairs))
        if not inputs[name]:
            inputs[name], outputs[name] = guessed(call.arguments, sample), guessed(call.output, sample)
    learned = Learned(steps, inputs, outputs)
    for name in last:
        _check_replay(runs, name, learned)
    other = _other(runs, learned)
    target = _target(runs, learned)
    denoisers = {}
    for name in last:
        module = modules_of(runs.pipeline)[name]
        axes, alone = _proven(runs, name, learned, other)
        denoisers[name] = Denoiser(type(original(module)).__name__, axes, outputs[name], alone)
    return Lesson(denoisers, target, len(steps), learned, other)


class _Repeated:
    """Lets each component run once for each form of its arguments; from the second sampling step on it repeats itself.

    What is learned of a run are forms and places, not values, and a large denoiser takes minutes a call.
    """

    def __init__(self) -> None:
        self._first: dict[str, Call] = {}

    def __call__(self, position: int, call: Call) -> Any:
        """Return the answer that a call like this one had, None where there was none."""
        form = repr((call.denoiser, mapped(call.arguments, _form)))
        first = self._first.setdefault(form, call)
        return None if first is call or position == 0 else first.form(first.output)


def _form(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf)


def _check_replay(runs: Runs, name: str, learned: Learned) -> None:
    """Raise PruningError unless a denoiser answers outside of its pipeline as it did inside."""
    call, module = _calls(learned.steps, name)[0], modules_of(runs.pipeline)[name]
    for path, leaf in (*leaves(call.arguments), *leaves(call.output)):
        if isinstance(leaf, Tensor):
            with named(f"denoiser {name!r}: {words(path)}", PruningError):
                check_numbers(leaf)
    try:
        alone = _Alike(module, learned.outputs[name]).answer([call.arguments], {})
    except Exception as error:  # each model has its own checks
        raise PruningError(
            f"{runs.name} cannot be recorded: {name!r} cannot be asked by itself, by the names of its forward, what it "
            f"was asked there ({type(error).__name__}: {error})"
        ) from error
    wanted = dict(leaves(call.output))
    if not all(_same(leaf, wanted.get(path), REPLAYED, REPLAYED_ROUNDED) for path, leaf in leaves(alone)):
        raise PruningError(
            f"{runs.name} cannot be recorded: {name!r} answers otherwise there than by itself, for the same "
            "arguments; the pipeline changes it during its call (attention processors, hooks, a cache)"
        )


def _calls(steps: Sequence[SamplingStep], name: str) -> list[Call]:
    """Return the calls of one denoiser, in order."""
    return [call for step in steps for call in step.calls if call.denoiser == name]


def _run_of_two(runs: Runs, names: set[str]) -> list[SamplingStep]:
    """Return the sampling steps of a run of two samples, empty where the pipeline makes no two."""
    for asked in _doubled(runs.inputs[0], runs.shared, runs.parameters):
        try:
            steps = runs.ask(asked, [0, 0], Watch(names, outputs=True, answer=_Repeated()))
        except Exception as error:  # each pipeline refuses two samples in its own way
            logger.debug("%s makes no two samples: %s", runs.name, error)
            continue
        if steps:
            return steps
    return []


def _doubled(
    one: Mapping[str, Any], shared: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield arguments that ask for two samples of one input, in the ways that pipelines have."""
    twice = {name: _twice(value) for name, value in one.items()}
    if "batch_size" in parameters:
        twice["batch_size"] = 2
    texts = {
        name: _twice(value) for name, value in shared.items() if "prompt" in name and isinstance(value, str)
    }
    if twice:
        yield {**shared, **twice, **texts}
        if texts:
            yield {**shared, **twice}
    for name in parameters:
        if name.startswith("num_") and name.endswith("_per_prompt"):
            yield {**shared, **one, name: 2}


def _twice(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value])
    return list(value) * 2 if isinstance(value, (list, tuple)) else [value, value]


def _other(runs: Runs, learned: Learned) -> Sequence[SamplingStep]:
    """Return the sampling steps of the last sample with answers of the first, which cost no call of a denoiser."""
    try:
        return runs.run(len(runs.inputs) - 1, Watch(learned.inputs.keys(), answer=rehearsal(learned)))
    except Exception as error:  # its answers have other shapes than those of the first
        logger.debug("%s: no rehearsal of the last sample: %s", runs.name, error)
        return learned.steps


def _target(runs: Runs, learned: Learned) -> Target | None:
    schedulers = schedulers_of(runs.pipeline).values()
    said = {
        prediction_type(s) for s in schedulers if s.config.get("prediction_type", "epsilon") in PREDICTIONS
    }
    if any(hasattr(scheduler, BOUNDARY) for scheduler in schedulers):
        said.add("sample")

    def rehearse(answer: Answer) -> list[SamplingStep]:
        return runs.run(0, Watch(learned.inputs.keys(), outputs=True, answer=answer))

    try:
        return check(learned, rehearse, said)
    except Exception as error:  # what cannot be answered for cannot be proven
        logger.warning("%s: what the answers of its denoiser mean is not known: %s", runs.name, error)
        return None


def _proven(runs: Runs, name: str, learned: Learned, other: Sequence[SamplingStep]) -> tuple[Axes, bool]:
    """Return the axes with which a call of two rows answers as two calls, and whether there are none.

    Numbers that change from step to step and that all rows share are tried as one for every row, too.
    """
    axes, out_axes = learned.inputs[name], learned.outputs[name]
    if not axes:
        return axes, True
    ours, theirs = (_rows(name, steps, axes) for steps in (learned.steps, other))
    alike = _Alike(modules_of(runs.pipeline)[name], out_axes)
    each = dict.fromkeys(changing_numbers(ours[0], ours[-1], axes), EACH)
    if each and alike(ours[0], ours[-1], {**axes, **each}) is True:
        axes = {**axes, **each}
    partners = [ours[-1], *[row for row in theirs[:1] if row is not ours[0]]]
    return axes, any(alike(ours[0], partner, axes) is False for partner in partners)


def _rows(name: str, steps: Sequence[SamplingStep], axes: Axes) -> list[Any]:
    return [row for call in _calls(steps, name) for row in rows_of_call(call, axes)]


def changing_numbers(one: Any, two: Any, axes: Axes) -> list[Path]:
    """Return the paths of single numbers that two rows do not share and that no batch axis holds."""
    values = dict(leaves(two))
    return [
        path
        for path, leaf in leaves(one)
        if path not in axes and path in values and _is_number(leaf) and _is_number(values[path])
        if float(leaf) != float(values[path])
    ]


def _is_number(leaf: Any) -> bool:
    is_single = isinstance(leaf, Tensor) and leaf.numel() == 1 and leaf.dtype != torch.bool
    return is_single or (isinstance(leaf, (int, float)) and not isinstance(leaf, bool))


@dataclass(frozen=True)
class _Alike:
    """Tells whether two rows in one call get the answers that they get alone; None where they cannot share one."""

    model: nn.Module
    outputs: Axes

    def __call__(self, one: Any, two: Any, axes: Axes) -> bool | None:
        tensors = Tensors()
        place = type(self.model).__name__
        forms = [form_of(encoded(row, tensors.keep, place), axes) for row in (one, two)]
        if forms[0] != forms[1]:
            return None
        try:
            alone = joined([self.answer([row], axes) for row in (one, two)], self.outputs)
            both = self.answer([one, two], axes)
        except Exception as error:  # whatever a model has against a call of two rows, it then cannot have one
            logger.debug("two rows cannot share a call of %s: %s", type(self.model).__name__, error)
            return False
        found, wanted = dict(leaves(both)), dict(leaves(alone))
        return found.keys() == wanted.keys() and all(
            _same(found[path], wanted[path], JOINED, JOINED_ROUNDED) for path in wanted
        )

    @torch.no_grad()
    def answer(self, rows: list[Any], axes: Axes) -> Any:
        call = on_device(joined(rows, axes), device_of(self.model))
        return copied(as_tuple(self.model(**with_tuple(original(self.model), call)))[0])


def _same(one: Any, other: Any, exact: float, rounded: float) -> bool:
    """Tell whether two leaves are equal to `exact`, relative; to `rounded` in types shorter than float32."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    allowed = exact if one.dtype in (torch.float32, torch.float64) else rounded
    is_near = one.shape == other.shape and float((one.double() - other.double()).norm())
    return is_near is not False and is_near <= allowed * float(other.double().norm())

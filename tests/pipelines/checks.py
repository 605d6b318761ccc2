"""What must hold for every recorded pipeline, and what is said of each: replay, rows joined anew, latents made anew."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.models.outputs import tensors_in
from pruning.recording import RecordedCalls, Row, record
from pruning.recording.axes import cut
from pruning.recording.batches import renoised
from pruning.recording.runs import Runs
from pruning.recording.trees import copied, leaves
from pruning.recording.watching import Watch
from tests.pipelines.base import TinyPipeline

SHORT, LONG = (0, 2), (0, 1)
"""Samples whose prompts have as many tokens, and samples whose prompts have not."""


@dataclass(frozen=True)
class Summary:
    """What the page of pipelines says of one.

    Attributes:
        pipeline: Its class.
        kind: What a sample is told.
        denoisers: What is recorded: class of the component, by name.
        guidance: How a step asks for guidance.
        shares: Which rows can share a call.
        answers: What the denoiser's answers stand for, None where that is not proven.
        noised: Its latents can be made anew of the end and fresh noise.
        exact: A call read from disk is answered bit for bit as in the pipeline.
        why: Why not; None where all is possible.
    """

    pipeline: str
    kind: str
    denoisers: dict[str, str]
    guidance: str
    shares: str
    answers: str | None
    noised: bool
    exact: bool
    why: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Recorded:
    """A recording of a tiny pipeline, and the pipeline.

    Attributes:
        pipeline: Which.
        calls: Of its three samples.
        runs: Ask it the same again.
    """

    pipeline: DiffusionPipeline
    calls: RecordedCalls
    runs: Runs

    def answer(self, rows: Sequence[Row]) -> tuple[Any, ...]:
        """Return what the denoiser says to rows in one call, read from disk."""
        with torch.no_grad():
            return as_tuple(getattr(self.pipeline, rows[0].denoiser)(**self.calls.call(rows)))

    def part(self, answer: tuple[Any, ...], rows: Sequence[Row], index: int) -> tuple[Any, ...]:
        """Return what was said to one of the rows of a call."""
        return cut(answer, self.calls.head.denoisers[rows[0].denoiser].outputs, len(rows), index)


def recorded(tiny: TinyPipeline, folder: Path) -> Recorded:
    """Record all three samples of a tiny pipeline, every step."""
    pipeline = tiny.build()
    calls = record(pipeline, tiny.inputs, folder, call=tiny.call, points=None)
    return Recorded(pipeline, calls, Runs(pipeline, tiny.inputs, tiny.call, 0))


def calls_of(calls: RecordedCalls, sample: int) -> list[list[Row]]:
    """Return the rows of each call of a sample's run, in the order of the calls."""
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in calls.rows:
        if row.sample == sample:
            found[row.step, row.call].append(row)
    return [found[place] for place in sorted(found)]


def as_tuple(output: Any) -> tuple[Any, ...]:
    """Return what a denoiser returned as a tuple."""
    if isinstance(output, dict):
        return tuple(output.values())
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


def own_answers(made: Recorded, sample: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return what the denoisers said within the pipeline, call by call, seen by hooks of our own."""
    seen: list[tuple[str, tuple[Any, ...]]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.append((name, as_tuple(copied(output))))

        return hook

    names = made.calls.denoisers
    hooks = [getattr(made.pipeline, name).register_forward_hook(note(name)) for name in names]
    made.runs.run(sample, Watch(names))
    for hook in hooks:
        hook.remove()
    return seen[-len(calls_of(made.calls, sample)) :]  # one that always decodes runs twice the first time


def distance(found: Any, wanted: Any) -> float:
    """Return the largest difference, relative to the largest entry; infinite where the shapes differ."""
    pairs = list(zip(tensors_in(found), tensors_in(wanted), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12) for a, b in pairs)


def replayed(made: Recorded, sample: int) -> Iterator[tuple[float, float]]:
    """Yield how far what is read from disk is from what was said in the pipeline: a whole call, and its rows alone.

    Rows alone are asked at the first and the last step only, and are otherwise said to be as near as the whole.
    """
    rows, answers = calls_of(made.calls, sample), own_answers(made, sample)
    assert [group[0].denoiser for group in rows] == [name for name, _ in answers]
    for group, (_, wanted) in zip(rows, answers, strict=True):
        whole = distance(made.answer(group), wanted)
        is_asked = len(group) > 1 and at_an_end(made, group[0])
        alone = [
            distance(made.answer([row]), made.part(wanted, group, index))
            for index, row in enumerate(group)
            if is_asked
        ]
        yield whole, max(alone, default=whole)


def at_an_end(made: Recorded, row: Row) -> bool:
    """Tell whether a row is of the first or the last step."""
    return row.step in (0, made.calls.steps - 1)


def joined_anew(made: Recorded, said: Summary) -> Iterator[float]:
    """Yield how far rows of two samples in one call are from the same rows alone, at the first and the last step."""
    samples = LONG if said.shares.startswith("any") else SHORT
    some = zip(*(calls_of(made.calls, sample) for sample in samples), strict=True)
    for rows in (rows for groups in some for rows in zip(*groups, strict=True)):
        if at_an_end(made, rows[0]) and len({made.calls.signature(row) for row in rows}) == 1:
            together = made.answer(rows)
            for index, row in enumerate(rows):
                yield distance(made.part(together, rows, index), made.answer([row]))


def noised_anew(made: Recorded) -> Iterator[float]:
    """Yield how far a row's arguments are from those that are made of its sample's end and the noise that is in it."""
    for row in made.calls.rows:
        own, noise = made.calls.arguments(row), {}
        assert row.levels is not None
        for place in row.places:
            x0, level = made.calls.end(row, place.slot), row.levels[place.slot]
            noise[place.slot] = (place.get(own, tuple(x0.shape)) - level.signal * x0) / max(level.noise, 1e-6)
        anew, _ = renoised(made.calls, row, 0, noise)
        pairs = [(leaf, at) for (_, leaf), (_, at) in zip(leaves(anew), leaves(own), strict=True)]
        tensors = [(a, b) for a, b in pairs if isinstance(b, Tensor) and b.is_floating_point()]
        yield distance([a for a, _ in tensors], [b for _, b in tensors])


def refused(tiny: TinyPipeline, error: PruningError) -> Summary:
    """Return what is said of a pipeline that cannot be recorded."""
    why = str(error).partition("cannot be recorded: ")[2]
    return Summary(type(tiny.build()).__name__, tiny.kind, {}, "", "", None, False, False, why)


def summary(tiny: TinyPipeline, made: Recorded, exact: bool) -> Summary:
    """Return what is said of a recorded pipeline; `exact` is whether it replays bit for bit."""
    head = made.calls.head
    return Summary(
        type(made.pipeline).__name__,
        tiny.kind,
        made.calls.denoisers,
        guidance(made),
        shares(made),
        None if head.target is None else head.target.kind,
        head.target is not None,
        exact,
        None if head.target is not None else why_not_noised(made.calls),
    )


def guidance(made: Recorded) -> str:
    """Return how many networks, calls and rows of one a step has at most, and whether guidance is also a number."""
    counts: dict[tuple[int, str], list[int]] = defaultdict(list)
    for group in calls_of(made.calls, 0):
        counts[group[0].step, group[0].denoiser].append(len(group))
    calls, rows = max(len(found) for found in counts.values()), max(max(found) for found in counts.values())
    networks = max(Counter(step for step, _ in counts).values())
    forms = [f"{networks} networks"] * (networks > 1) + [f"{calls} calls"] * (calls > 1)
    forms += [f"{rows} rows"] * (rows > 1)
    given = made.calls.arguments(made.calls.rows[0])
    numbers = [given.get(name) for name in ("guidance", "timestep_cond")]
    forms += ["a number"] * any(isinstance(number, Tensor) for number in numbers)
    return ", ".join(forms) or "none"


def shares(made: Recorded) -> str:
    """Return which rows can share a call: of any prompts or of equal length, of any step or of one."""
    if all(denoiser.alone for denoiser in made.calls.head.denoisers.values()):
        return "none"

    def alike(samples: Sequence[int], step: int) -> bool:
        rows = [[row for row in made.calls.rows if row.sample == sample] for sample in samples]
        first = rows[0][0]
        others = [
            r for r in rows[1] if (r.call, r.branch, r.denoiser) == (first.call, first.branch, first.denoiser)
        ]
        other = next((r for r in others if r.step == first.step + step), None)
        return other is not None and made.calls.signature(first) == made.calls.signature(other)

    if not alike(SHORT, 0):
        return "of one sample"
    length = "any" if alike(LONG, 0) else "of one length"
    return length if alike(SHORT, 1) else f"{length}, of one step"


def why_not_noised(calls: RecordedCalls) -> str:
    """Return why the latents of a recording cannot be made anew."""
    if any(row.levels is None for row in calls.rows):
        return "the scheduler does not say how much noise it adds, or not one amount for the whole sample"
    if any(not row.places for row in calls.rows):
        return "the scheduler's sample is not in what the denoiser is given, or only a part of it"
    return (
        "with the right answers in its denoiser's place the pipeline does not end at what they point to: it mixes in "
        "what is given, or several networks answer"
    )

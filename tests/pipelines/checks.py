"""What must hold for every recorded pipeline: replay, rows joined anew, latents made anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from pruning.models.outputs import tensors_in
from pruning.recording import RecordedCalls, Row, record
from pruning.recording.axes import cut
from pruning.recording.batches import renoised
from pruning.recording.runs import Runs
from pruning.recording.trees import copied, leaves
from tests.pipelines.base import TinyPipeline


@dataclass(frozen=True)
class Recorded:
    """A recording of a tiny pipeline, and the pipeline.

    Attributes:
        pipeline: Which.
        calls: Of its three samples, all steps.
        runs: Ask it the same again.
    """

    pipeline: DiffusionPipeline
    calls: RecordedCalls
    runs: Runs

    def answer(self, rows: Sequence[Row], arguments: Sequence[Any] | None = None) -> tuple[Tensor, ...]:
        """Return what the denoiser says to rows in one call, read from disk."""
        model = getattr(self.pipeline, rows[0].denoiser)
        with torch.no_grad():
            return tuple(tensors_in(model(**self.calls.call(rows, arguments=arguments))))


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


def own_answers(made: Recorded, sample: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return what the denoisers said within the pipeline, call by call, seen by hooks of our own."""
    seen: list[tuple[str, tuple[Any, ...]]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.append((name, as_tuple(copied(output))))

        return hook

    names = made.calls.denoisers
    hooks = [getattr(made.pipeline, name).register_forward_hook(note(name)) for name in names]
    made.runs.run(sample, denoisers=names)
    for hook in hooks:
        hook.remove()
    return seen[
        -len(calls_of(made.calls, sample)) :
    ]  # a pipeline that always decodes runs twice the first time


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest entry; infinite where the shapes differ."""
    if [part.shape for part in found] != [part.shape for part in wanted]:
        return float("inf")
    return max(
        float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12)
        for a, b in zip(found, wanted, strict=True)
    )


def replayed(made: Recorded, sample: int) -> Iterator[float]:
    """Yield for each call of a sample how far its rows, read from disk, are from what was said in the pipeline."""
    rows, answers = calls_of(made.calls, sample), own_answers(made, sample)
    assert [group[0].denoiser for group in rows] == [name for name, _ in answers]
    for group, (_, wanted) in zip(rows, answers, strict=True):
        yield distance(made.answer(group), list(tensors_in(wanted)))


def alone(made: Recorded, sample: int) -> Iterator[float]:
    """Yield for each row of a sample how far it is, by itself, from what was said to it in the pipeline."""
    for group, (denoiser, wanted) in zip(
        calls_of(made.calls, sample), own_answers(made, sample), strict=True
    ):
        outputs = made.calls.head.denoisers[denoiser].outputs
        for index, row in enumerate(group):
            part = cut(wanted, outputs, len(group), index)
            yield distance(made.answer([row]), tuple(tensors_in(part)))


def joined_anew(made: Recorded) -> Iterator[float]:
    """Yield how far rows of two samples in one call are from the same rows alone, once for each denoiser and step."""
    alike: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in made.calls.rows:
        alike[row.denoiser, made.calls.signature(row)].append(row)
    for (denoiser, _), rows in alike.items():
        pairs = {(row.step, row.sample): row for row in rows}
        outputs = made.calls.head.denoisers[denoiser].outputs
        for step in sorted({step for step, _ in pairs}):
            some = [row for (at, _), row in sorted(pairs.items()) if at == step]
            if len(some) < 2:
                continue
            model = getattr(made.pipeline, denoiser)
            with torch.no_grad():
                both = as_tuple(model(**made.calls.call(some)))
            for index, row in enumerate(some):
                alone = made.answer([row])
                yield distance(tuple(tensors_in(cut(both, outputs, len(some), index))), alone)


def as_tuple(output: Any) -> tuple[Any, ...]:
    """Return what a denoiser returned as a tuple."""
    if isinstance(output, dict):
        return tuple(output.values())
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


def noised_anew(made: Recorded) -> Iterator[float]:
    """Yield how far a row's arguments are from those that are made of its sample's end and the noise that is in it."""
    for row in made.calls.rows:
        own, noise = made.calls.arguments(row), {}
        assert row.levels is not None
        for place in row.places:
            x0, level = made.calls.end(row, place.slot), row.levels[place.slot]
            x = place.get(own, tuple(x0.shape))
            noise[place.slot] = (x - level.signal * x0) / max(level.noise, 1e-6)
        anew, _ = renoised(made.calls, row, 0, noise)
        pairs = [(leaf, at) for (_, leaf), (_, at) in zip(leaves(anew), leaves(own), strict=True)]
        tensors = [(a, b) for a, b in pairs if isinstance(b, Tensor) and b.is_floating_point()]
        yield distance([a for a, _ in tensors], [b for _, b in tensors])

"""The oracle check: does the pipeline end where a model that knows the answer points? It costs no call of a network.

In the denoiser's place stands the exact answer for data that consist of one known sample x0. If the pipeline then ends
at x0, the scheduler's law and what is taken for the model's target fit what the pipeline makes of its answers.

What it makes of them is measured, not read from a configuration: with noise for an answer, the same in every branch of
guidance, the scheduler is handed ``alpha * F + beta * x``, F the raw answer (some pipelines turn its sign, others mix
in the sample).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.data.seeding import sample_generator
from pruning.recording.axes import Axes, count_rows, cut, joined
from pruning.recording.levels import Level, level_at
from pruning.recording.placements import Placement, find
from pruning.recording.rehearsing import Learned, Rehearse, Stand
from pruning.recording.targets import KINDS, Kind, Map, Target, raw_answer
from pruning.recording.trees import Path, leaves, mapped
from pruning.recording.watching import Call, SamplingStep, Update

logger = logging.getLogger(__name__)

ORACLE = 48
"""Stream of `sample_generator` that draws what is answered."""

AT_END = 0.05
"""How far the end may be from x0, root mean square of both of about 1."""

ON_THE_WAY = 0.2
"""How far the share of x0 may be from what the law says, beside two standard errors, for noise hides it in few entries:
DDIM with evenly spaced timesteps strays by 0.17 in four steps, Flux with parts of an image kept by 0.35."""

BOUNDARY = "get_scalings_for_boundary_condition"
"""Method of the schedulers of consistency models, which make x0 of the model output."""

SCALED = 0.02
"""How far, relative, two scales may be from each other."""

SURELY = 0.02
"""What leaves no doubt."""


def check(learned: Learned, rehearse: Rehearse, said: Collection[Kind]) -> Target | None:
    """Return the target that the pipeline proves to be right, None if it proves none.

    Args:
        learned: What a true run showed.
        rehearse: Runs the pipeline with another answer.
        said: What the scheduler says that answers stand for; anything else must be proven beyond doubt.
    """
    law, maps = _law(learned), _maps(learned, rehearse)
    if law is None or maps is None or not _is_scaled_by(law):
        return None
    best, least = None, float("inf")
    for kind in sorted(KINDS, key=lambda kind: kind not in said):
        target = Target(kind, maps)
        walked = _walk(learned, law, rehearse, target)
        if walked is None:
            continue
        off, at_least = walked
        fits = at_least < ON_THE_WAY if kind in said else off < SURELY
        if fits and off < least:
            best, least = target, off
        if least < SURELY:
            break
    return best


Law = list[tuple[list[Level], list[Placement]]]
"""By position of the sampling step, then by slot: level of the scheduler's sample, and where it is in the calls."""


def _law(learned: Learned) -> Law | None:
    """Return what the scheduler says of the true run's samples, and where they were; None where that is not known."""
    found: Law = []
    for step in learned.steps:
        levels = [level_at(update.scheduler, update.t) for update in step.updates]
        known, places = [level for level in levels if level is not None], _places_of_samples(learned, step)
        if len(known) < len(levels) or len(places) < len(levels):
            logger.debug(
                "oracle: the scheduler does not say how much noise it adds, or the latents were not found"
            )
            return None
        found.append((known, places))
    return found


def _is_scaled_by(law: Law) -> bool:
    """Tell whether samples that are said to be as noisy are shown to the model at one scale.

    A sampler that halves its steps may say the noise of the whole steps alone (KDPM2).
    """
    shown: dict[tuple[int, Level], float] = {}
    for levels, places in law:
        for slot, (level, place) in enumerate(zip(levels, places, strict=False)):
            scale = shown.setdefault((slot, level), place.scale)
            if abs(place.scale / scale - 1) > SCALED:
                logger.debug("oracle: the scheduler says of different samples that they are as noisy")
                return False
    return True


def _filled(template: Any, axes: Axes, row_of: Callable[[Any], Any]) -> Any:
    """Return an output whose rows all are what `row_of` makes of the template's first row."""
    rows = count_rows(template, axes)
    row = row_of(cut(template, axes, rows, 0))
    return joined([row] * rows, axes)


def _noise_like(template: Any) -> Any:
    """Return standard normal noise in the form of a row of an answer, the same at every call."""

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        generator = sample_generator(0, leaf.numel() % 2**31, ORACLE)
        return torch.randn(leaf.shape, generator=generator).to(leaf)

    return mapped(template, draw)


def _maps(learned: Learned, rehearse: Rehearse) -> tuple[tuple[Map, ...], ...] | None:
    """Answer with noise and return what the pipeline makes of it, by step and slot; None where it is no such map."""
    noise: dict[int, Any] = {}

    def answer(position: int, call: Call, true: Call) -> Any:
        axes = learned.outputs[true.denoiser]
        filled = _filled(true.output, axes, _noise_like)
        noise[position] = cut(filled, axes, count_rows(filled, axes), 0)
        return filled

    found = []
    for position, step in enumerate(rehearse(Stand(learned.steps, answer))):
        maps = [
            _with_boundary(map_, update)
            for slot, update in enumerate(step.updates)
            if (map_ := _map(noise[position], update.model_output, update.sample, slot)) is not None
        ]
        if len(maps) < len(step.updates):
            logger.debug("oracle: what is made of the answer at step %d is no such map", position)
            return None
        found.append(tuple(maps))
    return tuple(found)


def _with_boundary(map_: Map, update: Update) -> Map:
    """Return the map to x0 where the scheduler itself makes x0 of the model output (Song et al. 2303.01469, eq. 5)."""
    scalings = getattr(update.scheduler, BOUNDARY, None)
    level = level_at(update.scheduler, update.t)
    if scalings is None or level is None:
        return map_
    skip, out = (float(factor) for factor in scalings(level.noise))
    return replace(map_, alpha=out * map_.alpha, beta=out * map_.beta + skip)


def _map(noise: Any, model_output: Any, sample: Any, slot: int) -> Map | None:
    """Return how a model output is made of an answer and the sample, least squares; None where something is left."""
    if not isinstance(model_output, Tensor) or not isinstance(sample, Tensor):
        return None
    m, x = model_output[:1], sample[:1]
    if m.ndim == x.ndim and m.shape[1] == 2 * x.shape[1] and m.shape[2:] == x.shape[2:]:
        m = m[:, : x.shape[1]]  # the scheduler takes a learned variance, too
    if m.shape != x.shape:
        return None
    for path, leaf in leaves(noise):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        for place in _places(path, leaf, m, slot):
            drawn = place.get(noise, tuple(m.shape)).double().flatten()
            pair = torch.stack([drawn, x.double().flatten()], dim=1)
            alpha, beta = torch.linalg.lstsq(pair, m.double().flatten()[:, None]).solution.flatten().tolist()
            rest = m.double().flatten() - pair @ torch.tensor([alpha, beta], dtype=torch.float64)
            if abs(alpha) > 1e-6 and float(rest.norm()) < 2e-2 * float(m.double().norm()):
                return Map(_snapped(alpha), _snapped(beta), place)
    return None


def _snapped(value: float) -> float:
    """Return a whole number where rounding alone can have made the difference."""
    return float(round(value)) if abs(value - round(value)) < 1e-5 else value


def _places(path: Path, leaf: Tensor, m: Tensor, slot: int) -> list[Placement]:
    """Return where a model output may be in a leaf of an answer: all of it, in its order or another, or a slice."""
    whole = Placement(path, slot, 1.0, tuple(range(m.ndim)))
    found = [whole] if leaf.numel() == m.numel() else []
    found += [replace(p, scale=1.0) for p in find({"": leaf}, m, slot)]
    if leaf.ndim == m.ndim and leaf.shape[1] == 2 * m.shape[1]:
        found.append(Placement(path, slot, 1.0, None, 1, 0, m.shape[1]))
    return [replace(p, path=path) for p in found]


def _walk(learned: Learned, law: Law, rehearse: Rehearse, target: Target) -> tuple[float, float] | None:
    """Let the oracle answer; return how far the run strays from the law on its way to x0, None if it ends elsewhere.

    Returns:
        The most that it was seen to stray, and the most that it strayed at least.
    """
    known = [
        _known_sample(last.result[:1], first.sample[:1])
        for first, last in zip(learned.steps[0].updates, learned.steps[-1].updates, strict=True)
    ]
    off, at_least, begun = [0.0], [0.0], dict[int, Tensor]()

    def answer(position: int, call: Call, true: Call) -> Any:
        row_call = _first_row(learned, call)

        def exact(row: Any) -> Any:
            levels, places = law[position]
            for slot, map_ in enumerate(target.maps[position]):
                level, x0 = levels[slot], known[min(slot, len(known) - 1)]
                x = places[slot].get(row_call, tuple(x0.shape))
                eps = (x - level.signal * x0) / max(level.noise, 1e-6)
                start = begun.setdefault(slot, eps)
                strayed, error = _off(x, x0, start, level)
                off.append(strayed)
                at_least.append(strayed - 2 * error)
                row = raw_answer(map_, row, KINDS[target.kind](x0, eps, level).to(x), x)
            return row

        return _filled(true.output, learned.outputs[true.denoiser], exact)

    try:
        steps = rehearse(Stand(learned.steps, answer))
    except Exception as error:  # a pipeline may fail in its own way on what it takes for an answer
        logger.debug("the oracle check of %s failed: %s", target.kind, error)
        return None
    ends = [update.result[:1] for update in steps[-1].updates if isinstance(update.result, Tensor)]
    pairs = list(zip(ends, known, strict=False))
    distance = max((_distance(end, x0) for end, x0 in pairs), default=1.0)
    if len(ends) != len(known) or not distance < AT_END:
        logger.debug("oracle: as %s it ends %.3g from x0", target.kind, distance)
        return None
    logger.debug("oracle: as %s it ends there; on the way it is off by %.3g", target.kind, max(off))
    return max(off), max(at_least)


def _off(x: Tensor, x0: Tensor, start: Tensor, level: Level) -> tuple[float, float]:
    """Return how far the share of x0 in x is from what the law says, and its standard error, relative to the size of x.

    The noise that the run began with is told apart from x0. Of the noise that was added since only the amount could be
    compared, and a sampler of a few steps may add another (DDPM with a large variance).
    """
    parts, whole = torch.stack([x0.double().flatten(), start.double().flatten()], dim=1), x.double().flatten()
    shares = torch.linalg.lstsq(parts, whole[:, None]).solution
    left = (whole[:, None] - parts @ shares).norm()
    error = left / max(whole.numel() - 2, 1) ** 0.5 / parts[:, 0].norm()
    return abs(float(shares[0]) - level.signal) / level.size, float(error) / level.size


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).square().mean().sqrt())


def _known_sample(like: Tensor, start: Tensor) -> Tensor:
    """Return x0, within [-0.9, 0.9], for some samplers clip it, and with no part of what the run starts with."""
    generator = sample_generator(1, like.numel() % 2**31, ORACLE)
    x0 = (torch.rand(like.shape, generator=generator) * 2 - 1).to(like)
    if start.shape == x0.shape:
        x0 = x0 - start * float((x0 * start).sum() / (start * start).sum())
    return x0 * (0.9 / float(x0.abs().max()))


def _first_row(learned: Learned, call: Call) -> Any:
    axes = learned.inputs[call.denoiser]
    return cut(call.arguments, axes, count_rows(call.arguments, axes), 0)


def _places_of_samples(learned: Learned, step: SamplingStep) -> list[Placement]:
    """Return where the scheduler's samples were in the calls of a step, by slot."""
    rows = [_first_row(learned, call) for call in step.calls]
    found = [
        next((place for row in rows for place in find(row, update.sample[:1], slot)), None)
        for slot, update in enumerate(step.updates)
        if isinstance(update.sample, Tensor)
    ]
    return [place for place in found if place is not None]

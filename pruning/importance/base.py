"""What a criterion is, and how groups are scored with it.

A group that several modules read is judged at each, and its score is the sum: criteria see one consumer at a time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn

from pruning.calibration import view
from pruning.errors import PruningError
from pruning.importance.moments import Weights, moment_bytes, no_rows, with_room
from pruning.registry import Registry
from pruning.settings import WEIGHTINGS
from pruning.threads import side_by_side
from pruning.types import CalibrationStats, PrunableGroup, Scores

logger = logging.getLogger(__name__)

WORKING = 1.5  # times the largest moment in float64 is what scoring a group needs

ScoreFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Criterion:
    """A rule that gives every unit of a group one score; low goes first.

    Attributes:
        name: Its name in recipes.
        fn: ``(group, weights, stats, generator) -> (num_units,) float64``; the group has one consumer, and ``stats``
            holds what is known of both under the group's name. Groups are scored in several threads.
        needs: Statistics that `fn` reads.
        instead: Criterion that scores the groups of a kind in this one's place, by kind.
        base: Criterion that `fn` calls on whatever statistics it is given; its needs count as ours.
        weighting: Weighting of the rows unless the caller says otherwise, one of `pruning.settings.WEIGHTINGS`.
        only: The kind that `fn` scores; empty for all.
        whole: It judges a group as a whole, whatever reads it; else each consumer, and scores are summed.
        on_device: `fn` takes the device of its linear algebra as a fifth argument.
    """

    name: str
    fn: ScoreFn
    needs: frozenset[str]
    instead: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    weighting: str = "off"
    only: str = ""
    whole: bool = False
    on_device: bool = False


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str,
    *,
    needs: Collection[str] = (),
    blocks: str = "block_change",
    experts: str = "expert_energy",
    instead: Mapping[str, str] | None = None,
    base: str | None = None,
    weighting: str = "off",
    only: str = "",
    whole: bool = False,
    on_device: bool = False,
) -> Callable[[ScoreFn], ScoreFn]:
    """Return a decorator that registers a function as a criterion and leaves it unchanged.

    Arguments are those of `Criterion`; `blocks` and `experts` are the criteria that score groups of these kinds in its
    place, or `name` if the function can, as it can those of the kind `only`.
    """
    whole_units = {"blocks": blocks, "experts": experts, only: name}
    routes = {**(instead or {}), **{kind: other for kind, other in whole_units.items() if other != name}}

    def decorate(fn: ScoreFn) -> ScoreFn:
        entry = Criterion(name, fn, frozenset(needs), routes, base, weighting, only, whole, on_device)
        CRITERIA.register(name)(entry)
        return fn

    return decorate


def needs_of(criterion: str, groups: Iterable[PrunableGroup]) -> set[str]:
    """Return the names of the statistics that `criterion` reads to score `groups`, over all their kinds.

    Raises:
        PruningError: For an unknown criterion.
    """
    needs: set[str] = set()
    for kind in {group.kind for group in groups}:
        entry: Criterion | None = _criterion_for(criterion, kind)
        while entry is not None:
            needs |= entry.needs
            entry = None if entry.base is None else _criterion_for(entry.base, kind)
    return needs


def check_kinds(criterion: str, groups: Iterable[PrunableGroup]) -> None:
    """Raise PruningError for a group of a kind that `criterion` does not score."""
    for group in groups:
        entry = _criterion_for(criterion, group.kind)
        if entry.only not in ("", group.kind):
            raise PruningError(
                f"criterion {criterion!r} scores groups of kind {entry.only!r} only, not {group.name!r} of kind "
                f"{group.kind!r}; restrict the kinds to {entry.only} or choose another criterion"
            )


def score(
    weights: Weights | nn.Module,
    groups: Iterable[PrunableGroup],
    stats: CalibrationStats | None = None,
    *,
    criterion: str,
    weighting: str | None = None,
    seed: int = 0,
    memory: int | None = None,
    device: str | torch.device = "cpu",
    known: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every unit of every group; low goes first.

    Groups are scored side by side, each in one of torch's threads: how many at once changes nothing but the time.

    Args:
        weights: The model, or parameters by path, any float dtype; only those of `groups` are read, one group's when
            it is scored.
        groups: What may be removed.
        stats: Sums of a calibration run with at least `needs_of(criterion, groups)`; None for criteria that need
            no data.
        criterion: A name in `CRITERIA`.
        weighting: Rows that are judged, one of `pruning.settings.WEIGHTINGS`; None for the criterion's own default.
            Groups without self or joint attention are scored on plain rows.
        seed: Seed of the random draws; each group draws from a generator of its own, so that its scores do not
            depend on the other groups.
        memory: Bytes that may be used beyond what `weights` and `stats` hold; a group that needs more is scored alone.
            None for most of what is free.
        device: Where the linear algebra of `obs` and what builds on it is done, as far as a group's matrices fit
            there; groups then follow one another. Scores agree to rounding.
        known: Scores of groups by name, as of a killed run with the same arguments: groups in it are not scored again,
            others are added as soon as they are (`pruning.on_demand.TensorFiles` keeps them in a folder).
        progress: Told how many groups are scored, and of how many.

    Returns:
        Checked scores; `meta` says criterion, weighting, seed and how many groups have statistics of that weighting.

    Raises:
        PruningError: For an unknown criterion or weighting, a weighting that was not calibrated, a missing statistic or
            parameter, or a score that is not finite.
    """
    groups, stats = list(groups), CalibrationStats() if stats is None else stats
    weights = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
    weighting = CRITERIA[criterion].weighting if weighting is None else weighting
    if weighting not in WEIGHTINGS:
        raise PruningError(f"unknown weighting {weighting!r}; valid: {', '.join(WEIGHTINGS)}")
    check_kinds(criterion, groups)
    reads = needs_of(criterion, groups)
    seen = view(stats, weighting) if reads else stats
    weights, device = _OneAtATime(weights), torch.device(device)
    known = {} if known is None else known
    left = [group for group in groups if group.name not in known]
    say = progress or (lambda done, total: None)

    def jobs() -> Iterator[tuple[int, Callable[[], Tensor]]]:
        for group in left:
            need, generator = int(WORKING * moment_bytes(group, seen)), _generator(seed, group.name)
            place = with_room(device, need)
            yield need, partial(score_group, criterion, group, weights, seen, generator, place)

    found = side_by_side(jobs(), memory, None if device.type == "cpu" else 1)
    say(len(groups) - len(left), len(groups))
    for done, (group, value) in enumerate(zip(left, found, strict=True), len(groups) - len(left) + 1):
        known[group.name] = value
        say(done, len(groups))
    values = {group.name: known[group.name] for group in groups}
    marked = sum(_weighted(group, stats, f"@{weighting}") for group in groups)
    if weighting != "off" and not (reads and marked):
        logger.warning(
            "criterion %s: weighting=%r weighs no row of these groups, so the scores are those of weighting='off'",
            criterion,
            weighting,
        )
    meta = {"criterion": criterion, "weighting": weighting, "seed": seed, "weighted_groups": marked}
    scores = Scores(values, meta)
    scores.check(groups)
    return scores


def single_changes(scores: Scores, groups: Iterable[PrunableGroup]) -> dict[str, float]:
    """Return the change of the output without each single block, by path; empty if the scores are something else."""
    criterion = str(scores.meta.get("criterion"))
    if criterion not in CRITERIA or _criterion_for(criterion, "blocks").name != "block_change":
        return {}
    return {group.module: float(scores.values[group.name]) for group in groups if group.kind == "blocks"}


def _weighted(group: PrunableGroup, stats: CalibrationStats, suffix: str) -> bool:
    """Tell whether there is a statistic of a variant at a consumer of the group."""
    found = [name for one in group.consumers for name in stats.of(one).values.get(group.name, {})]
    return any(name.endswith(suffix) for name in found)


def score_group(
    criterion: str,
    group: PrunableGroup,
    weights: Weights,
    stats: CalibrationStats,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Score one group with the criterion that `criterion` names for its kind; returns ``(num_units,)`` float64.

    The score is the sum over the group's consumers, unless the criterion judges groups as a whole.
    """
    entry = _criterion_for(criterion, group.kind)
    more = (device,) if entry.on_device else ()
    judged = [group] if entry.whole or not group.consumed_by else group.consumers
    found, unreached = [], []
    for one in judged:
        own = stats.of(one)
        if entry.needs and no_rows(one, own):
            unreached.append(one.read_by.path)
            found.append(torch.zeros(group.num_units, dtype=torch.float64))
        else:
            found.append(entry.fn(one, weights, own, generator, *more).to("cpu", torch.float64))
    if unreached:
        logger.warning(
            "group %s: no row of the calibration reached %s, where its units score 0; calibrate on other or more "
            "samples, or leave the group out",
            group.name,
            ", ".join(unreached[:3]) + (", …" if len(unreached) > 3 else ""),
        )
    return torch.stack(found).sum(0)


class _OneAtATime(Mapping[str, Tensor]):
    """Weights that several threads read, one after the other: a file need not bear more."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.lock = weights, Lock()

    def __getitem__(self, path: str) -> Tensor:
        with self.lock:
            return self.weights[path]

    def __contains__(self, path: object) -> bool:
        return path in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _criterion_for(name: str, kind: str) -> Criterion:
    entry = CRITERIA[name]
    return entry if kind not in entry.instead else _criterion_for(entry.instead[kind], kind)


def _generator(seed: int, group: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

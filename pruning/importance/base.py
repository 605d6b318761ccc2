"""What a criterion is, how groups are scored with it, and the moments that criteria share.

Notation (docs/scores.md section 3): ``W`` (C, P) are the columns of the group's consumer weight, ``x`` (P,) a row that
enters the consumer, ``H = E[x x^T]``, ``mu = E[x]`` and ``Sigma = H - mu mu^T``, expectations being weighted means
over the calibration rows. A unit owns ``u = P / G`` neighbouring columns.

A group that several modules read is judged at each, and its score is the sum: criteria see one consumer at a time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pruning.calibration import view
from pruning.errors import PruningError
from pruning.registry import Registry
from pruning.settings import WEIGHTINGS
from pruning.types import CalibrationStats, PrunableGroup, Scores

logger = logging.getLogger(__name__)

EPSILON = torch.finfo(torch.float64).eps

Weights = Mapping[str, Tensor]
ScoreFn = Callable[[PrunableGroup, Weights, CalibrationStats, torch.Generator], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A rule that gives every unit of a group one score; low goes first.

    Attributes:
        name: Its name in recipes.
        fn: ``(group, weights, stats, generator) -> (num_units,) float64``; the group has one consumer, and ``stats``
            holds what is known of both under the group's name.
        needs: Statistics that `fn` reads.
        doc: First line of the docstring of `fn`.
        instead: Criterion that scores the groups of a kind in this one's place, by kind.
        base: Criterion that `fn` calls on whatever statistics it is given; its needs count as ours.
        weighting: Weighting of the rows unless the caller says otherwise, one of `pruning.settings.WEIGHTINGS`.
        only: The kind that `fn` scores; empty for all.
        whole: It judges a group as a whole, whatever reads it; else each consumer, and scores are summed.
    """

    name: str
    fn: ScoreFn
    needs: frozenset[str]
    doc: str
    instead: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    weighting: str = "off"
    only: str = ""
    whole: bool = False


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str,
    *,
    needs: Collection[str] = (),
    blocks: str = "block_change",
    instead: Mapping[str, str] | None = None,
    base: str | None = None,
    weighting: str = "off",
    only: str = "",
    whole: bool = False,
) -> Callable[[ScoreFn], ScoreFn]:
    """Return a decorator that registers a function as a criterion and leaves it unchanged.

    Arguments are those of `Criterion`; `blocks` is the criterion that scores groups of kind ``blocks`` in its place, or
    `name` if the function can.
    """
    routes = {**(instead or {}), **({} if blocks == name else {"blocks": blocks})}

    def decorate(fn: ScoreFn) -> ScoreFn:
        doc = (fn.__doc__ or "").strip().split("\n")[0]
        CRITERIA.register(name)(
            Criterion(name, fn, frozenset(needs), doc, routes, base, weighting, only, whole)
        )
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
) -> Scores:
    """Score every unit of every group; low goes first.

    Args:
        weights: The model, or parameters by path, any float dtype; only those of `groups` are read.
        groups: What may be removed.
        stats: Sums of a calibration run with at least `needs_of(criterion, groups)`; None for criteria that need
            no data.
        criterion: A name in `CRITERIA`.
        weighting: Rows that are judged, one of `pruning.settings.WEIGHTINGS`; None for the criterion's own default.
            Groups without self or joint attention are scored on plain rows.
        seed: Seed of the random draws; each group draws from a generator of its own, so that its scores do not
            depend on the other groups.

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
    values = {
        group.name: score_group(criterion, group, weights, seen, _generator(seed, group.name))
        for group in groups
    }
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
) -> Tensor:
    """Score one group with the criterion that `criterion` names for its kind; returns ``(num_units,)`` float64.

    The score is the sum over the group's consumers, unless the criterion judges groups as a whole.
    """
    entry = _criterion_for(criterion, group.kind)
    judged = [group] if entry.whole or not group.consumed_by else group.consumers
    found = [entry.fn(one, weights, stats.of(one), generator).to("cpu", torch.float64) for one in judged]
    return torch.stack(found).sum(0)


def _criterion_for(name: str, kind: str) -> Criterion:
    entry = CRITERIA[name]
    return entry if kind not in entry.instead else _criterion_for(entry.instead[kind], kind)


def _generator(seed: int, group: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def parameter(weights: Weights, path: str, group: PrunableGroup) -> Tensor:
    """Return the parameter at `path`, or raise PruningError naming it and the group."""
    if path not in weights:
        raise PruningError(
            f"group {group.name!r}: parameter {path!r} is not among the weights; pass all of them"
        )
    return weights[path].detach()


def consumer_columns(group: PrunableGroup, weights: Weights) -> Tensor:
    """Return the columns of the weight of the group's one consumer, ``(C, P)`` float64 on the CPU.

    A convolution's kernel is unfolded, channel-major: ``P = num_units * unit_size * kh * kw``.

    Raises:
        PruningError: If there is not one consumer, its parameter is absent, or the slice is not one of columns.
    """
    where = group.read_by
    if where.dim != 1:
        raise PruningError(f"group {group.name!r} has no consumer that is read by columns (dim 1): {where}")
    return consumer_slice(group, parameter(weights, where.path, group)).flatten(1).to("cpu", torch.float64)


def consumer_slice(group: PrunableGroup, weight: Tensor) -> Tensor:
    """Return the part of a consumer weight that the group's units feed, a view ``(C, num_units * unit_size, ...)``.

    Raises:
        PruningError: If the weight is too narrow for the group.
    """
    where = group.read_by
    end = where.offset + group.num_units * where.unit_size
    if weight.ndim < 2 or weight.shape[1] < end:
        raise PruningError(
            f"group {group.name!r} feeds columns {where.offset} to {end} of {where.path!r}, whose shape is "
            f"{tuple(weight.shape)}; the group is not of this model, or of the model before it was cut"
        )
    return weight.narrow(1, where.offset, end - where.offset)


def per_row(group: PrunableGroup, stats: CalibrationStats, statistic: str, shape: tuple[int, ...]) -> Tensor:
    """Return ``statistic / sum of row weights`` in `shape`; a leading bucket dimension is summed away.

    Raises:
        PruningError: If it was not gathered, does not fit the group, or no row was weighted.
    """
    rows = float(stats.get(group.name, "row_weight").sum())
    value = stats.get(group.name, statistic)
    value = value.sum(0) if statistic == "input_sum" else value
    if not rows > 0:
        raise PruningError(f"group {group.name!r}: the row weights sum to {rows}; calibration must see rows")
    if tuple(value.shape) != shape:
        raise PruningError(
            f"group {group.name!r}: {statistic!r} is asked for in shape {shape}, but calibration gathered it in shape "
            f"{tuple(value.shape)}{_unfolded(group, shape, tuple(value.shape))}; if that is not a mistake of who "
            "asks, calibrate this model anew"
        )
    return value.to("cpu", torch.float64) / rows


def _unfolded(group: PrunableGroup, asked: tuple[int, ...], found: tuple[int, ...]) -> str:
    """Say so if `asked` takes channels for the columns of a convolution, of which `found` has several per channel."""
    channels = group.num_units * group.unit_size
    if len(found) != len(asked) or asked[-1] != channels or found[-1] % channels:
        return ""
    return (
        f" (the group has {channels} channels of {found[-1] // channels} unfolded convolution columns each; "
        "consumer_columns(group, weights) has that width)"
    )


def per_sample(group: PrunableGroup, stats: CalibrationStats, statistic: str) -> Tensor:
    """Return ``statistic / number of samples``, or raise PruningError if there were none."""
    samples = float(stats.get(group.name, "samples").sum())
    if not samples > 0:
        raise PruningError(f"group {group.name!r}: calibration saw {samples} samples of it; it must see some")
    return stats.get(group.name, statistic).to("cpu", torch.float64) / samples


def unit_covariance(group: PrunableGroup, stats: CalibrationStats, width: int) -> Tensor:
    """Return the covariance of each unit's inputs, ``(G, u, u)``, from its moment and mean; `width` is P."""
    units, u = group.num_units, width // group.num_units
    mean = per_row(group, stats, "input_sum", (width,)).unflatten(0, (units, u))
    moment = per_row(group, stats, "input_unit_moment", (units, u, u))
    return moment - mean[:, :, None] * mean[:, None, :]


def unit_energy(columns: Tensor, moments: Tensor) -> Tensor:
    """Return ``tr(W_g M_g W_g^T)`` for `columns` (C, P) and `moments` M (G, u, u); ``(G,)``."""
    by_unit = columns.unflatten(1, moments.shape[:2]).transpose(0, 1)  # (G, C, u)
    return ((by_unit @ moments) * by_unit).sum((1, 2))


def covariance(group: PrunableGroup, stats: CalibrationStats, width: int) -> tuple[Tensor, Tensor]:
    """Return mean ``(P,)`` and covariance ``(P, P)`` of the rows that enter the consumer; `width` is P."""
    mean = per_row(group, stats, "input_sum", (width,))
    return mean, per_row(group, stats, "input_moment", (width, width)).addr_(mean, mean, alpha=-1)


def ridge_cholesky(matrix: Tensor, ridge: float, floor: float, where: str) -> tuple[Tensor, float, float]:
    """Factorise ``matrix + gamma I`` with ``gamma = ridge * max(mean(diag), floor)``, raising `ridge` if it fails.

    Args:
        matrix: Symmetric, ``(n, n)`` float64; positive semi-definite but for rounding.
        ridge: Share of the mean diagonal, at least 0.
        floor: Positive scale for a matrix that is zero but for rounding.
        where: What the matrix belongs to, for messages.

    Returns:
        The lower Cholesky factor, the ridge used and gamma.

    Raises:
        PruningError: If the matrix holds NaN or infinity, or no ridge up to 1e8 times the asked one (at least 1)
            helps.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise PruningError(
            f"{where}: the covariance holds NaN or infinity; the calibration data or model is broken"
        )
    scale = max(float(matrix.diagonal().mean()), floor)
    limit = max(1.0, ridge * 1e8)
    while ridge <= limit:
        shifted = matrix.clone()
        shifted.diagonal().add_(ridge * scale)
        factor, info = torch.linalg.cholesky_ex(shifted)
        smallest = float(factor.diagonal().min())
        # A pivot of rounding size solves to nonsense without an error.
        if int(info) == 0 and smallest**2 > len(matrix) * EPSILON * scale:
            return factor, ridge, ridge * scale
        raised = max(ridge * 10, 1e-8)
        logger.warning("%s: the covariance is singular with ridge %g; raised to %g", where, ridge, raised)
        ridge = raised
    raise PruningError(f"{where}: the covariance cannot be factorised with any ridge up to {limit:g}")


def rounding_floor(mean: Tensor) -> float:
    """Return the variance below which a covariance is rounding noise, from the `mean` (P,) that was taken off."""
    return max(1e-10 * float(mean.square().mean()), 1e-30)

"""The moments that criteria and compensation share, read from sums of a calibration.

Notation (docs/scores.md section 3): ``W`` (C, P) are the columns of the group's consumer weight, ``x`` (P,) a row that
enters the consumer, ``H = E[x x^T]``, ``mu = E[x]`` and ``Sigma = H - mu mu^T``, expectations being weighted means
over the calibration rows. A unit owns ``u = P / G`` neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.on_demand import Rows
from pruning.types import CalibrationStats, PrunableGroup, matrix_of, parameter_path

MOMENT = "input_moment"

PART_ROWS = 64  # rows of a moment that are worked on at once

Weights = Mapping[str, Tensor]


def parameter(weights: Weights, path: str, group: PrunableGroup) -> Tensor:
    """Return the parameter at `path`, or one matrix of it; if it is absent, a PruningError names it and the group."""
    if path in weights:
        return weights[path].detach()
    whole = parameter_path(path)
    if whole not in weights:
        raise PruningError(
            f"group {group.name!r}: parameter {whole!r} is not among the weights; pass all of them"
        )
    return matrix_of(weights[whole].detach(), path)


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
    value = stats.get(group.name, statistic)
    value = value.sum(0) if statistic == "input_sum" else value
    return value.to("cpu", torch.float64) / _weight(group, stats, statistic, tuple(value.shape), shape)


def moment_by_rows(group: PrunableGroup, stats: CalibrationStats, width: int) -> tuple[float, Rows]:
    """Return the sum of row weights, and the moment (P, P) as it was gathered, to be read by rows; as `per_row`."""
    moment = stats.by_rows(group.name, MOMENT)
    return _weight(group, stats, MOMENT, tuple(moment.shape), (width, width)), moment


def _weight(
    group: PrunableGroup,
    stats: CalibrationStats,
    statistic: str,
    found: tuple[int, ...],
    shape: tuple[int, ...],
) -> float:
    """Return the sum of row weights, and see that a statistic of shape `found` is of `shape`."""
    rows = float(stats.get(group.name, "row_weight").sum())
    if not rows > 0:
        raise PruningError(f"group {group.name!r}: the row weights sum to {rows}; calibration must see rows")
    if found != shape:
        raise PruningError(
            f"group {group.name!r}: {statistic!r} is asked for in shape {shape}, but calibration gathered it in shape "
            f"{found}{_unfolded(group, shape, found)}; if that is not a mistake of who asks, calibrate this model anew"
        )
    return rows


def no_rows(group: PrunableGroup, stats: CalibrationStats) -> bool:
    """Tell whether calibration looked at the consumer's rows and saw none (an expert without tokens)."""
    if not (stats.has(group.name, "row_weight") and stats.has(group.name, "samples")):
        return False
    if not bool(stats.get(group.name, "samples").any()):
        return False
    return not bool(stats.get(group.name, "row_weight").any())


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


def covariance(
    group: PrunableGroup,
    stats: CalibrationStats,
    mean: Tensor,
    these: Tensor | None = None,
    those: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return ``E[x_a x_b] - m_a m_b`` of the rows that enter the consumer, a new tensor ``(these, those)``.

    No more is held than is asked for, and the moment as it was gathered.

    Args:
        group: With one consumer.
        stats: With its `input_moment`.
        mean: What is taken off, m ``(P,)`` float64: the mean of the rows, or zeros for moments about zero.
        these: Columns a; None for all.
        those: Columns b; None for all.
        dtype: Of the result; the differences are made in float64.
    """
    width = len(mean)
    rows, moment = moment_by_rows(group, stats, width)
    these = torch.arange(width) if these is None else these
    across = mean if those is None else mean[those]
    found = torch.empty(len(these), len(across), dtype=dtype)
    for start in range(0, width, PART_ROWS):
        places = ((these >= start) & (these < start + PART_ROWS)).nonzero().squeeze(1)
        if len(places):
            part = moment[start : start + PART_ROWS].to("cpu", torch.float64)[these[places] - start]
            part = part if those is None else part.index_select(1, those)
            part.div_(rows).addr_(mean[these[places]], across, alpha=-1)
            found[places] = part.to(dtype)
    return found


def moment_bytes(group: PrunableGroup, stats: CalibrationStats) -> int:
    """Return the bytes of the largest moment at the group's consumers in float64; 0 if none was gathered."""
    read = [(one.name, stats.of(one)) for one in group.consumers]
    read = [(name, own) for name, own in read if own.has(name, MOMENT) and own.has(name, "input_sum")]
    return 8 * max((own.get(name, "input_sum").shape[-1] for name, own in read), default=0) ** 2


def with_room(device: torch.device, need: int) -> torch.device:
    """Return `device`, or the CPU where a GPU has less than `need` bytes free."""
    return (
        torch.device("cpu") if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < need else device
    )


def rounding_floor(mean: Tensor) -> float:
    """Return the variance below which a covariance is rounding noise, from the `mean` (P,) that was taken off."""
    return max(1e-10 * float(mean.square().mean()), 1e-30)

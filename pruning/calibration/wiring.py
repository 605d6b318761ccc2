"""Which statistics are gathered where in a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from pruning.calibration.base import (
    AttentionStatistic,
    BlockStatistic,
    GradientStatistic,
    RowStatistic,
    SensitivityStatistic,
    Statistic,
    WeightStatistic,
)
from pruning.calibration.consumer import Consumer
from pruning.calibration.sites import measured_sites, weighting_site
from pruning.types import PrunableGroup

Form = TypeVar("Form", bound=Statistic)


@dataclass(frozen=True)
class Site:
    """An attention module whose statistics are kept under a group's name.

    Attributes:
        group: The group.
        statistics: By name.
        out_weight: Columns of the group's consumer by head, (C, H, d_v); None for single-head attention.
    """

    group: PrunableGroup
    statistics: Mapping[str, AttentionStatistic]
    out_weight: Tensor | None


@dataclass(frozen=True)
class Wiring:
    """Who listens where.

    Attributes:
        consumers: Consumers whose inputs are wanted, by group name.
        rows: Row statistics by group name.
        gradients: Gradient statistics by group name.
        sensitivities: Sensitivity statistics by group name.
        weights: Groups by weight statistic.
        sites: Attention modules with statistics, by path.
        weighting: Attention module whose sinks weight a group's rows, by group name.
        blocks: Blocks with statistics, by path.
    """

    consumers: Mapping[str, Consumer]
    rows: Mapping[str, Mapping[str, RowStatistic]]
    gradients: Mapping[str, Mapping[str, GradientStatistic]]
    sensitivities: Mapping[str, Mapping[str, SensitivityStatistic]]
    weights: Mapping[str, list[PrunableGroup]]
    sites: Mapping[str, Site]
    weighting: Mapping[str, str]
    blocks: Mapping[str, tuple[PrunableGroup, Mapping[str, BlockStatistic]]]

    @property
    def attention(self) -> list[str]:
        """Paths of all attention modules to watch."""
        return sorted({*self.sites, *self.weighting.values()})

    def blocks_that(self, *, ablate: bool) -> list[str]:
        """Return the paths of the blocks with a statistic that ablates them, or with one that does not."""
        return [
            p for p, (_, found) in self.blocks.items() if any(s.ablates == ablate for s in found.values())
        ]


def wire(
    model: nn.Module, groups: Iterable[PrunableGroup], statistics: Mapping[str, Statistic], *, weighted: bool
) -> Wiring:
    """Decide what is gathered where.

    Args:
        model: The denoiser.
        groups: What may be removed.
        statistics: What is wanted, by name.
        weighted: There are omega variants, so rows have weights.

    Raises:
        PruningError: For a consumer of a kind that calibration cannot read.
    """
    groups = list(groups)
    with_consumer = [group for group in groups if group.consumed_by]
    rows = {g.name: found for g in with_consumer if (found := _wanted(statistics, RowStatistic, g))}
    gradients = {g.name: found for g in with_consumer if (found := _wanted(statistics, GradientStatistic, g))}
    sensitivities = {
        g.name: found for g in with_consumer if (found := _wanted(statistics, SensitivityStatistic, g))
    }
    weights = {
        name: [g for g in groups if g.kind in statistic.kinds]
        for name, statistic in statistics.items()
        if isinstance(statistic, WeightStatistic)
    }
    read = {*rows, *gradients, *sensitivities}
    consumers = {g.name: Consumer.of(model, g) for g in with_consumer if g.name in read}
    weighting = {}
    for name, consumer in consumers.items():
        site = weighting_site(model, consumer.group) if weighted else None
        if site is not None:
            weighting[name] = site
    blocks = {g.module: (g, found) for g in groups if (found := _wanted(statistics, BlockStatistic, g))}
    sites = _sites(model, groups, statistics)
    return Wiring(consumers, rows, gradients, sensitivities, weights, sites, weighting, blocks)


def _wanted(statistics: Mapping[str, Statistic], form: type[Form], group: PrunableGroup) -> dict[str, Form]:
    """Return the statistics of one form that are gathered for `group`, by name."""
    return {
        name: statistic
        for name, statistic in statistics.items()
        if isinstance(statistic, form)
        and group.kind in statistic.kinds
        and group.num_units <= (getattr(statistic, "max_units", None) or group.num_units)
    }


def _sites(
    model: nn.Module, groups: list[PrunableGroup], statistics: Mapping[str, Statistic]
) -> dict[str, Site]:
    by_name = {group.name: group for group in groups}
    found = {}
    for path, name in measured_sites(model, groups).items():
        group = by_name[name]
        if wanted := _wanted(statistics, AttentionStatistic, group):
            found[path] = Site(group, wanted, _out_weight(model, group))
    return found


def _out_weight(model: nn.Module, group: PrunableGroup) -> Tensor | None:
    """Return the columns by head, (C, H, d_v), of the linear layer that reads the heads of `group`."""
    heads = getattr(model.get_submodule(group.module), "heads", None)
    if not group.consumed_by or not isinstance(heads, int):
        return None
    consumer = Consumer.of(model, group)
    if not isinstance(consumer.module, nn.Linear) or consumer.channels % heads:
        return None
    columns = consumer.module.weight.detach()[:, consumer.start : consumer.start + consumer.channels]
    return columns.unflatten(1, (heads, -1))

"""Compensation of parameters by path, as they lie on the disk, is that of the model they are of."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import needs_of, score
from pruning.importance.moments import consumer_columns
from pruning.surgery import compensate
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, parameter_path, parameters_of
from tests.unit.importance_rows import linear_group, random_rows, stats_of, sums
from tests.zoo import ZOO, build

MODELS = ["flux", "sd3", "nucleusmoe"]  # one output for two groups, two outputs of a group, stacked experts
KINDS = ["attention_heads", "ffn_channels"]


class Shelf(MutableMapping[str, Tensor]):
    """Parameters by path that note what is read and written."""

    def __init__(self, model: nn.Module) -> None:
        self.values_ = {path: value.detach().clone() for path, value in model.named_parameters()}
        self.log: list[tuple[str, str]] = []

    def __getitem__(self, path: str) -> Tensor:
        self.log.append(("read", path))
        return self.values_[path].clone()

    def __setitem__(self, path: str, value: Tensor) -> None:
        self.log.append(("write", path))
        self.values_[path] = value

    def __delitem__(self, path: str) -> None:
        raise AssertionError(path)

    def __contains__(self, path: object) -> bool:
        return path in self.values_

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def shapes_only(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta")


def measured(model: nn.Module, groups: list[PrunableGroup]) -> CalibrationStats:
    """Sums of random rows at every consumer."""
    stats, weights = CalibrationStats(), dict(model.named_parameters())
    for seed, one in enumerate(one for group in groups for one in group.consumers):
        width = consumer_columns(one, weights).shape[1]
        stats.values[one.consumer_key] = sums(random_rows(3 * width, width, seed), one.num_units)
    return stats


def half(groups: list[PrunableGroup]) -> PruningPlan:
    return PruningPlan({g.name: tuple(range(0, g.num_units, 2)) for g in groups if g.num_units > 1})


def setup(name: str) -> tuple[nn.Module, list[PrunableGroup], CalibrationStats, PruningPlan]:
    model = build(ZOO[name])
    groups = find_groups(model, KINDS)
    return model, groups, measured(model, groups), half(groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["fold", "least_squares"])
@pytest.mark.parametrize("name", MODELS)
def test_a_mapping_becomes_what_the_model_becomes(name: str, method: str, dtype: torch.dtype) -> None:
    model, groups, stats, plan = setup(name)
    model, meta = model.to(dtype), shapes_only(model)
    shelf = Shelf(model)
    expected = compensate(model, groups, plan, stats, method)
    found = compensate(shelf, groups, plan, stats, method, model=meta)
    assert found == expected
    assert set(shelf.values_) == set(dict(model.named_parameters()))  # biases that were created, too
    for path, value in model.named_parameters():
        assert torch.equal(value, shelf.values_[path]), path
        assert shelf.values_[path].dtype == dtype
        assert shelf.values_[path].is_contiguous()


def test_groups_are_edited_one_after_the_other_and_read_again_what_they_share() -> None:
    model, groups, stats, plan = setup("flux")
    shelf = Shelf(model)
    compensate(shelf, groups, plan, stats, "least_squares", model=shapes_only(model))
    writes = [path for kind, path in shelf.log if kind == "write"]
    expected: list[str] = []
    for group in plan.cuts(groups):
        read = [part.path for part in group.consumed_by]
        expected += [*read, *(path.replace("weight", "bias") for path in read)]
    assert writes == expected
    shared = next(path for path in writes if writes.count(path) == 2)  # heads and feed-forward of one stream
    first = shelf.log.index(("write", shared))
    assert ("read", shared) in shelf.log[first : shelf.log.index(("write", shared), first + 1)]


def test_a_mapping_needs_its_model() -> None:
    group = linear_group(2, 1)
    with pytest.raises(PruningError, match="compensation of weights by path needs `model`"):
        compensate({}, [group], PruningPlan(), CalibrationStats(), "fold")


def test_a_bias_that_may_not_be_created_is_refused_before_anything_is_read() -> None:
    model, groups, stats, plan = setup("flux")
    meta, shelf = shapes_only(model), Shelf(model)
    for module in meta.modules():
        if isinstance(module, nn.Linear):
            del module.bias
    with pytest.raises(PruningError, match="has no bias to fold into"):
        compensate(shelf, groups, plan, stats, "fold", model=meta)
    assert not shelf.log


def test_scores_ask_for_the_parameters_of_their_groups_alone() -> None:
    model, groups, stats, _ = setup("sd3")
    shelf = Shelf(model)
    got = score(shelf, groups[:2], stats, criterion="obs").values
    read = {path for _, path in shelf.log}
    assert read == {parameter_path(one.read_by.path) for group in groups[:2] for one in group.consumers}
    assert read < parameters_of(groups[:2])
    expected = score(model, groups[:2], stats, criterion="obs").values
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("memory", [None, 1])
def test_how_many_groups_run_at_once_changes_nothing(memory: int | None) -> None:
    model, groups, stats, plan = setup("flux")
    wide = linear_group(300, 1, kind="wide")
    wide_stats = stats_of(wide, random_rows(600, 300))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            room = memory if threads == 2 else None
            shelf = Shelf(model)
            report = compensate(shelf, groups, plan, stats, "least_squares", model=model, memory=room)
            scores = score(model, groups, stats, criterion="obs", memory=room).values
            weight = {"m.out.weight": random_rows(50, 300, seed=1)}
            scores |= score(
                weight, [wide, replace(wide, name="n")], _twice(wide_stats), criterion="obs"
            ).values
            found.append((shelf.values_, report, scores))
    finally:
        torch.set_num_threads(before)
    (one, first, few), (two, second, many) = found
    assert first == second
    assert all(torch.equal(one[path], two[path]) for path in one)
    assert all(torch.equal(few[name], many[name]) for name in few)


def _twice(stats: CalibrationStats) -> CalibrationStats:
    (values,) = stats.values.values()
    return CalibrationStats({"m.out": values})


def test_statistics_are_never_written_to() -> None:
    model, groups, stats, plan = setup("flux")
    needs = needs_of("obs", groups)
    before = {
        (place, name): value.clone() for place, own in stats.values.items() for name, value in own.items()
    }
    assert needs <= {name for _, name in before}
    score(model, groups, stats, criterion="obs")
    compensate(model, groups, plan, stats, "least_squares", ridge=0.0)
    for (place, name), value in before.items():
        assert torch.equal(stats.values[place][name], value)

"""Measuring reaches every group of every tiny model: calibration, the default criterion and its compensation."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pruning.calibration import calibrate
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.importance import score
from pruning.models.families import FAMILIES, denoise
from pruning.models.outputs import predict
from pruning.settings import Prune, Score
from pruning.surgery import apply_plan
from pruning.surgery.compensation import compensate, needs_for
from pruning.types import PrunableGroup, PruningPlan
from tests.family.zoo_setup import widths
from tests.zoo import BATCH, ZOO, Draw, Tiny, build

NO_GRADIENTS = {
    "anyflow-far": "flex attention has no backward pass on a CPU",
    "anyflow-far-clean": "flex attention has no backward pass on a CPU",
    "kandinsky6_sr": "flex attention has no backward pass on a CPU",
}
"""Entries for which criteria that differentiate say that they cannot, and why."""

NORMS_OVER_ALL = {
    "unet1d": "its convolutions are followed by a norm over all their channels",
    "unet1d-value": "its convolutions are followed by a norm over all their channels",
}
"""Entries in which the cut changes what is left of a group before it is read: least squares is right on dense rows."""


def channel_groups(model: nn.Module, known: set[tuple[str, ...]]) -> Iterator[PrunableGroup]:
    """Yield one group of each sort that is not known yet, by what the module is and where but for numbers."""
    for group in widths(model):
        module = model.get_submodule(group.module)
        readers = [type(model.get_submodule(one.consumer)).__name__ for one in group.consumers]
        processor = type(getattr(module, "processor", None)).__name__
        sort = (re.sub(r"\d+", "#", group.name), type(module).__name__, processor, *readers)
        if sort not in known:
            known.add(sort)
            yield group


def noised(tiny: Tiny, model: nn.Module) -> list[NoisedBatch]:
    """Return two calls of two samples; the targets are what the model says, and noise."""
    batches = []
    for seed in (1, 2):
        call = tiny.call(Draw(seed))
        with torch.no_grad():
            said = denoise(model, call) if tiny.cls in FAMILIES else predict(model, call, BATCH)
        target = said + torch.randn(said.shape, generator=torch.Generator().manual_seed(seed))
        samples = torch.tensor([2 * seed, 2 * seed + 1])
        batches.append(NoisedBatch(call, target, 0, samples, Draw().times()))
    return batches


@torch.no_grad()
def outputs(model: nn.Module, batches: list[NoisedBatch]) -> Tensor:
    return torch.cat([predict(model, batch.call, BATCH) for batch in batches])


@pytest.mark.parametrize("cls", sorted({tiny.cls for tiny in ZOO.values()}))
def test_scores_are_finite_and_least_squares_helps(cls: str) -> None:
    known: set[tuple[str, ...]] = set()
    for name, tiny in ZOO.items():
        model = build(tiny) if tiny.cls == cls else None
        if model is not None and (groups := list(channel_groups(model, known))):
            _measure(name, tiny, model, groups)
    assert known


def _stay(group: PrunableGroup) -> int:
    """Return how many units stay: half of them, rounded up, or as many as must."""
    return max(group.min_units, group.num_units - group.num_units // 2)


def _measure(name: str, tiny: Tiny, model: nn.Module, groups: list[PrunableGroup]) -> None:
    batches = noised(tiny, model)
    source = NoisedBatches(lambda: batches, 1000, 1)
    criterion = Score().criterion
    if name in NO_GRADIENTS:
        needs, _ = needs_for([criterion], groups)
        with pytest.raises(PruningError, match=r"no gradient can be taken of .* on this device"):
            calibrate(model, groups, source, needs=needs)
        criterion = "obs"
    needs, variants = needs_for([criterion, Prune().compensation], groups)
    assert not variants
    stats = calibrate(model, groups, source, needs=needs)
    scores = score(model, groups, stats, criterion=criterion)  # checks that they are finite
    read = [group for group in groups if group.consumers]
    assert not read or any(
        bool(stats.get(group.consumers[0].consumer_key, "row_weight").any()) for group in read
    ), name
    kept = {
        group.name: tuple(sorted(scores.values[group.name].argsort()[-_stay(group) :].tolist()))
        for group in groups
    }
    plan = PruningPlan(kept=kept)
    dense = outputs(model, batches)
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    without = (outputs(cut, batches) - dense).square().sum()
    report = compensate(model, groups, plan, stats, Prune().compensation)
    excess = (outputs(apply_plan(model, plan, groups), batches) - dense).square().sum()
    if name in NORMS_OVER_ALL:
        assert all(found["error_after"] < found["error_before"] for found in report.values())
    else:
        assert excess < without, name

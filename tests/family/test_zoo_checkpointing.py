"""Statistics of every class are the same to the bit, whether its blocks run again in backward passes or not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from pruning.calibration import calibrate, first_pass
from pruning.data.batches import NoisedBatches
from pruning.groups.listed import listed_blocks
from pruning.settings import Calibrate
from pruning.types import CalibrationStats, PrunableGroup
from tests.family.test_zoo_measuring import NO_GRADIENTS, channel_groups, noised
from tests.family.zoo_setup import FIRST, model_of
from tests.zoo import ZOO

PROBED = ("probe_diag", "output_sensitivity", "input_sq", "expert_effect")
BY_DATA = ("taylor", "diff_pruning")
"""Gradients of another loss, and by parameters; without them the first tensors are leaves."""

MIXED = ("cosmos3", "ernie-image")
"""Those whose rows do not say whose they are, which the loss by the data must know."""

NAMES = [name for name in FIRST if name not in NO_GRADIENTS]


def gather(
    model: nn.Module, groups: list[PrunableGroup], source: NoisedBatches, needs: tuple[str, ...]
) -> list[CalibrationStats]:
    """Return the statistics without and with checkpointing."""
    seen_first = first_pass(model, groups, source, settings=Calibrate(timestep_buckets=1), stability=False)
    return [
        calibrate(
            model,
            groups,
            source,
            needs=needs,
            first_pass=seen_first,
            settings=Calibrate(timestep_buckets=1, checkpointing=again),
        )
        for again in (False, True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_second_runs_change_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(name)
    groups = list(channel_groups(model, set()))
    batches = noised(ZOO[name], model)[:1]
    source = NoisedBatches(lambda: batches, 1000, 1)
    assert listed_blocks(model)
    further = BY_DATA if NAMES.index(name) % 2 and name not in MIXED else ()
    with caplog.at_level(logging.WARNING, logger="pruning"):
        plain, again = gather(model, groups, source, (*PROBED, *further))
    assert not [record for record in caplog.records if "cannot run again" in record.message]
    assert plain.values.keys() == again.values.keys()
    for place, found in plain.values.items():
        for statistic, value in found.items():
            assert torch.equal(value, again.get(place, statistic)), (place, statistic)

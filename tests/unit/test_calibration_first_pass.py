"""Stability over timesteps, from attention whose sinks are placed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.calibration import FirstPass, calibrate, first_pass, load_stats, needs_first_pass, save_stats
from pruning.calibration.attention.reading import Reading
from pruning.calibration.attention.softmax import AttentionCall
from pruning.calibration.statistics.first_pass import sink_moments
from pruning.calibration.step import Step
from pruning.calibration.trajectories import Trajectories
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.settings import SinkWeights
from pruning.types import CalibrationStats
from tests.models import dit
from tests.unit.calibration_setup import noised, settings

SITE = "attn"


def step(*samples: int) -> Step:
    count = len(samples)
    zeros = torch.zeros(count)
    return Step(
        samples, tuple(8 * s for s in samples), zeros.double(), zeros.long(), torch.ones(count).double()
    )


def reading(sink: int | None, keys: int = 16, path: str = SITE) -> Reading:
    """One sample whose 4 queries attend to key `sink` alone, or evenly to all."""
    key = torch.zeros(1, 1, keys, 1)
    if sink is not None:
        key[0, 0, sink] = 100.0
    return Reading(AttentionCall(path, torch.ones(1, 1, 4, 1), key, key), SinkWeights())


def add(sums: Trajectories, seen: Reading, sample: int) -> None:
    sums.add(SITE, "sink_moments", sink_moments(seen), step(sample), torch.zeros(1).long())


def finished(sums: Trajectories) -> FirstPass:
    keys, values = sums.finish()
    return FirstPass(CalibrationStats(values, {"samples_seen": keys}))


def gathered(*sinks: int | None) -> FirstPass:
    sums = Trajectories()
    for sink in sinks:
        add(sums, reading(sink), 5)
    return finished(sums)


def test_a_sink_at_every_timestep_is_stable_and_one_at_a_single_timestep_is_not() -> None:
    steady = gathered(*[3] * 8).stability(SITE, [40], 16)
    assert float(steady[0, 3]) == pytest.approx(1.0, abs=1e-6)
    # the indifferent timesteps leave s = 1 / (1 + (1/4)^-4) = 1/257, hence a little more than 1/8
    passing = gathered(3, *[None] * 7)
    assert float(passing.stability(SITE, [40], 16)[0, 3]) == pytest.approx(1 / 8, rel=0.06)
    moving = gathered(3, 3, 3, 3, 9, 9, 9, 9)
    assert float(moving.stability(SITE, [40], 16)[0, 3]) == pytest.approx(1 / 2, rel=1e-3)
    assert float(moving.stability(SITE, [40], 16)[0, 9]) == pytest.approx(1 / 2, rel=1e-3)


def test_samples_are_kept_apart_and_looked_up() -> None:
    sums = Trajectories()
    for sink_a, sink_b in ((3, 3), (3, None)):
        add(sums, reading(sink_b), 7)
        add(sums, reading(sink_a), 2)
    found = finished(sums)
    assert found.stats.meta["samples_seen"] == [16, 56]
    phi = found.stability(SITE, [56, 16, 56], 16)[:, 3]
    assert phi.tolist() == pytest.approx([1 / 2, 1.0, 1 / 2], rel=0.02)


def test_entries_of_one_sample_are_averaged() -> None:
    sums = Trajectories()
    values = torch.tensor([[1.0, 2], [3, 4], [10, 20], [30, 40]]).double()
    sums.add(SITE, "x", values, step(2, 5), torch.tensor([0, 0, 1, 1]))
    keys, found = sums.finish()
    assert keys == [16, 40]
    assert found[SITE]["x"].tolist() == [[2, 3], [20, 30]]


def test_what_was_not_seen_is_named() -> None:
    found = gathered(3)
    with pytest.raises(PruningError, match="sample 9 was not seen by the first pass"):
        found.stability(SITE, [40, 72], 16)
    with pytest.raises(PruningError, match="attention 'attn' has 20 keys, the first pass saw 16"):
        found.stability(SITE, [40], 20)
    with pytest.raises(PruningError, match="attention 'other' has 16 keys, the first pass saw none"):
        found.stability("other", [40], 16)


def test_changing_sizes_are_named() -> None:
    sums = Trajectories()
    add(sums, reading(3), 5)
    with pytest.raises(
        PruningError, match="sample 5 has 20 keys now and had 16 before; calibrate at one resolution"
    ):
        add(sums, reading(3, 20), 5)
    add(sums, reading(3, 20), 6)
    with pytest.raises(PruningError, match=r"saw 2 of 2 samples and \[16, 20\] keys"):
        sums.finish()


def test_save_and_load(tmp_path: Path) -> None:
    model = dit()
    found = first_pass(model, find_groups(model), noised(model), settings=settings(queries=5))
    save_stats(found.stats, tmp_path / "first.safetensors")
    loaded = FirstPass(load_stats(tmp_path / "first.safetensors"))
    assert loaded.stats.meta == found.stats.meta
    assert len(found.means) == 6
    assert all(torch.equal(mean, loaded.means[place]) for place, mean in found.means.items())
    sites, keys = found.stats.meta["sites"], found.stats.meta["samples_seen"]
    assert len(sites) == 3
    for site in sites:
        assert torch.equal(found.stability(site, keys, 16), loaded.stability(site, keys, 16))


def run(model: nn.Module, found: FirstPass | None, **weights: float):
    return calibrate(
        model,
        find_groups(model, ["attention_heads"]),
        noised(model),
        needs=["input_sq"],
        variants=("on",),
        settings=settings(**weights),
        first_pass=found,
    )


def test_weights_may_change_after_the_first_pass_but_not_how_sinks_are_detected() -> None:
    model = dit()
    found = first_pass(model, find_groups(model), noised(model))
    given, own = (run(model, one, unstable=0.0, stable=1.0) for one in (found, None))
    for place, values in own.values.items():
        assert torch.equal(values["input_sq@on"], given.get(place, "input_sq@on"))
    with pytest.raises(PruningError, match=r"the first pass detected sinks by .*run the first pass again"):
        run(model, found, alpha=2.0)


def test_when_a_first_pass_is_needed() -> None:
    assert not needs_first_pass(["input_sq", "taylor"], ())
    assert needs_first_pass(["input_sq"], ("on",))
    assert not needs_first_pass(["input_sq"], ("on",), SinkWeights(unstable=1.0, stable=1.0))
    assert needs_first_pass(["probe_diag"], ())

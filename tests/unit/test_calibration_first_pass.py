"""Stability over timesteps, from attention whose sinks are placed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pruning.calibration.first_pass import StabilitySums
from pruning.calibration.reading import Reading
from pruning.calibration.softmax import AttentionCall
from torch import nn

from pruning.calibration import FirstPass, Omega, calibrate, first_pass, needs_first_pass
from pruning.calibration.step import Step
from pruning.errors import PruningError
from pruning.groups import find_groups
from tests.models import dit
from tests.unit.calibration_setup import BUCKETS, noised

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
    return Reading(AttentionCall(path, torch.ones(1, 1, 4, 1), key, key), Omega())


def gathered(*sinks: int | None) -> FirstPass:
    sums = StabilitySums()
    for sink in sinks:
        sums.add(reading(sink), step(5), torch.zeros(1).long())
    keys, mean, square = sums.finish()
    return FirstPass(keys, mean, square, meta={"indicator": Omega().indicator_settings()})


def test_a_sink_at_every_timestep_is_stable_and_one_at_a_single_timestep_is_not() -> None:
    steady = gathered(*[3] * 8).stability(SITE, [40], 16)
    assert float(steady[0, 3]) == pytest.approx(1.0, abs=1e-6)
    # the indifferent timesteps leave s = 1 / (1 + (1/4)^-4) = 1/257, hence a little more than 1/8
    passing = gathered(3, *[None] * 7)
    assert float(passing.stability(SITE, [40], 16)[0, 3]) == pytest.approx(1 / 8, rel=0.06)
    moving = gathered(3, 3, 3, 3, 9, 9, 9, 9)
    assert float(moving.stability(SITE, [40], 16)[0, 3]) == pytest.approx(1 / 2, rel=1e-3)
    assert float(moving.stability(SITE, [40], 16)[0, 9]) == pytest.approx(1 / 2, rel=1e-3)


def test_stability_is_not_reported_where_it_means_nothing() -> None:
    found = gathered(*[3] * 8).reported_stability(SITE)[0]
    assert float(found[3]) == pytest.approx(1.0, abs=1e-6)
    assert all(math.isnan(v) for j, v in enumerate(found.tolist()) if j != 3)


def test_samples_are_kept_apart_and_looked_up() -> None:
    sums = StabilitySums()
    for sink_a, sink_b in ((3, 3), (3, None)):
        sums.add(reading(sink_b), step(7), torch.zeros(1).long())
        sums.add(reading(sink_a), step(2), torch.zeros(1).long())
    keys, mean, square = sums.finish()
    assert keys.tolist() == [16, 56]
    phi = FirstPass(keys, mean, square).stability(SITE, [56, 16, 56], 16)[:, 3]
    assert phi.tolist() == pytest.approx([1 / 2, 1.0, 1 / 2], rel=0.02)


def test_what_was_not_seen_is_named() -> None:
    found = gathered(3)
    with pytest.raises(PruningError, match="sample 9 was not seen by the first pass"):
        found.stability(SITE, [40, 72], 16)
    with pytest.raises(PruningError, match="attention 'attn' has 20 keys, the first pass saw 16"):
        found.stability(SITE, [40], 20)
    with pytest.raises(PruningError, match="attention 'other' has 16 keys, the first pass saw none"):
        found.stability("other", [40], 16)


def test_changing_sizes_are_named() -> None:
    sums = StabilitySums()
    sums.add(reading(3), step(5), torch.zeros(1).long())
    with pytest.raises(
        PruningError, match="sample 5 has 20 keys now and had 16 before; calibrate at one resolution"
    ):
        sums.add(reading(3, 20), step(5), torch.zeros(1).long())
    sums.add(reading(3, 20), step(6), torch.zeros(1).long())
    with pytest.raises(PruningError, match=r"saw 2 of 2 samples and \[16, 20\] keys"):
        sums.finish()


def test_save_and_load(tmp_path: Path) -> None:
    model = dit()
    found = first_pass(
        model,
        find_groups(model),
        noised(model),
        num_train_timesteps=1000,
        timestep_buckets=BUCKETS,
        queries=5,
    )
    found.save(tmp_path / "first.safetensors")
    loaded = FirstPass.load(tmp_path / "first.safetensors")
    assert loaded.meta == found.meta
    assert torch.equal(loaded.keys, found.keys)
    for kind in ("indicator", "indicator_sq", "means"):
        ours, theirs = getattr(found, kind), getattr(loaded, kind)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(found.indicator) == 3
    assert len(found.means) == 6


def run(model: nn.Module, omega: Omega, found: FirstPass | None):
    return calibrate(
        model,
        find_groups(model, ["attention_heads"]),
        noised(model),
        needs=["input_sq"],
        variants=("on",),
        omega=omega,
        first_pass=found,
        num_train_timesteps=1000,
        timestep_buckets=BUCKETS,
    )


def test_lambdas_may_change_after_the_first_pass_but_not_how_sinks_are_told() -> None:
    model = dit()
    found = first_pass(
        model, find_groups(model), noised(model), num_train_timesteps=1000, timestep_buckets=BUCKETS
    )
    given, own = run(model, Omega(0.0, 1.0), found), run(model, Omega(0.0, 1.0), None)
    for name, values in own.values.items():
        assert torch.equal(values["input_sq@on"], given.get(name, "input_sq@on"))
    with pytest.raises(PruningError, match=r"the first pass told sinks by .*run the first pass again"):
        run(model, Omega(alpha=2.0), found)


def test_when_a_first_pass_is_needed() -> None:
    assert not needs_first_pass(["input_sq", "taylor"], ())
    assert needs_first_pass(["input_sq"], ("on",))
    assert not needs_first_pass(["input_sq"], ("on",), Omega(1.0, 1.0))
    assert needs_first_pass(["probe_diag"], ())

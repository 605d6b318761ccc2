"""Averages of other lengths: the mathematics, and that the best of them is the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pruning.recovery import RecoveryProgress
from pruning.recovery.lengths import BY_DECAY, TRACKED, Lengths, coefficients, exponent
from pruning.settings import Recover
from tests.unit.recovery_setup import run, small, weights

ASKED: dict[str, Any] = {"steps": 24, "eval_every": 4, "held_out": 4, "ema_lengths": [0.05, 0.2]}


def test_lengths_are_those_of_the_paper():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)
    for length in (0.01, 0.07, 0.25):
        g = exponent(length)
        assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(length**2)


def test_what_is_tracked_is_taken_as_it_is_and_all_sums_are_one():
    steps = [10, 20, 30]
    for which, length in enumerate(TRACKED):
        found = coefficients(steps, length)
        assert found[-1, which] == pytest.approx(1, abs=1e-6)
        assert abs(found).sum() == pytest.approx(1, abs=1e-5)
    for length in (0.01, 0.03, 0.15, 0.25):
        assert coefficients(steps, length).sum() == pytest.approx(1)


@pytest.mark.parametrize("length", [0.03, 0.075, 0.15])
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_length_that_was_not_kept_is_made_of_those_that_were(length: float, on_disk: bool, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(50))
    kept = Lengths.of({"w": weight}, tmp_path / "averages" if on_disk else None, writes=True)
    direct, evaluated = torch.zeros(50), []
    for taken in range(1, 401):
        with torch.no_grad():
            weight.add_(torch.randn(50, generator=generator))
        kept.step([weight], taken)
        direct.lerp_(weight.detach(), 1 - (1 - 1 / taken) ** (exponent(length) + 1))
        if taken % 25 == 0:
            kept.store(taken)
            evaluated.append(taken)
    found = kept.combined(length, evaluated)["w"]
    assert (found - direct).norm() < 0.03 * (weight.detach() - direct).norm()
    assert len([*tmp_path.glob("averages/*")]) == (16 if on_disk else 0)


def test_the_length_of_the_lowest_held_out_loss_is_the_result():
    student, shown = small(1), list[tuple[int, torch.Tensor]]()
    result = run(
        student, small(), ema_decay=0.0, validate=lambda m, step: shown.append((step, weights(m))), **ASKED
    )
    assert result.lengths is not None
    assert [*result.lengths] == [BY_DECAY, "0.05", "0.2"]
    assert result.lengths[BY_DECAY] == result.evaluations[-1][1]
    best = min(result.lengths, key=result.lengths.__getitem__)
    assert torch.equal(weights(student), shown[-1][1]) == (best == BY_DECAY)
    again = run(small(1), small(), ema_decay=0.0, **{**ASKED, "ema_lengths": []})
    assert (again.losses, again.lengths) == (result.losses, None)


def test_a_long_average_of_a_noisy_training_is_chosen_and_is_what_was_judged():
    noisy = {**ASKED, "learning_rate": 0.02, "schedule": "constant", "ema_decay": 0.0}
    student = small(1)
    result = run(student, small(), **noisy)
    assert result.lengths is not None
    best = min(result.lengths, key=result.lengths.__getitem__)
    assert best != BY_DECAY
    more = run(student, small(), **{**noisy, "steps": 1, "warmup_steps": 0, "ema_lengths": []})
    assert more.evaluations[0][1] == pytest.approx(result.lengths[best], rel=1e-6)


@pytest.mark.parametrize("early", [{}, {"early_stop": 2, "schedule": "constant"}])
def test_a_killed_run_ends_with_the_same_weights(early: dict[str, Any], tmp_path):
    whole = small(1)
    expected = run(whole, small(), **ASKED, **early)

    class Killed(Exception):
        pass

    def kill(info: RecoveryProgress) -> None:
        if info.step == expected.steps - 2:
            raise Killed

    with pytest.raises(Killed):
        run(small(1), small(), folder=tmp_path, progress=kill, **ASKED, **early)
    student = small(1)
    result = run(student, small(), folder=tmp_path, **ASKED, **early)
    assert result.resumed_from > 0
    assert result.lengths == expected.lengths
    assert torch.equal(weights(student), weights(whole))
    finished = small(1)
    run(finished, small(), folder=tmp_path, **ASKED, **early)
    assert torch.equal(weights(finished), weights(whole))


def test_bad_lengths_are_refused():
    assert [*Recover(ema_lengths=[0.1]).problems()] == [
        ("ema_lengths", "[0.1] needs evaluations; set eval_every, or leave it out")
    ]
    problems = [text for _, text in Recover(ema_lengths=[0.3], eval_every=5).problems()]
    assert problems == ["0.3 is not in [0.01, 0.25]"]

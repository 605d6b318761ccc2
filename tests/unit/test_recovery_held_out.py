"""Evaluations on the way: what is held out, when training stops, which weights are the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor

from pruning.errors import PruningError
from pruning.recovery import RecoveryProgress, tracking
from pruning.recovery.held_out import best_of, is_over, split
from pruning.recovery.recorded import ImageSource
from pruning.settings import Recover
from tests.models import run as output_of
from tests.unit.recovery_setup import run, small, weights

EVALUATED: dict[str, Any] = {"eval_every": 3, "held_out": 4}


def test_a_tenth_is_held_out_and_never_trained_on():
    trained, held = split(range(100), Recover(eval_every=5), seed=3)
    assert len(held) == 10
    assert sorted([*trained, *held]) == list(range(100))
    assert (trained, held) == split(range(100), Recover(eval_every=5), seed=3)
    assert held != split(range(100), Recover(eval_every=5), seed=4)[1]
    assert len(split(range(5000), Recover(eval_every=5), 0)[1]) == 64
    assert len(split(range(20), Recover(eval_every=5, held_out=7), 0)[1]) == 7
    assert split(range(3), Recover(), 0) == ([0, 1, 2], [])
    with pytest.raises(PruningError, match="held_out: 3 of 3 samples leave none to train on; hold out fewer"):
        split(range(3), Recover(eval_every=5, held_out=3), 0)


def test_what_is_held_out_is_not_trained_on(monkeypatch):
    shown: dict[int, set[int]] = {}
    build = ImageSource.build

    def watch(self: ImageSource, step: int, part: slice, images: list[int], pixels: Tensor) -> Any:
        shown.setdefault(self.share.seed, set()).update(images)
        return build(self, step, part, images, pixels)

    monkeypatch.setattr(ImageSource, "build", watch)
    run(small(1), small(), steps=6, seed=5, **EVALUATED)
    trained, held = split(range(24), Recover(**EVALUATED), seed=5)
    assert shown.pop(5) <= {*trained}
    assert [*shown.values()] == [{*held}]


def test_evaluations_come_first_every_so_often_and_last():
    seen: list[RecoveryProgress] = []
    result = run(small(1), small(), progress=seen.append, **EVALUATED)
    assert [step for step, _ in result.evaluations] == [0, 3, 6, 8]
    assert result.evaluations[-1][1] < result.evaluations[0][1]
    assert result.best_step is None
    assert [info.held_out for info in seen[1:4]] == [result.evaluations[k][1] for k in (0, 1, 1)]
    assert run(small(1), small()).evaluations == []


def test_evaluating_changes_nothing_of_the_course():
    often, seldom = small(1, dropout=0.2), small(1, dropout=0.2)
    first = run(often, small(), eval_every=1, held_out=4)
    second = run(seldom, small(), eval_every=8, held_out=4)
    assert first.losses == second.losses
    assert torch.equal(weights(often), weights(seldom))
    assert [first.evaluations[0], first.evaluations[-1]] == second.evaluations


def test_the_held_out_loss_is_that_of_the_averages():
    """Without averaging and steps it is the loss of the weights as they are, which evaluation mode does not change."""
    seen: list[Tensor] = []
    student = small(1)
    run(
        student, small(), ema_decay=0.9, validate=lambda model, step: seen.append(weights(model)), **EVALUATED
    )
    assert torch.equal(seen[-1], weights(student))  # the result
    assert len(seen) == 4


def test_the_student_is_in_evaluation_mode_only_meanwhile():
    modes: list[bool] = []
    student = small(1)
    run(
        student,
        small(),
        validate=lambda model, step: modes.append(model.training),
        progress=lambda info: modes.append(student.training),
        **{**EVALUATED, "steps": 3},
    )
    assert modes == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("losses", "patience", "best", "over"),
    [
        ([], 1, None, False),
        ([3.0], 1, 0, False),
        ([3.0, 2.0], 1, 1, False),
        ([3.0, 2.0, 2.0], 1, 1, True),
        ([3.0, 2.0, 2.5], 2, 1, False),
        ([3.0, 2.0, 2.5, 2.4], 2, 1, True),
        ([3.0, 4.0, 5.0], None, 0, False),
    ],
)
def test_patience_by_hand(losses, patience, best, over):
    evaluations = [(10 * k, loss) for k, loss in enumerate(losses)]
    assert best_of(evaluations) == best
    assert is_over(evaluations, Recover(eval_every=10, early_stop=patience, warmup_steps=0)) == over


def test_evaluations_of_the_warm_up_do_not_count():
    evaluations = [(0, 1.0), (10, 3.0), (20, 2.0), (30, 1.5)]
    settings = {"eval_every": 10, "early_stop": 2}
    assert not is_over(evaluations, Recover(warmup_steps=20, **settings))
    assert is_over(evaluations, Recover(warmup_steps=19, **settings))


DIVERGES: dict[str, Any] = {
    "steps": 40, "batch_size": 8, "eval_every": 2, "held_out": 4, "early_stop": 2, "learning_rate": 0.03,
    "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.0, "checkpoint_every": 3,
}  # fmt: skip
"""The learning rate is much too high."""


def test_training_stops_early_with_the_best_weights(tmp_path):
    student, kept = small(1), dict[int, Tensor]()
    result = run(
        student, small(), validate=lambda model, step: kept.__setitem__(step, weights(model)), **DIVERGES
    )
    losses = dict(result.evaluations)
    assert result.steps < 40
    assert result.best_step == min(losses, key=losses.__getitem__)
    assert result.evaluations[-1][0] == result.steps == result.best_step + 4
    assert torch.equal(weights(student), kept[result.best_step])

    class Killed(Exception):
        pass

    def kill(info: RecoveryProgress) -> None:
        if info.step == result.steps - 1:
            raise Killed

    again = small(1)
    with pytest.raises(Killed):
        run(small(1), small(), folder=tmp_path, progress=kill, **DIVERGES)
    rest = run(again, small(), folder=tmp_path, **DIVERGES)
    assert rest.resumed_from > 0
    assert rest.evaluations == result.evaluations
    assert rest.best_step == result.best_step
    assert torch.equal(weights(again), weights(student))
    finished = small(1)
    run(finished, small(), folder=tmp_path, **DIVERGES)
    assert torch.equal(weights(finished), weights(student))


def test_a_held_out_loss_that_is_not_finite_is_told(monkeypatch):
    student = small(1)
    with torch.no_grad():
        student.proj_out_2.bias[0] = float("nan")
    with pytest.raises(
        PruningError, match="the held-out loss is nan after step 0; look for NaN in the model"
    ):
        run(student, small(), **EVALUATED)


@pytest.mark.parametrize("train", ["lora", "norms_biases_head"])
def test_validation_sees_the_adapters_of_the_moment(train):
    seen: list[Tensor] = []
    student = small(1)
    how = {**EVALUATED, "train": train, "learning_rate": 1e-2}
    run(student, small(), validate=lambda model, step: seen.append(output_of(model)), **how)
    torch.testing.assert_close(seen[0], output_of(small(1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[-1], output_of(student), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-4)


class Notes(GeneralTracker):
    """A tracker of accelerate that keeps what it is told."""

    name, requires_logging_directory, main_process_only = "notes", False, True

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.told: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None
        self.told.append((step, values))

    def finish(self) -> None:
        self.ended = True


def test_a_tracker_is_told_of_every_step(monkeypatch):
    notes = Notes()
    monkeypatch.setattr("pruning.recovery.training.tracked_by", lambda settings, logs: {"log_with": notes})
    result = run(small(1), small(), steps=3, **{**EVALUATED, "eval_every": 2})
    assert notes.config["steps"] == 3
    assert [(step, told["loss"]) for step, told in notes.told if "loss" in told] == result.losses
    assert [
        (step, told["held_out_loss"]) for step, told in notes.told if "held_out_loss" in told
    ] == result.evaluations
    assert all(told["learning_rate"] > 0 for _, told in notes.told if "loss" in told)
    assert notes.ended


def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    result = run(small(1), small(), steps=2, tracker="tensorboard", logs=tmp_path / "logs")
    files = list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert files
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(files[0].parent))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(step, pytest.approx(loss)) for step, loss in result.losses]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(
        PruningError, match=rf"recover.tracker: '{name}' needs the package '{name}', which is not"
    ):
        run(small(1), small(), tracker=name)


def test_tensorboard_wants_a_folder(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda package: package)
    with pytest.raises(PruningError, match="tracker='tensorboard' writes files; say where"):
        run(small(1), small(), tracker="tensorboard")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every": -1}, "eval_every: -1 must be at least 0"),
        ({"eval_every": 2, "held_out": 0}, "held_out: 0 must be at least 1"),
        ({"eval_every": 2, "early_stop": 0}, "early_stop: 0 must be at least 1"),
        ({"early_stop": 3}, "early_stop: 3 needs evaluations; set eval_every, or leave it out"),
        ({"held_out": 3}, "held_out: 3 needs evaluations"),
        ({"validation_images": 8}, "validation_images: 8 needs evaluations"),
        ({"eval_every": 2, "held_out": 24}, "held_out: 24 of 24 samples leave none to train on"),
        ({"tracker": "board"}, "tracker: 'board' is not valid.*; valid: tensorboard, wandb, trackio"),
        ({"optimizer": "adam"}, "optimizer: 'adam' is not valid.*; valid: adamw, adamw8bit"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(PruningError, match=message):
        run(small(1), small(), **changes)

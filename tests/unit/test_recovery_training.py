"""Recovery: the loss, the step, what it does to the models, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.interface import image_calls
from pruning.recovery import RecoveryProgress, loop, training
from pruning.recovery.batches import TrainingBatch
from pruning.recovery.loop import learning_rate_at
from pruning.recovery.objective import training_step
from pruning.recovery.weighting import min_snr
from pruning.settings import Recover
from pruning.surgery import apply_plan
from tests.models import run as output_of
from tests.models import unet2d
from tests.plans import random_plan
from tests.unit.recovery_setup import run, small, stripes, weights


class Constant(nn.Module):
    """A denoiser whose every output channel c is ``values[c]``; remembers its calls."""

    def __init__(self, *values: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=dtype))
        self.calls: list[dict[str, Any]] = []

    def forward(self, return_dict: bool = True, **call: Any) -> tuple[torch.Tensor]:
        self.calls.append(call)
        batch, _, height, width = call["sample"].shape
        return (self.values.view(1, -1, 1, 1).expand(batch, -1, height, width),)


def _batch(target: float = 0.0) -> TrainingBatch:
    call = {
        "sample": torch.zeros(2, 1, 3, 3),
        "timestep": torch.tensor([5.5, 7.25]),
        "class_labels": torch.tensor([1, 2]),
    }
    timesteps = torch.tensor([5, 7])
    return TrainingBatch(call, torch.full((2, 1, 3, 3), target), timesteps, timesteps, timesteps < 0, 0)


def _loss(student, teacher, distill, target=0.0, weights=(1.0, 1.0)) -> float:
    return training_step(
        student, teacher, _batch(target), distill_weight=distill, weights=torch.tensor(weights)
    ).item()


def test_the_loss_by_hand():
    assert _loss(Constant(3.0), None, 0.0, target=1.0) == 4.0  # (3 - 1)^2
    assert _loss(Constant(3.0), Constant(2.5), 1.0, target=1.0) == 0.25  # (3 - 2.5)^2
    assert _loss(Constant(3.0), Constant(2.5), 0.25, target=1.0) == 0.75 * 4 + 0.25 * 0.25
    assert _loss(Constant(3.0), None, 0.0, target=1.0, weights=(1.0, 0.5)) == 0.5 * (4 + 2)


def test_a_learned_variance_follows_the_teacher_and_not_the_target():
    assert _loss(Constant(3.0, 9.0), None, 0.0, target=1.0) == 4.0
    assert _loss(Constant(3.0, 9.0), Constant(3.0, 7.0), 1.0, target=1.0) == 0.5 * 4


def test_teacher_and_student_get_the_same_call_in_their_own_dtypes():
    student, teacher = Constant(3.0), Constant(2.5, dtype=torch.bfloat16)
    _loss(student, teacher, 0.5)
    (mine,), (theirs,) = student.calls, teacher.calls
    assert mine.keys() == theirs.keys()
    assert theirs["class_labels"] is mine["class_labels"]
    assert theirs["timestep"] is mine["timestep"]  # bfloat16 would round it
    assert theirs["sample"].dtype == torch.bfloat16
    assert torch.equal(theirs["sample"].float(), mine["sample"])


def test_no_gradient_reaches_the_teacher():
    student, teacher = Constant(3.0), Constant(2.5)
    training_step(student, teacher, _batch(), distill_weight=1.0, weights=torch.ones(2)).backward()
    assert teacher.values.grad is None
    assert student.values.grad is not None


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("epsilon", [1.0, 0.5, 1.0]), ("v_prediction", [0.5, 5 / 11, 0.0]), ("sample", [1.0, 5.0, 0.0])],
)
def test_min_snr_weights_by_hand(prediction: str, expected: list[float]):
    found = min_snr(torch.tensor([1.0, 10.0, 0.0]), prediction)  # gamma is 5
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_min_snr_needs_a_signal_to_noise_ratio():
    with pytest.raises(PruningError, match="'min_snr' is not known for flow_prediction; use 'uniform'"):
        run(small(1), small(), scheduler=FlowMatchEulerDiscreteScheduler(), loss_weighting="min_snr")


def _settings(**changes: Any) -> Recover:
    return Recover(**{"steps": 10, "learning_rate": 0.8, "warmup_steps": 4, **changes})


def test_the_learning_rate_by_hand():
    rates = [learning_rate_at(_settings(), step) for step in range(10)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[7] == pytest.approx(0.4)  # half of the cosine
    assert 0 < rates[9] < 0.06
    constant = _settings(schedule="constant", warmup_steps=0)
    assert [learning_rate_at(constant, step) for step in (0, 5, 9)] == [0.8, 0.8, 0.8]


def test_the_loss_falls_towards_the_teacher():
    teacher, student = small(0), small(1)
    before = (output_of(student) - output_of(teacher)).square().mean().item()
    result = run(
        student, teacher, steps=40, batch_size=8, distill_weight=1.0, learning_rate=3e-3, ema_decay=0.8
    )
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert (output_of(student) - output_of(teacher)).square().mean().item() < 0.5 * before
    assert result.steps == 40
    assert result.images_per_second > 0


def test_plain_fine_tuning_learns_the_data():
    losses = [loss for _, loss in run(small(1), None, steps=60, distill_weight=0, learning_rate=3e-3).losses]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_an_untrained_variance_is_said(caplog):
    run(small(1, out_channels=2), None, steps=1, warmup_steps=0, distill_weight=0)
    assert "also predicts a variance, which the data loss does not train" in caplog.text
    caplog.clear()
    run(small(1, out_channels=2), small(out_channels=2), steps=1, warmup_steps=0)
    assert caplog.text == ""


def test_a_pruned_unet_trains_too():
    teacher = unet2d()
    student = apply_plan(unet2d(), random_plan(unet2d(), ("attention_heads", "resnet_channels"), seed=3))
    assert sum(g.num_units for g in find_groups(student)) < sum(g.num_units for g in find_groups(teacher))
    losses = [loss for _, loss in run(student, teacher, steps=30, learning_rate=3e-3).losses]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_result_is_the_average_of_the_weights():
    """ema_n = ema - (1 - d_n)(ema - w_n) with d_n = min(decay, n / (9 + n)), d_1 = 0, by hand over three steps."""
    seen: list[torch.Tensor] = []
    student = small(1)
    run(student, small(), steps=3, ema_decay=0.15, progress=lambda info: seen.append(weights(student)))
    expected = seen[0]
    for decay, new in ((min(0.15, 2 / 11), seen[1]), (min(0.15, 3 / 12), seen[2])):
        expected = decay * expected + (1 - decay) * new
    torch.testing.assert_close(weights(student), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(weights(student), seen[2])


def test_without_averaging_the_result_is_the_last_weights():
    seen: list[torch.Tensor] = []
    student = small(1)
    run(student, small(), steps=3, ema_decay=0.0, progress=lambda info: seen.append(weights(student)))
    torch.testing.assert_close(weights(student), seen[2], rtol=1e-6, atol=1e-8)


def test_gradients_are_clipped(monkeypatch):
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watch(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item())
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    run(small(1), small(), steps=2, grad_clip=0.01)
    run(small(1), small(), steps=2, grad_clip=None)
    assert norms[:2] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert norms[2] > 0.02


def test_weight_decay_spares_biases_and_norms():
    """With a gradient of zero AdamW only decays: w <- w (1 - lr * decay)."""
    student, teacher = small(1), small(1)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    run(
        student, teacher, steps=1, warmup_steps=0, schedule="constant", distill_weight=1.0, weight_decay=0.5,
        learning_rate=0.1, ema_decay=0.0,
    )  # fmt: skip
    for name, parameter in student.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-5, atol=1e-7)


def test_micro_batches_change_memory_and_not_the_course():
    whole, split = small(1), small(1)
    one = run(whole, small(), steps=4)
    two = run(split, small(), steps=4, gradient_accumulation=2)
    assert [loss for _, loss in one.losses] == pytest.approx([loss for _, loss in two.losses], rel=1e-4)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-3, atol=2e-5)


def test_the_models_are_left_in_order():
    student, teacher = small(1).to(torch.bfloat16), small().to(torch.bfloat16).train()
    frozen = next(student.parameters())
    frozen.requires_grad_(False)
    held, teaching = frozen.detach().float().clone(), weights(teacher)
    before = torch.get_rng_state()
    run(student, teacher, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not student.training
    assert teacher.training
    assert {p.dtype for p in student.parameters()} == {torch.float32}  # master weights
    assert torch.equal(frozen.detach(), held)
    assert torch.equal(weights(teacher), teaching)
    assert all(p.grad is None for p in [*student.parameters(), *teacher.parameters()])
    assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(vars(student))


def test_no_label_embedding_draws_from_the_global_generator(monkeypatch):
    def refuse(self, labels, force_drop_ids=None):
        raise AssertionError("a LabelEmbedding dropped labels by itself")

    monkeypatch.setattr(LabelEmbedding, "token_drop", refuse)
    run(small(1), small().train(), steps=2, label_dropout=0.5)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    torch.manual_seed(1)
    first = run(small(1, dropout=0.3), small(), steps=3)
    torch.manual_seed(2)
    assert run(small(1, dropout=0.3), small(), steps=3).losses == first.losses
    assert run(small(1, dropout=0.3), small(), steps=3, seed=6).losses != first.losses


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(prediction_type="v_prediction"), FlowMatchEulerDiscreteScheduler()]
)
def test_other_predictions(scheduler):
    losses = [loss for _, loss in run(small(1), small(), scheduler=scheduler, steps=3).losses]
    assert all(math.isfinite(loss) for loss in losses)


def test_mixed_precision_trains_float32_weights():
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        student = small(1)
        plain = [loss for _, loss in run(small(1), small(), mixed_precision="no", steps=3).losses]
        with pytest.raises(PruningError, match="accelerate refuses mixed_precision='bf16'"):
            run(student, small(), mixed_precision="bf16")
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = [loss for _, loss in run(student, small(), mixed_precision="bf16", steps=3).losses]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert mixed == pytest.approx(plain, rel=0.05)
    assert mixed != plain
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert "forward" not in vars(student)


def test_progress_tells_every_step():
    seen: list[RecoveryProgress] = []
    result = run(small(1), small(), steps=3, progress=seen.append)
    assert [(info.step, info.loss) for info in seen] == result.losses
    assert {info.steps for info in seen} == {3}
    assert all(info.images_per_second > 0 for info in seen)


@pytest.mark.parametrize("when", [0, 4])
def test_a_loss_that_is_not_finite_names_step_and_rate(tmp_path, monkeypatch, when):
    step, taken = loop.training_step, iter(range(100))

    def broken(*args, **kwargs):
        loss = step(*args, **kwargs)
        return loss * float("nan") if next(taken) == when else loss

    monkeypatch.setattr(loop, "training_step", broken)
    message = rf"at step {when + 1} of 8 the loss is nan.*learning rate \S+\).*checkpoints in .* are whole"
    with pytest.raises(PruningError, match=message):
        run(small(1), small(), folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == (["step-00000003"] if when > 3 else [])


def test_a_gradient_that_is_not_finite_stops_before_the_step(monkeypatch):
    student = small(1)
    held = weights(student)
    clip = training.Accelerator.clip_grad_norm_
    monkeypatch.setattr(
        training.Accelerator, "clip_grad_norm_", lambda *args, **kw: clip(*args, **kw) * math.inf
    )
    with pytest.raises(PruningError, match=r"the gradient's norm inf.*Lower learning_rate"):
        run(student, small())
    assert torch.equal(weights(student), held)


def test_nan_in_the_student_is_found_at_the_first_step():
    student = small(1)
    with torch.no_grad():
        student.proj_out_2.bias[0] = math.nan
    with pytest.raises(PruningError, match=r"at step 1 of 8.*look for NaN in the model or the images"):
        run(student, small())


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(
        PruningError,
        match=r"recovery: steps: 0 must be at least 1; recovery: ema_decay: 1\.5 is not in \[0, 1\)",
    ):
        run(small(1), small(), steps=0, ema_decay=1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
        ({"steps": 2**31}, "less than 2\\^32 images"),
        ({"learning_rate": math.inf}, "learning_rate: inf must be a finite number"),
        ({"warmup_steps": 9}, "warmup_steps: 9 is more than steps, 8"),
        ({"steps": "8"}, "steps: '8' is a str; expected a whole number"),
        ({"enabled": 1}, "enabled: 1 is a int; expected true or false"),
        ({"schedule": "linear"}, "schedule: 'linear' is not valid; valid: cosine, constant"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 must be at least 0"),
        ({"distill_weight": 1.1}, r"distill_weight: 1.1 is not in \[0, 1\]"),
        ({"label_dropout": 1.0}, r"label_dropout: 1.0 is not in \[0, 1\)"),
        ({"grad_clip": 0.0}, "grad_clip: 0.0 must be > 0"),
        (
            {"loss_weighting": "snr"},
            "loss_weighting: 'snr' is not valid .did you mean 'min_snr'..; valid: uniform, min_snr",
        ),
        ({"gradient_accumulation": 0}, "gradient_accumulation: 0 must be at least 1"),
        ({"gradient_accumulation": 3}, r"recover\.batch_size: 4 must be a multiple of .* 3 x 1 = 3"),
        ({"mixed_precision": "fp8"}, "mixed_precision: 'fp8' is not valid.*; valid: no, bf16, fp16"),
        ({"checkpoint_every": -1}, "checkpoint_every: -1 must be at least 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: 0 must be at least 1"),
        ({"max_seconds": 0}, "max_seconds: 0 must be > 0"),
        ({"device": "xpu"}, "device='xpu' asked, but accelerate runs on"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(PruningError, match=message):
        run(small(1), small(), **changes)


def test_a_run_without_a_scheduler_is_refused():
    student = small(1)
    with pytest.raises(
        PruningError, match=r"scheduler is None: give the one that the model was trained with"
    ):
        image_calls(student, None, stripes())


def test_bad_models_and_data():
    with pytest.raises(PruningError, match=r"distill_weight=0.5 needs the dense model as teacher"):
        run(small(1), None)
    shared = small()
    with pytest.raises(PruningError, match="student and teacher share parameters"):
        run(shared, shared)
    with pytest.raises(PruningError, match="no parameter of the student requires a gradient"):
        run(small(1).requires_grad_(False), small())
    with pytest.raises(PruningError, match="stripes: no image asked"):
        run(small(1), small(), stripes(0))

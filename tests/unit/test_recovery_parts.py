"""What is trained of the slim model, and that nothing of how it was trained is left in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch import Tensor, nn

from pruning import checkpoint
from pruning.errors import PruningError
from pruning.recovery import training
from pruning.recovery.parts import adaptable, trained_parts, vectors
from pruning.settings import Recover
from pruning.surgery import apply_plan
from pruning.surgery.shared import share
from tests.models import run as output_of
from tests.models import unet2d
from tests.plans import random_plan
from tests.unit.recovery_setup import run, small, weights

FEW, LORA = "norms_biases_head", "lora"


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    """The parameters that are not as they were."""
    known = dict(before.named_parameters())
    return {name for name, p in after.named_parameters() if not torch.equal(p, known[name])}


def test_norms_biases_and_the_output_layer_are_trained_and_nothing_else():
    student = apply_plan(unet2d(), random_plan(unet2d(), ("attention_heads", "resnet_channels"), seed=3))
    before = copy.deepcopy(student)
    run(student, unet2d(), train=FEW, steps=3, learning_rate=3e-3)
    moved = changed(before, student)
    assert "conv_out.weight" in moved
    assert {name.rpartition(".")[2] for name in moved - {"conv_out.weight"}} == {"bias", "weight"}
    kinds = {
        type(student.get_submodule(name.rpartition(".")[0])).__name__ for name in moved if "weight" in name
    }
    assert kinds == {"GroupNorm", "Conv2d"}
    still = {name for name, p in student.named_parameters() if name not in moved and p.ndim < 2}
    assert not {name for name in still if "to_k" not in name}  # softmax does not feel a bias of the keys


def test_vectors_are_what_no_layer_has_as_its_weight():
    model = nn.Module()
    model.a, model.b = nn.Linear(1, 3), nn.LayerNorm(4)
    model.c, model.d = nn.Parameter(torch.ones(1, 1, 5)), nn.Parameter(torch.ones(2, 5))
    model.e = nn.Embedding(1, 4)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in vectors(model)} == {"a.bias", "b.weight", "b.bias", "c"}


def test_adapters_are_trained_alone_and_merged(tmp_path):
    student, seen = small(1), dict[str, Any]()
    before = copy.deepcopy(student)

    def look(info: Any) -> None:
        if info.step == 8:
            seen["names"] = {name for name, p in student.named_parameters() if p.requires_grad}
            student.eval()
            seen["output"] = output_of(student)

    run(
        student,
        small(),
        train=LORA,
        lora_rank=3,
        lora_alpha=1.5,
        ema_decay=0.0,
        progress=look,
        folder=tmp_path,
    )
    assert seen["names"]
    assert all(".lora_A." in name or ".lora_B." in name for name in seen["names"])
    torch.testing.assert_close(output_of(student), seen["output"], rtol=1e-5, atol=1e-6)
    assert student.state_dict().keys() == before.state_dict().keys()
    assert not hasattr(student, "peft_config")
    moved = changed(before, student)
    assert "proj_out_2.weight" in moved
    assert all(name.endswith(".weight") for name in moved)
    for name in moved:
        update = (student.get_parameter(name) - before.get_parameter(name)).detach().flatten(1).double()
        assert torch.linalg.matrix_rank(update, rtol=1e-4) <= 3
    for part in ("model", "ema", "optimizer"):
        with safe_open(tmp_path / "step-00000008" / f"{part}.safetensors", "pt") as file:
            names = {name for name in file.keys() if "lora" not in name}  # noqa: SIM118
        assert not names & {name for name, _ in before.named_parameters()}
        assert not {name for name in names if "base_layer.weight" in name}


def test_alpha_scales_what_adapters_do():
    def after(alpha: float | None) -> Tensor:
        model = small(1)
        settings = Recover(train=LORA, lora_rank=2, lora_alpha=alpha)
        with trained_parts(model, settings, 0, lambda: output_of(model)):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.constant_(parameter, 0.01)
        return weights(model) - weights(small(1))

    torch.testing.assert_close(after(None), after(2.0))
    torch.testing.assert_close(after(6.0), 3 * after(2.0), rtol=1e-3, atol=1e-6)


def test_the_result_is_a_plain_checkpoint(tmp_path):
    student = apply_plan(small(1), random_plan(small(1), ("attention_heads", "ffn_channels"), seed=2))
    run(student, small(), train=LORA, steps=2)
    checkpoint.save(student, tmp_path / "slim")
    again = checkpoint.load(tmp_path / "slim")
    assert torch.equal(output_of(again), output_of(student))


@pytest.mark.parametrize("train", [FEW, LORA])
def test_the_loss_falls_with_fewer_weights(train):
    student, teacher = small(1), small(0)
    before = (output_of(student) - output_of(teacher)).square().mean().item()
    run(
        student,
        teacher,
        train=train,
        steps=40,
        batch_size=8,
        distill_weight=1.0,
        learning_rate=1e-2,
        ema_decay=0.8,
    )
    assert (output_of(student) - output_of(teacher)).square().mean().item() < 0.6 * before


@pytest.mark.parametrize("train", [FEW, LORA])
def test_the_average_is_of_what_is_trained(train):
    student = small(1)
    held = {name: p.detach().clone() for name, p in student.named_parameters()}
    run(student, small(), train=train, steps=3, ema_decay=0.9)
    same = [torch.equal(p, held[name]) for name, p in student.named_parameters()]
    assert any(same)
    assert not all(same)


@pytest.mark.parametrize("train", [FEW, LORA])
def test_frozen_weights_stay(train):
    student = small(1)
    frozen = student.proj_out_2
    frozen.requires_grad_(False)
    held = frozen.weight.detach().clone()
    run(student, small(), train=train, steps=2)
    assert torch.equal(frozen.weight, held)
    assert not frozen.weight.requires_grad
    assert student.proj_out_1.weight.requires_grad


@pytest.mark.parametrize("train", [FEW, LORA])
def test_a_run_that_fails_leaves_the_weights(train, monkeypatch):
    student = small(1)
    held, names = weights(student), [name for name, _ in student.named_modules()]
    clip = training.Accelerator.clip_grad_norm_
    monkeypatch.setattr(training.Accelerator, "clip_grad_norm_", lambda *a, **k: clip(*a, **k) * float("inf"))
    with pytest.raises(PruningError, match="the gradient's norm inf"):
        run(student, small(), train=train)
    assert [name for name, _ in student.named_modules()] == names
    assert torch.equal(weights(student), held)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_adapters_in_mixed_precision():
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        plain = [loss for _, loss in run(small(1), small(), train=LORA, mixed_precision="no", steps=3).losses]
        AcceleratorState._reset_state(reset_partial_state=True)
        student = small(1)
        mixed = [
            loss for _, loss in run(student, small(), train=LORA, mixed_precision="bf16", steps=3).losses
        ]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert mixed == pytest.approx(plain, rel=0.05)
    assert mixed != plain
    assert {p.dtype for p in student.parameters()} == {torch.float32}


class Odd(nn.Module):
    """Layers that can have an adapter (``fine``), and others."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(4, 4)
        self.deep = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 3))])
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.dilated = nn.Conv1d(4, 4, 3, dilation=2)
        self.round = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.point = nn.Conv3d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.owner, self.copy = nn.Linear(4, 4), nn.Linear(4, 4)
        share(self, {"copy": "owner"})
        self.held = nn.Linear(4, 4).requires_grad_(False)


def test_layers_that_can_have_an_adapter():
    assert adaptable(Odd()) == ["fine", "deep.0.0"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (LORA, "train='lora': the model has no linear or convolution layer that can have an adapter"),
        (FEW, "train='norms_biases_head': the model has no norm, bias or output layer that may be trained"),
    ],
)
def test_a_model_without_such_layers_is_refused(train, message):
    model = nn.Module()
    model.table = nn.Parameter(torch.ones(3, 3))
    settings = Recover(train=train)
    with pytest.raises(PruningError, match=message), trained_parts(model, settings, 0, lambda: None):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": "lorra"},
            r"train: 'lorra' is not valid .did you mean 'lora'..; valid: all, lora, norms_biases",
        ),
        ({"lora_rank": 0}, "lora_rank: 0 must be at least 1"),
        ({"lora_alpha": 0.0}, "lora_alpha: 0.0 must be > 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(PruningError, match=message):
        run(small(1), small(), **changes)

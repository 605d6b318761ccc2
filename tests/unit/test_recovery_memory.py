"""What saves memory while training: moments of eight bits, and blocks that run again in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pruning.errors import PruningError
from pruning.recovery import optimizers
from pruning.settings import Recover
from tests.models import dit
from tests.unit.recovery_setup import run, small, weights


@pytest.mark.parametrize("changes", [{}, {"train": "lora"}, {"feature_weight": 0.5}, {"dropout": 0.2}])
def test_blocks_that_run_again_give_the_same_gradients(changes):
    dropout = changes.pop("dropout", 0.0)
    one, other = small(1, dropout=dropout), small(1, dropout=dropout)
    plain = run(one, small(), steps=3, **changes)
    again = run(other, small(), steps=3, gradient_checkpointing=True, **changes)
    assert plain.losses == again.losses
    assert torch.equal(weights(one), weights(other))
    assert not other.is_gradient_checkpointing


def test_blocks_do_run_again(monkeypatch):
    calls = []
    student = small(1)
    student.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    run(student, small(), steps=2, warmup_steps=0)
    plain = len(calls)
    run(student, small(), steps=2, warmup_steps=0, gradient_checkpointing=True)
    assert len(calls) - plain == 2 * plain


def test_a_model_that_was_checkpointed_before_stays_so():
    student = small(1)
    student.enable_gradient_checkpointing()
    run(student, small(), steps=1, warmup_steps=0, gradient_checkpointing=True)
    assert student.is_gradient_checkpointing


def test_a_model_without_a_method_for_it_is_refused(monkeypatch):
    student = small(1)
    monkeypatch.setattr(type(student), "_supports_gradient_checkpointing", False)
    with pytest.raises(
        PruningError, match="gradient_checkpointing: DiTTransformer2DModel has no method for it"
    ):
        run(student, small(), gradient_checkpointing=True)


def test_moments_of_eight_bits_train_and_resume(tmp_path):
    """Of weights of fewer than 4,096 entries moments keep 32 bits: the model has some larger ones."""
    pytest.importorskip("bitsandbytes")

    def model(seed: int) -> nn.Module:
        found = dit(num_attention_heads=4, attention_head_dim=16, num_layers=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        return found

    def trained(steps: int, **changes: Any) -> tuple[nn.Module, Any]:
        student = model(1)
        how = {"optimizer": "adamw8bit", "steps": steps, "schedule": "constant", "warmup_steps": 2}
        return student, run(student, model(0), **how, **changes)

    whole, expected = trained(8)
    plain = model(1)
    losses = run(plain, model(0), schedule="constant").losses
    assert [loss for _, loss in expected.losses] == pytest.approx([loss for _, loss in losses], rel=0.05)
    assert not torch.equal(weights(whole), weights(plain))
    trained(5, folder=tmp_path)
    resumed, result = trained(8, folder=tmp_path)
    assert result.resumed_from == 5
    assert result.losses == expected.losses
    assert torch.equal(weights(resumed), weights(whole))


def test_an_optimizer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda package: None)
    message = (
        r"recover.optimizer: 'adamw8bit' needs the package 'bitsandbytes', .* pip install 'sinkprune\[8bit\]'"
    )
    with pytest.raises(PruningError, match=message):
        run(small(1), small(), optimizer="adamw8bit")
    optimizers.check_optimizer(Recover())

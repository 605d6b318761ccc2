"""Adapters on every denoiser class: while they are there and once merged the model says the same; and output layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pruning.models.outputs import with_tuple
from pruning.recovery.parts import output_weights, trained_parts
from pruning.settings import Recover
from tests.family.zoo_setup import FIRST
from tests.zoo import ZOO, Draw, build, run

NO_BACKWARD = {"AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel"}
"""Classes that attend by flex attention, of which no gradient can be taken on the CPU."""

OUTPUTS = {
    "UNet2DConditionModel": {"conv_out.weight"},
    "DiTTransformer2DModel": {"proj_out_2.weight"},
    "FluxTransformer2DModel": {"proj_out.weight"},
    "LTX2VideoTransformer3DModel": {"audio_proj_out.weight", "proj_out.weight"},
    "StableAudioDiTModel": {"proj_out.weight", "postprocess_conv.weight"},
    "WanTransformer3DModel": {"proj_out.weight"},
}
"""Of some classes, the layers whose output is the model's."""


def _tells(name: str) -> float:
    """How far rounding alone moves a model: its output's change for weights other by a few units in the last place."""
    model = build(ZOO[name])
    before = run(ZOO[name], model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 3e-7 * torch.randn(parameter.shape, generator=generator))
    return float((run(ZOO[name], model) - before).abs().max())


@pytest.mark.parametrize("name", FIRST)
def test_merged_adapters_say_what_they_said(name: str) -> None:
    model = build(ZOO[name])
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    before = run(ZOO[name], model)
    call: Any = with_tuple(model, ZOO[name].call(Draw()))
    required = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    with trained_parts(model, Recover(train="lora", lora_rank=2), 0, lambda: model(**call)):
        begun = float((run(ZOO[name], model) - before).abs().max())
        assert begun <= 1e-6 * float(before.abs().max())  # adapters begin with nothing
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            nn.init.normal_(parameter, std=0.05)
        during = run(ZOO[name], model)
    merged = run(ZOO[name], model)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == required
    scale = float(before.abs().max())
    assert float((merged - before).abs().max()) > 1e-2 * scale
    assert float((merged - during).abs().max()) < 1e-5 * scale + 10 * _tells(name)


@pytest.mark.parametrize("name", [name for name in FIRST if ZOO[name].cls not in NO_BACKWARD])
def test_every_class_has_output_layers(name: str) -> None:
    model = build(ZOO[name])
    call: Any = with_tuple(model, ZOO[name].call(Draw()))
    names = {id(parameter): path for path, parameter in model.named_parameters()}
    found = {names[id(weight)] for weight in output_weights(model(**call))}
    assert found == OUTPUTS.get(ZOO[name].cls, found)
    assert 1 <= len(found) <= 5
    assert sum(model.get_parameter(path).numel() for path in found) < 0.2 * sum(
        p.numel() for p in model.parameters()
    )

"""Attention is seen whoever computes it, and nothing about the model changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import Attention, AttnProcessor, SlicedAttnProcessor
from torch import nn

from pruning.calibration import Calibrator
from pruning.calibration.attention.capture import AttentionCapture
from pruning.calibration.attention.sites import is_attention, measured_sites, weighting_site
from pruning.calibration.attention.softmax import AttentionCall
from pruning.calibration.statistics.first_pass import first_observers
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.settings import Calibrate, SinkWeights
from pruning.types import CalibrationStats, PrunableGroup
from tests.models import MODELS, call, dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import dense_attention

SINKS = ("key_mass", "sink_indicator", "sink_mass", "max_key_mass")
ROWS = ("input_sum", "input_unit_moment", "block_cosine")
DROP = SinkWeights(unstable=1.0, stable=1.0)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def calibrator(
    model: nn.Module, needs: Any = SINKS + ROWS, variants: tuple[str, ...] = (), buckets: int = 8
) -> Calibrator:
    settings = Calibrate(timestep_buckets=buckets, sink_weights=DROP)
    groups = find_groups(model)
    return Calibrator(
        model, groups, needs=needs, num_train_timesteps=1000, variants=variants, settings=settings
    )


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_bitwise_the_same_and_no_hook_stays(name: str) -> None:
    model = MODELS[name]()
    arguments = call(model)
    with torch.no_grad():
        before = model(**arguments, return_dict=False)[0]
        with calibrator(model, variants=("on", "permuted")) as stats:
            during = model(**arguments, return_dict=False)[0]
    assert torch.equal(before, during)
    assert hooks(model) == 0
    assert stats.values


def test_hooks_and_back_end_are_put_back_after_an_exception() -> None:
    model = dit()
    registry = _AttentionBackendRegistry
    manager = calibrator(model)

    def fail() -> None:
        with manager as stats:
            found.append(stats)
            assert registry.get_active_backend()[0] == "native"
            assert hooks(model) > 0
            raise RuntimeError("on purpose")

    found: list[CalibrationStats] = []
    with attention_backend("_native_math"):
        with pytest.raises(RuntimeError, match="on purpose"):
            fail()
        assert registry.get_active_backend()[0] == "_native_math"
    assert hooks(model) == 0
    assert found[0].values == {}


def test_a_failed_call_does_not_confuse_the_next() -> None:
    model = unet2d()
    arguments = call(model)

    def fail(module: nn.Module, args: object) -> None:
        raise RuntimeError("inside an attention module")

    with torch.no_grad(), calibrator(model, SINKS) as stats:
        handle = model.get_submodule("mid_block.attentions.0.to_k").register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="inside an attention module"):
            model(**arguments)
        handle.remove()
        model(**arguments)
    with torch.no_grad(), calibrator(model, SINKS) as clean:
        model(**arguments)
    name = "mid_block.attentions.0"
    assert torch.equal(stats.get(name, "key_mass"), clean.get(name, "key_mass"))


def recorded(model: nn.Module, paths: list[str], **extra) -> list[AttentionCall]:
    calls: list[AttentionCall] = []
    with torch.no_grad(), AttentionCapture(model, paths, calls.append):
        model(**{**call(model), **extra})
    return calls


def attentions(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if is_attention(module)]


@pytest.mark.parametrize("make", [dit, unet2d, unet2d_condition])
def test_every_attention_is_seen_once_with_its_name(make: Callable[[], nn.Module]) -> None:
    model = make()
    expected = [path for path, module in model.named_modules() if isinstance(module, Attention)]
    calls = recorded(model, expected)
    assert sorted(c.path for c in calls) == sorted(expected) == sorted(attentions(model))
    assert [c.cross for c in calls] == [c.path.endswith("attn2") for c in calls]


@pytest.mark.parametrize(
    ("make", "masked"), [(dit, False), (unet2d, False), (unet2d_condition, False), (unet2d_condition, True)]
)
def test_spelled_out_attention_is_seen_like_the_fused_one(
    make: Callable[[], nn.Module], masked: bool
) -> None:
    model = make()
    extra = {"encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()} if masked else {}
    fused = recorded(model, attentions(model), **extra)
    for path in attentions(model):
        model.get_submodule(path).set_processor(AttnProcessor())
    spelled = recorded(model, attentions(model), **extra)
    assert [c.path for c in spelled] == [c.path for c in fused]
    for a, b in zip(spelled, fused, strict=True):
        torch.testing.assert_close(dense_attention(a), dense_attention(b), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.value, b.value, atol=1e-5, rtol=1e-4)


def test_key_mass_is_that_of_the_models_own_probabilities() -> None:
    """The spelled-out processor's probabilities, taken from diffusers' own code, are the reference."""
    model = unet2d_condition()
    model.set_attn_processor(AttnProcessor())
    arguments = {**call(model), "timestep": torch.tensor([10, 700])}
    theirs: dict[str, torch.Tensor] = {}
    originals = []
    for path in attentions(model):
        module = model.get_submodule(path)

        def spy(query, key, mask=None, *, _module=module, _path=path):
            found = type(_module).get_attention_scores(_module, query, key, mask)
            theirs[_path] = found.unflatten(0, (-1, _module.heads))
            return found

        module.get_attention_scores = spy
        originals.append(module)
    with torch.no_grad(), calibrator(model, ("key_mass",), buckets=2) as stats:
        model(**arguments)
    for path, dense in theirs.items():
        found = stats.get(path, "key_mass")  # one sample in each of the two buckets
        torch.testing.assert_close(found, dense.double().mean(2), atol=1e-6, rtol=0)
    assert len(theirs) == len(attentions(model)) > 0


def test_an_attention_that_cannot_be_seen_is_named() -> None:
    model = unet2d_condition()
    model.set_attn_processor(SlicedAttnProcessor(2))
    with (
        pytest.raises(
            PruningError, match=r"'down_blocks\.0\.\S+attn1': its processor SlicedAttnProcessor does not call"
        ),
        torch.no_grad(),
        calibrator(model, SINKS),
    ):
        model(**call(model))
    assert hooks(model) == 0


def test_parts_run_outside_the_model_are_refused() -> None:
    model = dit()
    with pytest.raises(PruningError, match="ran outside a call of the whole model"), calibrator(model, ROWS):
        model.transformer_blocks[1].ff(torch.zeros(1, 16, 32))


def test_sites_of_groups() -> None:
    model = unet2d_condition()
    by_kind: dict[str, list[PrunableGroup]] = {}
    for group in find_groups(model):
        by_kind.setdefault(group.kind, []).append(group)
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    ffn = next(g for g in by_kind["ffn_channels"] if g.module == f"{block}.ff")
    cross = next(g for g in by_kind["attention_heads"] if g.module == f"{block}.attn2")
    assert weighting_site(model, ffn) == f"{block}.attn1"
    assert weighting_site(model, cross) == f"{block}.attn2"
    assert weighting_site(model, by_kind["resnet_channels"][0]) is None
    single = MODELS["unet2d-single-head"]()
    groups = find_groups(single)
    assert not any(g.kind == "attention_heads" for g in groups)
    sites = measured_sites(single, groups)
    assert "mid_block.attentions.0" in sites
    assert len(sites) == len(set(sites))
    assert all(is_attention(single.get_submodule(path)) for path in sites)


def test_single_head_attention_is_measured_under_its_block() -> None:
    model = MODELS["unet2d-single-head"]()
    with torch.no_grad(), calibrator(model, SINKS, buckets=2) as stats:
        model(**call(model))
    (block,) = [g for g in find_groups(model) if g.module == "mid_block.attentions.0"]
    found = stats.of(block).get("mid_block.attentions.0:blocks", "key_mass")
    assert found.shape == (2, 1, 16)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 1).double(), atol=1e-6, rtol=0)


def nan_in(model: nn.Module, path: str) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(path).view(-1)[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("make", "path", "needs", "message"),
    [
        (dit, "transformer_blocks.1.attn1.to_k.weight", SINKS, r"attention 'transformer_blocks\.1\.attn1'"),
        (
            dit,
            "transformer_blocks.1.ff.net.0.proj.weight",
            ROWS,
            r"input of 'transformer_blocks\.1\.ff\.net\.2'",
        ),
        (unet2d, "mid_block.resnets.0.conv1.weight", ROWS, r"input of 'mid_block\.resnets\.0\.conv2'"),
        (dit, "proj_out_2.bias", ROWS, "output of DiTTransformer2DModel"),
    ],
)
def test_nan_names_the_module_the_samples_and_the_bucket(
    make: Callable[[], nn.Module], path: str, needs: tuple[str, ...], message: str
) -> None:
    model = nan_in(make(), path)
    message += r" holds NaN or infinity \(sample 0, 1, timestep bucket 0, 5\)"
    with pytest.raises(PruningError, match=message), torch.no_grad(), calibrator(model, needs):
        model(**call(model))
    assert hooks(model) == 0


def test_nan_in_one_sample_names_that_sample() -> None:
    model = dit()
    arguments = call(model)
    arguments["hidden_states"][1, 0, 0, 0] = torch.inf
    with pytest.raises(PruningError, match="sample 1, timestep bucket 5"), torch.no_grad(), calibrator(model):
        model(**arguments)


def test_nan_is_found_in_the_first_pass_too() -> None:
    model = nan_in(dit(), "transformer_blocks.1.attn1.to_k.weight")
    needs = first_observers(model, find_groups(model), sinks=True)
    with (
        pytest.raises(PruningError, match=r"attention 'transformer_blocks\.1\.attn1' holds NaN"),
        torch.no_grad(),
        calibrator(model, needs),
    ):
        model(**call(model))
    assert hooks(model) == 0

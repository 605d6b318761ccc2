"""Whole calibration runs: every family, pipelines, a statistic of one's own, wrong requests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiTPipeline

import pruning.calibration
from pruning.calibration import STATISTICS, Calibrator, Omega, calibrate, calibrate_sampling, first_pass
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.registry import import_submodules
from tests.models import MODELS, call, dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, noised

COMMON = {"num_train_timesteps": 1000, "timestep_buckets": BUCKETS}


@pytest.mark.parametrize(
    "name", ["dit", "unet2d-single-head", "unet2d-condition", "unet2d-condition-added-kv"]
)
def test_everything_at_once(name: str) -> None:
    model = MODELS[name]()
    groups = find_groups(model)
    seen: list[int] = []
    stats = calibrate(
        model,
        groups,
        noised(model, 3, 2),
        needs=list(STATISTICS),
        variants=("on", "permuted"),
        queries=6,
        progress=seen.append,
        **COMMON,
    )
    assert seen == ([2] * BUCKETS + [1] * BUCKETS) * 2  # both passes
    assert set(stats.values) == {g.name for g in groups}
    for group in groups:
        for statistic, value in stats.values[group.name].items():
            assert bool(torch.isfinite(value).all()), (group.name, statistic)
            assert value.dtype == torch.float64
            assert value.device.type == "cpu"
        assert stats.get(group.name, "samples").tolist() == [3.0] * BUCKETS
    assert stats.meta["variants"] == ["on", "permuted"]
    assert stats.meta["samples"] == [3.0] * BUCKETS
    assert stats.meta["omega"]["alpha"] == 4.0


def test_shapes_are_as_documented() -> None:
    model = unet2d_condition()
    groups = find_groups(model)
    stats = calibrate(model, groups, noised(model), needs=list(STATISTICS), variants=("on",), **COMMON)
    head = (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2:attention_heads"  # 4 heads of 4, 7 text keys
    )
    expected = {
        "key_mass": (BUCKETS, 4, 7),
        "key_mass_sq": (BUCKETS, 4, 7),
        "key_mass_error": (BUCKETS, 4, 7),
        "entropy": (BUCKETS, 4),
        "sink_mass": (BUCKETS, 4),
        "max_key_mass": (BUCKETS, 4),
        "sink_indicator": (BUCKETS, 7),
        "split_energy": (4, 3),
        "value_ratio": (4,),
        "value_ratio_count": (4,),
        "row_weight": (BUCKETS,),
        "input_sum": (BUCKETS, 16),
        "input_sq": (16,),
        "input_unit_moment": (4, 4, 4),
        "input_moment": (16, 16),
        "taylor": (4,),
        "probe": (4, 4),
        "probe_diag": (4,),
        "diff_pruning": (4,),
        "output_sensitivity": (16, 16),
        "samples": (BUCKETS,),
    }
    found = {name: tuple(v.shape) for name, v in stats.values[head].items() if "@" not in name}
    assert found == expected
    resnet = next(g for g in groups if g.kind == "resnet_channels")
    assert stats.get(resnet.name, "input_unit_moment").shape == (
        4,
        resnet.unit_size * 9,
        resnet.unit_size * 9,
    )
    block = next(g for g in groups if g.kind == "blocks")
    assert {n: tuple(v.shape) for n, v in stats.values[block.name].items()} == {
        "block_change": (1,),
        "block_cosine": (1,),
        "samples": (BUCKETS,),
    }


def bos_model() -> tuple[torch.nn.Module, str]:
    """A text model whose cross-attention is wholly on the first text key, as on CLIP's BOS."""
    model = unet2d_condition(cross_attention_dim=24)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    attention = model.get_submodule(path)
    with torch.no_grad():  # a constant query of ones, and keys that are 300 for the first token alone
        model.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.norm2").weight.zero_()
        model.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.norm2").bias.fill_(1.0)
        attention.to_q.weight.fill_(1 / attention.to_q.in_features)
        attention.to_k.weight.zero_()
        attention.to_k.weight[:, 0] = 300.0
    return model, path


def test_cross_attention_wholly_on_one_text_key() -> None:
    model, path = bos_model()
    batches = list(noised(model)())
    for batch in batches:  # 10 text tokens, the first marked by channel 0
        text = torch.zeros(len(batch.sample_ids), 10, 24)
        text[:, 0, 0] = 1.0
        batch.call["encoder_hidden_states"] = text
    needs = ("key_mass", "sink_mass", "max_key_mass", "entropy", "sink_indicator", "input_sq", "split_energy")
    groups = [g for g in find_groups(model) if g.module == path]
    name = groups[0].name

    def run(*lambdas: float):
        return calibrate(
            model, groups, lambda: batches, needs=needs, variants=("on",), omega=Omega(*lambdas), **COMMON
        )

    stats = run(1.0, 1.0)
    mass = stats.get(name, "key_mass") / stats.get(name, "samples")[:, None, None]
    torch.testing.assert_close(mass[:, :, 0], torch.ones(BUCKETS, 4).double())
    assert float(stats.get(name, "sink_mass").min()) == pytest.approx(4.0)
    assert float(stats.get(name, "max_key_mass").min()) == pytest.approx(4.0)
    assert float(stats.get(name, "entropy").abs().max()) < 1e-3
    s = 1 / (1 + 10 ** (-0.5 * 4))  # r = 10, rho = sqrt(10)
    assert stats.get(name, "sink_indicator")[0].tolist() == pytest.approx([4 * s] + [0.0] * 9)
    assert float(stats.get(name, "split_energy")[:, 1:].abs().max()) == pytest.approx(0.0, abs=1e-6)
    # dropping every sink leaves no content; dropping unstable ones leaves this stable one; doubling quadruples
    plain = stats.get(name, "input_sq")
    torch.testing.assert_close(stats.get(name, "input_sq@on"), torch.zeros_like(plain), atol=1e-8, rtol=0)
    torch.testing.assert_close(run(1.0, 0.0).get(name, "input_sq@on"), plain, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(run(-1.0, -1.0).get(name, "input_sq@on"), plain * 4, rtol=1e-5, atol=1e-8)


def test_sampled_masses_come_with_their_error() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads"])
    needs = ("key_mass", "key_mass_error")
    exact = calibrate(model, groups, noised(model), needs=needs, **COMMON)
    sampled = [
        calibrate(model, groups, noised(model), needs=needs, queries=5, seed=s, **COMMON) for s in range(30)
    ]
    name = groups[1].name
    assert float(exact.get(name, "key_mass_error").max()) == 0.0
    found = torch.stack([s.get(name, "key_mass") for s in sampled])
    error = torch.stack([s.get(name, "key_mass_error") for s in sampled]).square().mean(0).sqrt()
    z = (found.mean(0) - exact.get(name, "key_mass")) / (error / 30**0.5)
    assert float(z.abs().max()) < 5
    assert float((found.std(0) / error).mean()) == pytest.approx(1.0, abs=0.15)


@pytest.fixture
def dit_pipeline() -> DiTPipeline:
    from tests.unit.tiny_pipelines import vae

    denoiser = dit(in_channels=4, out_channels=4, num_embeds_ada_norm=1000)
    pipeline = DiTPipeline(transformer=denoiser, vae=vae(), scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipelines_trajectory_with_guidance(dit_pipeline: DiTPipeline) -> None:
    model = dit_pipeline.transformer
    groups = find_groups(model, ["attention_heads", "ffn_channels"])

    def generate() -> None:
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            dit_pipeline([1, 2, 3], generator=generator, num_inference_steps=4, guidance_scale=3.0)

    needs = ("key_mass", "input_sq", "row_weight")
    stats = calibrate_sampling(model, groups, generate, needs=needs, variants=("on",), **COMMON)
    # 2 runs of 3 images in 2 branches, at each of 4 timesteps
    assert stats.get(groups[0].name, "samples").tolist() == [12.0] * BUCKETS
    assert stats.get(groups[0].name, "row_weight").tolist() == [12.0 * 16] * BUCKETS
    assert stats.has(groups[0].name, "input_sq@on")
    recorder = pruning.calibration.first_pass_sampling(model, groups, generate, **COMMON)
    assert len(recorder.keys) == 12  # samples times branches


def test_a_pipeline_inside_the_context_manager() -> None:
    model = unet2d()
    pipeline = DDIMPipeline(model, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def generate() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(2, generator=generator, num_inference_steps=3, output_type="np", return_dict=False)[0]

    before = generate()
    groups = find_groups(model)
    with Calibrator(model, groups, needs=["sink_mass", "block_cosine"], num_train_timesteps=1000) as stats:
        during = generate()
    assert (before == during).all()
    assert float(stats.get("mid_block.attentions.0:attention_heads", "samples").sum()) == 6
    assert float(stats.get("mid_block.resnets.0:blocks", "block_cosine")) > 0


def test_a_statistic_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "largest_input.py").write_text(
        "from pruning.calibration.base import RowStatistic, register\n"
        "def rows_seen(x, u, group):\n"
        "    return u.new_tensor([float(len(x))])\n"
        "register('rows_seen', RowStatistic(rows_seen))\n"
    )
    package = pruning.calibration
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pruning.calibration.largest_input", raising=False)
    import_submodules("pruning.calibration", [str(tmp_path)])
    try:
        model = dit()
        stats = calibrate(model, find_groups(model), noised(model), needs=["rows_seen"], **COMMON)
        assert float(stats.get("transformer_blocks.1.ff:ffn_channels", "rows_seen")) == 4 * 16 * BUCKETS
    finally:
        del STATISTICS._entries["rows_seen"]
        sys.modules.pop("pruning.calibration.largest_input", None)


def test_wrong_requests() -> None:
    model = dit()
    groups = find_groups(model)
    cases = [
        (
            {"needs": ["key_masses"]},
            r"unknown statistic 'key_masses' \(did you mean 'key_mass'\?\); valid: ",
        ),
        ({"needs": ["input_sq"], "variants": ("half",)}, "unknown omega variant 'half'; valid: on, permuted"),
        ({"needs": ["input_sq"], "variants": ("on",)}, "weigh by stability or influence; give the result"),
        ({"needs": ["input_sq"], "queries": 1}, "queries is 1; expected at least 2"),
        ({"needs": ["input_sq"], "rows": 0}, "rows is 0; expected at least 2"),
        ({"needs": ["input_sq"], "omega": Omega(alpha=-1)}, "alpha is -1; it must be positive"),
        ({"needs": ["input_sq"], "timestep_buckets": 0}, "timestep_buckets is 0"),
    ]
    for settings, message in cases:
        with pytest.raises(PruningError, match=message):
            Calibrator(model, groups, **{"num_train_timesteps": 1000, **settings})
    with pytest.raises(PruningError, match="calibration saw no samples"):
        calibrate(model, groups, lambda: iter(()), needs=["input_sq"], **COMMON)
    with pytest.raises(PruningError, match="calibration saw no samples"):
        calibrate_sampling(model, groups, lambda: None, needs=["input_sq"], **COMMON)
    with pytest.raises(PruningError, match="calibration saw no samples"):
        first_pass(model, groups, lambda: iter(()), **COMMON)
    for name in ("taylor", "probe", "block_change"):
        with pytest.raises(
            PruningError, match=f"statistic '{name}.*' cannot be gathered from a sampling run"
        ):
            calibrate_sampling(model, groups, lambda: None, needs=[name], **COMMON)


def test_changing_resolution_is_named() -> None:
    model = unet2d()
    small = {**call(model), "sample": torch.zeros(2, 1, 16, 16)}
    manager = Calibrator(model, find_groups(model), needs=["key_mass"], num_train_timesteps=1000)
    with torch.no_grad(), manager:
        model(**call(model))
        with pytest.raises(
            PruningError, match=r"'key_mass' has shape .* before; calibrate at one resolution"
        ):
            model(**small)

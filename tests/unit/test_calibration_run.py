"""Whole calibration runs: every family, pipelines, a statistic of one's own, wrong requests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiTPipeline

import pruning.calibration
from pruning.calibration import STATISTICS, Calibrator, SamplingRun, calibrate, first_pass, sum_bytes
from pruning.calibration.context import watches
from pruning.calibration.observer import Observer, Sight
from pruning.calibration.seeing.blocks import BlockAt
from pruning.calibration.triangle import packed_size
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.registry import import_submodules
from pruning.settings import Calibrate, SinkWeights
from tests.models import MODELS, call, dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, held, noised, settings


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
        settings=settings(queries=6),
        progress=seen.append,
    )
    assert seen == ([2] * BUCKETS + [1] * BUCKETS) * 2  # both passes
    reading = [one.consumer_key for group in groups for one in group.consumers]
    whole = [group.name for group in groups if group.consumed_by]
    sites = [group.module for group in groups if group.kind in ("attention_heads", "blocks")]
    assert set(stats.values) == {*reading, *whole, *sites}
    for place, found in stats.values.items():
        for statistic, value in found.items():
            assert bool(torch.isfinite(value).all()), (place, statistic)
            assert value.dtype == torch.float64
            assert value.device.type == "cpu"
        assert stats.get(place, "samples").tolist() == [3.0] * BUCKETS
    assert stats.meta["variants"] == ["on", "permuted"]
    assert stats.meta["samples"] == [3.0] * BUCKETS
    assert stats.meta["sink_weights"]["alpha"] == 4.0


def test_shapes_are_as_documented() -> None:
    model = unet2d_condition()
    groups = find_groups(model)
    stats = calibrate(model, groups, noised(model), needs=list(STATISTICS), variants=("on",))
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"  # 4 heads of 4, 7 text keys
    head = next(group for group in groups if group.module == module)
    expected = {
        "key_mass": (BUCKETS, 4, 7),
        "sink_mass": (BUCKETS, 4),
        "max_key_mass": (BUCKETS, 4),
        "relative_mass": (BUCKETS, 7),
        "visible_keys": (BUCKETS,),
        "sink_indicator": (BUCKETS, 7),
        "row_weight": (BUCKETS,),
        "input_sum": (BUCKETS, 16),
        "input_sq": (16,),
        "input_unit_moment": (4, 4, 4),
        "input_moment": (16, 16),
        "taylor": (4,),
        "probe_diag": (4,),
        "diff_pruning": (4,),
        "output_sensitivity": (16, 16),
        "samples": (BUCKETS,),
    }
    found = {name: tuple(v.shape) for name, v in stats.of(head).values[head.name].items() if "@" not in name}
    assert found == expected
    assert set(stats.values[f"{module}.to_out.0"]) >= {"input_moment", "taylor", "output_sensitivity"}
    of_sites = {"key_mass", "sink_mass", "max_key_mass", "relative_mass", "sink_indicator", "visible_keys"}
    assert set(stats.values[module]) == of_sites | {"samples"}
    assert set(stats.values[head.name]) == {"diff_pruning", "samples"}
    resnet = next(g for g in groups if g.kind == "resnet_channels")
    size = resnet.unit_size * 9
    assert stats.of(resnet).get(resnet.name, "input_unit_moment").shape == (4, size, size)
    block = next(g for g in groups if g.kind == "blocks")
    assert {n: tuple(v.shape) for n, v in stats.of(block).values[block.name].items()} == {
        "block_change": (1,),
        "block_cosine": (1,),
        "samples": (BUCKETS,),
    }


@pytest.mark.parametrize("name", ["dit", "unet2d-single-head", "unet2d-condition"])
def test_every_statistic_takes_the_memory_that_it_says(name: str) -> None:
    model = MODELS[name]()
    groups = find_groups(model)
    variants = ("on", "influence")
    stats = calibrate(model, groups, noised(model, 2, 2), needs=list(STATISTICS), variants=variants)
    total = 0
    for watch in watches(model, groups, dict(STATISTICS.items())):
        for place in watch.places:
            total += watch.sees.held(place)
            for statistic, observer in watch.observers.items():
                mine = [v for n, v in stats.values[place.key].items() if n.partition("@")[0] == statistic]
                said = observer.bytes(place, BUCKETS, variants)
                known = 0 not in observer.shape(place)  # the number of attention keys is not
                numbers = [packed_size(len(v)) if observer.symmetric else v.numel() for v in mine]
                assert said == (8 * sum(numbers) if known else 0), (place.key, statistic)
                total += said
    found = sum_bytes(model, groups, list(STATISTICS), variants=variants, timestep_buckets=BUCKETS)
    assert found == total
    weights = {p for g in groups for part in (*g.produced_by, *g.consumed_by) for p in [part.path]}
    owned = sum_bytes(model, groups, ["diff_pruning"]) - 8 * sum(g.num_units for g in groups if g.consumed_by)
    assert owned >= sum(4 * model.get_parameter(path).numel() for path in weights)
    assert sum_bytes(model.to("meta"), groups, ["input_moment"]) == sum_bytes(
        MODELS[name](), groups, ["input_moment"]
    )


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
    batches = list(noised(model))
    for batch in batches:  # 10 text tokens, the first marked by channel 0
        text = torch.zeros(len(batch.sample_ids), 10, 24)
        text[:, 0, 0] = 1.0
        batch.call["encoder_hidden_states"] = text
    needs = ("key_mass", "sink_mass", "max_key_mass", "sink_indicator", "input_sq")
    groups = [g for g in find_groups(model) if g.module == path]
    name = groups[0].name

    def run(unstable: float, stable: float):
        weights = settings(unstable=unstable, stable=stable)
        stats = calibrate(model, groups, held(batches), needs=needs, variants=("on",), settings=weights)
        return stats.of(groups[0])

    stats = run(1.0, 1.0)
    mass = stats.get(name, "key_mass") / stats.get(name, "samples")[:, None, None]
    torch.testing.assert_close(mass[:, :, 0], torch.ones(BUCKETS, 4).double())
    assert float(stats.get(name, "sink_mass").min()) == pytest.approx(4.0)
    assert float(stats.get(name, "max_key_mass").min()) == pytest.approx(4.0)
    s = 1 / (1 + 10 ** (-0.5 * 4))  # r = 10, rho = sqrt(10)
    assert stats.get(name, "sink_indicator")[0].tolist() == pytest.approx([4 * s] + [0.0] * 9)
    # dropping every sink leaves no content; dropping unstable ones leaves this stable one; doubling quadruples
    plain = stats.get(name, "input_sq")
    torch.testing.assert_close(stats.get(name, "input_sq@on"), torch.zeros_like(plain), atol=1e-8, rtol=0)
    torch.testing.assert_close(run(1.0, 0.0).get(name, "input_sq@on"), plain, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(run(-1.0, -1.0).get(name, "input_sq@on"), plain * 4, rtol=1e-5, atol=1e-8)


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
    source = SamplingRun(generate, 1000)
    stats = calibrate(model, groups, source, needs=needs, variants=("on",), settings=settings())
    # 2 runs of 3 images in 2 branches, at each of 4 timesteps
    assert stats.get(groups[0].consumer, "samples").tolist() == [12.0] * BUCKETS
    assert stats.get(groups[0].consumer, "row_weight").tolist() == [12.0 * 16] * BUCKETS
    assert stats.has(groups[0].consumer, "input_sq@on")
    seen = first_pass(model, groups, source, settings=settings())
    assert len(seen.stats.meta["samples_seen"]) == 12  # samples times branches


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
    assert float(stats.get("mid_block.attentions.0", "samples").sum()) == 6
    assert float(stats.get("mid_block.resnets.0", "block_cosine")) > 0


def test_a_statistic_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "largest_input.py").write_text(
        "from pruning.calibration.observer import Observer, register\n"
        "from pruning.calibration.seeing import Input\n"
        "def rows_seen(rows):\n"
        "    return rows.weight.new_tensor([float(len(rows.x))])\n"
        "register('rows_seen', Observer(Input(), rows_seen, lambda at: (1,)))\n"
    )
    package = pruning.calibration.statistics
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pruning.calibration.statistics.largest_input", raising=False)
    import_submodules("pruning.calibration.statistics", [str(tmp_path)])
    try:
        model = dit()
        stats = calibrate(model, find_groups(model), noised(model), needs=["rows_seen"])
        assert float(stats.get("transformer_blocks.1.ff.net.2", "rows_seen")) == 4 * 16 * BUCKETS
    finally:
        del STATISTICS._entries["rows_seen"]
        sys.modules.pop("pruning.calibration.statistics.largest_input", None)


class Normed(Sight):
    """A way of seeing of one's own: what leaves a group's module."""

    def places(self, model, groups):
        return [BlockAt(group) for group in groups]

    def watch(self, places, observers, context):
        def see_of(place):
            return lambda y, step, row_of: context.add_samples(place, observers, y, step, row_of)

        for place in places:
            context.driver.outputs[place.key].append(see_of(place))


def test_a_way_of_seeing_is_one_class_of_ones_own() -> None:
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    norms = Observer(Normed(), lambda y: y.flatten(1).norm(dim=1), lambda at: (), by="bucket")
    stats = calibrate(model, groups, noised(model), needs={"norms": norms})
    outputs = []
    ff = model.get_submodule(groups[1].module)
    handle = ff.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        for batch in noised(model):
            model(**batch.call)
    handle.remove()
    expected = torch.stack([y.double().flatten(1).norm(dim=1).sum() for y in outputs])
    torch.testing.assert_close(stats.get(groups[1].module, "norms"), expected, rtol=1e-6, atol=0)
    assert stats.meta["needs"] == ["norms"]


def test_wrong_requests() -> None:
    model = dit()
    groups = find_groups(model)
    cases = [
        (
            {"needs": ["key_masses"]},
            r"unknown statistic 'key_masses' \(did you mean 'key_mass'\?\); valid: ",
        ),
        ({"variants": ("half",)}, "unknown variant 'half'; valid: on, permuted"),
        ({"variants": ("on",)}, "weigh by stability or influence; give the result"),
        ({"settings": Calibrate(queries=1)}, "calibration: queries: 1 must be at least 2"),
        ({"settings": Calibrate(rows=0)}, "calibration: rows: 0 must be at least 2"),
        (
            {"settings": Calibrate(sink_weights=SinkWeights(alpha=-1))},
            r"calibration: sink_weights\.alpha: -1 must be > 0",
        ),
        ({"settings": Calibrate(timestep_buckets=0)}, "calibration: timestep_buckets: 0 must be at least 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0; expected a positive number"),
        (
            {"settings": Calibrate(timestep_weights="sampler")},
            "'sampler': give 8 numbers, for 'sampler' those of",
        ),
        ({"timestep_weights": [1.0]}, r"timestep_weights must be 8 positive numbers, found \[1\.0\]"),
    ]
    for changes, message in cases:
        with pytest.raises(PruningError, match=message):
            Calibrator(model, groups, **{"num_train_timesteps": 1000, "needs": ["input_sq"], **changes})
    nothing, silent = held([]), SamplingRun(lambda: None, 1000)
    for source in (nothing, silent):
        with pytest.raises(PruningError, match="calibration saw no samples"):
            calibrate(model, groups, source, needs=["input_sq"])
        with pytest.raises(PruningError, match="calibration saw no samples"):
            first_pass(model, groups, source)
    for name in ("taylor", "probe_diag", "block_change"):
        with pytest.raises(
            PruningError, match=f"statistic '{name}.*' cannot be gathered from a run that is only watched"
        ):
            calibrate(model, groups, silent, needs=[name])
    with pytest.raises(
        PruningError, match="timestep_buckets is 3, but the batches have 4; make both the same"
    ):
        calibrate(model, groups, noised(model), needs=["input_sq"], settings=Calibrate(timestep_buckets=3))


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

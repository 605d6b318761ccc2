"""Row statistics against direct sums over the rows that the consumers really get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.calibration import STATISTICS, calibrate, first_pass
from pruning.calibration.attention.softmax import AttentionCall, StreamedSoftmax
from pruning.calibration.attention.streaming import attended, sink_sums
from pruning.calibration.context import Context
from pruning.calibration.draws import permutations
from pruning.calibration.routing import Gates
from pruning.calibration.rows import Consumer
from pruning.calibration.seeing.inputs import _Tap
from pruning.calibration.sinks.detection import soft_indicator
from pruning.calibration.sinks.stability import stability
from pruning.calibration.sinks.weights import token_weights
from pruning.calibration.step import Step, timestep_weights
from pruning.calibration.sums import Sums
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.settings import SinkWeights
from pruning.types import CalibrationStats, ParamSlice, PrunableGroup
from tests.models import MODELS, dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, held, noised, settings

NEEDS = ("row_weight", "input_sum", "input_sq", "input_unit_moment", "input_moment")
VARIANTS = ("on", "permuted")


def run(model: nn.Module, samples: int = 4, batch_size: int = 4, **values) -> CalibrationStats:
    """Gather `NEEDS`; values that `calibrate` does not take are settings."""
    groups = values.pop("groups", None) or find_groups(model)
    arguments = {k: values.pop(k) for k in ("variants", "seed", "permutation_seed") if k in values}
    batches = noised(model, samples, batch_size)
    return calibrate(model, groups, batches, needs=NEEDS, settings=settings(**values), **arguments)


def rows_by_bucket(model: nn.Module, group: PrunableGroup) -> list[Tensor]:
    """Return the rows (S, N, P) float64 of each bucket, taken by a hook of the test's own."""
    consumer, caught = model.get_submodule(group.consumer), []
    handle = consumer.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    with torch.no_grad():
        for batch in noised(model):
            model(**batch.call)
    handle.remove()
    if isinstance(consumer, nn.Conv2d):
        caught = [F.unfold(x, consumer.kernel_size, padding=consumer.padding).transpose(1, 2) for x in caught]
    return [x.double() for x in caught]


def direct(rows: list[Tensor], weights: list[Tensor], units: int) -> dict[str, Tensor]:
    """Sum over rows (S, N, P) with weights (S, N), by the definition."""
    flat, u = torch.cat([x.flatten(0, 1) for x in rows]), torch.cat([w.flatten() for w in weights])
    by_unit = flat.unflatten(1, (units, -1))
    return {
        "row_weight": torch.stack([w.sum() for w in weights]),
        "input_sum": torch.stack(
            [torch.einsum("sn,snp->p", w, x) for w, x in zip(weights, rows, strict=True)]
        ),
        "input_sq": torch.einsum("r,rp->p", u, flat.square()),
        "input_unit_moment": torch.einsum("r,rgi,rgj->gij", u, by_unit, by_unit),
        "input_moment": torch.einsum("r,ri,rj->ij", u, flat, flat),
    }


CASES = [
    (dit, "transformer_blocks.1.attn1:attention_heads"),
    (dit, "transformer_blocks.2.ff:ffn_channels"),
    (unet2d, "down_blocks.1.attentions.0:attention_heads"),
    (unet2d, "mid_block.resnets.0:resnet_channels"),
    (unet2d_condition, "down_blocks.0.attentions.0.transformer_blocks.0.attn2:attention_heads"),
    (unet2d_condition, "down_blocks.0.attentions.0.transformer_blocks.0.ff:ffn_channels"),
]


@pytest.mark.parametrize(("make", "name"), CASES)
def test_plain_moments(make: Callable[[], nn.Module], name: str) -> None:
    model = make()
    groups = find_groups(model)
    group = next(g for g in groups if g.name == name)
    stats = run(model, groups=[group], timestep_weights="obs_diff").of(group)
    rows = rows_by_bucket(model, group)
    w = timestep_weights("obs_diff", BUCKETS)
    weights = [torch.full(x.shape[:2], float(w[bucket])).double() for bucket, x in enumerate(rows)]
    for statistic, expected in direct(rows, weights, group.num_units).items():
        torch.testing.assert_close(stats.get(name, statistic), expected, rtol=1e-5, atol=1e-5)
    assert stats.get(name, "samples").tolist() == [4.0] * BUCKETS
    assert all(value.dtype == torch.float64 for value in stats.values[name].values())


@pytest.mark.parametrize("make", [dit, unet2d, unet2d_condition])
def test_a_statistic_that_is_part_of_another_is_the_same_without_it(make: Callable[[], nn.Module]) -> None:
    model = make()
    groups = find_groups(model, ["attention_heads", "ffn_channels", "resnet_channels"])
    alone, both = (
        calibrate(model, groups, noised(model), needs=needs, variants=("on",))
        for needs in (("input_unit_moment",), ("input_unit_moment", "input_moment"))
    )
    for place, found in alone.values.items():
        for name in [n for n in found if n.startswith("input_unit_moment")]:
            torch.testing.assert_close(both.get(place, name), found[name], rtol=1e-5, atol=1e-5)


def test_unfolded_rows_are_what_the_convolutions_weight_reads() -> None:
    model = unet2d()
    group = next(g for g in find_groups(model) if g.kind == "resnet_channels")
    conv = model.get_submodule(group.consumer)
    x = torch.randn(2, conv.in_channels, 6, 5, generator=torch.Generator().manual_seed(0))
    ((_, rows),) = Consumer.of(model, group).rows(x)
    y = rows @ conv.weight.flatten(1).T + conv.bias
    torch.testing.assert_close(y.transpose(1, 2).unflatten(2, (6, 5)), conv(x), atol=1e-5, rtol=1e-5)


def omegas(model: nn.Module, path: str, weights: SinkWeights, seed: int) -> list[dict[str, Tensor]]:
    """Compute omega by bucket from the definition, with a hook of the test's own on the fused attention."""
    module, calls = model.get_submodule(path), []
    original = F.scaled_dot_product_attention
    inside = False

    def spy(query, key, value, *args, **kwargs):
        if inside:
            calls.append(AttentionCall(path, query, key, value, cross=query.shape[2] != key.shape[2]))
        return original(query, key, value, *args, **kwargs)

    def enter(*_):
        nonlocal inside
        inside = True

    def leave(*_):
        nonlocal inside
        inside = False

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    F.scaled_dot_product_attention = spy
    try:
        with torch.no_grad():
            for batch in noised(model):
                model(**batch.call)
    finally:
        F.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()
    s = torch.stack([soft_indicator(sink_sums(StreamedSoftmax(c)), weights) for c in calls])  # (T, B, M)
    phi = stability(s.mean(0), s.square().mean(0))
    found = []
    for bucket, c in enumerate(calls):
        if c.cross:
            lost = (s[bucket] >= 0.5) * (weights.unstable * (1 - phi) + weights.stable * phi)
            on = 1 - attended(StreamedSoftmax(c), lost)
        else:
            on = token_weights(s[bucket], phi, weights)
        order = permutations(seed, range(4), on.shape[1])
        found.append({"on": on, "permuted": on.gather(1, order)})
    return found


SITES = {
    "transformer_blocks.1.attn1:attention_heads": "transformer_blocks.1.attn1",
    "transformer_blocks.2.ff:ffn_channels": "transformer_blocks.2.attn1",
    "down_blocks.1.attentions.0:attention_heads": "down_blocks.1.attentions.0",
    CASES[4][1]: "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    CASES[5][1]: "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
}


@pytest.mark.parametrize(("make", "name"), [case for case in CASES if case[1] in SITES])
@pytest.mark.parametrize("lambdas", [(1.0, 0.0), (1.0, 1.0), (-1.0, -1.0)])
def test_variants_equal_direct_weighting(
    make: Callable[[], nn.Module], name: str, lambdas: tuple[float, float]
) -> None:
    # rho is low, so that random attention has many sinks of mixed stability
    weights = {"unstable": lambdas[0], "stable": lambdas[1], "rho": 1.05, "alpha": 20.0}
    model = make()
    if "attn2" in name:
        model = unet2d_condition()
        with torch.no_grad():
            model.get_submodule(SITES[name]).to_k.weight.mul_(4.0)
    group = next(g for g in find_groups(model) if g.name == name)
    stats = run(model, groups=[group], variants=VARIANTS, permutation_seed=3, **weights).of(group)
    rows, by_bucket = rows_by_bucket(model, group), omegas(model, SITES[name], SinkWeights(**weights), 3)
    plain = run(model, groups=[group]).of(group)
    for variant in VARIANTS:
        of_rows = [omega_t[variant].square() for omega_t in by_bucket]
        assert any((w != 1).any() for w in of_rows) or "attn2" in name
        for statistic, expected in direct(rows, of_rows, group.num_units).items():
            torch.testing.assert_close(
                stats.get(name, f"{statistic}@{variant}"), expected, rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(
                stats.get(name, statistic), plain.get(name, statistic), rtol=1e-6, atol=1e-6
            )


def test_omega_off_leaves_every_weight_one() -> None:
    stats = run(dit(), variants=VARIANTS, unstable=0.0, stable=0.0, rho=1.0)
    for name, found in stats.values.items():
        for statistic in NEEDS if "row_weight" in found else ():
            for variant in VARIANTS:
                torch.testing.assert_close(
                    stats.get(name, f"{statistic}@{variant}"), found[statistic], rtol=0, atol=0
                )


def test_resnet_channels_have_no_variants() -> None:
    stats = run(unet2d(), variants=("on",), unstable=1.0, stable=1.0)
    assert not any("@" in key for place, v in stats.values.items() if "resnet" in place for key in v)
    assert stats.has("down_blocks.1.attentions.0.to_out.0", "input_sq@on")


@pytest.mark.parametrize("name", ["dit", "unet2d", "unet2d-condition"])
def test_results_do_not_depend_on_the_batch_size(name: str) -> None:
    model = MODELS[name]()
    values = {"variants": VARIANTS, "queries": 5, "rows": 6, "rho": 1.05, "alpha": 10.0}
    whole, single = (run(model, 3, size, **values) for size in (3, 1))
    assert whole.values.keys() == single.values.keys()
    for place, found in whole.values.items():
        for statistic, value in found.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(value, single.get(place, statistic), rtol=1e-4, atol=1e-5 * scale)


def test_looking_at_some_rows_is_unbiased() -> None:
    model = dit(num_layers=2)
    group = next(g for g in find_groups(model) if g.kind == "ffn_channels")
    exact = run(model, groups=[group]).get(group.consumer, "input_sum").sum(0)
    draws = torch.stack(
        [
            run(model, groups=[group], rows=4, seed=s).get(group.consumer, "input_sum").sum(0)
            for s in range(60)
        ]
    )
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 60**0.5).all()
    some = run(model, groups=[group], rows=4).get(group.consumer, "row_weight")
    assert some.tolist() == pytest.approx([4 * 16] * BUCKETS)  # scaled up to all 16 tokens of 4 samples


def test_a_few_huge_rows_do_not_spoil_what_is_left_without_them() -> None:
    """The sum without sink rows is gathered, not found as a difference of two large numbers."""
    model = dit()
    group = next(g for g in find_groups(model) if g.kind == "ffn_channels")
    x = torch.randn(1, 16, group.num_units, generator=torch.Generator().manual_seed(0))
    x[0, 3] = 1e6
    omega = torch.ones(1, 16).double()
    omega[0, 3] = 0.0
    given = type("Given", (), {"at": lambda self, place, x: {"on": omega}})()
    sums = Sums(1)
    context = Context(None, None, given, sums, None, {}, None, None, 0, Gates(model))  # type: ignore[arg-type]
    tap = _Tap(Consumer.of(model, group), {"input_sq": STATISTICS["input_sq"]}, context, unfolded=True)
    step = Step((0,), (0,), torch.zeros(1).double(), torch.zeros(1).long(), torch.ones(1).double())
    tap.see(x, step, torch.zeros(1).long())
    found = sums.finish()[group.consumer]
    x[0, 3] = 0.0
    torch.testing.assert_close(found["input_sq@on"], x[0].double().square().sum(0), rtol=1e-5, atol=0)


def test_bfloat16_models_are_summed_in_float() -> None:
    """The sums over 2,560 rows agree with float64 sums over the rows that the model itself makes in bfloat16."""
    model = dit().to(torch.bfloat16)
    group = next(g for g in find_groups(model) if g.name == "transformer_blocks.1.ff:ffn_channels")
    batches, caught = [], []
    for batch in noised(model, 40, 40):
        batches.append(
            replace(batch, call={**batch.call, "hidden_states": batch.call["hidden_states"].bfloat16()})
        )
    handle = model.get_submodule(group.consumer).register_forward_pre_hook(lambda m, a: caught.append(a[0]))
    drop = settings(unstable=1.0, stable=1.0)
    stats = calibrate(model, [group], held(batches), needs=NEEDS, variants=("on",), settings=drop).of(group)
    handle.remove()
    rows = [x.double() for x in caught]
    weights = [torch.ones(x.shape[:2]).double() for x in rows]
    assert caught[0].dtype == torch.bfloat16
    for statistic, expected in direct(rows, weights, group.num_units).items():
        torch.testing.assert_close(stats.get(group.name, statistic), expected, rtol=1e-5, atol=1e-4)


def test_a_consumer_of_another_kind_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    group = PrunableGroup("g", "0", "resnet_channels", 2, 2, consumed_by=(ParamSlice("0.weight", 1, 2),))
    with pytest.raises(
        PruningError, match="group 'g': its consumer '0' is a Conv2d; calibration reads linear layers"
    ):
        Consumer.of(model, group)


def test_a_slice_of_a_fused_projection_is_read_at_its_offset() -> None:
    model = nn.Sequential(nn.Linear(10, 3))
    group = PrunableGroup(
        "g", "0", "ffn_channels", 4, 1, consumed_by=(ParamSlice("0.weight", 1, 1, offset=6),)
    )
    x = torch.randn(2, 5, 10)
    ((_, rows),) = Consumer.of(model, group).rows(x)
    assert torch.equal(rows, x[..., 6:])


def test_chunked_feed_forward_cannot_be_weighted() -> None:
    model = dit()
    model.transformer_blocks[1].set_chunk_feed_forward(8, dim=1)
    with pytest.raises(
        PruningError, match=r"'transformer_blocks\.1\.ff\.net\.2' sees 4 x 8 rows, but the attention"
    ):
        run(model, variants=("on",), unstable=1.0, stable=1.0)


def test_first_pass_means_are_channel_means_before_unfolding() -> None:
    model = unet2d()
    groups = find_groups(model)
    found = first_pass(model, groups, noised(model))
    group = next(g for g in groups if g.kind == "resnet_channels")
    caught = []
    handle = model.get_submodule(group.consumer).register_forward_pre_hook(lambda m, a: caught.append(a[0]))
    with torch.no_grad():
        for batch in noised(model):
            model(**batch.call)
    handle.remove()
    torch.testing.assert_close(
        found.means[group.consumer], torch.stack(caught).double().mean((0, 1, 3, 4)), rtol=1e-5, atol=1e-6
    )

"""Influence of tokens through later attention: by hand, against dense maps, and as row weights of set OBS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.calibration import (
    Calibrator,
    FirstPass,
    calibrate,
    first_pass,
    load_stats,
    needs_first_pass,
    save_stats,
)
from pruning.calibration.attention.reading import Reading
from pruning.calibration.attention.softmax import AttentionCall
from pruning.calibration.draws import permutations
from pruning.calibration.sinks.influence import head_gain
from pruning.calibration.statistics.first_pass import receives
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import needs_of, score
from pruning.settings import SinkWeights
from pruning.types import CalibrationStats
from tests.models import dit, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, noised, settings
from tests.unit.test_calibration_moments import direct, rows_by_bucket

MOMENTS = ("row_weight", "input_sum", "input_moment")


class Attention(nn.Module):
    """Four query heads of two channels over two key/value heads, C = 6."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.to_v = nn.Linear(6, 4)
        self.to_out = nn.ModuleList([nn.Linear(8, 6)])


def test_head_gain_is_the_mean_square_of_what_a_head_makes_of_an_error() -> None:
    module = Attention()
    value, out = module.to_v.weight.detach().double(), module.to_out[0].weight.detach().double()
    for h, gain in enumerate(head_gain(module).tolist()):
        matrix = out[:, 2 * h : 2 * h + 2] @ value[h // 2 * 2 : h // 2 * 2 + 2]  # (6, 6)
        by_direction = [float((matrix @ e).square().sum()) for e in torch.eye(6).double()]
        assert gain == pytest.approx(sum(by_direction) / 6, rel=1e-9)
    module.to_v = None
    assert head_gain(module) is None


def attended(sink: int | None, queries: int = 4, cross: bool = False) -> Reading:
    """Two heads over 16 keys: one attends evenly, the other to `sink` (None: evenly too)."""
    key = torch.zeros(1, 2, 16, 1)
    if sink is not None:
        key[0, 1, sink] = 100.0
    return Reading(AttentionCall("a", torch.ones(1, 2, queries, 1), key, key, cross=cross), SinkWeights())


def test_received_by_hand() -> None:
    # Gains 2 and 3. Even attention of 4 queries: 4 / 256 each key. The sink: 4 at its key, nothing elsewhere.
    measure = receives({"a": torch.tensor([2.0, 3.0]).double()})
    received = (measure(attended(5)) + measure(attended(None)))[0] / 2  # the mean over two timesteps
    even = 4 / 256
    assert float(received[5]) == pytest.approx(2 * even + (3 * 4 + 3 * even) / 2, rel=1e-5)
    assert float(received[0]) == pytest.approx(2 * even + (0 + 3 * even) / 2, rel=1e-5)


def test_cross_attention_and_unknown_projections_broadcast_nothing() -> None:
    seeing, blind = receives({"a": torch.ones(2).double()}), receives({"a": None})
    assert seeing(attended(5, cross=True)).tolist() == blind(attended(5)).tolist() == [[0.0] * 16]
    assert float(seeing(attended(5)).sum()) > 0


def test_later_sites_of_as_many_tokens_add_up() -> None:
    received = {
        "a": torch.tensor([[7.0, 7], [7, 7]]),
        "b": torch.tensor([[1.0, 2], [3, 4]]),
        "c": torch.tensor([[4.0, 4, 4], [5, 5, 5]]),
        "d": torch.tensor([[10.0, 20], [30, 40]]),
    }
    meta = {"samples_seen": [8, 16], "sites": ["a", "b", "c", "d"]}
    found = FirstPass(CalibrationStats({site: {"received": value} for site, value in received.items()}, meta))
    assert found.influence("a", [16, 8], 2).tolist() == [[33, 44], [11, 22]]
    assert found.influence("b", [8], 2).tolist() == [[10, 20]]
    assert found.influence("a", [8], 3).tolist() == [[4, 4, 4]]
    assert found.influence("d", [8], 2).tolist() == [[0, 0]]
    with pytest.raises(
        PruningError, match=r"did not gather what attention after 'x' broadcasts; run the first pass"
    ):
        found.influence("x", [8], 2)
    with pytest.raises(PruningError, match="sample 3 was not seen by the first pass"):
        found.influence("a", [24], 2)


def dense_received(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return for each self-attention of the DiT, in order, the mean over timesteps, (4 samples, tokens), dense."""
    calls: list[Tensor] = []
    original = F.scaled_dot_product_attention

    def spy(query, key, value, *args, **kwargs):
        maps = (query.double() @ key.double().transpose(2, 3) / query.shape[3] ** 0.5).softmax(-1)
        calls.append(maps.square().sum(2))  # (B, H, M)
        return original(query, key, value, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        for batch in noised(model):
            model(**batch.call)
    layers = len(model.transformer_blocks)
    found = []
    for layer, block in enumerate(model.transformer_blocks):
        squares = torch.stack(calls[layer::layers]).mean(0)
        value, out = block.attn1.to_v.weight.double(), block.attn1.to_out[0].weight.double()
        size = len(value) // block.attn1.heads
        parts = [slice(h * size, (h + 1) * size) for h in range(block.attn1.heads)]
        gains = torch.stack([(out[:, part] @ value[part]).square().sum() / len(out) for part in parts])
        found.append((squares * gains[:, None]).sum(1).detach())
    return found


def test_rows_are_weighted_by_the_dense_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    variants = ("influence", "influence_permuted")
    stats = calibrate(
        model,
        groups,
        noised(model),
        needs=MOMENTS,
        variants=variants,
        settings=settings(kappa=3.0),
        permutation_seed=2,
    )
    received = dense_received(model, monkeypatch)
    for layer in range(3):
        influence = sum(received[layer + 1 :], torch.zeros(4, 16).double())
        weight = 1 + 3 * influence
        moved = weight.gather(1, permutations(2, range(4), 16))
        assert bool((weight > 1.01).any()) == (layer < 2)
        for kind in ("attn1:attention_heads", "ff:ffn_channels"):
            name = f"transformer_blocks.{layer}.{kind}"
            group = next(g for g in groups if g.name == name)
            rows = rows_by_bucket(model, group)
            for variant, w in (("influence", weight), ("influence_permuted", moved)):
                for statistic, expected in direct(rows, [w] * BUCKETS, group.num_units).items():
                    if statistic in MOMENTS:
                        got = stats.get(group.consumer, f"{statistic}@{variant}")
                        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def test_sink_influence_is_set_obs_on_these_rows() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    assert needs_of("sink_influence", groups) == needs_of("obs", groups)
    stats = calibrate(
        model,
        groups,
        noised(model),
        needs=needs_of("sink_influence", groups),
        variants=["influence"],
    )
    weights = dict(model.named_parameters())
    by_default = score(weights, groups, stats, criterion="sink_influence")
    assert by_default.meta["weighting"] == "influence"
    same = score(weights, groups, stats, criterion="obs", weighting="influence")
    plain = score(weights, groups, stats, criterion="obs")
    for group in groups:
        assert torch.equal(by_default.values[group.name], same.values[group.name])
        last = group.name.startswith("transformer_blocks.2")
        assert torch.allclose(by_default.values[group.name], plain.values[group.name]) == last


def test_rows_of_cross_attention_are_image_tokens() -> None:
    model = unet2d_condition()
    group = next(g for g in find_groups(model) if "down_blocks.0" in g.name and "attn2:" in g.name)
    groups = find_groups(model, ["attention_heads"])
    seen = first_pass(model, groups, noised(model))
    received = {site: seen.stats.get(site, "received") for site in seen.stats.meta["sites"]}
    assert not any(bool(v.any()) for site, v in received.items() if "attn2" in site)
    influence = seen.influence(group.module, seen.stats.meta["samples_seen"], 64)
    later = [v for site, v in received.items() if v.shape[1] == 64 and site.startswith("up_blocks")]
    assert later
    torch.testing.assert_close(influence, sum(later))
    stats = calibrate(model, groups, noised(model), needs=["row_weight"], variants=["influence"])
    assert float(stats.get(group.consumer, "row_weight@influence").sum()) > 4 * 64 * BUCKETS


def test_a_first_pass_is_needed_and_saved(tmp_path: Path) -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads"])
    alike = SinkWeights(unstable=1.0, stable=1.0)
    assert needs_first_pass([], ["influence"], alike)
    assert not needs_first_pass([], ["on"], alike)
    with pytest.raises(
        PruningError, match="the variants influence weigh by stability or influence; give the"
    ):
        Calibrator(model, groups, needs=["row_weight"], variants=["influence"], num_train_timesteps=1000)
    with pytest.raises(PruningError, match=r"calibration: sink_weights\.kappa: -1 must be at least 0"):
        calibrate(model, groups, noised(model), needs=["row_weight"], settings=settings(kappa=-1))
    found = first_pass(model, groups, noised(model))
    save_stats(found.stats, tmp_path / "first.safetensors")
    loaded = FirstPass(load_stats(tmp_path / "first.safetensors"))
    assert loaded.stats.meta["sites"] == [f"transformer_blocks.{i}.attn1" for i in range(3)]
    site, keys = "transformer_blocks.0.attn1", found.stats.meta["samples_seen"]
    assert torch.equal(loaded.influence(site, keys, 16), found.influence(site, keys, 16))

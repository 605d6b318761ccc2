"""Joint attention: a group that ``to_out`` and ``to_add_out`` read is measured, scored and compensated at both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from pruning.calibration import calibrate, first_pass, sum_bytes
from pruning.calibration.draws import random_signs
from pruning.calibration.step import MAX_BRANCHES
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import head_diagnostics, needs_of, score
from pruning.surgery import apply_plan, compensate, mask_plan, needs_for
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan
from tests.models import randomise
from tests.unit.calibration_setup import BUCKETS, settings

SAMPLES, TEXT, HEADS = 3, 7, 4
STREAMS = ("transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out")
CRITERIA = ("wanda", "energy", "fluctuation", "flap", "obs", "taylor", "probe", "probe_obs")


def run(model: nn.Module, call: dict[str, Tensor]) -> Tensor:
    return model(**call, return_dict=False)[0]


@pytest.fixture(autouse=True)
def _callable(monkeypatch: pytest.MonkeyPatch) -> None:
    """SD3 is not among the families that `denoise` knows how to call."""
    monkeypatch.setattr("pruning.calibration.driver.denoise", run)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Three blocks of 4 heads of 8; the last one has no text output. Its text rows are larger than its image rows."""
    found = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=16,
        caption_projection_dim=HEADS * 8,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    return randomise(found)


def batches() -> NoisedBatches:
    generator = torch.Generator().manual_seed(5)
    image, text = (
        torch.randn(SAMPLES, 4, 8, 8, generator=generator),
        torch.randn(SAMPLES, TEXT, 16, generator=generator),
    )
    pooled = torch.randn(SAMPLES, 16, generator=generator)
    targets = torch.randn(BUCKETS, SAMPLES, 4, 8, 8, generator=generator)

    def make() -> Iterator[NoisedBatch]:
        for bucket in range(BUCKETS):
            times = torch.full((SAMPLES,), bucket * 250 + 30)
            call = {"hidden_states": image, "encoder_hidden_states": text, "pooled_projections": pooled}
            yield NoisedBatch(
                {**call, "timestep": times}, targets[bucket], bucket, torch.arange(SAMPLES), times
            )

    return NoisedBatches(make, 1000, BUCKETS)


@pytest.fixture(scope="module")
def heads(model: nn.Module) -> list[PrunableGroup]:
    return find_groups(model, ["attention_heads"])


@pytest.fixture
def stats(model: nn.Module, heads: list[PrunableGroup]) -> CalibrationStats:
    needs, _ = needs_for([*CRITERIA, "diff_pruning", "sink_mass", "least_squares"], heads)
    return calibrate(model, heads, batches(), needs=needs)


@torch.no_grad()
def through(model: nn.Module, what: str = "input") -> dict[str, Tensor]:
    """Return what enters (or leaves) the projections of both streams, (T S, N, C) float64 by path."""
    seen: dict[str, list[Tensor]] = {path: [] for path in STREAMS}
    with ExitStack() as stack:
        for path in STREAMS:

            def keep(module: nn.Module, args: tuple[Tensor], output: Tensor, path: str = path) -> None:
                seen[path].append((args[0] if what == "input" else output).detach().double())

            stack.callback(model.get_submodule(path).register_forward_hook(keep).remove)
        for batch in batches():
            run(model, batch.call)
    return {path: torch.cat(found) for path, found in seen.items()}


def alone(stats: CalibrationStats, group: PrunableGroup, path: str) -> tuple[PrunableGroup, CalibrationStats]:
    """Return the group as if only one of the modules read it, and the statistics of that slice."""
    (one,) = [one for one in group.consumers if one.consumer == path]
    return one, CalibrationStats({path: stats.values[path]}, stats.meta)


def test_both_consumers_are_measured(
    model: nn.Module, heads: list[PrunableGroup], stats: CalibrationStats
) -> None:
    assert [len(group.consumers) for group in heads] == [2, 2, 1]
    assert {path for path in stats.values if path.endswith(("to_out.0", "to_add_out"))} == {
        *(f"transformer_blocks.{k}.attn.to_out.0" for k in range(3)),
        *(f"transformer_blocks.{k}.attn.to_add_out" for k in range(2)),
    }
    rows = through(model)
    assert {path: x.shape[1] for path, x in rows.items()} == {STREAMS[0]: 16, STREAMS[1]: TEXT}
    for path, x in rows.items():
        flat = x.flatten(0, 1)
        torch.testing.assert_close(stats.get(path, "input_moment"), flat.T @ flat, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stats.get(path, "input_sum").sum(0), flat.sum(0), rtol=1e-5, atol=1e-5)
        assert float(stats.get(path, "row_weight").sum()) == len(flat)
    assert stats.get("transformer_blocks.0.attn", "sink_mass").shape == (BUCKETS, HEADS)
    assert stats.get(heads[0].name, "diff_pruning").shape == (HEADS,)
    needs = ["input_moment"]
    assert (
        sum_bytes(model, heads, needs) == 8 * 5 * 33 * 16
    )  # five projections of 32 columns each: a triangle


def test_effects_at_both_consumers_are_derivatives_by_a_gate(
    model: nn.Module, heads: list[PrunableGroup], stats: CalibrationStats
) -> None:
    means = first_pass(model, heads, batches(), stability=False).means
    for path in STREAMS:
        probe, taylor = torch.zeros(HEADS), torch.zeros(HEADS)
        for batch in batches():
            keys = [int(s) * MAX_BRANCHES for s in batch.sample_ids]

            def projected(output: Tensor, batch: NoisedBatch = batch, keys: list[int] = keys) -> Tensor:
                return (output * random_signs(0, keys, batch.timesteps.tolist(), output.shape[1:])).sum()

            def error(output: Tensor, batch: NoisedBatch = batch) -> Tensor:
                return (output - batch.target).square().flatten(1).mean(1).sum()

            probe += by_gate(model, path, batch, means[path].float(), projected).square().sum(0)
            taylor += by_gate(model, path, batch, torch.zeros(32), error).abs().sum(0)
        assert float(probe.min()) > 0
        for name, expected in (("probe_diag", probe), ("taylor", taylor)):
            got = stats.get(path, name).float()
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def by_gate(
    model: nn.Module, path: str, batch: NoisedBatch, mean: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the derivative (S, H) of a loss by a gate per head: x -> mu + gate (x - mu)."""
    gate = torch.ones(SAMPLES, HEADS, requires_grad=True)

    def close(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (mean + gate.repeat_interleave(8, 1)[:, None] * (args[0] - mean),)

    handle = model.get_submodule(path).register_forward_pre_hook(close)
    (found,) = torch.autograd.grad(loss(run(model, batch.call)), gate)
    handle.remove()
    return found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_score_is_the_sum_over_the_consumers(
    criterion: str, model: nn.Module, heads: list[PrunableGroup], stats: CalibrationStats
) -> None:
    group = heads[0]
    got = score(model, heads, stats, criterion=criterion).values[group.name]
    parts = []
    for path in STREAMS:
        one, known = alone(stats, group, path)
        parts.append(score(model, [one], known, criterion=criterion).values[group.name])
    torch.testing.assert_close(got, parts[0] + parts[1], rtol=1e-12, atol=0)
    for part in parts:  # neither consumer is all
        assert not torch.allclose(got, part, rtol=1e-4, atol=0)
    assert needs_of(criterion, heads) <= {*stats.meta["needs"], "samples"}


def test_energy_is_what_both_outputs_lose_when_a_head_is_zeroed(
    model: nn.Module, heads: list[PrunableGroup], stats: CalibrationStats
) -> None:
    """Against the model's own outputs of both streams."""
    group, before = heads[0], through(model, "output")
    scores = score(model, heads, stats, criterion="energy").values[group.name]
    for head in range(HEADS):
        kept = tuple(k for k in range(HEADS) if k != head)
        masked = through(mask_plan(model, PruningPlan({group.name: kept}), heads), "output")
        lost = sum(float((masked[path] - before[path]).square().sum(2).mean()) for path in STREAMS)
        assert float(scores[head]) == pytest.approx(lost, rel=1e-4)
    energies = [row["energy"] for row in head_diagnostics(dict(model.named_parameters()), [group], stats)]
    assert energies == pytest.approx(scores.tolist())


@pytest.mark.parametrize("method", ["fold", "least_squares"])
def test_compensation_lowers_the_error_at_both_consumers(
    method: str, model: nn.Module, heads: list[PrunableGroup], stats: CalibrationStats
) -> None:
    group, plan = heads[0], PruningPlan({heads[0].name: (0, 3)})
    rows, wanted = through(model), through(model, "output")

    def errors(changed: nn.Module) -> list[float]:
        found = []
        for path in STREAMS:
            x = rows[path].clone()
            x[:, :, 8:24] = 0  # heads 1 and 2
            layer = copy.deepcopy(changed.get_submodule(path)).double()
            found.append(float((layer(x).detach() - wanted[path]).square().sum(2).mean()))
        return found

    slim = copy.deepcopy(model)
    report = compensate(slim, heads, plan, stats, method)[group.name]
    before, after = errors(model), errors(slim)
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]
    assert report["error_before"] == pytest.approx(sum(before), rel=1e-4)
    assert report["error_after"] == pytest.approx(sum(after), rel=1e-4)
    assert report["error_removed"] == pytest.approx(1 - sum(after) / sum(before), rel=1e-3)
    assert report["removed_units"] == 2
    call = next(iter(batches())).call
    with torch.no_grad():
        masked = run(mask_plan(slim, plan, heads), call)
        torch.testing.assert_close(run(apply_plan(slim, plan), call), masked, rtol=0, atol=1e-5)


def test_a_consumer_without_its_moments_is_named_before_anything_is_edited(
    model: nn.Module, heads: list[PrunableGroup], stats: CalibrationStats
) -> None:
    slim = copy.deepcopy(model)
    found = stats.values[STREAMS[1]]
    less = {name: found[name] for name in found if name != "input_moment"}
    stats = CalibrationStats({**stats.values, STREAMS[1]: less}, stats.meta)
    with pytest.raises(PruningError, match=r"'least_squares' of group .* needs the statistic 'input_moment'"):
        compensate(slim, heads, PruningPlan({heads[0].name: (0,)}), stats, "least_squares")
    for path, weight in model.named_parameters():
        assert torch.equal(weight, slim.get_parameter(path))


def test_token_weights_are_refused_where_text_and_image_share_one_attention(
    model: nn.Module, heads: list[PrunableGroup]
) -> None:
    drop = settings(unstable=1.0, stable=1.0)
    with pytest.raises(
        PruningError, match=r"sees 3 x 7 rows, but .* saw \(3, 23\) tokens; .* text and image share"
    ):
        calibrate(model, heads, batches(), needs=["input_sq"], variants=["on"], settings=drop)

"""Rows inside experts count by the router; what experts put out, and the criteria that judge them by it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.calibration import calibrate
from pruning.calibration.draws import random_signs
from pruning.calibration.routing import Gates, experts_with_gradients
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.groups import discover
from pruning.importance import CRITERIA, check_kinds, needs_of, score
from pruning.models.outputs import predict
from pruning.selection import block_by_block
from pruning.settings import Calibrate
from pruning.surgery import apply_plan, mask_plan
from pruning.surgery.compensation import compensate
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan
from tests.zoo import BATCH, ZOO, Draw, Tiny, build

LIST, STACK = "hidream", "nucleusmoe"
OF_EXPERTS = ("expert_energy", "reap", "expert_probe")


def batches(tiny: Tiny, model: nn.Module, count: int = 2) -> list[NoisedBatch]:
    found = []
    for seed in range(1, count + 1):
        call = tiny.call(Draw(seed))
        with torch.no_grad():
            said = predict(model, call, BATCH)
        target = said + torch.randn(said.shape, generator=torch.Generator().manual_seed(seed))
        samples = torch.tensor([2 * seed, 2 * seed + 1])
        found.append(NoisedBatch(call, target, 0, samples, Draw().times()))
    return found


def measured(
    name: str, model: nn.Module, groups: list[PrunableGroup], needs: Any, count: int = 2
) -> CalibrationStats:
    shown = batches(ZOO[name], model, count)
    return calibrate(model, groups, NoisedBatches(lambda: shown, 1000, 1), needs=needs)


class Seen:
    """What the last layer of experts saw and said in each call of a model, by expert: inputs x, outputs y, gates g."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.group = list(discover(model, {"experts"}))[-1]
        self.rows: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        self.tokens = 0
        layer = model.get_submodule(self.group.module)
        hook = self._hidream if name == LIST else self._nucleus
        layer.register_forward_hook(hook, with_kwargs=True)

    def _hidream(self, layer: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        x = args[0].flatten(0, 1)
        weights, chosen = (x @ layer.gate.weight.T).softmax(-1).topk(layer.gate.top_k)
        self.tokens += len(x)
        self.rows.append([])
        for index, expert in enumerate(layer.experts):
            here = chosen == index
            gate = (weights * here).sum(1)[here.any(1)]
            own = x[here.any(1)]
            hidden = torch.nn.functional.silu(expert.w1(own)) * expert.w3(own)
            self.rows[-1].append((hidden, expert.w2(hidden), gate))

    def _nucleus(self, layer: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        x, time = args[0], kwargs["timestep"]
        scores = layer.gate(torch.cat([time[:, None].expand_as(x), args[1]], -1)).softmax(-1)
        room = -(-int(layer.capacity_factor) * x.shape[1] // layer.num_experts)
        chosen = scores.topk(room, dim=1).indices
        gates = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
        gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-12) * layer.route_scale
        self.tokens += x.shape[0] * x.shape[1]
        self.rows.append([])
        for index in range(layer.num_experts):
            own = torch.cat([x[b, chosen[b, :, index]] for b in range(len(x))])
            gate = torch.cat([gates[b, chosen[b, :, index], index] for b in range(len(x))])
            value, up = (own @ layer.experts.gate_up_proj[index]).chunk(2, -1)
            hidden = torch.nn.functional.silu(value) * up
            self.rows[-1].append((hidden, hidden @ layer.experts.down_proj[index], gate))

    def of(self, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of all calls, float64."""
        parts = zip(*(call[expert] for call in self.rows), strict=True)
        return tuple(torch.cat(part).double() for part in parts)  # type: ignore[return-value]


def see(name: str, model: nn.Module, count: int = 2) -> Seen:
    other = copy.deepcopy(model)
    seen = Seen(name, other)
    for batch in batches(ZOO[name], model, count):
        with torch.no_grad():
            predict(other, batch.call, BATCH)
    return seen


@pytest.mark.parametrize("name", [LIST, STACK])
def test_rows_in_experts_weigh_their_squared_gate(name: str) -> None:
    model = build(ZOO[name])
    seen = see(name, model)
    holder = f"{seen.group.module}.experts"
    groups = [g for g in discover(model, {"ffn_channels"}) if g.module.startswith(holder)]
    stats = measured(name, model, groups, {"row_weight", "input_sum", "input_moment"})
    for expert, key in enumerate(one.consumer_key for group in groups for one in group.consumers):
        x, _, gate = seen.of(expert)
        weight = gate.square()
        torch.testing.assert_close(stats.get(key, "row_weight"), weight.sum()[None], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(stats.get(key, "input_sum")[0], weight @ x, rtol=1e-4, atol=1e-6)
        moment = (x * weight[:, None]).T @ x
        torch.testing.assert_close(stats.get(key, "input_moment"), moment, rtol=1e-4, atol=1e-6)


def test_a_shared_expert_has_no_gate() -> None:
    model = build(ZOO[LIST])
    gates = Gates(model)
    assert gates.of("double_stream_blocks.0.block.ff_i.shared_experts.w2", 5) is None
    assert not gates.layers(["double_stream_blocks.0.block.ff_i.shared_experts.w2", "x_embedder.proj"])
    with pytest.raises(PruningError, match=r"sees 5 rows, and its layer .* sent it none when it was tried"):
        gates.of("double_stream_blocks.0.block.ff_i.experts.1.w2", 5)


class Layer(nn.Module):
    """Experts whose outputs are multiplied by a number for each channel, or without gradients."""

    def __init__(self, *, by_channel: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.gate = nn.Linear(4, 3)
        self.top_k, self.by_channel, self.frozen = 1, by_channel, frozen

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            y = self.experts[0](x)
            return y * torch.arange(4.0) if self.by_channel else 3 * y


class Holder(nn.Module):
    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.layer = Layer(**how)


def test_gates_are_found_whatever_multiplies() -> None:
    model = Holder()
    gates = Gates(model)
    (mixture,) = gates.layers(["layer.experts.0"])
    before = list(model.layer.experts)
    gates.read(mixture, (torch.randn(5, 4),), {})
    sent = gates.of("layer.experts.0", 5)
    assert sent is not None
    assert sent.gate.tolist() == [3.0] * 5
    assert sent.entry.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(PruningError, match="sees 4 rows, and its layer 'layer' sent it 5"):
        gates.of("layer.experts.0", 4)
    assert all(a is b for a, b in zip(before, model.layer.experts, strict=True))


@pytest.mark.parametrize(
    ("how", "words"), [("by_channel", "by one number each"), ("frozen", "runs without gradients")]
)
def test_a_layer_that_has_no_gates_is_refused(how: str, words: str) -> None:
    model = Holder(**{how: True})
    gates = Gates(model)
    with pytest.raises(PruningError, match=words):
        gates.read(gates.layers(["layer.experts.0"])[0], (torch.randn(5, 4),), {})


@pytest.mark.parametrize("name", [LIST, STACK])
def test_scores_of_experts_are_those_worked_out_by_hand(name: str) -> None:
    model = build(ZOO[name])
    seen = see(name, model)
    group = seen.group
    stats = measured(name, model, [group], {need for c in OF_EXPERTS for need in needs_of(c, [group])})
    found = {c: score(model, [group], stats, criterion=c).values[group.name] for c in OF_EXPERTS}
    rows = [seen.of(expert) for expert in range(group.num_units)]
    energy = torch.stack([(gate[:, None] * y).square().sum() for _, y, gate in rows]) / seen.tokens
    norms = torch.stack([(gate * y.norm(dim=1)).mean() for _, y, gate in rows])
    torch.testing.assert_close(found["expert_energy"], energy, rtol=1e-4, atol=0)
    torch.testing.assert_close(found["reap"], norms, rtol=1e-4, atol=0)
    effect = stats.get(group.name, "expert_effect") / stats.get(group.name, "samples").sum()
    half_way = (effect * energy * effect.sum() / energy.sum()).sqrt()
    torch.testing.assert_close(found["expert_probe"], half_way, rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", [LIST, STACK])
def test_effects_are_those_of_what_an_expert_puts_out(name: str) -> None:
    """The effect of an expert on a projection of the output is the derivative by a factor of what it puts out."""
    model = build(ZOO[name])
    group = list(discover(model, {"experts"}))[-1]
    stats = measured(name, model, [group], {"expert_effect"}, count=1)
    (batch,) = batches(ZOO[name], model, 1)
    output = predict(model, batch.call, BATCH)
    keys = [8 * int(sample) for sample in batch.sample_ids]
    signs = random_signs(0, keys, batch.timesteps.tolist(), output.shape[1:])
    step, expected = 0.05, []
    for expert in range(group.num_units):
        up, down = (predict(scaled(model, group, expert, 1 + by), batch.call, BATCH) for by in (step, -step))
        z = ((up - down).double() * signs).flatten(1).sum(1) / (2 * step)  # (B,)
        expected.append(z.square().sum())
    by_hand = torch.stack(expected)
    found = stats.get(group.name, "expert_effect")
    torch.testing.assert_close(found, by_hand, rtol=1e-2, atol=1e-2 * float(by_hand.max()))


@torch.no_grad()
def scaled(model: nn.Module, group: PrunableGroup, expert: int, factor: float) -> nn.Module:
    """Return a copy in which what one expert puts out is multiplied."""
    found: Any = copy.deepcopy(model)
    holder = found.get_submodule(f"{group.module}.experts")
    (holder[expert].w2.weight if isinstance(holder, nn.ModuleList) else holder.down_proj[expert]).mul_(factor)
    return found


def test_energies_that_are_not_finite_are_no_scores_of_zero() -> None:
    model = build(ZOO[LIST])
    group = next(iter(discover(model, {"experts"})))
    per_expert = torch.ones(group.num_units, dtype=torch.float64)
    spoilt = per_expert.clone().index_fill(0, torch.tensor([1]), float("nan"))
    one = torch.ones(1)
    known = {"expert_energy": spoilt, "expert_effect": per_expert, "layer_tokens": one, "samples": one}
    with pytest.raises(PruningError, match=f"{group.name}' hold NaN or infinity"):
        score(model, [group], CalibrationStats({group.name: known}), criterion="expert_probe")


def test_magnitude_counts_an_expert_and_its_rows_of_the_router() -> None:
    model = build(ZOO[LIST])
    group = next(discover(model, {"experts"}))
    found = score(model, [group], criterion="magnitude").values[group.name]
    layer: Any = model.get_submodule(group.module)
    for expert in range(4):
        parts = [layer.gate.weight[expert], *layer.experts[expert].parameters()]
        by_hand = sum(part.detach().double().square().sum() for part in parts).sqrt()  # type: ignore[union-attr]
        assert float(found[expert]) == pytest.approx(float(by_hand))


@pytest.mark.parametrize("name", [LIST, STACK, "hidream_masked", "nucleusmoe_sigmoid"])
def test_the_default_criterion_ranks_experts_as_their_removal_does(name: str) -> None:
    model = build(ZOO[name], seed=3)
    groups = list(discover(model, {"experts"}))
    count = 16
    stats = measured(name, model, groups, needs_of("probe_obs", groups), count)
    scores = score(model, groups, stats, criterion="probe_obs").values
    shown = batches(ZOO[name], model, count)

    dense, change, said = outputs_of(model, shown), [], []
    for group in groups:
        for unit in range(group.num_units):
            kept = {group.name: tuple(k for k in range(group.num_units) if k != unit)}
            without = outputs_of(mask_plan(model, PruningPlan(kept=kept), groups), shown)
            change.append(float((without - dense).square().sum() / len(dense)))
            said.append(float(scores[group.name][unit]))
    ratio = torch.tensor(said).log() - torch.tensor(change).log()
    ranks = torch.stack([torch.tensor(x).argsort().argsort().double() for x in (said, change)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.7
    assert 0.2 < float(ratio.median().exp()) < 1  # others put something in the removed one's place
    assert float(ratio.std()) < 0.6


@pytest.mark.parametrize("name", [LIST, STACK])
def test_a_block_is_judged_with_the_experts_that_stay(name: str) -> None:
    """Channels are chosen anew on what experts see that get tokens; the cut is the model that was silenced."""
    model = build(ZOO[name])
    groups = [
        g
        for g in discover(model, {"experts", "ffn_channels"})
        if ".experts" in g.module or g.kind == "experts"
    ]
    kept = {g.name: tuple(range(1, 1 + max(g.min_units, g.num_units // 2))) for g in groups}
    shown = batches(ZOO[name], model)
    source = NoisedBatches(lambda: shown, 1000, 1)
    rows: dict[str, float] = {}

    def measure(members: Any) -> CalibrationStats:
        stats = calibrate(model, members, source, needs={"input_moment", "input_sum", "row_weight"})
        rows.update({key: float(found["row_weight"].sum()) for key, found in stats.values.items()})
        return stats

    plan, report = block_by_block(
        model,
        groups,
        PruningPlan(kept=kept),
        run=lambda: predict(model, shown[0].call, BATCH),
        measure=measure,
        judge=lambda members, stats: score(model, members, stats, criterion="obs"),
        compensation="least_squares",
    )
    of_experts = {g.name for g in groups if g.kind == "experts"}
    assert {k: v for k, v in plan.kept.items() if k in of_experts} == {k: kept[k] for k in of_experts}
    assert report
    if name == STACK:
        assert all(weight == 0 for key, weight in rows.items() if key.endswith("[0].T"))
    assert any(weight > 0 for weight in rows.values())
    silenced = outputs_of(mask_plan(model, PruningPlan({k: kept[k] for k in of_experts}), groups), shown)
    cut = outputs_of(apply_plan(model, plan, groups), shown)
    torch.testing.assert_close(cut, silenced, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def outputs_of(model: nn.Module, shown: list[NoisedBatch]) -> Tensor:
    return torch.cat([predict(model, batch.call, BATCH) for batch in shown])


def test_a_cut_mixture_trains() -> None:
    model = build(ZOO[LIST])
    groups = list(discover(model, {"experts"}))
    cut = apply_plan(model, PruningPlan(kept={groups[0].name: (1, 3)}), groups)
    layer: Any = cut.get_submodule(groups[0].module)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    expected = layer(x).detach()
    found = layer.train()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(layer.gate(x)[2])  # the auxiliary loss counts the experts
    found.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
    assert len(layer.gate.weight.grad) == 2


def test_grouped_products_are_seen_as_single_ones() -> None:
    found = []
    for grouped in (True, False):
        tiny = ZOO[STACK]
        model = build(Tiny(tiny.cls, {**tiny.config, "use_grouped_mm": grouped}, tiny.call))
        groups = list(discover(model, {"experts"}))
        needs = needs_of("probe_obs", groups)
        try:
            stats = measured(STACK, model, groups, needs)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            pytest.skip(f"no grouped products of float32 on this device: {error}")
        found.append(score(model, groups, stats, criterion="probe_obs").values)
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [LIST, STACK])
def test_rows_in_experts_are_known_by_sample_and_timestep(name: str) -> None:
    """What is measured of calls of two samples at different timesteps is what calls of one give."""
    model = build(ZOO[name])
    groups = [*discover(model, {"experts", "ffn_channels"})][:6]
    (both,) = batches(ZOO[name], model, 1)
    needs = {need for one in ("taylor", "obs", "expert_probe") for need in needs_of(one, groups)}
    needs |= {"row_weight", "expert_effect", "expert_rows"}
    samples, buckets, times = torch.tensor([2, 3]), torch.tensor([0, 1]), both.timesteps

    def stats_of(*calls: NoisedBatch) -> CalibrationStats:
        settings = Calibrate(timestep_buckets=2, timestep_weights="obs_diff")
        return calibrate(
            model, groups, NoisedBatches(lambda: list(calls), 1000, 2), needs=needs, settings=settings
        )

    def one(row: int) -> NoisedBatch:
        axis = {"encoder_hidden_states_llama3": 1}
        call: dict[str, Any] = {
            key: value.narrow(axis.get(key, 0), row, 1) if isinstance(value, Tensor) else value[row : row + 1]
            for key, value in both.call.items()
        }
        here = slice(row, row + 1)
        return NoisedBatch(call, both.target[here], buckets[here], samples[here], times[here])

    whole = stats_of(NoisedBatch(both.call, both.target, buckets, samples, times))
    apart = stats_of(one(0), one(1))
    for place, found in apart.values.items():
        for statistic, value in found.items():
            scale = 1e-4 * float(value.abs().max())
            torch.testing.assert_close(whole.get(place, statistic), value, rtol=1e-3, atol=scale)


@pytest.mark.parametrize("name", [LIST, STACK])
def test_every_criterion_takes_experts_and_their_channels(name: str) -> None:
    model = build(ZOO[name])
    groups = [*discover(model, {"experts", "ffn_channels"})][:6]
    assert {group.kind for group in groups} == {"experts", "ffn_channels"}
    able = [one for one, entry in CRITERIA.items() if entry.only == "" and entry.weighting == "off"]
    assert len(able) > 10
    stats = measured(name, model, groups, {need for one in able for need in needs_of(one, groups)})
    for one in able:
        score(model, groups, stats, criterion=one)  # checks that they are finite


def test_criteria_say_before_work_which_kinds_they_judge() -> None:
    model = build(ZOO[LIST])
    groups = list(discover(model, {"experts", "ffn_channels"}))
    experts = [group for group in groups if group.kind == "experts"]
    for name in OF_EXPERTS:
        check_kinds(name, experts)
        with pytest.raises(PruningError, match="scores groups of kind 'experts' only"):
            check_kinds(name, groups)
    with pytest.raises(PruningError, match="scores groups of kind 'blocks' only"):
        check_kinds("block_cosine", experts)
    check_kinds("block_change", experts)  # blocks and experts in units of the model's output
    assert needs_of("block_change", experts) == needs_of("probe_obs", experts)
    assert needs_of("obs", experts) == {"expert_energy", "layer_tokens"}
    assert needs_of("random", experts) == set()


@pytest.mark.parametrize("name", [LIST, STACK])
def test_calibration_leaves_the_experts_as_they_were(name: str) -> None:
    model = build(ZOO[name])
    groups = list(discover(model, {"experts", "ffn_channels"}))
    modules = dict(model.named_modules())
    modes = {path: module.training for path, module in modules.items()}
    measured(name, model, groups, needs_of("probe_obs", groups), 1)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert all(modules[path] is module for path, module in model.named_modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", [LIST, STACK])
def test_weights_of_rows_help_least_squares(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a layer's output is less than with rows that all count the same."""
    left = {}
    for gated in (True, False):
        model = build(ZOO[name])
        shown = batches(ZOO[name], model, 6)
        layer = list(discover(model, {"experts"}))[-1].module
        groups = [g for g in discover(model, {"ffn_channels"}) if g.module.startswith(f"{layer}.experts")]
        before = layer_outputs(model, layer, shown)
        with monkeypatch.context() as patch:
            if not gated:
                patch.setattr(Gates, "of", lambda self, path, rows: None)
            stats = measured(name, model, groups, {"row_weight", "input_sum", "input_moment"}, 6)
        plan = PruningPlan(kept={g.name: tuple(range(0, g.num_units, 4)) for g in groups})
        compensate(model, groups, plan, stats, "least_squares", ridge=1e-4)
        after = layer_outputs(apply_plan(model, plan, groups), layer, shown)
        left[gated] = float((after - before).square().sum())
    assert left[True] < left[False]


@torch.no_grad()
def layer_outputs(model: nn.Module, path: str, shown: list[NoisedBatch]) -> Tensor:
    found: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda module, args, output: found.append(output))
    with experts_with_gradients(model):
        for batch in shown:
            predict(model, batch.call, BATCH)
    hook.remove()
    return torch.cat(found)

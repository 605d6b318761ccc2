"""Blocks that run again in the backward pass: memory, awkward blocks, and what is told how often."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.calibration import calibrate
from pruning.calibration import checkpointing as module_under_test
from pruning.calibration.repeated import is_large
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.groups.listed import listed_blocks
from pruning.models.pieces import weight_bytes
from pruning.types import CalibrationStats
from scripts.bench_calibration import peak_bytes
from tests.models import dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import noised, settings

NEEDS = ("taylor", "probe_diag", "output_sensitivity", "diff_pruning", "input_sq")
WIDTH, TOKENS, BATCH = 8, 6, 2


class Block(nn.Module):
    """A residual feed-forward, and what else a test wants a block to do."""

    def __init__(self, do: Callable[[Block, Tensor], Any]) -> None:
        super().__init__()
        self.ff = FeedForward(WIDTH, mult=2)
        self.do = do

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        return self.do(self, x if scale is None else x * scale)


class Toy(nn.Module):
    """Three blocks, called by keyword, in turns; `read` takes the stream from what a block puts out."""

    def __init__(
        self, do: Callable[[Block, Tensor], Any], read: Callable[[Any], Tensor] = lambda y: y, turns: int = 1
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(do) for _ in range(3))
        self.read, self.turns = read, turns

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        scale = torch.cos(timestep.float())[:, None, None]
        x = hidden_states
        for _ in range(self.turns):
            for block in self.blocks:
                x = self.read(block(x=x, scale=scale))
        return x


def toy(do: Callable[[Block, Tensor], Any], *args: Any) -> Toy:
    torch.manual_seed(0)
    return Toy(do, *args).eval()


def shown() -> NoisedBatches:
    def batches() -> Iterator[NoisedBatch]:
        for bucket in range(4):
            draw = torch.Generator().manual_seed(bucket)
            x, target = torch.randn(2, BATCH, TOKENS, WIDTH, generator=draw)
            times = torch.full((BATCH,), 250 * bucket + 10)
            call = {"hidden_states": x, "timestep": times}
            yield NoisedBatch(call, target.flatten(1), bucket, torch.arange(BATCH), times)

    return NoisedBatches(batches, 1000, 4)


def gather(
    model: nn.Module, source: NoisedBatches, again: bool, needs: tuple[str, ...] = NEEDS
) -> CalibrationStats:
    torch.manual_seed(7)
    groups = find_groups(model, ["attention_heads", "ffn_channels", "resnet_channels"])
    return calibrate(model, groups, source, needs=needs, settings=settings(checkpointing=again))


def assert_same(model: nn.Module, source: NoisedBatches, needs: tuple[str, ...] = NEEDS) -> CalibrationStats:
    plain, again = (gather(model, source, way, needs) for way in (False, True))
    assert plain.values.keys() == again.values.keys()
    for place, found in plain.values.items():
        for name, value in found.items():
            assert bool(value.any())
            assert torch.equal(value, again.get(place, name)), (place, name)
    return again


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of blocks that keep their activations."""
    ours = [record for record in caplog.records if record.name == module_under_test.__name__]
    assert all(record.levelno == logging.WARNING for record in ours)
    return [record.getMessage() for record in ours]


def residual(block: Block, x: Tensor) -> Tensor:
    return x + block.ff(x)


@pytest.mark.parametrize(
    ("make", "needs"),
    [
        (dit, NEEDS),
        (dit, ("probe_diag",)),
        (dit, ("diff_pruning",)),
        (unet2d, ("taylor",)),
        (unet2d_condition, ("taylor", "probe_diag")),
    ],
)
def test_gradients_are_the_same_to_the_bit(make: Callable[[], nn.Module], needs: tuple[str, ...]) -> None:
    model = make()
    assert_same(model, noised(model), needs)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_blocks_are_the_items_of_lists() -> None:
    assert listed_blocks(dit()) == [f"transformer_blocks.{k}" for k in range(3)]
    found = listed_blocks(unet2d_condition())
    assert {"mid_block.attentions.0", "mid_block.resnets.1", "down_blocks.1"} <= {*found}, found
    assert not [path for path in found if any(path.startswith(f"{other}.") for other in found)]
    assert not listed_blocks(nn.Linear(2, 2))
    assert not is_large(dit())


def test_weighted_rows_and_attention_are_told_once() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    needs = ("taylor", "sink_mass", "input_sq")
    plain, again = (
        calibrate(
            model,
            groups,
            noised(model),
            needs=needs,
            variants=("on", "permuted"),
            settings=settings(checkpointing=way, unstable=1.0, stable=1.0, rho=1e-6),
        )
        for way in (False, True)
    )
    found = plain.get("transformer_blocks.1.attn1.to_out.0", "taylor@on")
    assert not torch.equal(found, plain.get("transformer_blocks.1.attn1.to_out.0", "taylor"))
    for place, values in plain.values.items():
        assert all(torch.equal(value, again.get(place, name)) for name, value in values.items()), place


@dataclass
class Answer(BaseOutput):
    sample: Tensor
    nothing: Tensor | None = None


FORMS = {
    "tuple": (lambda block, x: (None, residual(block, x)), lambda y: y[1]),
    "dataclass": (lambda block, x: Answer(sample=residual(block, x)), lambda y: y.sample),
    "dict": (lambda block, x: {"a": x, "b": [residual(block, x)]}, lambda y: y["b"][0] + 0 * y["a"]),
    "written to": (lambda block, x: [block.ff(x)], lambda y: y[0].mul_(0.5).add_(1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_blocks_put_out_what_they_like(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """And are called several times in a forward."""
    do, read = FORMS[form]
    assert_same(toy(do, read, 2), shown())
    assert not complaints(caplog)


def test_state_between_blocks_carries_gradients() -> None:
    """A tensor that a block leaves somewhere, and another one takes, is part of the graph."""
    left: list[Tensor] = []

    def do(block: Block, x: Tensor) -> Tensor:
        taken = left[0] if left and left[0].shape == x.shape else torch.zeros_like(x)
        y = block.ff(x)
        if block is model.blocks[0]:
            left[:] = [y]
            taken = torch.zeros_like(x)
        return x + y + taken

    model = toy(do)
    assert_same(model, shown())


def test_random_draws_are_drawn_again() -> None:
    assert_same(toy(lambda block, x: x + F.dropout(block.ff(x), 0.5, True)), shown())


def test_autocast_and_function_modes_hold_in_second_runs() -> None:
    seen: list[torch.dtype] = []

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            return 2 * result if func is F.gelu else result

    def do(block: Block, x: Tensor) -> Tensor:
        y = block.ff(x)
        seen.append(y.dtype)
        return x + y

    with Doubled(), torch.autocast("cpu", torch.bfloat16):
        assert_same(toy(do), shown())
    assert set(seen) == {torch.bfloat16}


def counts(block: Block, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    return x + block.ff(x) * (1 + block.calls % 2)


def runs_once(block: Block, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    if block.calls == 2:
        raise ValueError("no second time")
    return x + block.ff(x)


@pytest.mark.parametrize(
    ("do", "why"),
    [
        (counts, "its second run puts out something else"),
        (runs_once, "its second run fails (no second time)"),
    ],
)
def test_a_block_that_does_not_do_the_same_again_keeps_its_activations(
    do: Callable[[Block, Tensor], Tensor], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy(residual)
    model.blocks[1].do = do
    gather(model, shown(), again=True, needs=("taylor",))
    (found,) = complaints(caplog)
    assert (
        f"block 'blocks.1' of Toy cannot run again in the backward pass, and keeps its activations: {why}"
        in found
    )


def test_blocks_are_tried_anew_where_other_arguments_are_given(caplog: pytest.LogCaptureFixture) -> None:
    """Not where only sizes and numbers are others: with prompts of any length, that is every batch."""

    class Guided(Toy):
        def forward(
            self, hidden_states: Tensor, timestep: Tensor, guidance: Tensor | None = None, lengths: Any = ()
        ) -> Tensor:
            self.blocks[1].do = residual if guidance is None else counts
            tried.append((guidance is not None, torch.is_grad_enabled()))
            return super().forward(hidden_states, timestep)

    def batches() -> Iterator[NoisedBatch]:
        for number, batch in enumerate(shown()):
            guidance = {"guidance": torch.ones(BATCH)} if number >= 2 else {}
            longer = batch.call["hidden_states"].repeat(1, 1 + number, 1)
            call = {**batch.call, **guidance, "hidden_states": longer, "lengths": [number] * (1 + number)}
            yield replace(batch, call=call, target=None)

    tried: list[tuple[bool, bool]] = []
    torch.manual_seed(0)
    model = Guided(residual).eval()
    gather(model, NoisedBatches(batches, 1000, 4, has_targets=False), again=True, needs=("probe_diag",))
    assert tried[-6:] == [
        (False, False),
        (False, True),
        (False, True),
        (True, False),
        (True, True),
        (True, True),
    ]
    (found,) = complaints(caplog)
    assert "block 'blocks.1' of Guided cannot run again" in found


def test_inputs_that_are_written_to(caplog: pytest.LogCaptureFixture) -> None:
    """By the block itself, or by its caller afterwards."""

    class Around(Toy):
        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            x = hidden_states.clone()
            for block in self.blocks:
                x += block(x)
            return x

    torch.manual_seed(0)
    model = Around(lambda block, x: block.ff(x.tanh())).eval()
    assert_same(model, shown(), ("probe_diag", "output_sensitivity"))
    found = complaints(caplog)
    assert len(found) == 3
    assert all(message.endswith("what it is given is written to") for message in found)


def test_a_block_that_changes_its_mind_is_named() -> None:
    def do(block: Block, x: Tensor) -> Tensor:
        block.calls = getattr(block, "calls", 0) + 1
        return x + block.ff(x) * (x if block.calls == 4 else 1)  # tried out twice, run, and run again

    with pytest.raises(
        PruningError,
        match=r"block 'blocks\.2' \(Block\) runs again .* something else .* calibrate\.checkpointing=false",
    ):
        gather(toy(do), shown(), again=True, needs=("taylor",))
    gather(toy(do), shown(), again=False, needs=("taylor",))


def test_nothing_stays_of_a_block_that_fails() -> None:
    def do(block: Block, x: Tensor) -> Tensor:
        block.calls = getattr(block, "calls", 0) + 1
        if block.calls > 2:
            raise ValueError("out of order")
        return x + block.ff(x)

    with pytest.raises(ValueError, match="out of order"):
        gather(toy(do), shown(), again=True, needs=("taylor",))
    x = torch.full((2,), 3.0, requires_grad=True)
    (x * x).sum().backward()
    assert x.grad.tolist() == [6, 6]


def test_hooks_of_others_act_in_second_runs() -> None:
    model, calls = toy(residual), Counter[str]()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: calls.update([name]))
        module.register_forward_hook(lambda module, args, output, name=name: calls.update([name]))
    gather(model, shown(), again=True, needs=("taylor", "output_sensitivity"))
    tried, batches, losses = 1, 4, 2
    assert calls[""] == 2 * (tried + batches)
    assert calls["blocks.1"] == calls["blocks.1.ff"] == 2 * (2 * tried + batches * (1 + losses))


def test_the_models_own_checkpointing_is_off_meanwhile() -> None:
    model = dit()
    expected = gather(model, noised(model), again=False)
    model.enable_gradient_checkpointing()
    for again in (False, True):
        found = gather(model, noised(model), again)
        for place, values in expected.values.items():
            assert all(torch.equal(value, found.get(place, name)) for name, value in values.items())
    assert model.is_gradient_checkpointing


def test_null_asks_the_size_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = module_under_test.differences
    monkeypatch.setattr(module_under_test, "differences", lambda *args: tried.append(1) or real(*args))
    model = dit()
    size = weight_bytes(model)
    for large, expected in ((size + 1, 0), (size, 1)):
        monkeypatch.setattr("pruning.calibration.repeated.LARGE", large)
        gather(model, noised(model), again=None, needs=("taylor",))
        assert len(tried) == expected


def test_memory_is_the_inputs_of_the_blocks_and_one_block() -> None:
    """Each further block costs its input, 16 tokens of 32 channels, and not what its operations save."""
    samples, tokens, channels = 64, 16, 32

    def peak(layers: int, again: bool) -> int:
        model = dit(num_layers=layers)
        batches = list(noised(model, samples, samples))[:1]
        groups = find_groups(model, ["ffn_channels"])
        how = {"needs": ["taylor"], "settings": settings(checkpointing=again)}
        return peak_bytes(lambda: calibrate(model, groups, NoisedBatches(lambda: batches, 1000, 4), **how))

    plain, again = ((peak(9, way) - peak(3, way)) / 6 for way in (False, True))
    stream = 4 * samples * tokens * channels
    effects = 8 * samples * 4 * channels  # of the consumer's units, which have 4 times the channels
    assert again < 1.1 * (stream + effects)
    assert plain > 10 * stream

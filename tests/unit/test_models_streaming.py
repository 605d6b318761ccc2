"""Weights that are there while they are read: the same outputs and gradients, little memory, a model left as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from pruning.errors import PruningError
from pruning.models import pages, streaming
from pruning.models.loading import load_denoiser
from pruning.models.mapped import map_denoiser
from pruning.models.pages import madvise
from pruning.models.pieces import pieces_of
from pruning.models.streaming import Streaming, streamed
from pruning.models.widening import Wider
from pruning.surgery import apply_plan
from pruning.surgery.tensor_files import InPieces, write_in_pieces
from pruning.types import PruningPlan
from tests.models import call, dit, unet2d
from tests.zoo import ZOO, build
from tests.zoo.base import Draw, tensors_in, with_tuple


def copies_on_the_cpu(files: Any, where: str) -> Any:
    cpu = torch.device("cpu")
    return streaming._Copies(files, where, cpu, Wider(nn.Module(), None, cpu))


@pytest.fixture(params=["pages", "copies"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stream pages of files, or copies as on another device."""
    if request.param == "copies":
        monkeypatch.setattr(streaming, "_Pages", copies_on_the_cpu)
    elif madvise() is None:
        pytest.skip("pages are given back on Linux only")
    return request.param


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """Return a tiny DiT whose weights lie in files."""
    dit().save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    return map_denoiser(tmp_path / "dense")


@contextmanager
def in_small_pieces(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, hooks: int = 0, **options: Any
) -> Iterator[Streaming]:
    monkeypatch.setattr(streaming, "PIECE", 60_000)
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    try:
        with streamed(model, **options) as found:
            assert len(found.pieces) > 3
            yield found
    finally:
        assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the output and all gradients of a call."""
    arguments = call(model)
    key = "sample" if "sample" in arguments else "hidden_states"
    arguments[key].requires_grad_()
    model.zero_grad()
    output = model(**arguments).sample
    output.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "input": arguments[key].grad, "output": output.detach()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("limit", [None, 200_000])
def test_outputs_and_gradients_are_the_same(model, way, monkeypatch, trained: bool, limit: int | None):
    model.requires_grad_(trained)
    expected = gradients(model)
    assert len(expected) > 50 or not trained
    with in_small_pieces(model, monkeypatch, limit_bytes=limit):
        for _ in range(2):
            assert_equal(gradients(model), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_blocks_that_are_run_again(model, way, monkeypatch, reentrant: bool):
    expected = gradients(model)
    model.enable_gradient_checkpointing(
        lambda module, *args: checkpoint(module.__call__, *args, use_reentrant=reentrant)
    )
    runs: list[nn.Module] = []
    for block in model.transformer_blocks:
        block.attn1.register_forward_pre_hook(lambda module, args: runs.append(module))
    with in_small_pieces(model, monkeypatch, hooks=3):
        assert_equal(gradients(model), expected)
    assert len(runs) == 2 * len(model.transformer_blocks)


def test_no_hook_stays_on_what_the_model_is_given(model, way, monkeypatch):
    arguments = call(model)
    arguments["hidden_states"].requires_grad_()
    with in_small_pieces(model, monkeypatch):
        model(**arguments).sample.sum().backward()
    assert not arguments["hidden_states"]._backward_hooks


def test_embedders_that_blocks_share(tmp_path: Path, way, monkeypatch):
    """All blocks call that of the first, which is in the piece of that block; the model does so, too."""
    model = dit()
    paths = tuple(f"transformer_blocks.{k}.norm1.emb" for k in range(3))
    apply_plan(model, PruningPlan(shared=(paths,))).save_pretrained(tmp_path)
    mapped = map_denoiser(tmp_path)
    monkeypatch.setattr(streaming, "PIECE", 120_000)
    brought: list[str] = []
    with torch.no_grad(), streamed(mapped) as found:
        assert [piece.path for piece in found.pieces if "blocks" in piece.path] == [
            f"transformer_blocks.{k}" for k in range(3)
        ]
        bring = found._holder.bring
        found._holder.bring = lambda piece, *args, **kwargs: (
            brought.append(piece.path),
            bring(piece, *args, **kwargs),
        )
        assert torch.equal(mapped(**call(mapped)).sample, model(**call(model)).sample)
    assert brought.count("transformer_blocks.0") == 1
    assert brought.count("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1") == 3


def test_every_module_may_be_a_piece(way, monkeypatch, tmp_path: Path):
    unet2d().save_pretrained(tmp_path)
    model = map_denoiser(tmp_path)
    expected = gradients(model)
    monkeypatch.setattr(streaming, "PIECE", 1)
    with streamed(model) as found:
        assert len(found.pieces) > 50
        assert_equal(gradients(model), expected)


def test_pieces_hold_every_weight_once():
    model = dit()
    pieces = pieces_of(model, 120_000)
    names = [name for piece in pieces for name in piece.weights()]
    assert sorted(names) == sorted([name for name, _ in (*model.named_parameters(), *model.named_buffers())])
    assert [piece.path for piece in pieces if "blocks" in piece.path] == [
        f"transformer_blocks.{k}" for k in range(3)
    ]
    assert all(piece.nbytes <= 120_000 for piece in pieces)
    assert [piece.path for piece in pieces_of(model, 10**9)] == [""]


class Broken(Exception):
    pass


WIDENED = (
    "dit",
    "flux",
    "unet2d",
    "z_image",
    "kandinsky6",
    "minimax_h3",
    "stable-audio",
    "rfd4_proteina",
    "sana_wm",
)
"""Also classes that ask for the type of weights that they do not read yet."""


@pytest.mark.parametrize("name", WIDENED)
def test_it_runs_in_a_wider_type_than_it_is_stored_in(name: str, tmp_path: Path, monkeypatch):
    tiny = ZOO[name]
    build(tiny).to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    arguments = with_tuple(other, tiny.call(Draw(1)))
    kinds = {p.dtype for p in model.parameters()}
    with torch.no_grad(), in_small_pieces(model, monkeypatch, dtype=torch.float32):
        for _ in range(2):
            found, expected = model(**arguments)[0], other(**arguments)[0]
            assert_equal(dict(enumerate(tensors_in(found))), dict(enumerate(tensors_in(expected))))
            assert model.dtype == torch.float32
            assert {p.dtype for p in model.parameters()} == kinds
    assert model.dtype == torch.bfloat16


def test_weights_that_are_brought_are_read_once(tmp_path: Path, monkeypatch):
    dit().to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    monkeypatch.setattr(Wider, "_read", Mock(side_effect=AssertionError("read besides")))
    with in_small_pieces(model, monkeypatch, dtype=torch.float32):
        for _ in range(2):
            assert torch.equal(model(**call(model)).sample, other(**call(model)).sample)


def test_weights_that_nobody_brings_are_read_by_whoever_asks(tmp_path: Path, monkeypatch):
    """HunyuanDiT's pooler works with the weights of its layers and does not call them."""
    tiny = ZOO["hunyuan-dit"]
    build(tiny).to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    arguments = with_tuple(other, tiny.call(Draw(1)))
    read = Mock(side_effect=Wider._read, autospec=True)
    monkeypatch.setattr(Wider, "_read", lambda self, own: read(self, own))
    monkeypatch.setattr(streaming, "PIECE", 1)
    with torch.no_grad(), streamed(model, dtype=torch.float32):
        assert torch.equal(model(**arguments)[0], other(**arguments)[0])
    assert read.called


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_in_a_wider_type_reach_the_weights(tmp_path: Path, monkeypatch, checkpointed: bool):
    dit().to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    expected = gradients(other)
    if checkpointed:
        model.enable_gradient_checkpointing(
            lambda module, *args: checkpoint(module, *args, use_reentrant=False)
        )
    with in_small_pieces(model, monkeypatch, dtype=torch.float32):
        found = gradients(model)
    for name, value in expected.items():
        if name in ("input", "output"):
            assert torch.equal(found[name], value)
        else:  # of what several blocks share it is added up in the stored type
            torch.testing.assert_close(
                found[name].float(), value, rtol=0.01, atol=0.01 * float(value.abs().max())
            )
            assert found[name].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
def test_an_error_in_a_wider_type_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch, kind: type[BaseException]
):
    dit().to(torch.bfloat16).save_pretrained(tmp_path)
    model = map_denoiser(tmp_path)

    def fail(module: nn.Module, args: Any) -> None:
        raise kind

    handle = model.transformer_blocks[1].ff.net[2].register_forward_pre_hook(fail)
    with pytest.raises(kind), in_small_pieces(model, monkeypatch, hooks=1, dtype=torch.float32):
        model(**call(model))
    handle.remove()
    assert model.dtype == torch.bfloat16


def fail(kind: type[BaseException]) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        raise kind

    return hook


@pytest.mark.parametrize("name", ["kandinsky6", "minimax_h3"])
def test_blocks_larger_than_a_piece_run_again_in_a_wider_type(name: str, tmp_path: Path, monkeypatch):
    """They ask for the type of weights that they do not read yet, also within a backward pass, and by themselves."""
    tiny = ZOO[name]
    build(tiny).to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    found: list[dict[str, Tensor]] = []
    monkeypatch.setattr(streaming, "PIECE", 1)
    with streamed(model, dtype=torch.float32):
        for each in (model, other):
            each.enable_gradient_checkpointing(
                lambda module, *args: checkpoint(module, *args, use_reentrant=False)
            )
            output = [*tensors_in(each(**with_tuple(each, tiny.call(Draw(1))))[0])]
            sum(part.square().sum() for part in output).backward()
            grads = {path: p.grad.float() for path, p in each.named_parameters() if p.grad is not None}
            found.append({**grads, "output": output[0].detach()})
    assert torch.equal(found[0]["output"], found[1]["output"])
    assert found[0].keys() == found[1].keys()
    for path, value in found[1].items():
        assert float((found[0][path] - value).norm()) <= 0.02 * float(value.norm())


def test_an_interrupted_call_leaves_no_stand_in(tmp_path: Path, monkeypatch):
    """Also while the model goes on streaming: it may be saved then, and changed."""
    dit().to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    name = "transformer_blocks.1.ff.net.2.weight"
    with torch.no_grad(), in_small_pieces(model, monkeypatch, dtype=torch.float32):
        before = {key: id(weight) for key, weight in model.state_dict(keep_vars=True).items()}
        handle = model.transformer_blocks[1].ff.net[2].register_forward_pre_hook(fail(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model(**call(model))
        handle.remove()
        assert {key: id(weight) for key, weight in model.state_dict(keep_vars=True).items()} == before
        for each in (model, other):
            each.get_parameter(name).zero_()
        assert torch.equal(model(**call(other)).sample, other(**call(other)).sample)


def test_an_interrupted_backward_pass_is_over_with_the_next_call(tmp_path: Path, monkeypatch):
    dit().to(torch.bfloat16).save_pretrained(tmp_path)
    model = map_denoiser(tmp_path)
    model.enable_gradient_checkpointing(lambda module, *args: checkpoint(module, *args, use_reentrant=False))
    with in_small_pieces(model, monkeypatch, dtype=torch.float32):
        output = model(**call(model)).sample
        handle = model.transformer_blocks[1].ff.net[2].register_forward_pre_hook(fail(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            output.sum().backward()
        handle.remove()
        model(**call(model))
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_a_model_streams_in_one_type_at_a_time(tmp_path: Path):
    dit().to(torch.bfloat16).save_pretrained(tmp_path)
    model = map_denoiser(tmp_path)
    with streamed(model, dtype=torch.float64):
        with (
            pytest.raises(PruningError, match=r"the model has layerwise_casting already, .* end that first"),
            streamed(model, dtype=torch.float32),
        ):
            pass
        assert model.dtype == torch.float64
        output = model(**tree_map(lambda x: x.double() if x.is_floating_point() else x, call(model))).sample
    assert bool(output.isfinite().all())


@pytest.mark.parametrize("most", [1, 60_000])
def test_weights_that_are_added_are_read_in_the_wider_type(tmp_path: Path, monkeypatch, most: int):
    """A bias where there was none, and a module in the place of another, as surgery and adapters put there."""
    dit(attention_bias=False).to(torch.bfloat16).save_pretrained(tmp_path)
    model, other = map_denoiser(tmp_path), load_denoiser(tmp_path, dtype=torch.float32)
    monkeypatch.setattr(streaming, "PIECE", most)
    with streamed(model, dtype=torch.float32):
        for each in (model, other):
            each.enable_gradient_checkpointing(
                lambda module, *args: checkpoint(module, *args, use_reentrant=False)
            )
            block = each.transformer_blocks[1]
            assert block.attn1.to_q.bias is None
            block.attn1.to_q.bias = nn.Parameter(torch.full_like(block.attn1.to_q.weight[:, 0], 0.5))
            layer = nn.utils.skip_init(nn.Linear, *block.ff.net[2].weight.T.shape)
            nn.init.constant_(layer.weight, 0.25)
            nn.init.constant_(layer.bias, 0.5)
            block.ff.net[2] = layer.to(block.attn1.to_q.weight.dtype)
        found, expected = gradients(model), gradients(other)
    assert torch.equal(found["output"], expected["output"])
    name = "transformer_blocks.1.ff.net.2.weight"
    torch.testing.assert_close(found[name].float(), expected[name], rtol=0.01, atol=0.01)


def test_a_model_that_is_made_narrower_while_it_streams(model):
    arguments = tree_map(lambda x: x.bfloat16() if x.is_floating_point() else x, call(model))
    with torch.no_grad(), streamed(model, dtype=torch.float32):
        nn.Module.to(model, torch.bfloat16)
        output = model(**arguments).sample
    assert torch.equal(output, model(**arguments).sample)


def test_gradients_after_a_call_in_inference_mode(model, monkeypatch):
    monkeypatch.setattr(streaming, "_Pages", copies_on_the_cpu)
    expected = gradients(model)
    with in_small_pieces(model, monkeypatch, limit_bytes=200_000):
        with torch.inference_mode():
            model(**call(model))
        assert_equal(gradients(model), expected)


class Listed(nn.Module):
    """Reads weights that lie in a list, which is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(100), torch.full((100,), 2.0)])
        self.layers = nn.ModuleList(nn.Linear(100, 100) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for scale, layer in zip(self.scales, self.layers, strict=True):
            x = layer(x) * scale
        return x


def test_weights_of_what_is_not_called_come_with_what_reads_them():
    model = Listed()
    assert [(piece.path, sorted(piece.weights())) for piece in pieces_of(model, 41_000)] == [
        ("", ["scales.0", "scales.1"]),
        ("layers.0", ["layers.0.bias", "layers.0.weight"]),
        ("layers.1", ["layers.1.bias", "layers.1.weight"]),
    ]


def test_no_more_is_there_than_the_limit(model, monkeypatch):
    monkeypatch.setattr(streaming, "_Pages", copies_on_the_cpu)
    there: list[int] = []

    def look(module: nn.Module, args: Any) -> None:
        holder = found._holder
        copies = [c for placed in holder._placed.values() for *_, c in placed]
        storages = {t.untyped_storage().data_ptr(): t.nbytes for t in copies}
        storages |= {t.untyped_storage().data_ptr(): t.nbytes for *_, t in holder._kept.values()}
        there.append(sum(storages.values()))

    with torch.no_grad(), in_small_pieces(model, monkeypatch, limit_bytes=200_000) as found:
        handles = [module.register_forward_pre_hook(look) for module in model.modules()]
        for _ in range(2):
            model(**call(model))
        for handle in handles:
            handle.remove()
    assert max(there) <= 200_000
    assert max(there) > 60_000


def test_what_cannot_be_cut_is_larger_than_the_limit(model):
    with (
        pytest.raises(
            PruningError, match=r"has .* kB of them, which cannot be there in parts, and the limit is 500 B"
        ),
        streamed(model, limit_bytes=500),
    ):
        pass


@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
def test_errors_leave_the_model_as_it_was(model, way, monkeypatch, kind: type[BaseException]):
    expected = gradients(model)

    def fail(module: nn.Module, args: Any) -> None:
        raise kind

    handle = model.transformer_blocks[1].ff.net[2].register_forward_pre_hook(fail)
    with pytest.raises(kind), in_small_pieces(model, monkeypatch, hooks=1):
        model(**call(model))
    handle.remove()
    with in_small_pieces(model, monkeypatch):
        assert_equal(gradients(model), expected)


def test_it_goes_on_after_an_error(model, way, monkeypatch):
    expected = gradients(model)

    def fail(module: nn.Module, args: Any) -> None:
        raise Broken

    with in_small_pieces(model, monkeypatch):
        handle = model.transformer_blocks[1].ff.net[2].register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            model(**call(model))
        handle.remove()
        assert_equal(gradients(model), expected)


def test_what_is_written_between_calls_is_seen_and_stays(model, way, monkeypatch):
    other = dit()
    for limit in (None, 200_000):
        with in_small_pieces(model, monkeypatch, limit_bytes=limit), torch.no_grad():
            model(**call(model))
            for both in (model, other):
                both.get_parameter("transformer_blocks.1.ff.net.2.weight")[3].add_(1.0)
                both.get_parameter("proj_out_2.bias").fill_(0.25)
            assert torch.equal(model(**call(model)).sample, other(**call(other)).sample)
        assert torch.equal(model(**call(model)).sample, other(**call(other)).sample)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_weights_are_named_when_they_are_first_read(
    tmp_path, way, monkeypatch, value: float, told: bool
):
    if not told:  # as on other systems than Linux
        monkeypatch.setattr(pages, "madvise", lambda: None)
    broken = dit()
    with torch.no_grad():
        broken.get_parameter("transformer_blocks.2.attn1.to_k.weight")[0, 0] = value
    broken.save_pretrained(tmp_path)
    model = map_denoiser(tmp_path)
    message = rf"model source '{tmp_path}': 'transformer_blocks.2.attn1.to_k.weight' holds NaN or infinity"
    with pytest.raises(PruningError, match=message), in_small_pieces(model, monkeypatch):
        model(**call(model))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", ["dit", "flux", "sd3", "wan"])
def test_all_that_runs_is_on_the_device(name: str, monkeypatch):
    """PyTorch's stand-ins for tensors of a GPU refuse what would mix devices there."""
    tiny = ZOO[name]
    model = build(tiny).requires_grad_(False)
    monkeypatch.setattr(streaming, "PIECE", 20_000)
    mode = FakeTensorMode()
    arguments = tree_map(partial(_stand_in, mode), with_tuple(model, tiny.call(Draw(1))))
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            store.update({key: _stand_in(mode, value) for key, value in store.items()})
    with mode, torch.no_grad(), streamed(model, device="cuda") as found:
        output = model(**tree_map(_on_gpu, arguments))[0]
        assert model.device.type == "cuda", "pipelines would put inputs elsewhere, or move the whole model"
    assert len(found.pieces) > 3
    assert output.device.type == "cuda"
    assert {model.device.type, *(p.device.type for p in model.parameters())} == {"cpu"}


def _on_gpu(value: Any) -> Any:
    return value.to("cuda") if isinstance(value, Tensor) else value


def _stand_in(mode: FakeTensorMode, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    made = mode.from_tensor(value.detach())
    return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made


BIG = """
import sys, torch
from pruning.models.loading import load_denoiser
from pruning.models.mapped import map_denoiser
from pruning.models.streaming import streamed

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1e3

model = map_denoiser(sys.argv[1]).requires_grad_(False)
x = torch.ones(1, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)
before = status("VmRSS:")
with streamed(model, limit_bytes=300_000_000):
    for _ in range(1):
        model(x, timestep=torch.tensor([3]), class_labels=torch.tensor([1])).sample.square().sum().backward()
assert x.grad.isfinite().all()
print(sum(p.nbytes for p in model.parameters()) / 1e6, status("VmHWM:") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(madvise() is None, reason="pages are given back on Linux only")
def test_a_large_model_takes_little_memory(tmp_path: Path):
    """Forward and back through 1.5 GB of weights, 300 MB of which may stay."""
    with torch.device("meta"):
        model: Any = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=80, in_channels=4, num_layers=22, num_embeds_ada_norm=9
        )
    model.save_config(tmp_path / "dense")
    tile = (torch.randn(1 << 22) * 0.02).bfloat16()

    def values(shape: torch.Size) -> list[Tensor]:
        return [*tile.repeat(-(-shape.numel() // len(tile)))[: shape.numel()].split(1 << 20)]

    names, index = list(model.state_dict()), {}
    for first in range(0, len(names), 40):
        file = f"diffusion_pytorch_model-{first:05d}-of-99999.safetensors"
        shapes = {name: model.state_dict()[name].shape for name in names[first : first + 40]}
        tensors = {
            name: InPieces(tuple(shape), torch.bfloat16, partial(values, shape))
            for name, shape in shapes.items()
        }
        for _ in write_in_pieces(tmp_path / "dense" / file, tensors):
            pass
        index |= dict.fromkeys(tensors, file)
    (tmp_path / "dense" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "dense")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    weights, growth = map(float, done.stdout.split())
    for path in (tmp_path / "dense").iterdir():
        path.unlink()
    assert weights > 1300
    assert growth < 600

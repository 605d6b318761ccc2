"""Cutting within the memory that a parameter has: right values, and nothing scrambled that others see."""

from __future__ import annotations

import ctypes
import io

import pytest
import torch
from torch import nn

from pruning.surgery import storage
from pruning.surgery.storage import Cutter

MASK = torch.arange(12) % 5 != 1


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(storage, "WORTHWHILE", 0)
    monkeypatch.setattr(storage, "PIECE", 64)


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Conv2d(12, 12, 3, bias=False).to(dtype)


def reuses(module, masks=None):
    """Cut and tell whether the new weight lies where the old one lay."""
    place = module.weight.data_ptr()
    Cutter().cut(module, "weight", masks or {0: MASK})
    return module.weight.data_ptr() == place


needs_linux = pytest.mark.skipif(storage._release() is None, reason="memory is reused on Linux only")


@needs_linux
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_right_entries_stay_in_the_same_memory(dim, dtype):
    module = layer(dtype)
    mask = MASK if dim < 2 else torch.tensor([True, False, True])
    expected = module.weight.detach().clone()
    expected = expected.index_select(dim, mask.nonzero().flatten())
    module.weight.requires_grad_(False)
    assert reuses(module, {dim: mask})
    assert torch.equal(module.weight, expected)
    assert module.weight.is_contiguous()
    assert module.weight.dtype == dtype
    assert not module.weight.requires_grad


@needs_linux
def test_saving_and_counting_see_the_cut_size():
    module = layer()
    assert reuses(module)
    weight = module.weight
    assert weight.untyped_storage().nbytes() == weight.nbytes
    file = io.BytesIO()
    torch.save(weight, file)
    assert file.tell() < weight.nbytes + 2048
    weight.data.add_(1)  # still ours to write


@needs_linux
def test_pages_go_back_to_the_system():
    module = nn.Linear(4096, 4096, bias=False)  # 64 MiB
    before = resident()
    keep = torch.arange(4096) < 1024
    assert reuses(module, {0: keep})
    assert before - resident() > 40e6


def resident():
    ctypes.CDLL(None).malloc_trim(0)  # what tensors of a while ago left in the heap says nothing here
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("masks", [{0: MASK, 1: MASK}, {1: MASK, 0: MASK}])
def test_two_dimensions_at_once(masks):
    module = layer()
    kept = MASK.nonzero().flatten()
    expected = module.weight.detach().clone().index_select(0, kept).index_select(1, kept)
    Cutter().cut(module, "weight", masks)
    assert torch.equal(module.weight, expected)


def test_what_others_hold_is_left_alone():
    holders = {
        "the parameter": lambda m: m.weight,
        "an optimizer": lambda m: torch.optim.SGD(m.parameters(), 0.1),
        "a state dict": lambda m: m.state_dict(),
        "a view": lambda m: m.weight[0],
        "a NumPy array": lambda m: m.weight.detach().numpy(),
        "another module": lambda m: tied(m),
    }
    for who, hold in holders.items():
        module = layer()
        before = module.weight.detach().clone()
        held = hold(module)
        address = module.weight.data_ptr()
        assert not reuses(module), who
        seen = torch.frombuffer((ctypes.c_char * before.nbytes).from_address(address), dtype=torch.float32)
        assert torch.equal(seen.view_as(before), before), who
        del held


def tied(module):
    other = layer()
    other.weight = module.weight
    return other


def test_foreign_memory_is_copied():
    module = layer()
    array = module.weight.detach().clone().numpy()
    module.weight = nn.Parameter(torch.from_numpy(array))
    assert not reuses(module)
    shared = layer()
    shared.share_memory()
    assert not reuses(shared)
    part = layer()
    part.weight = nn.Parameter(torch.randn(13, 12, 3, 3)[1:])
    assert not reuses(part)
    turned = layer()
    turned.weight = nn.Parameter(torch.randn(12, 12, 3, 3).to(memory_format=torch.channels_last))
    assert not reuses(turned)


def test_a_graph_that_saved_the_weight_stays_right():
    module = layer()
    x = torch.randn(1, 12, 5, 5, requires_grad=True)
    loss = module(x).square().sum()
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert not reuses(module)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.bool, torch.int8, torch.bfloat16, torch.float32]
)
def test_entries_are_taken_whatever_their_size_and_order(dim, dtype):
    value = (torch.arange(12 * 12 * 3).view(12, 12, 3) % 7).to(dtype)
    mask = MASK if dim < 2 else torch.tensor([True, False, True])
    for given in (value, value.transpose(0, 1)):
        found = storage.take(given, dim, mask)
        assert found.dtype == dtype
        assert found.is_contiguous()
        expected = given.float().index_select(dim, mask.nonzero().flatten())
        assert torch.equal(found.float(), expected)

"""Products by either library, and which one takes what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning import products
from pruning.products import product

WAYS = {
    "by rows": lambda x: x,
    "by columns": lambda x: x.T.contiguous().T,
    "with gaps": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every second": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


def matrix(rows: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(70, 90, 65), (1, 90, 65), (70, 1, 65), (70, 90, 1), (0, 90, 65), (70, 90, 0)]
)
def test_a_product_is_that_of_torch(way: str, other: str, dtype: torch.dtype, shape: tuple[int, int, int]):
    m, n, k = shape
    a, b = matrix(m, k, 0, dtype), matrix(n, k, 1, dtype)
    found = product(WAYS[way](a), WAYS[other](b))
    assert found.dtype is dtype
    torch.testing.assert_close(found, a @ b.T)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_onednn_gets_what_it_is_fast_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    a, b = matrix(128, 128, 0, torch.float32), matrix(128, 128, 1, torch.float32)
    gaps, columns = WAYS["with gaps"], WAYS["by columns"]
    assert products._by_onednn(a, b)
    assert products._by_onednn(gaps(a), b)
    for bad in ((columns(a), b), (a, columns(b)), (a, gaps(b)), (a.double(), b.double()), (a[:9], b)):
        assert not products._by_onednn(*bad)
    monkeypatch.setattr(products, "MACHINES", ())
    assert not products._by_onednn(a, b)


def test_weights_that_learn_may_be_multiplied():
    a, b = (matrix(128, 128, seed, torch.float32).requires_grad_() for seed in (0, 1))
    assert not product(a, b).requires_grad

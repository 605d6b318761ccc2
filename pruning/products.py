"""Large products of matrices on a CPU by the library that is fastest there.

torch multiplies in float32 by MKL, which on processors of other makers than Intel does not use their widest vectors;
oneDNN, which torch brings along too, does: on an AMD processor with AVX-512 it took half of the time
(docs/benchmarks.md).
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

MACHINES = ("x86_64", "amd64")

TALL = 64
"""Rows below which a product is left to torch."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b^T``, (M, N), of a (M, K) and b (N, K); fast where both lie by rows. No gradient passes through."""
    if _by_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a.detach(), b.detach(), None, "none", [], "")
    return a.detach() @ b.detach().mT


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    """Tell whether oneDNN is here and takes them; b by columns, or with gaps, takes it hundreds of times as long."""
    return (
        a.device.type == b.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and min(*a.shape, *b.shape) >= TALL
        and a.stride(1) == 1
        and b.is_contiguous()
        and platform.machine().lower() in MACHINES
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )

"""How far an error at a token is broadcast by later self-attention (docs/scores.md section 4, S2).

In self-attention an error e at token i reaches every query j through head h as ``A_ji W^O_h W^V_h e``. With error
directions spread evenly over the C channels of the residual stream, the queries together get ``gain_h sum_j A_ji^2``
times ``|e|^2``, ``gain_h = ||W^O_h W^V_h||_F^2 / C``. The norms before attention and between layers are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.calibration.attention.reading import Reading
from pruning.calibration.sums import summable


@torch.no_grad()
def head_gain(module: nn.Module) -> Tensor | None:
    """Return ``||W^O_h W^V_h||_F^2 / C`` of an attention module's heads, (H,) float64 on the CPU.

    None for a module without plain ``to_v`` and ``to_out`` projections. Grouped-query attention: each query head has
    the values of its group.
    """
    value, out = getattr(module, "to_v", None), getattr(module, "to_out", None)
    out = out[0] if isinstance(out, nn.ModuleList) and len(out) else out
    heads = getattr(module, "heads", None)
    if not (isinstance(value, nn.Linear) and isinstance(out, nn.Linear) and isinstance(heads, int)):
        return None
    columns = summable(out.weight).double().unflatten(1, (heads, -1))  # (C, H, d)
    width = columns.shape[2]
    rows = summable(value.weight).double().unflatten(0, (-1, width))  # (K, d, C)
    outer = torch.einsum("chd,che->hde", columns, columns)
    inner = (rows @ rows.transpose(1, 2)).repeat_interleave(heads // len(rows), 0)
    return (outer * inner).sum((1, 2)).cpu() / len(columns)  # tr(W_O^T W_O W_V W_V^T)


def received(reading: Reading, gain: Tensor) -> Tensor:
    """Return ``sum_h gain_h sum_q A_qi^2``, what self-attention broadcasts from each token, (B, M) float64."""
    squares = reading.sums.square.cpu() * reading.sums.total  # (B, H, M)
    return torch.einsum("h,bhm->bm", gain, squares)

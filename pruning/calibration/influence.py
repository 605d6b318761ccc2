"""How far an error at a token is broadcast by later self-attention (SCORES.md section 4, S2).

In self-attention an error e at token i reaches every query j through head h as ``A_ji W^O_h W^V_h e``. With error
directions spread evenly over the C channels of the residual stream, the queries together get ``gain_h sum_j A_ji^2``
times ``|e|^2``, ``gain_h = ||W^O_h W^V_h||_F^2 / C``. The norms before attention and between layers are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.calibration.reading import Reading
from pruning.calibration.step import Step
from pruning.calibration.sums import summable
from pruning.calibration.trajectory import TrajectoryMeans, by_row


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


class InfluenceSums:
    """Means over timesteps of ``sum_h gain_h sum_q A_qi^2`` by self-attention site and sample.

    Args:
        gains: `head_gain` by site; sites that are absent are taken to broadcast nothing.
    """

    def __init__(self, gains: dict[str, Tensor]) -> None:
        self._gains = gains
        self._means = TrajectoryMeans()

    def add(self, reading: Reading, step: Step, owner: Tensor) -> None:
        """Add one attention call; in cross-attention the keys are other tokens than the rows, so it adds nothing."""
        gain = self._gains.get(reading.call.path)
        if gain is None or reading.call.cross:
            return
        squares = reading.sums.square.cpu() * reading.sums.total  # (B, H, M)
        received = torch.einsum("h,bhm->bm", gain, squares)
        self._means.add(reading.call.path, by_row(received, step, owner)[:, None], step)

    def finish(self) -> dict[str, Tensor]:
        """Return float32 (R, M) by site, in the order in which the sites run."""
        return {site: mean[:, 0].float() for site, mean in self._means.finish()[1].items()}

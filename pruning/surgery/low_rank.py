"""Linear layers in low-rank form: where their inputs span few directions, two thin layers say the same.

With W (C, P) and the covariance Sigma of its inputs, the best layer of rank r is ``Q Q^T W``, where Q (C, r) are the
leading left singular vectors of ``W Sigma^(1/2)``: it loses the smallest possible part of the outputs' variance
(docs/scores.md section 7). The outputs' mean stays exact: ``b += (W - Q Q^T W) mu``. What is lost on rows that the choice
did not see is measured on those; see `choose_ranks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from pruning.errors import PruningError
from pruning.groups.modulation import break_even
from pruning.importance.moments import covariance
from pruning.types import CalibrationStats, PrunableGroup

NEEDS = frozenset({"input_moment", "input_sum", "row_weight"})
"""Statistics that the choice of ranks reads."""

UNSEEN = 1e-6
"""Of the mean variance of the inputs: what directions count that no row took, so that W decides among those."""


class LowRankLinear(nn.Module):
    """A linear layer of weight ``up.weight @ down.weight``.

    Args:
        down: (P -> r), without bias.
        up: (r -> C).
    """

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = down, up

    @classmethod
    def empty(cls, layer: nn.Linear, rank: int) -> LowRankLinear:
        """Return one in the place of `layer`, of its device and type, without values but for its bias."""
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        down: Any = skip_init(nn.Linear, layer.in_features, rank, bias=False, **like)
        up: Any = skip_init(nn.Linear, rank, layer.out_features, bias=False, **like)
        up.bias = layer.bias
        found = cls(down, up).requires_grad_(layer.weight.requires_grad)
        return found.train(layer.training)

    @property
    def rank(self) -> int:
        """R."""
        return self.down.out_features

    @property
    def in_features(self) -> int:
        """P."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """C."""
        return self.up.out_features

    @property
    def weight(self) -> Tensor:
        """W, (C, P), for code that reads its type, its device or itself; not a parameter."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias (C,), or None."""
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        return self.up(self.down(x))  # type: ignore[no-any-return]


def check_rank(where: str, layer: nn.Module, rank: Any) -> None:
    """Raise PruningError, beginning with `where`, unless a layer may take the low-rank form of this rank."""
    if isinstance(layer, LowRankLinear):
        if rank != layer.rank:
            raise PruningError(f"{where}: it has a low-rank form already, of rank {layer.rank}, not {rank!r}")
        return
    if not isinstance(layer, nn.Linear):
        raise PruningError(
            f"{where}: {type(layer).__name__} is no linear layer, and others have no low-rank form"
        )
    most = break_even(layer)
    if type(rank) is not int or not 1 <= rank <= most:
        raise PruningError(
            f"{where}: rank {rank!r} saves nothing; of {layer.in_features} -> {layer.out_features} it may be 1 to "
            f"{most}"
        )


@torch.no_grad()
def factorise(layer: nn.Linear, rank: int) -> LowRankLinear:
    """Return the low-rank form of a layer, best where nothing is known of its inputs (truncated singular values)."""
    weight = layer.weight.double()
    gram = weight.T @ weight if layer.in_features <= layer.out_features else weight @ weight.T
    basis = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    if layer.in_features <= layer.out_features:
        return _of(layer, weight @ basis, basis.T)
    return _of(layer, basis, basis.T @ weight)


def _of(layer: nn.Linear, up: Tensor, down: Tensor) -> LowRankLinear:
    found = LowRankLinear.empty(layer, len(down))
    found.up.weight.copy_(up)
    found.down.weight.copy_(down)
    return found


@dataclass(frozen=True)
class Directions:
    """The directions of a layer's outputs, those that carry most of the variance first.

    Attributes:
        output: Q, (C, n) float64, orthonormal columns; n is the smaller of the layer's sides.
        read: ``Q^T W``, (n, P).
    """

    output: Tensor
    read: Tensor

    @classmethod
    def of(cls, weight: Tensor, sigma: Tensor) -> Directions:
        """Find them for ``weight`` (C, P) float64 and the covariance of its inputs (P, P)."""
        unseen = UNSEEN * sigma.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        values, vectors = torch.linalg.eigh(sigma)
        spread = weight @ (vectors * (values.clamp(min=0) + unseen).sqrt())  # W Sigma^(1/2)
        if len(weight) <= weight.shape[1]:
            output = torch.linalg.eigh(spread @ spread.T).eigenvectors.flip(1)
        else:
            output = torch.linalg.svd(spread, full_matrices=False).U
        return cls(output, output.T @ weight)

    def lost(self, weight: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        """Return what each rank from 1 loses, (n,): E||dy - E dy||^2 of rows of covariance `sigma` as a share.

        ``shift`` (P,) is how far their mean is from that by which the bias was set.
        """
        whole = float(((weight @ sigma) * weight).sum())
        around = sigma + torch.outer(shift, shift)
        error = float(((weight @ around) * weight).sum())
        kept = ((self.read @ around) * self.read).sum(1).cumsum(0)
        return (error - kept).clamp(min=0) / max(whole, torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class Rank:
    """The rank of one layer.

    Attributes:
        rank: The smallest that loses no more than asked; None where it saves nothing.
        full: The smaller side of its weight.
        lost: Share of the outputs' variance that the low-rank form loses on held-out rows; 0 without a rank.
        lost_fitted: The same on the rows by which its directions were chosen.
        saved: Parameters that go.
    """

    rank: int | None
    full: int
    lost: float = 0.0
    lost_fitted: float = 0.0
    saved: int = 0


def choose_ranks(
    model: nn.Module,
    layers: Sequence[PrunableGroup],
    fit: CalibrationStats,
    held_out: CalibrationStats,
    error: float,
    multiple: int = 1,
) -> dict[str, Rank]:
    """Choose for each layer the smallest rank that loses no more than `error` of the outputs' variance.

    Args:
        model: The model, with its weights.
        layers: Some of `modulation_layers`.
        fit: `NEEDS` of the rows by which directions are chosen.
        held_out: The same of other rows, on which the loss is counted.
        error: Share of the variance of a layer's outputs, in (0, 1).
        multiple: Ranks are multiples of it.

    Raises:
        PruningError: For a statistic that is missing or does not fit.
    """
    if not 0 < error < 1:
        raise PruningError(f"the loss of a low-rank form is asked to be {error}; it must lie in (0, 1)")
    found = {}
    for group in layers:
        layer = _layer(model, group.module)
        weight, mean, sigma = _moments(layer, group, fit)
        directions = Directions.of(weight, sigma)
        _, their_mean, theirs = _moments(layer, group, held_out)
        lost = directions.lost(weight, theirs, their_mean - mean)
        enough = (lost <= error).nonzero()
        rank = -(-(int(enough[0]) + 1) // multiple) * multiple if len(enough) else len(lost) + 1
        found[group.module] = Rank(None, min(layer.in_features, layer.out_features))
        if rank <= break_even(layer):
            fitted = directions.lost(weight, sigma, torch.zeros_like(mean))
            found[group.module] = Rank(
                rank,
                found[group.module].full,
                float(lost[rank - 1]),
                float(fitted[rank - 1]),
                layer.weight.numel() - rank * (layer.in_features + layer.out_features),
            )
    return found


@torch.no_grad()
def take_low_rank(
    model: nn.Module, layers: Sequence[PrunableGroup], ranks: Mapping[str, int], fit: CalibrationStats
) -> None:
    """Give layers of `model` their low-rank form in place, along the directions that `fit` says matter most.

    Args:
        model: The dense model, any float dtype (kept).
        layers: Some of `modulation_layers`, those of `ranks` among them.
        ranks: Rank by path; see `PruningPlan.ranks`.
        fit: `NEEDS` of the rows.

    Raises:
        PruningError: For a rank that saves nothing, or a statistic that is missing; before the model is touched.
    """
    by_path = {group.module: group for group in layers}
    for path, rank in ranks.items():
        if path not in by_path:
            raise PruningError(f"low-rank form of {path!r}: it is not among the layers that were measured")
        check_rank(f"low-rank form of {path!r}", model.get_submodule(path), rank)
        _moments(_layer(model, path), by_path[path], fit)
    for path, rank in ranks.items():
        layer = _layer(model, path)
        weight, mean, sigma = _moments(layer, by_path[path], fit)
        directions = Directions.of(weight, sigma)
        up, down = directions.output[:, :rank], directions.read[:rank]
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double().cpu() + weight @ mean - up @ (down @ mean))
        model.set_submodule(path, _of(layer, up, down))


def _layer(model: nn.Module, path: str) -> nn.Linear:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear), path
    return layer


def _moments(
    layer: nn.Linear, group: PrunableGroup, stats: CalibrationStats
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W (C, P), and mean (P,) and covariance (P, P) of its inputs, float64 on the CPU.

    Without a bias, which would make up for the mean, that is zero and the moments are those about it.
    """
    mean, sigma = covariance(group, stats.of(group), layer.in_features)
    if layer.bias is None:
        mean, sigma = torch.zeros_like(mean), sigma.addr_(mean, mean)
    return layer.weight.detach().to("cpu", torch.float64), mean, sigma

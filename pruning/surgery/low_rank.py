"""Linear layers in low-rank form: where their inputs span few directions, two thin layers say the same.

With W (C, P) and the covariance Sigma of its inputs, the best layer of rank r is ``Q Q^T W``, where Q (C, r) are the
leading left singular vectors of ``W Sigma^(1/2)``: it loses the smallest possible part of the outputs' variance
(docs/scores.md section 7). The outputs' mean stays exact: ``b += (W - Q Q^T W) mu``. What is lost on rows that the
choice did not see is measured on those; see `choose_ranks`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from pruning.errors import PruningError, shown
from pruning.groups.modulation import break_even
from pruning.importance.moments import covariance, per_row
from pruning.types import CalibrationStats, PrunableGroup

logger = logging.getLogger(__name__)

NEEDS = frozenset({"input_moment", "input_sum", "row_weight"})
"""Statistics that the choice of ranks reads."""

UNSEEN = 1e-6
"""Of the mean variance of the inputs: what directions count that no row took, so that W decides among those."""

RELATIVE = 1e-7
"""Of the largest length of ``W Sigma^(1/2)``: below, a direction is rounding."""

CONSTANT = 1e-12
"""Of the mean square of the inputs: below, their variance is rounding."""

TINY = torch.finfo(torch.float64).tiny


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
            raise PruningError(
                f"{where}: it has a low-rank form already, of rank {layer.rank}, not {shown(rank)}"
            )
        return
    if not isinstance(layer, nn.Linear):
        raise PruningError(
            f"{where}: {type(layer).__name__} is no linear layer, and others have no low-rank form"
        )
    most = break_even(layer)
    if type(rank) is not int or not 1 <= rank <= most:
        raise PruningError(
            f"{where}: rank {shown(rank)} saves nothing; of {layer.in_features} -> {layer.out_features} it may be 1 to "
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
class LowRank:
    """The low-rank form of one layer, W' = up @ down, and what it loses.

    Attributes:
        up: (C, r) float32.
        down: (r, P) float32.
        bias: (C,) float32, the outputs' mean made up for; None for a layer without.
        lost: Share of the outputs' variance that is lost on held-out rows.
        lost_fitted: The same on the rows by which the directions were chosen.
    """

    up: Tensor
    down: Tensor
    bias: Tensor | None
    lost: float
    lost_fitted: float

    @property
    def rank(self) -> int:
        """R."""
        return len(self.down)


@dataclass(frozen=True)
class _Rows:
    """Mean (P,) and covariance (P, P) of a layer's inputs, float64; without a bias, zero and moments about zero."""

    mean: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, layer: nn.Linear, group: PrunableGroup, stats: CalibrationStats) -> _Rows:
        own = stats.of(group)
        mean = per_row(group, own, "input_sum", (layer.in_features,))
        if layer.bias is None:  # which would make up for the mean
            mean = torch.zeros_like(mean)
        return cls(mean, covariance(group, own, mean))

    @property
    def vary(self) -> bool:
        """Whether the inputs are not all the same."""
        variance = self.sigma.trace()
        return bool(variance > CONSTANT * (variance + self.mean.square().sum()))

    def root(self) -> Tensor:
        """Return F (P, P) with ``F F^T`` the covariance and a little in every direction."""
        unseen = UNSEEN * self.sigma.diagonal().mean().clamp(min=TINY)
        values, vectors = torch.linalg.eigh(self.sigma)
        return vectors * (values.clamp(min=0) + unseen).sqrt()


def choose_ranks(
    model: nn.Module,
    layers: Sequence[PrunableGroup],
    fit: CalibrationStats,
    held_out: CalibrationStats,
    error: float,
    multiple: int = 1,
) -> dict[str, LowRank | None]:
    """Choose for each layer the smallest rank that loses no more than `error` of the outputs' variance.

    Args:
        model: The model, with its weights.
        layers: Some of `modulation_layers`.
        fit: `NEEDS` of the rows by which directions are chosen.
        held_out: The same of other rows, on which the loss is counted.
        error: Share of the variance of a layer's outputs, in (0, 1).
        multiple: Ranks are multiples of it.

    Returns:
        By path the form, or None for a layer in which that saves no parameters, or whose loss cannot be told since its
        held-out rows are all the same.

    Raises:
        PruningError: For a value out of range, a statistic that is missing or does not fit, or weights or rows that are
            not finite.
    """
    if not 0 < error < 1 or multiple < 1:
        raise PruningError(
            f"low-rank forms are asked to lose {error}, in ranks that are multiples of {multiple}; the first must lie "
            "in (0, 1), the second be at least 1"
        )
    found: dict[str, LowRank | None] = {}
    seen: tuple[Tensor, Tensor] | None = None
    for group in layers:
        layer = model.get_submodule(group.module)
        assert isinstance(layer, nn.Linear)
        rows, others = _Rows.of(layer, group, fit), _Rows.of(layer, group, held_out)
        _check_finite(group, layer.weight, rows.mean, rows.sigma, others.mean, others.sigma)
        if not others.vary:
            logger.warning("%s stays whole: its held-out rows are all the same", group.module)
            found[group.module] = None
            continue
        if seen is None or not torch.equal(seen[0], rows.sigma):  # most models feed all their layers the same
            seen = rows.sigma, rows.root()
        found[group.module] = _form(layer, rows, others, seen[1], error, multiple)
    return found


def _check_finite(group: PrunableGroup, *tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise PruningError(
            f"group {group.name!r}: its weights or what calibration saw of its inputs are not finite, so no rank can "
            "be chosen; look for NaN in the model, or take a wider type in model.dtype"
        )


def _form(
    layer: nn.Linear, rows: _Rows, others: _Rows, root: Tensor, error: float, multiple: int
) -> LowRank | None:
    """Return the form of one layer; all but the last products are of size P."""
    weight = layer.weight.detach().to("cpu", torch.float64)
    gram = weight.T @ weight
    squares, vectors = torch.linalg.eigh(root.T @ gram @ root)
    lengths = squares.flip(0).clamp(min=0).sqrt()
    most = min(len(weight), int((lengths > RELATIVE * lengths[0].clamp(min=TINY)).sum()))
    chosen = root @ vectors.flip(1)[:, :most] / lengths[:most]  # Q = W chosen
    read = chosen.T @ gram  # Q^T W

    def lost(shown: _Rows) -> Tensor:
        """Return what each rank from 0 loses."""
        shift = shown.mean - rows.mean
        around = shown.sigma + torch.outer(shift, shift)
        kept = ((read @ around) * read).sum(1).cumsum(0)
        left = (gram * around).sum() - torch.cat([torch.zeros(1, dtype=kept.dtype), kept])
        return left.clamp(min=0) / (gram * shown.sigma).sum().clamp(min=TINY)

    losses = lost(others)
    enough = (losses[1:] <= error).nonzero()
    if not len(enough):
        return None
    rank = -(-(int(enough[0]) + 1) // multiple) * multiple
    if rank > min(break_even(layer), most):
        return None
    up, down = weight @ chosen[:, :rank], read[:rank]
    bias = None
    if layer.bias is not None:
        bias = (layer.bias.double().cpu() + weight @ rows.mean - up @ (down @ rows.mean)).float()
    return LowRank(up.float(), down.float(), bias, float(losses[rank]), float(lost(rows)[rank]))


@torch.no_grad()
def take_low_rank(model: nn.Module, forms: Mapping[str, LowRank]) -> None:
    """Give layers of `model`, by path, their low-rank form in place; device and type stay.

    Raises:
        PruningError: For a path or a form that does not fit; before the model is touched.
    """
    tree = dict(model.named_modules())
    for path, form in forms.items():
        where = f"low-rank form of {path!r}"
        if path not in tree:
            raise PruningError(f"{where}: it is no module of {type(model).__name__}")
        check_rank(where, tree[path], form.rank)
        sides = getattr(tree[path], "out_features", None), getattr(tree[path], "in_features", None)
        if sides != (len(form.up), form.down.shape[1]):
            raise PruningError(
                f"{where}: it is of {form.down.shape[1]} -> {len(form.up)}, the layer is another"
            )
    for path, form in forms.items():
        layer = tree[path]
        if not isinstance(layer, nn.Linear):
            continue
        if layer.bias is not None and form.bias is not None:
            layer.bias.copy_(form.bias)
        model.set_submodule(path, _of(layer, form.up, form.down))

"""Greedy set OBS as linear algebra: which unit goes next, and what its removal adds to the squared output error.

With ``A = (Sigma + gamma I)^-1`` the least squared output error of removing the columns R, the kept ones being
updated, is ``cost(R) = tr(W_R [A_RR]^-1 W_R^T)`` (Optimal Brain Surgeon, Hassibi & Stork 1993; OBS-Diff). It is
additive over a sequence of removals if after each of them W and A are downdated::

    W <- W - W_g A_gg^-1 A_g:        A <- A - A_:g A_gg^-1 A_g:

which with ``A_gg = T T^T``, ``l = T^-1 A_g:`` (u, P) and ``v = W_g T^-T`` (C, u) reads ``W -= v l``, ``A -= l^T l``,
and the removal costs ``||v||^2``. The unit with the lowest cost goes next, so that of two heads that copy each
other one is cheap and the second expensive. This is a Cholesky factorisation of A whose pivots are chosen by cost.

Removals are made in batches, as large products are far faster than small ones. Within a batch only the candidates,
the units that are cheapest at its start, are followed removal by removal; that needs no more of A and W than the
candidates' part of A and ``K = W^T W``. Then all other units are taken through the same removals at once, and where
one of them would have been cheaper than the candidate that went, the batch ends before it: the order is that of
following all units.

A is downdated and gathered in place, so that no second matrix of its size is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pruning.cholesky import solve, subtract_gram
from pruning.products import product

PENDING = 192  # columns that are removed before A and W are downdated
CANDIDATES = 2  # units that are followed for each one that a batch removes
NARROW = 64  # rows of A that are copied to the other side of the diagonal at once


def greedy_removal(columns: Tensor, inverse: Tensor, units: int) -> tuple[list[int], list[float]]:
    """Remove all units one by one, each time the one that costs least; of equals, the first.

    Args:
        columns: Consumer weight W, ``(C, P)``, in the dtype and on the device of `inverse`.
        inverse: ``(Sigma + gamma I)^-1``, ``(P, P)``, by rows, or it is slow; overwritten.
        units: Number of units G; unit g owns columns ``[g P/G, (g + 1) P/G)``.

    Returns:
        The units in order of removal and what each removal added to the squared output error.
    """
    rows = columns.T.contiguous()  # (P, C)
    u = len(rows) // units
    names = torch.arange(units, device=rows.device)  # of the units that are left, as they lie in A and W
    order: list[int] = []
    costs: list[float] = []
    while len(names):
        chosen, left, moved = _batch(inverse, rows, names, u)
        order += names[chosen].tolist()
        costs += moved.double().square().sum(1).unflatten(0, (len(chosen), u)).sum(1).tolist()
        size = len(rows) - len(left)
        for place, last in _moves(chosen, len(names)):
            names[place] = names[last]
            into, source = slice(place * u, (place + 1) * u), slice(last * u, (last + 1) * u)
            inverse[into] = inverse[source]
            inverse[:, into] = inverse[:, source]
            rows[into] = rows[source]
            left[:, into] = left[:, source]
        names, inverse, rows, left = (
            names[: -len(chosen)],
            inverse[:size, :size],
            rows[:size],
            left[:, :size],
        )
        _downdate(inverse, left)
        rows.addmm_(left.T, moved, alpha=-1)
    return order, costs


def _batch(inverse: Tensor, rows: Tensor, names: Tensor, u: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of the units that go next, in order; ``l`` (b u, P) and ``v^T`` (b u, C) of each."""
    by_name = names.argsort()  # of equals, the first goes
    count = min(max(1, PENDING // u), len(names))
    inner = _diagonal_blocks(inverse, u).contiguous()  # (n, u, u)
    if count == 1:
        whitened = solve(torch.linalg.cholesky(inner), rows.unflatten(0, (-1, u)))
        chosen = by_name[torch.linalg.vector_norm(whitened, dim=(1, 2))[by_name].argmin()][None]
    else:
        blocks = _gram_blocks(rows, u)  # (n, u, u)
        everyone = torch.ones_like(names, dtype=torch.bool)
        ranked = _costs(inner, blocks, everyone)[by_name].argsort(stable=True)
        candidates = by_name[ranked[: CANDIDATES * count].sort().values]
        c = _columns_of(candidates, u)
        chosen = candidates[_choose(_square(inverse, c), product(rows[c], rows[c]), u, count)]

    r = _columns_of(chosen, u)
    factor = torch.linalg.cholesky(_square(inverse, r))
    left, moved = solve(factor, inverse[r]), solve(factor, rows[r])
    if count > 1 and len(candidates) < len(names):
        others = everyone.index_fill(0, candidates, False)
        hold = _hold(inner, blocks, others, left, moved, product(moved, rows))
        chosen, left, moved = chosen[:hold], left[: hold * u], moved[: hold * u]
    return chosen, left, moved


def _choose(inverse: Tensor, gram: Tensor, u: int, count: int) -> list[int]:
    """Return the `count` units that go first if there are no others, from their A and K, ``(m u, m u)`` each.

    ``K <- K - l^T p - p^T l`` at each removal, with ``p = v^T W - (v^T v) l / 2``; both are downdated as they are read.
    """
    inner, blocks = _diagonal_blocks(inverse, u).clone(), _diagonal_blocks(gram, u).clone()  # (m, u, u) each
    left, pull = inverse.new_empty(2, count * u, len(inverse))
    stays = torch.ones(len(inner), dtype=torch.bool, device=inverse.device)
    chosen: list[int] = []
    while True:
        g = int(_costs(inner, blocks, stays).argmin())
        chosen.append(g)
        if len(chosen) == count:
            return chosen
        stays[g] = False
        mine, done = slice(g * u, (g + 1) * u), (len(chosen) - 1) * u
        before, pulled = left[:done], pull[:done]
        factor = torch.linalg.cholesky(inner[g])
        lead = solve(factor, inverse[mine] - before[:, mine].T @ before)
        overlap = gram[mine] - before[:, mine].T @ pulled - pulled[:, mine].T @ before
        overlap = solve(factor, overlap)
        squares = solve(factor, overlap[:, mine].T)  # v^T v
        left[done : done + u], pull[done : done + u] = lead, overlap - squares @ lead / 2
        _downdate_blocks(inner, blocks, left[done : done + u], pull[done : done + u])


def _hold(inner: Tensor, blocks: Tensor, others: Tensor, left: Tensor, moved: Tensor, overlap: Tensor) -> int:
    """Return how many of the removals of a batch come first: before which none of the `others` became the cheapest.

    Args:
        inner: Diagonal blocks of A at the start, ``(n, u, u)``; overwritten.
        blocks: Diagonal blocks of K, ``(n, u, u)``; overwritten.
        others: Which units were no candidates, bool ``(n,)``.
        left: ``l`` of each removal, ``(b u, n u)``.
        moved: ``v^T`` of each removal, ``(b u, C)``.
        overlap: ``v^T W`` of each, with W at the start, ``(b u, n u)``.
    """
    u = inner.shape[1]
    squares = moved @ moved.T
    costs = squares.diagonal().unflatten(0, (-1, u)).sum(1)
    # W has moved by the earlier removals when v meets it; half of the removal's own is that of p.
    within = torch.block_diag(*_diagonal_blocks(squares, u))
    pull = overlap.addmm_(squares.tril() - within.tril() + within / 2, left, alpha=-1)
    for k in range(1, len(costs)):
        step = slice((k - 1) * u, k * u)
        _downdate_blocks(inner, blocks, left[step], pull[step])
        if bool((_costs(inner, blocks, others) < costs[k]).any()):
            return k
    return len(costs)


def _costs(inner: Tensor, blocks: Tensor, counted: Tensor) -> Tensor:
    """Return ``tr(A_gg^-1 K_gg)`` of the units that are counted, ``(n,)``, infinity for all others.

    Args:
        inner: Diagonal blocks of A, ``(n, u, u)``; those of units that are gone have no inverse.
        blocks: Diagonal blocks of K, ``(n, u, u)``.
        counted: bool ``(n,)``.
    """
    if inner.shape[1] == 1:
        costs = (blocks / inner).flatten()
    else:
        factors, _ = torch.linalg.cholesky_ex(inner)
        costs = torch.cholesky_solve(blocks, factors).diagonal(dim1=1, dim2=2).sum(1)
    return costs.clamp_(min=0).masked_fill_(~counted, torch.inf)


def _downdate_blocks(inner: Tensor, blocks: Tensor, left: Tensor, pull: Tensor) -> None:
    """Take a removal, its l and p (u, n u), off the diagonal blocks ``(n, u, u)`` of A and K."""
    by_unit = inner.shape[:2]
    left, pull = left.unflatten(1, by_unit).transpose(0, 1), pull.unflatten(1, by_unit).transpose(0, 1)
    inner -= left.mT @ left
    crossed = left.mT @ pull
    blocks -= crossed + crossed.mT


def _columns_of(units: Tensor, u: int) -> Tensor:
    return (units[:, None] * u + torch.arange(u, device=units.device)).flatten()


def _diagonal_blocks(matrix: Tensor, u: int) -> Tensor:
    """Return the blocks on the diagonal, a view ``(n, u, u)``."""
    units = len(matrix) // u
    blocks = matrix.unflatten(0, (units, u)).unflatten(2, (units, u))
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _gram_blocks(rows: Tensor, u: int) -> Tensor:
    """Return the blocks of ``K = W^T W`` on the diagonal, ``(n, u, u)``."""
    if u == 1:
        return torch.linalg.vector_norm(rows, dim=1).square()[:, None, None]
    by_unit = rows.unflatten(0, (-1, u))
    return by_unit @ by_unit.mT


def _square(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix[index[:, None], index]


def _moves(gone: Tensor, count: int) -> Iterator[tuple[int, int]]:
    """Yield into which of `count` places what lies last moves, and from where, so that places `gone` come last."""
    stay = count - len(gone)
    free = set(gone.tolist())
    return zip(
        (place for place in sorted(free) if place < stay), sorted({*range(stay, count)} - free), strict=True
    )


def _downdate(inverse: Tensor, left: Tensor) -> None:
    """Take ``l^T l`` off A in place: half of a symmetric product is computed, the other half copied."""
    subtract_gram(inverse, left)
    for start in range(0, len(inverse), NARROW):
        stop = start + NARROW
        inverse[stop:, start:stop] = inverse[start:stop, stop:].T

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

Of A only the lower triangle is kept up to date, in place, so that no second matrix of its size is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

PENDING = 128  # columns that are removed before A and W are downdated
CANDIDATES = 4  # units that are followed for each one that a batch removes
STRIP = 512  # rows of A that are downdated at once
CROWDED = 0.8  # share of columns that are left when A and W are gathered anew


def greedy_removal(columns: Tensor, inverse: Tensor, units: int) -> tuple[list[int], list[float]]:
    """Remove all units one by one, each time the one that costs least; of equals, the first.

    Args:
        columns: Consumer weight W, ``(C, P)``, in the dtype and on the device of `inverse`.
        inverse: ``(Sigma + gamma I)^-1``, ``(P, P)``; overwritten.
        units: Number of units G; unit g owns columns ``[g P/G, (g + 1) P/G)``.

    Returns:
        The units in order of removal and what each removal added to the squared output error.
    """
    lower, rows = inverse, columns.T.contiguous()  # (P, P), (P, C)
    u = len(rows) // units
    names = torch.arange(units)  # of the units whose columns are in A and W
    stays = torch.ones(units, dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    while len(order) < units:
        chosen, left, moved = _batch(lower, rows, stays.nonzero().squeeze(1).to(rows.device), u)
        costs += moved.double().square().sum(1).unflatten(0, (len(chosen), u)).sum(1).tolist()
        order += names[chosen].tolist()
        stays[chosen] = False
        for start in range(0, len(lower), STRIP):
            stop = start + STRIP
            lower[start:stop, :stop].addmm_(left[:, start:stop].T, left[:, :stop], alpha=-1)
        rows.addmm_(left.T, moved, alpha=-1)
        # Gathering is expensive, so what is gone stays in place for a while.
        if int(stays.sum()) <= CROWDED * len(stays):
            kept = _columns_of(stays.nonzero().squeeze(1), u).to(rows.device)
            lower, rows = _gathered(lower, kept), rows.index_select(0, kept)
            names, stays = names[stays], stays[stays]
    return order, costs


def _batch(lower: Tensor, rows: Tensor, here: Tensor, u: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which units go next, in order, of those at the places `here`; and ``l`` (b u, P), ``v^T`` (b u, C)."""
    count = min(max(1, PENDING // u), len(here))
    followed = CANDIDATES * count if count > 1 else 1
    inner, gram = _diagonal_blocks(lower, u)[here], _gram_blocks(rows, u)[here]  # (n, u, u) each
    ranked = _costs(inner, gram).argsort(stable=True)
    candidates = here[ranked[:followed].sort().values]
    outside = ranked[followed:]

    c = _columns_of(candidates, u)
    part = rows[c]
    chosen = candidates[_choose(_symmetric(lower, c), part @ part.T, u, count)]

    r = _columns_of(chosen, u)
    factor = torch.linalg.cholesky(_symmetric(lower, r))
    left = torch.linalg.solve_triangular(factor, _full_rows(lower, r), upper=False)
    moved = torch.linalg.solve_triangular(factor, rows[r], upper=False)
    if count > 1 and len(outside):
        theirs = _columns_of(here[outside], u)
        overlap = moved @ rows[theirs].T
        hold = _hold(inner[outside], gram[outside], left[:, theirs], moved, overlap, u)
        chosen, left, moved = chosen[:hold], left[: hold * u], moved[: hold * u]
    return chosen.cpu(), left, moved


def _choose(inverse: Tensor, gram: Tensor, u: int, count: int) -> list[int]:
    """Return the `count` units that go first if there are no others, from their A and K, ``(m u, m u)`` each.

    ``K <- K - l^T p - p^T l`` at each removal, with ``p = v^T W - (v^T v) l / 2``; both are downdated as they are read.
    """
    inner, blocks = _diagonal_blocks(inverse, u).clone(), _diagonal_blocks(gram, u).clone()  # (m, u, u) each
    left, pull = inverse.new_empty(2, count * u, len(inverse))
    gone = torch.zeros(len(inner), dtype=torch.bool, device=inverse.device)
    chosen: list[int] = []
    while True:
        g = int(_costs(inner, blocks).masked_fill_(gone, torch.inf).argmin())
        chosen.append(g)
        if len(chosen) == count:
            return chosen
        gone[g] = True
        mine, done = slice(g * u, (g + 1) * u), (len(chosen) - 1) * u
        before, pulled = left[:done], pull[:done]
        factor = torch.linalg.cholesky(inner[g])
        l = torch.linalg.solve_triangular(factor, inverse[mine] - before[:, mine].T @ before, upper=False)
        overlap = gram[mine] - before[:, mine].T @ pulled - pulled[:, mine].T @ before
        overlap = torch.linalg.solve_triangular(factor, overlap, upper=False)
        squares = torch.linalg.solve_triangular(factor, overlap[:, mine].T, upper=False)  # v^T v
        p = overlap - squares @ l / 2
        left[done : done + u], pull[done : done + u] = l, p
        _downdate_blocks(inner, blocks, l, p)
        inner[g] = torch.eye(u)  # what is left of it has no inverse


def _hold(inner: Tensor, blocks: Tensor, left: Tensor, moved: Tensor, overlap: Tensor, u: int) -> int:
    """Return how many of the removals of a batch come first: before which no other unit became the cheapest.

    Args:
        inner: Diagonal blocks of A of the other units at the start, ``(n, u, u)``; overwritten.
        blocks: Diagonal blocks of K, ``(n, u, u)``; overwritten.
        left: ``l`` of each removal at these units, ``(b u, n u)``.
        moved: ``v^T`` of each removal, ``(b u, C)``.
        overlap: ``v^T W`` of each, with W at the start, ``(b u, n u)``.
        u: Columns of a unit.
    """
    squares = moved @ moved.T
    costs = squares.diagonal().unflatten(0, (-1, u)).sum(1)
    within = _block_diagonal(squares, u)
    # W has moved by all earlier removals when v meets it.
    pull = overlap - (squares.tril() - within.tril() + within / 2) @ left
    for k in range(1, len(costs)):
        step = slice((k - 1) * u, k * u)
        _downdate_blocks(inner, blocks, left[step], pull[step])
        if bool((_costs(inner, blocks) < costs[k]).any()):
            return k
    return len(costs)


def _costs(inner: Tensor, blocks: Tensor) -> Tensor:
    """Return ``tr(A_gg^-1 K_gg)`` of each unit, ``(n,)``, from diagonal blocks ``(n, u, u)``."""
    if inner.shape[1] == 1:
        return (blocks / inner).flatten().clamp_(min=0)
    solved = torch.cholesky_solve(blocks, torch.linalg.cholesky(inner))
    return solved.diagonal(dim1=1, dim2=2).sum(1).clamp_(min=0)


def _downdate_blocks(inner: Tensor, blocks: Tensor, l: Tensor, p: Tensor) -> None:
    """Take a removal off the diagonal blocks ``(n, u, u)`` of A and K; `l` and `p` are ``(u, n u)``."""
    units, u = inner.shape[:2]
    l, p = (x.unflatten(1, (units, u)).transpose(0, 1) for x in (l, p))  # (n, u, u) each
    inner -= l.mT @ l
    crossed = l.mT @ p
    blocks -= crossed + crossed.mT


def _columns_of(units: Tensor, u: int) -> Tensor:
    return (units[:, None] * u + torch.arange(u, device=units.device)).flatten()


def _diagonal_blocks(matrix: Tensor, u: int) -> Tensor:
    """Return the blocks on the diagonal, a view ``(n, u, u)``."""
    units = len(matrix) // u
    blocks = matrix.unflatten(0, (units, u)).unflatten(2, (units, u))
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _block_diagonal(matrix: Tensor, u: int) -> Tensor:
    """Return the matrix with zeros off the blocks on its diagonal."""
    zeros = torch.zeros_like(matrix)
    _diagonal_blocks(zeros, u).copy_(_diagonal_blocks(matrix, u))
    return zeros


def _gram_blocks(rows: Tensor, u: int) -> Tensor:
    """Return the blocks of ``K = W^T W`` on the diagonal, ``(n, u, u)``."""
    if u == 1:
        return rows.square().sum(1)[:, None, None]
    by_unit = rows.unflatten(0, (-1, u))
    return by_unit @ by_unit.mT


def _symmetric(lower: Tensor, index: Tensor) -> Tensor:
    """Return rows and columns `index` of a symmetric matrix of which the lower triangle holds."""
    rows = lower.index_select(0, index).index_select(1, index)
    swapped = index[:, None] < index
    return torch.where(swapped, rows.T, rows)


def _full_rows(lower: Tensor, index: Tensor) -> Tensor:
    """Return rows `index` of a symmetric matrix of which the lower triangle holds."""
    after = torch.arange(len(lower), device=lower.device) > index[:, None]
    return torch.where(after, lower.index_select(1, index).T, lower.index_select(0, index))


def _gathered(matrix: Tensor, kept: Tensor) -> Tensor:
    """Move rows and columns `kept`, which ascend, to the front, in place; returns them, a view."""
    for start in range(0, len(kept), STRIP):
        rows = kept[start : start + STRIP]
        matrix[start : start + len(rows), : len(kept)] = matrix.index_select(0, rows).index_select(1, kept)
    return matrix[: len(kept), : len(kept)]

"""Rows of any sample at any step, made of those of its first step: what changes later changes alike for all samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from pruning.recording.format import Row

Branch = tuple[int, int]
"""Call within its step, and row within the call."""


def branch_of(row: Row) -> Branch:
    """Return which branch of guidance a row is."""
    return row.call, row.branch


def later_rows(own: Sequence[Row], first: Sequence[Row], then: Sequence[Row]) -> list[Row]:
    """Return the rows of a sample at a later step.

    Args:
        own: Its rows at the first step.
        first: Those of another sample at the first step.
        then: Those of that other sample at the later step.

    Raises:
        KeyError: For a branch of `then` that the first step lacks.
    """
    mine, theirs = ({branch_of(row): row for row in rows} for rows in (own, first))
    return [
        replace(
            row,
            sample=mine[branch_of(row)].sample,
            tree=_changed(mine[branch_of(row)].tree, theirs[branch_of(row)].tree, row.tree),
        )
        for row in then
    ]


def _changed(own: Any, first: Any, then: Any) -> Any:
    """Return an encoded tree with what became of `first` in `then`; all else stays."""
    if first == then:
        return own
    nodes = (own, first, then)
    for kind in ("map", "list", "tuple"):
        entries = [node[kind] for node in nodes if kind in node]
        if len(entries) < len(nodes):
            continue
        if kind == "map" and entries[0].keys() == entries[1].keys() == entries[2].keys():
            return {kind: {key: _changed(*(entry[key] for entry in entries)) for key in entries[0]}}
        if kind != "map" and len({len(entry) for entry in entries}) == 1:
            return {kind: [_changed(*parts) for parts in zip(*entries, strict=True)]}
    return then


def template_branches(rows: Sequence[Row], others: Sequence[Row]) -> list[Branch] | None:
    """Return the branches that say what a sample is asked with, where `later_rows` makes all steps of them.

    Of guidance that is the one with the prompt or the class: where some branches differ between two samples and others
    do not, those that differ.

    Args:
        rows: All rows of a sample, their latents left out.
        others: All rows of a sample that was asked for something else.

    Returns:
        The branches; None where later steps do not follow from the first.
    """
    first, other_first = ([row for row in part if row.step == 0] for part in (rows, others))
    trees = {branch_of(row): row.tree for row in other_first}
    differ = [branch_of(row) for row in first if trees.get(branch_of(row)) != row.tree]
    branches = differ or [branch_of(row) for row in first]
    kept, wanted = (_of(part, branches) for part in (rows, others))
    try:
        made = later_rows(other_first, first, kept)
    except KeyError:
        return None
    is_same = [(row.step, row.tree) for row in made] == [(row.step, row.tree) for row in wanted]
    return branches if is_same else None


def _of(rows: Sequence[Row], branches: Collection[Branch]) -> list[Row]:
    return [row for row in rows if branch_of(row) in branches]

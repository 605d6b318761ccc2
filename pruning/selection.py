"""Selection beyond one shot: score, cut, measure again, go on, block by block.

One-shot selection judges every layer on what the *dense* model feeds it. Here, in the order in which the model runs,
each block is measured on what the already pruned blocks before it feed it, its units are chosen, what stays is
compensated, and the next block follows (the order of SparseGPT, 2301.00774, and OBS-Diff).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pruning.calibration import bypassed
from pruning.errors import PruningError
from pruning.groups.experts import EXPERTS
from pruning.surgery import compensate, silence
from pruning.surgery.check import check_plan
from pruning.surgery.experts import barred
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores

Measure = Callable[[Sequence[PrunableGroup]], CalibrationStats]
Judge = Callable[[Sequence[PrunableGroup], CalibrationStats], Scores]


def block_by_block(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    plan: PruningPlan,
    *,
    run: Callable[[], object],
    measure: Measure,
    judge: Judge,
    compensation: str = "none",
    ridge: float = 0.01,
    rounds: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[PruningPlan, dict[str, dict[str, Any]]]:
    """Choose anew which units stay, as many in each group as `plan` keeps, and compensate `model` in place.

    The removed units are silenced in `model`, whose shapes stay dense; `apply_plan` with the new plan then cuts it.
    Which whole experts go is not chosen anew.

    Args:
        model: The dense model.
        groups: All groups of the model.
        plan: Says how many units each group keeps, and which blocks and experts go; blocks are passed by, and experts
            get no tokens, from the start.
        run: Runs `model` once, which shows the order of the groups.
        measure: Calibrates `model`, as it is when called, for the groups it is given.
        judge: Scores groups from what `measure` returned.
        compensation: Method of `compensate`.
        ridge: As in `compensate`.
        rounds: Portions in which the units of a block go, each measured anew; one in which none would go is left
            out.
        progress: Called after each round with the block, the rounds done and all rounds.

    Returns:
        The new plan, and what `compensate` reported last for each group.

    Raises:
        PruningError: For rounds below 1, a plan that does not fit, scores that do not, and as `compensate`.
    """
    if rounds < 1:
        raise PruningError(f"rounds of selection is {rounds}; it must be at least 1")
    plan = plan.completed(groups)
    check_plan(model, groups, plan)
    cuts = plan.cuts(groups)
    shrinking = [group for group in cuts if group.consumers]
    kept = {group.name: tuple(range(group.num_units)) for group in shrinking}
    report: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        gone = [g for g in groups if g.kind == "blocks" and g.module in plan.removed_blocks]
        stack.enter_context(bypassed(model, *gone))
        for group in (group for group in cuts if group.kind == EXPERTS):
            stack.enter_context(barred(model, group, cuts[group]))
        blocks = in_order(model, shrinking, run)
        for done, (block, members, portion) in enumerate(
            [(block, members, k) for block, members in blocks for k in range(1, rounds + 1)], start=1
        ):
            goals = {g.name: g.num_units - len(plan.removed_units(g)) * portion // rounds for g in members}
            if all(len(kept[name]) == goal for name, goal in goals.items()):  # more rounds than units
                continue
            stats = measure(members)
            scores = judge(members, stats)
            scores.check(members)
            for name, goal in goals.items():
                kept[name] = _best(scores.values[name], kept[name], goal)
            step = replace(plan, kept={group.name: kept[group.name] for group in members}, removed_blocks=())
            report |= compensate(model, members, step, stats, method=compensation, ridge=ridge)
            silence(model, members, step)
            if progress is not None:
                progress(block, done, len(blocks) * rounds)
    return replace(plan, kept={**plan.kept, **kept}), report


def in_order(
    model: nn.Module, groups: Sequence[PrunableGroup], run: Callable[[], object]
) -> list[tuple[str, list[PrunableGroup]]]:
    """Sort groups into blocks, in the order in which the model comes to them.

    A block is an item of a list of modules, such as ``transformer_blocks.3``, or else the first name of a path.
    """
    by_name, called = {group.name: group for group in groups}, dict[str, None]()
    with ExitStack() as stack, torch.no_grad():
        for group in groups:
            consumer = model.get_submodule(group.consumers[0].consumer)
            hook = consumer.register_forward_pre_hook(lambda *_, name=group.name: called.setdefault(name))
            stack.callback(hook.remove)
        run()
    if missing := [name for name in by_name if name not in called]:
        raise PruningError(f"group {missing[0]!r} has no place in the order: the model ran without it")
    blocks: dict[str, list[PrunableGroup]] = {}
    for name in called:
        block = re.sub(r"^([^.]+(\.\d+)?).*", r"\1", by_name[name].module)
        blocks.setdefault(block, []).append(by_name[name])
    return list(blocks.items())


def _best(scores: torch.Tensor, among: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the `count` highest-scored units of `among`, sorted."""
    order = sorted(among, key=lambda unit: (-float(scores[unit]), unit))
    return tuple(sorted(order[:count]))

"""Targets of time and memory: what a plan costs on the device of the run, predicted, measured, and held together.

Before a plan is made, the layers of the model are timed on the device (`pruning.stages.layer_times`), once for each
model, device, number of threads, batch and type, and a call's memory is traced. After it is made, it is carried out on
a copy of the dense model and measured: the time of a call depends on shapes, not on what weights hold, so that nothing
has to be refitted for it. Where prediction and measurement lie more than `BELIEVED` apart, the constant of the table is
corrected by the difference and the plan is made anew, once.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eval.cost import peak_memory
from eval.intervals import median_interval
from eval.latency import MIN_RUN_S, WARMUP, device_name, interleave
from pruning.allocation import Cost, CostModel, LatencyTable, MemoryModel, moments_of
from pruning.allocation.costs import as_asked
from pruning.errors import PruningError
from pruning.files import read_json, write_json
from pruning.models import example_call, first_answer
from pruning.settings import Target
from pruning.stages.layer_times import clock_for, measure_table
from pruning.stages.run import Run
from pruning.stages.showing import example
from pruning.stages.stage import pick, versions
from pruning.store import Key
from pruning.surgery import apply_plan
from pruning.types import PrunableGroup, PruningPlan, config_hash, inside

logger = logging.getLogger(__name__)

BELIEVED = 0.03
"""Prediction and measurement may lie this far apart, relative, before a plan is made anew."""
PAIRS, SECONDS = (11, 51), 20.0
"""Fewest and most rounds in which the dense and the slim model take turns, and how long all of them shall take."""
TABLE, TARGETS = "table.json", "targets.json"

Costs = dict[str, Cost]
Planner = Callable[[Costs], PruningPlan]
Row = dict[str, Any]
"""A target of a plan: see `allocate`, and what was measured of it."""


@dataclass(frozen=True)
class Measured:
    """A model and the circumstances in which it is measured.

    Attributes:
        dense: The model, in evaluation mode.
        groups: All its groups.
        call: Returns the arguments of a call of so many samples.
        batch_size: Samples of the call that is timed.
        threads: CPU threads.
        progress: Called with what is done, how much of it, and how much there is.
    """

    dense: nn.Module
    groups: Sequence[PrunableGroup]
    call: Callable[[int], Mapping[str, Any]]
    batch_size: int
    threads: int
    progress: Callable[[str, int, int], None] = lambda what, done, total: None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.dense.parameters()).device


def is_measured(target: Target) -> bool:
    """Tell whether a target asks for time or memory."""
    return target.measures_time or target.memory_gb is not None


def depends_on(run: Run) -> dict[str, Any]:
    """Return what a plan depends on beside scores where its target is measured; nothing where it is not."""
    target = run.recipe.prune.target
    found: dict[str, Any] = {}
    if is_measured(target):
        found |= {"model.dtype": run.recipe.model.dtype, "device": run.device_name}
    if target.measures_time:
        found |= {"latency": _circumstances(run)}
    return found


def _circumstances(run: Run) -> dict[str, Any]:
    return {"batch_size": run.recipe.evaluate.latency.batch_size, "threads": _threads(run)}


def _threads(run: Run) -> int:
    return run.recipe.evaluate.latency.threads or torch.get_num_threads()


def costs_for(run: Run, *, measure: bool = True) -> Costs:
    """Return the costs that the target bounds and that are not counted, by key.

    Times come from the store, or are measured now; with `measure` False, where the store has none, time is taken to
    fall as MACs do, and a warning says so.

    Raises:
        PruningError: If the model cannot be measured as a whole, or its memory cannot be traced.
    """
    target = run.recipe.prune.target
    if target.measures_time and "latency" not in run.costs:
        table = _table(run, measure=measure)
        if table is None:
            logger.warning(
                "prune.target: the layers have not been timed on this device yet, so that time is taken to fall as "
                "MACs do here; `sinkprune plan` of the recipe measures"
            )
            return {**run.costs, **_memory(run), "latency": _by_macs(run)}
        run.costs["latency"] = table
    run.costs |= _memory(run)
    return dict(run.costs)


def _memory(run: Run) -> Costs:
    if run.recipe.prune.target.memory_gb is None:
        return {}
    if "memory" in run.costs:
        return {"memory": run.costs["memory"]}
    call = example_call(run.meta, 1)
    return {
        "memory": traced_memory(run.meta, run.all_groups, run.cost, call, dtype=run.dtype, device=run.device)
    }


def _table(run: Run, *, measure: bool) -> LatencyTable | None:
    """Return the table of layers from the store, or measure it; None if it is not there and is not to be measured."""
    key = table_key(run)
    if measure and not run.offline:
        _check_whole(run)
        found = run.part(key, partial(_write_table, run))
    else:
        found = run.workspace.store.find(key, touch=False)
        if found is None:
            return None
    return LatencyTable.from_json(read_json(found.folder / TABLE) or {}, run.all_groups)


def layer_table(run: Run) -> LatencyTable | None:
    """Return the times of the layers that the target was planned by; None where it asks for no time."""
    return _table(run, measure=False) if run.recipe.prune.target.measures_time else None


def table_key(run: Run) -> Key:
    """Return what a table of layers depends on: shapes, device, type, threads, batch and versions; not on weights."""
    config = {
        "model": config_hash(run.meta.config),
        "dtype": run.recipe.model.dtype,
        "device": run.device_name,
        "processor": device_name(run.device),
        "call": pick(run.recipe, ("pipeline", "calibrate.provider")),
        "versions": {name: versions()[name] for name in ("torch", "diffusers")},
        **_circumstances(run),
    }
    return Key("layer-times", config, {})


def _write_table(run: Run, folder: Path) -> None:
    call = example(run, run.recipe.evaluate.latency.batch_size)
    table = measure_table(
        run.dense,
        run.all_groups,
        call,
        threads=_threads(run),
        progress=lambda done, total: run.bars("layers timed", done, total),
    )
    write_json(folder / TABLE, replace(table, meta={**table.meta, **table_key(run).config}).to_json())


def table_words(table: LatencyTable) -> str:
    """Say how long a dense call takes, and how much of it was timed layer by layer."""
    meta = table.meta
    return (
        f"a dense call takes {1e3 * table.call_s:.4g} ms (batch {meta['batch_size']}, {meta['threads']} "
        f"thread{'s' * (meta['threads'] > 1)}); {meta['layers']} layers of {meta['kinds_of_layers']} shapes were timed "
        f"in {meta['calls']} calls and take {100 * meta['layers_share']:.0f} % of it"
    )


def _check_whole(run: Run) -> None:
    if run.placement.streams:
        raise PruningError(
            f"prune.target: {run.recipe.prune.target} is measured with the whole model on the device, and its weights "
            "stay in their files here; ask for macs or params, or run where it fits (calibrate.memory_gb)"
        )


def _by_macs(run: Run) -> LatencyTable:
    """Return a table that lets time fall as MACs do; a dense call takes a second in it, or what is asked at most."""
    units, dense = run.cost.unit_costs("macs"), run.cost.macs()
    whole = max(1.0, (run.recipe.prune.target.latency_ms or 0.0) / 1e3)
    share = {group.name: units[group.name] * group.num_units / dense for group in run.all_groups}
    curves = {name: {"kept": [0, n], "share": [0.0, 1.0], "exact": True} for name, n in _units(run).items()}
    values = {
        "call_s": whole,
        "spread": 0.0,
        "seconds": {name: whole * own for name, own in share.items()},
        "curves": curves,
        "curve_of": {name: name for name in curves},
        "steps": {},
    }
    return LatencyTable.from_json(values, run.all_groups)


def _units(run: Run) -> dict[str, int]:
    return {group.name: group.num_units for group in run.all_groups if group.kind != "blocks"}


def traced_memory(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    cost: CostModel,
    call: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> MemoryModel:
    """Trace what a call holds, dense and with groups cut, on tensors without values; the model may be on meta."""
    trace = partial(moments_of, call=call, dtype=dtype, device=device)
    cut = []
    for together in _apart(groups):
        kept = {group.name: tuple(range(_half(group))) for group in together}
        slim = apply_plan(copy.deepcopy(model), PruningPlan(kept=kept), groups)
        cut.append(({g.name: 1 - _half(g) / g.num_units for g in together}, trace(slim)))
    itemsize = torch.empty((), dtype=dtype).element_size()
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return MemoryModel.of(cost, trace(model), cut, itemsize=itemsize, buffers=buffers)


def _half(group: PrunableGroup) -> int:
    return max(group.min_units, group.num_units // 2, 1)


def _apart(groups: Sequence[PrunableGroup]) -> list[list[PrunableGroup]]:
    """Return groups that may be cut in sets, in which no module of one lies in that of another."""
    sets: list[list[PrunableGroup]] = []
    for group in (g for g in groups if g.kind != "blocks" and _half(g) < g.num_units):
        for own in sets:
            if not any(inside(group.module, o.module) or inside(o.module, group.module) for o in own):
                own.append(group)
                break
        else:
            sets.append([group])
    return sets


def measured_plan(run: Run, folder: Path, make: Planner) -> PruningPlan:
    """Make the plan of a run, measured as `hold` says; writes ``targets.json``."""
    run.costs.clear()  # so that this stage is noted as one that uses the table
    costs = costs_for(run)
    if isinstance(table := costs.get("latency"), LatencyTable):
        logger.info("%s", table_words(table))
    _check_whole(run)
    subject = Measured(
        run.dense,
        run.all_groups,
        partial(example, run),
        run.recipe.evaluate.latency.batch_size,
        _threads(run),
        run.bars,
    )
    plan, first = hold(subject, costs, make)
    write_json(folder / TARGETS, {"targets": plan.meta["targets"], "first": first})
    return plan


def hold(subject: Measured, costs: Costs, make: Planner) -> tuple[PruningPlan, dict[str, Row] | None]:
    """Make a plan, measure it, and make it anew once if the prediction was wrong.

    Args:
        subject: The dense model.
        costs: Those that the target bounds and that are not counted.
        make: Makes the plan under some costs.

    Returns:
        The plan that comes nearest, whose ``meta["targets"]`` has what was measured beside what was predicted; and the
        targets of the first plan, if it was made anew.
    """
    costs, tries = dict(costs), []
    for number in range(2):
        try:
            plan = make(costs)
        except PruningError as error:
            if not number:
                raise
            logger.warning("with what was measured the target cannot be met, so the plan stays: %s", error)
            break
        found = _compared(subject, plan, costs)
        tries.append((plan, found))
        for row in found.values():
            logger.info("%s", _words(row))
        wrong = {row["cost"]: row for row in found.values() if abs(row["gap"]) > BELIEVED}
        if number or not wrong:
            break
        logger.info("the plan is made anew with what was measured (%s)", " and ".join(sorted(wrong)))
        for key, row in wrong.items():
            cost = costs[key]
            assert isinstance(cost, (LatencyTable, MemoryModel))
            costs[key] = cost.corrected(row["predicted"], row["predicted"] * (1 + row["gap"]))
    plan, found = min(tries, key=lambda one: _miss(one[1]))
    if _miss(found) > BELIEVED:
        logger.warning(
            "prune.target: measured, the plan misses by %.1f %%; the machine may be busy, or what is not cut takes the "
            "time",
            100 * _miss(found),
        )
    return replace(plan, meta={**plan.meta, "targets": found}), tries[0][1] if len(tries) > 1 else None


def _miss(found: dict[str, Row]) -> float:
    """Return by how much the worst target is exceeded or, where predictions meet it, the one that binds is not used up.

    A plan that leaves room on purpose, since what could be given back is worth less, misses nothing.
    """
    used = max(row["measured"] / row["goal"] for row in found.values())
    room = 1 - max(row["predicted"] / row["goal"] for row in found.values())
    return max(used - 1, 1 - used - max(0.0, room))


def _compared(subject: Measured, plan: PruningPlan, costs: Costs) -> dict[str, Row]:
    """Return the targets of a plan with what was measured of each.

    The smaller forms of weights (`ranks`, `shared`) are left out of both the prediction and the model that is measured:
    their time is not priced.
    """
    targets = {key: dict(row) for key, row in plan.meta["targets"].items()}
    bare = replace(plan, ranks={}, shared=())
    slim = apply_plan(copy.deepcopy(subject.dense), bare, subject.groups)
    times = _timed(subject, slim) if any(row["cost"] == "latency" for row in targets.values()) else {}
    for key, row in targets.items():
        row |= {"interval": None, "coverage": None}
        cost = costs.get(row["cost"])
        if row["cost"] == "latency":
            assert cost is not None
            ratios = [a / b for a, b in zip(times["slim"], times["dense"], strict=True)]
            scale = row["dense"] if key == "latency" else statistics.median(times["dense"])
            row["measured"] = statistics.median(ratios) * scale
            interval, row["coverage"] = median_interval(ratios)
            row["interval"] = [end * scale for end in interval]
            row |= {"rounds": len(ratios), "measured_dense": statistics.median(times["dense"])}
            row["clock"] = "wall" if clock_for(subject.device, subject.threads) is None else "thread"
            predicted = cost.total(bare)
        elif row["cost"] == "memory":
            assert cost is not None
            held, row["method"] = peak_memory(slim, partial(first_answer, slim, subject.call(1)))
            row["measured"], predicted = float(held), cost.total(bare)
        else:  # counted: what is predicted is what is
            row["measured"] = predicted = row["predicted"]
        row["gap"] = row["measured"] / predicted - 1
        row["said"] = _said(row)
    return targets


def _timed(subject: Measured, slim: nn.Module) -> dict[str, list[float]]:
    """Return the seconds of a call of the dense and the slim model, which take turns."""
    call = subject.call(subject.batch_size)
    runs = {"dense": partial(first_answer, subject.dense, call), "slim": partial(first_answer, slim, call)}
    rounds = round(min(max(SECONDS / (2 * _seconds(runs["dense"])), PAIRS[0]), PAIRS[1]))
    with torch.no_grad():
        return interleave(
            runs,
            rounds=rounds,
            min_run_s=MIN_RUN_S,
            warmup=WARMUP,
            num_threads=subject.threads,
            clock=clock_for(subject.device, subject.threads),
            progress=lambda done: subject.progress("slim and dense timed", done, rounds),
        )


@torch.no_grad()
def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return max(1e-9, time.perf_counter() - began)


def _said(row: dict[str, Any]) -> dict[str, str]:
    """Return what was measured of a target in words; of what is counted, only what is predicted."""
    said = {"predicted": as_asked(row, row["predicted"])}
    if row["cost"] not in ("latency", "memory"):
        return said
    said["measured"] = as_asked(row, row["measured"])
    if row["interval"]:
        low, high = (as_asked(row, end) for end in row["interval"])
        said["interval"] = f"{low.partition(' ')[0]} to {high.partition(' ')[0]}"
    return {**said, "gap": f"{100 * row['gap']:+.1f} %"}


def _words(row: dict[str, Any]) -> str:
    said, text = row["said"], f"target {row['asked']}: predicted {row['said']['predicted']}"
    if "measured" in said:
        between = f" ({said['interval']})" if "interval" in said else ""
        text += f", measured {said['measured']}{between}, gap {said['gap']}"
    return text + ("" if row["binds"] else "; it does not bind")

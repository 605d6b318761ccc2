"""The table of layers: what the layers of a model take at several widths, measured where they run.

A layer alone in a loop has its weights in the cache, which within a call it has not. Layers are therefore timed inside
calls of the model: beside the dense model stand *probes*, copies in which each layer has one of the widths that are to
be measured, layers of equal shape different ones. Dense model and probe take turns (`eval.latency.interleave`), and a
layer's time at a width counts by the dense layer's in the same round, so that a busy machine meets both (and on one CPU
thread the clock is that thread's processor time, which stands while another process has the core). Probes are no
candidates: what is read of them is layers, and every layer is seen at every width once or more, whatever is allocated.
"""

from __future__ import annotations

import copy
import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import nn
from torch.utils._pytree import tree_leaves

from eval.latency import interleave
from pruning.allocation import Curve, LatencyTable
from pruning.allocation.latency import evenness
from pruning.models import first_answer
from pruning.surgery import apply_plan
from pruning.types import PrunableGroup, PruningPlan, inside, slices_of

ROUNDS, SECONDS = (4, 15), 45.0
"""Fewest and most rounds in which the dense model and a probe take turns, and how long all of them shall take."""
PROBES = 9
"""Fewest probes: where many layers are alike, each width is seen in several of them."""
FEW = 16
"""Groups of at most so many units are measured at every size."""
SHARES = tuple(step / 16 for step in range(1, 16))
"""Of larger groups, about these shares of the units are measured, each at the evenest number of channels near it."""
UNEVEN, AT = ((1, 8), (4, 16)), (0.7, 0.4)
"""Multiples of channels that are measured besides, by turns of the kinds of layers, and at which shares."""

Width = tuple[int, bool]
"""Units that stay, and whether that is on the curve (else it tells how much longer an uneven width takes)."""


def measure_table(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    call: Mapping[str, Any],
    *,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Measure what each group's layer takes at several widths in a call of the model, and the whole call.

    The dense model and one probe, which is as large at most, are in memory at a time.

    Args:
        model: The dense model in evaluation mode; it does not change.
        groups: Result of `find_groups(model)`.
        call: Arguments of the call.
        threads: CPU threads.
        progress: Called with calls done and all calls.
    """
    layers = _layers(model, groups, call)
    sites = _sites(layers)
    widths = _widths(layers)
    probes = list(_probes(sites, widths, layers))
    blocks = {group.name: group.paths for group in groups if group.kind == "blocks"}
    places = sorted({layer.path for layer in layers} | {path for paths in blocks.values() for path in paths})
    dense_watch = Stopwatch(model, places, threads)
    dense_calls: list[dict[str, float]] = []
    rounds = _rounds(model, call, len(probes))
    shares: dict[tuple[str, Width], list[float]] = defaultdict(list)
    beyond: list[float] = []
    for number, probe in enumerate(probes):
        kept = {layer.group.name: tuple(range(width[0])) for layer, width in probe}
        slim = apply_plan(copy.deepcopy(model), PruningPlan(kept=kept), groups)
        watch = Stopwatch(slim, [layer.path for layer, _ in probe], threads)
        runs = {
            "dense": lambda: dense_watch.time(lambda: first_answer(model, call)),
            "probe": lambda slim=slim, watch=watch: watch.time(lambda: first_answer(slim, call)),
        }
        dense_watch.calls.clear()
        with torch.no_grad():
            interleave(runs, rounds=rounds, min_run_s=0.0, warmup=1, num_threads=threads)
        dense, own = dense_watch.calls[1:], watch.calls[1:]
        for layer, width in probe:
            ratios = [b[layer.path] / a[layer.path] for a, b in zip(dense, own, strict=True)]
            shares[layer.kind, width] += ratios
        own_paths = {layer.path for layer, _ in probe}
        beyond += [
            (a[""] - b[""]) / max(1e-9, sum(a[path] - b[path] for path in own_paths))
            for a, b in zip(dense, own, strict=True)
        ]
        dense_calls += dense
        progress(number + 1, len(probes))
    medians = {place: statistics.median(found[place] for found in dense_calls) for place in ("", *places)}
    seconds = {layer.group.name: medians[layer.path] for layer in layers}
    seconds |= {name: sum(medians[path] for path in paths) for name, paths in blocks.items()}
    curves = {kind: _curve(kind, shares, layers) for kind in {layer.kind for layer in layers}}
    low, _, high = np.quantile([found[""] for found in dense_calls], [0.25, 0.5, 0.75]).tolist()
    return LatencyTable(
        call_s=medians[""],
        spread=(high - low) / medians[""],
        seconds=seconds,
        curves=curves,
        curve_of={layer.group.name: layer.kind for layer in layers},
        steps=_steps(shares, layers, curves),
        groups=tuple(groups),
        beyond=min(max(statistics.median(beyond), 0.5), 2.0) if beyond else 1.0,
        meta={
            "clock": "wall" if clock_for(next(model.parameters()).device, threads) is None else "thread",
            "probes": len(probes),
            "rounds": rounds,
            "calls": len(probes) * 2 * (rounds + 1),
            "kinds_of_layers": len(curves),
            "layers": len(layers),
            "layers_share": sum({layer.path: medians[layer.path] for layer in layers}.values()) / medians[""],
        },
    )


@torch.no_grad()
def _rounds(model: nn.Module, call: Mapping[str, Any], probes: int) -> int:
    began = perf_counter()
    first_answer(model, call)
    fit = SECONDS / max(1e-9, 2 * probes * (perf_counter() - began))
    return round(min(max(fit, ROUNDS[0]), ROUNDS[1]))


@dataclass(frozen=True)
class Layer:
    """A group and the module whose time it changes.

    Attributes:
        group: The group.
        path: The innermost module that holds all that the group cuts, and which a call calls as a module.
        kind: Layers of equal kind have equal shapes, and share a curve.
    """

    group: PrunableGroup
    path: str
    kind: str


def clock_for(device: torch.device, threads: int) -> Callable[[], float] | None:
    """Return the clock that neighbours on the machine disturb least; None: that of `eval.latency.interleave`."""
    return thread_time if device.type == "cpu" and threads == 1 else None


class Stopwatch:
    """Times modules of a model within its calls; between these the model has no hooks of it.

    Args:
        model: The model.
        places: Paths of the modules.
        threads: CPU threads that it runs in.

    Attributes:
        calls: Seconds by path of each call that was timed; ``""`` is the whole call.
    """

    def __init__(self, model: nn.Module, places: Sequence[str], threads: int) -> None:
        self.calls: list[dict[str, float]] = []
        self._places = {path: model.get_submodule(path) for path in places if path}
        self._device = next(model.parameters()).device
        self._clock = clock_for(self._device, threads) or perf_counter
        self._open: list[Any] = []
        self._spans: list[tuple[str, Any, Any]] = []

    def time(self, run: Callable[[], Any]) -> None:
        """Time one call."""
        self._spans.clear()
        self._open.clear()
        hooks = []
        for path, module in self._places.items():
            hooks.append(module.register_forward_pre_hook(self._enter, prepend=True))
            hooks.append(module.register_forward_hook(self._leave(path)))
        try:
            began = self._now()
            run()
            self._spans.append(("", began, self._now()))
        finally:
            for hook in hooks:
                hook.remove()
        found: dict[str, float] = defaultdict(float)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for path, start, end in self._spans:
            found[path] += start.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - start
        self.calls.append(found)

    def _now(self) -> Any:
        """Return the time; on a GPU a mark in its stream."""
        if self._device.type != "cuda":
            return self._clock()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _enter(self, *_: Any) -> None:
        self._open.append(self._now())

    def _leave(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._spans.append((path, self._open.pop(), self._now()))

        return hook


@torch.no_grad()
def _layers(model: nn.Module, groups: Sequence[PrunableGroup], call: Mapping[str, Any]) -> list[Layer]:
    """Return the layer of each group but blocks; a group that a call does not reach has none."""
    shapes: dict[str, list[Any]] = defaultdict(list)
    hooks = [
        module.register_forward_hook(
            lambda _m, args, kwargs, _out, p=path: shapes[p].append(_shapes((args, kwargs))), with_kwargs=True
        )
        for path, module in model.named_modules()
    ]
    try:
        first_answer(model, call)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for group in groups:
        if group.kind == "blocks":
            continue
        path = _common([group.module, *(part.path.rpartition(".")[0] for part in slices_of(group))])
        while path and path not in shapes:
            path = path.rpartition(".")[0]
        if not _reached(group, shapes):
            continue
        module = model.get_submodule(path)
        own = [(name.rpartition(".")[2], tuple(p.shape)) for name, p in module.named_parameters()]
        cut = sorted((part.path.removeprefix(path), part.dim, part.offset) for part in slices_of(group))
        about = (group.kind, group.num_units, group.unit_size, type(module).__name__, own, cut, shapes[path])
        found.append(Layer(group, path, f"{group.kind} {_short(about)}"))
    return found


def _reached(group: PrunableGroup, shapes: Mapping[str, Any]) -> bool:
    return any(inside(path, group.module) for path in shapes)


def _short(about: Any) -> str:
    return hashlib.sha256(repr(about).encode()).hexdigest()[:10]


def _shapes(tree: Any) -> Any:
    return [tuple(leaf.shape) for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _common(paths: Sequence[str]) -> str:
    """Return the innermost module that holds all of these paths."""
    parts = [path.split(".") for path in paths]
    same = 0
    while all(len(own) > same for own in parts) and len({own[same] for own in parts}) == 1:
        same += 1
    return ".".join(parts[0][:same])


def _sites(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return layers together that lie in each other, of which one is cut at a time."""
    paths = {layer.path for layer in layers}
    outer: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        around = [path for path in paths if path == "" or inside(layer.path, path)]
        outer[min(around, key=len)].append(layer)
    return list(outer.values())


def _widths(layers: Sequence[Layer]) -> dict[str, list[Width]]:
    """Return the widths at which each kind of layer is measured."""
    found: dict[str, list[Width]] = {}
    for number, layer in enumerate({layer.kind: layer for layer in layers}.values()):
        group = layer.group
        units, least = group.num_units, max(1, group.min_units)
        if units <= FEW:
            found[layer.kind] = [(kept, True) for kept in range(units - 1, least - 1, -1)]
            continue
        curve = {_evenest(group, share) for share in SHARES}
        chosen = [(kept, True) for kept in sorted(curve, reverse=True) if least <= kept < units]
        for share, multiple in zip(AT, UNEVEN[number % 2], strict=True):
            near = _with_evenness(group, share, multiple)
            if near is not None and near not in curve and near >= least:
                chosen.append((near, False))
        found[layer.kind] = chosen
    return found


def _evenest(group: PrunableGroup, share: float) -> int:
    """Return the number of units about so large whose channels are a multiple of as much as can be."""
    middle, reach = share * group.num_units, group.num_units / 40
    near = range(max(1, round(middle - reach)), round(middle + reach) + 1)
    return max(near, key=lambda kept: (evenness(kept * group.unit_size), -abs(kept - middle)))


def _with_evenness(group: PrunableGroup, share: float, multiple: int) -> int | None:
    """Return the number of units nearest to a share whose channels are a multiple of so much, and of no more."""
    middle, reach = share * group.num_units, group.num_units / 8
    near = [
        kept
        for kept in range(max(1, round(middle - reach)), round(middle + reach) + 1)
        if evenness(kept * group.unit_size) == multiple
    ]
    return min(near, key=lambda kept: abs(kept - middle), default=None)


def _probes(
    sites: Sequence[Sequence[Layer]], widths: Mapping[str, list[Width]], layers: Sequence[Layer]
) -> list[list[tuple[Layer, Width]]]:
    """Return what each probe cuts: in every site one layer to one width; every kind is seen at every width."""
    entries = [[(layer, width) for layer in site for width in widths[layer.kind]] for site in sites]
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, site in enumerate(sites):
        alike[tuple(layer.kind for layer in site)].append(index)
    count = max((-(-len(entries[own[0]]) // len(own)) for own in alike.values()), default=0)
    count = max(count, PROBES) if count else 0
    probes: list[list[tuple[Layer, Width]]] = [[] for _ in range(count)]
    for own in alike.values():
        for turn, index in enumerate(own):
            for number in range(count if entries[index] else 0):
                at = turn * count + number  # neighbours in a kind go on where the one before ended
                probes[number].append(entries[index][at % len(entries[index])])
    return probes


def _curve(kind: str, shares: Mapping[tuple[str, Width], list[float]], layers: Sequence[Layer]) -> Curve:
    """Return the curve through the widths on it: medians, made to rise with the width."""
    group = next(layer.group for layer in layers if layer.kind == kind)
    found = sorted((width[0], own) for (name, width), own in shares.items() if name == kind and width[1])
    kept = (*(units for units, _ in found), group.num_units)
    medians = [statistics.median(own) for _, own in found]
    spread = [float(np.subtract(*np.quantile(own, [0.75, 0.25]))) for _, own in found]
    counts = [len(own) for _, own in found]
    if group.num_units > FEW and medians:
        medians = isotonic_regression(medians, weights=counts).x.tolist()
    return Curve(kept, (*medians, 1.0), (*spread, 0.0), exact=group.num_units <= FEW)


def _steps(
    shares: Mapping[tuple[str, Width], list[float]], layers: Sequence[Layer], curves: Mapping[str, Curve]
) -> dict[str, dict[str, float]]:
    """Return by kind of group and evenness how much longer a layer takes than the curve says; 1 within the spread."""
    groups = {layer.kind: layer.group for layer in layers}
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, (kept, on_curve)), own in shares.items():
        if on_curve:
            continue
        group, curve = groups[name], curves[name]
        expected = float(np.interp(kept, curve.kept, curve.share))
        found[group.kind][evenness(kept * group.unit_size)] += [share / expected for share in own]
    steps: dict[str, dict[str, float]] = {}
    for kind, by_evenness in found.items():
        factor, own = 1.0, {}
        for multiple in (64, 32, 16, 8, 4, 2, 1):
            if ratios := by_evenness.get(multiple):
                low, middle, _ = np.quantile(ratios, [0.25, 0.5, 0.75])
                factor = max(factor, float(middle) if low > 1 else 1.0)
            own[str(multiple)] = factor
        steps[kind] = own
    return steps

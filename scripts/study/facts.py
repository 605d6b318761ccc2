"""What is known of a model before anything is pruned: its sinks, their stability, and what each head is worth."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.calibration import first_pass
from pruning.calibration.step import MAX_BRANCHES
from pruning.importance import DIAGNOSTIC_NEEDS, head_diagnostics, needs_of, score
from pruning.importance.moments import consumer_columns, covariance, per_row, per_sample, rounding_floor
from pruning.importance.obs import RIDGE
from pruning.models import denoise
from pruning.settings import SinkWeights
from pruning.surgery import apply_plan, compensate
from pruning.surgery.least_squares import explain, removed_columns
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, config_hash
from study.bench import Bench
from study.inference import by_layer_bootstrap, partial_spearman
from study.subjects import DEFAULT, LOOKING, Cell

STRONG = 0.3
"""A head whose largest key holds more than this share of the attention has a sink worth the name."""
SCORES = ("sink_mass", "sink", "obs", "fluctuation", "energy", "magnitude", "wanda", "taylor", "probe")


def precondition(bench: Bench) -> dict[str, Any]:
    """Step 0: can this model test the claim at all?

    Returns:
        ``heads``; ``strong_heads``, the share of heads whose largest key has mass above 0.3; ``largest_relative_mass``
        (1 is uniform); ``score_changed``, the median share of a head's ``obs`` score that omega (1, 1) changes;
        ``stability``, quartiles of phi over the sinks; ``testable``.
    """
    needs = {"max_key_mass", "key_mass", "input_moment", "input_sum", "row_weight"}
    heads = [g for g in bench.groups if g.kind == "attention_heads"]
    drop = SinkWeights(unstable=1.0, stable=1.0)
    stats = bench.calibrate(LOOKING[0], needs, {"on"}, drop, groups=heads)
    samples = [float(stats.get(g.module, "samples").sum()) for g in heads]
    mass = [stats.get(g.module, "max_key_mass").sum(0) / n for g, n in zip(heads, samples, strict=True)]
    keys = [stats.get(g.module, "key_mass") for g in heads]
    largest = [float((k.sum(0) / n).max()) * k.shape[-1] for k, n in zip(keys, samples, strict=True)]
    plain = score(bench.dense, heads, stats, criterion="obs", weighting="off").values
    weighted = score(bench.dense, heads, stats, criterion="obs", weighting="on").values
    changed = torch.cat([(weighted[g.name] / plain[g.name].clamp(min=1e-30) - 1).abs() for g in heads])
    strong = float((torch.cat(mass) > STRONG).double().mean())
    phi = _stabilities(bench, heads)
    return {
        "heads": sum(g.num_units for g in heads),
        "strong_heads": strong,
        "largest_relative_mass": max(largest),
        "score_changed": float(changed.median()),
        "stability": [float(q) for q in np.quantile(phi, [0.25, 0.5, 0.75])] if len(phi) else None,
        "sinks_seen": len(phi),
        "testable": strong >= 0.05 and float(changed.median()) >= 0.02,
    }


def _first_pass(bench: Bench, groups: list[PrunableGroup]) -> Any:
    rows = bench.rows(LOOKING[0])
    return first_pass(
        bench.dense,
        groups,
        bench.batches("train", rows, seed=1000, batch_size=32),
    )


def _stabilities(bench: Bench, groups: list[PrunableGroup]) -> np.ndarray:
    """Return phi of every key and sample that is a sink half of the time or more."""
    found = _first_pass(bench, groups)
    phi = []
    for site, mean in found.indicator.items():
        stable = found.stability(site, found.keys.tolist(), mean.shape[1])
        phi.append(stable[mean >= 0.5])
    return torch.cat(phi).numpy() if phi else np.empty(0)


def pretest(bench: Bench, probes: int = 2) -> dict[str, Any]:
    """How much an error at a sink moves the output: E|d<v, eps>/dy_i|^2 on sink rows over that on other rows.

    A ratio of 1 or more speaks against down-weighting sinks. y is the output of each self-attention site.
    """
    heads = [g for g in bench.groups if g.kind == "attention_heads"]
    found = _first_pass(bench, heads)
    index = {key // MAX_BRANCHES: place for place, key in enumerate(found.keys.tolist())}
    sites = [s for s in found.indicator if _is_self(bench, s)]
    sums = torch.zeros(len(sites), 2, 2, dtype=torch.float64)  # site; other or sink; sum and count
    for batch in bench.batches("train", bench.rows(LOOKING[0])[:32], seed=1000, batch_size=32):
        rows = [index[i] for i in batch.sample_ids.tolist()]
        for probe in range(probes):
            for k, gradient in enumerate(_gradients(bench.dense, sites, batch.call, probe)):
                sink = found.indicator[sites[k]][rows] >= 0.5
                size = gradient.double().square().sum(-1)
                for side, mask in enumerate((~sink, sink)):
                    sums[k, side, 0] += size[mask].sum()
                    sums[k, side, 1] += int(mask.sum())
    other, sink = sums[:, 0], sums[:, 1]
    seen = sink[:, 1] > 0
    ratios = (sink[seen, 0] / sink[seen, 1]) / (other[seen, 0] / other[seen, 1])
    return {
        "sites_with_sinks": int(seen.sum()),
        "sites": len(sites),
        "ratio_median": float(ratios.median()) if len(ratios) else None,
        "ratios": dict(zip(_chosen(sites, seen), ratios.tolist(), strict=True)),
    }


def _chosen(names: list[str], mask: Tensor) -> list[str]:
    return [name for name, chosen in zip(names, mask.tolist(), strict=True) if chosen]


def _is_self(bench: Bench, site: str) -> bool:
    return not getattr(bench.dense.get_submodule(site), "is_cross_attention", False) and "attn2" not in site


def _gradients(model: nn.Module, sites: list[str], call: Any, seed: int) -> list[Tensor]:
    """Return d<v, eps>/dy of every site, ``(B, N, C)``, for one random v of signs."""
    outputs: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[site] = output

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for site in sites:
            stack.callback(model.get_submodule(site).register_forward_hook(keep(site)).remove)
        prediction = denoise(model, call)
        generator = torch.Generator().manual_seed(seed)
        v = torch.randint(0, 2, prediction.shape, generator=generator) * 2.0 - 1.0
        found = torch.autograd.grad((v * prediction).sum(), [outputs[s] for s in sites])
    return [g.flatten(2).transpose(1, 2) if g.ndim == 4 else g for g in found]


def head_truth(bench: Bench, batches: int | None = None) -> list[dict[str, Any]]:
    """Ablate every head, by zero and by its mean, and say what each score thought of it.

    Returns:
        One row per head: ``group``, ``unit``, ``zero`` and ``mean`` (excess errors), one entry a score, and the
        diagnostics of docs/scores.md section 4.
    """
    heads = [g for g in bench.groups if g.kind == "attention_heads"]
    needs = {*DIAGNOSTIC_NEEDS, "max_key_mass"}.union(*(needs_of(name, heads) for name in SCORES))
    stats = bench.calibrate(LOOKING[0], needs, {"on"}, groups=heads)
    weights = dict(bench.dense.named_parameters())
    scored = {name: score(weights, heads, stats, criterion=name).values for name in SCORES}
    diagnostics = {(d["group"], d["head"]): d for d in head_diagnostics(weights, heads, stats)}
    largest = {g.name: per_sample(g, stats.of(g), "max_key_mass").sum(0) for g in heads}
    rows = []
    for group, unit, plan in _single_cuts(bench, heads):
        row: dict[str, Any] = {"group": group.name, "unit": unit}
        for how, method in (("zero", "none"), ("mean", "fold")):
            model = copy.deepcopy(bench.dense)
            compensate(model, bench.run.all_groups, plan, stats, method=method)
            row[how] = bench.damage(apply_plan(model, plan), batches).excess_error
        row |= {name: float(values[group.name][unit]) for name, values in scored.items()}
        about = diagnostics.get((group.name, unit), {})
        row |= {k: about[k] for k in ("label", "fluctuation_ratio") if k in about}
        rows.append(row | {"max_key_mass": float(largest[group.name][unit])})
    return rows


def _single_cuts(
    bench: Bench, heads: list[PrunableGroup]
) -> Iterator[tuple[PrunableGroup, int, PruningPlan]]:
    base = config_hash(bench.dense.config)
    for group in heads:
        for unit in range(group.num_units) if group.num_units > 1 else ():
            stay = tuple(k for k in range(group.num_units) if k != unit)
            yield group, unit, PruningPlan({group.name: stay}, base_hash=base)


def correlations(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rank correlation of each score with the truth, plain and given the fluctuation score and the layer."""
    layer = np.array([row["group"] for row in rows])
    truth = np.array([row["mean"] for row in rows])
    known = np.array([row["fluctuation"] for row in rows])
    found = {}
    for name in SCORES:
        x = np.array([row[name] for row in rows])
        nothing = np.zeros(len(x))
        low, high = by_layer_bootstrap(x, truth, known, layer)
        found[name] = {
            "within_layers": partial_spearman(x, truth, nothing, layer),
            "across_layers": partial_spearman(x, truth, nothing, np.zeros(len(x))),
            "given_fluctuation": partial_spearman(x, truth, known, layer),
            "given_fluctuation_ci95": [low, high],
        }
    return found


def timestep_share(bench: Bench) -> dict[str, Any]:
    """Return how much of the error that compensation leaves could be taken away by a bias a timestep (S4).

    For the units that the default cuts in the primary setting, on its calibration data: the part of the squared
    output error of each group's consumer that is the error's mean in each timestep bucket; median and largest of the
    groups, after folding, and after least squares.
    """
    cell = Cell(bench.subject.name, DEFAULT[0], DEFAULT[1], seed=LOOKING[0])
    needs = needs_of(cell.criterion, bench.groups) | {"input_moment", "input_sum", "row_weight"}
    stats = bench.calibrate(cell.seed, needs)
    weights = dict(bench.dense.named_parameters())
    plan = bench.plan(cell, score(weights, bench.groups, stats, criterion=cell.criterion))
    shares: dict[str, list[float]] = {"fold": [], "least_squares": []}
    for group in bench.groups:
        columns = consumer_columns(group, weights)
        gone = removed_columns(group, plan, columns.shape[1])
        if gone.any() and not gone.all():
            for method, share in _shares(group, stats.of(group), columns, gone).items():
                shares[method].append(share)
    return {
        method: {"median": float(np.median(found)), "largest": max(found)} for method, found in shares.items()
    }


def _shares(group: PrunableGroup, stats: CalibrationStats, columns: Tensor, gone: Tensor) -> dict[str, float]:
    mean = per_row(group, stats, "input_sum", (columns.shape[1],))
    sigma = covariance(group, stats, mean)
    rows = stats.get(group.name, "row_weight").double().flatten()  # (T,)
    by_bucket = stats.get(group.name, "input_sum").double() / rows[:, None] - mean  # (T, P)
    floor, where = rounding_floor(mean), f"group {group.name!r}"
    update, _, _ = explain(columns, lambda a, b: sigma[a][:, b], gone, RIDGE, floor, where)
    found = {}
    for method, added in (("fold", 0.0), ("least_squares", -update)):
        left = columns.clone()  # the output falls short by left @ (x - mu)
        left[:, ~gone] = added
        between = (left @ by_bucket.T).square().sum(0) @ rows / rows.sum()
        found[method] = float(between / torch.trace(left @ sigma @ left.T))
    return found

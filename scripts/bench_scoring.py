"""How long the default criterion and least squares take at the sizes of DiT-XL/2 and Stable Diffusion 1.5.

    python scripts/bench_scoring.py [--models dit sd15] [--check 2] [--configs FOLDER] [--out FILE.json]

Groups and shapes are those of the real classes, on the meta device; weights are random, and so are the statistics,
made for as many groups as there are threads at a time: rows of few strong and many weak directions, some channels
hundreds of times as large as the rest, neighbouring columns of a kernel alike. Each time such groups are scored
(`probe_obs`), the lowest 30 % of each group's units planned away, and the rest compensated for them.

``--check N`` holds N groups of each kind and size against greedy removal as it is written in
`pruning/importance/greedy.py`, in float64, one removal after the other: the ratio of the exact errors of both choices
after least squares, 1 for equal choices. The last line is JSON; `peak_gb` is the most that was held at a time beyond
the statistics, by all groups that were computed side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from pruning.groups import find_groups
from pruning.importance import score
from pruning.memory import Peak
from pruning.surgery import compensate
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan

MODELS = {
    "dit": (DiTTransformer2DModel, "dit_xl_2_256.json", "dit_seconds"),
    "sd15": (UNet2DConditionModel, "sd15_unet.json", "sd15_seconds"),
}
REMOVED = 0.3
RIDGE = 0.01
ROWS = 1e5
STRONG = 512  # directions in which rows vary much
MASSIVE = 0.002  # share of channels that are far larger than the rest


@dataclass
class Spent:
    """Seconds on the clock and of the processor, and bytes at the most beyond those held before."""

    score: float = 0.0
    compensate: float = 0.0
    processor: float = 0.0
    peak: int = 0
    ratios: dict[str, float] = field(default_factory=dict)


def groups_of(model: nn.Module) -> list[PrunableGroup]:
    """Return the groups that are read by columns, those of a size together."""
    found = [group for group in find_groups(model) if group.consumers]
    return sorted(found, key=lambda group: -shape_of(model, group)[1])


def shape_of(model: nn.Module, group: PrunableGroup) -> tuple[int, int]:
    """Return (C, P) of the group's first consumer."""
    part = group.consumers[0].read_by
    weight = model.get_parameter(part.path)
    return weight.shape[0], group.num_units * part.unit_size * weight[0, 0].numel()


def draw(*shape: int, seed: int) -> Tensor:
    """Return standard normal float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_like_real(width: int, per_channel: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean (P,) and second moment (P, P), float64, of rows as they enter a consumer."""
    channels = width // per_channel
    shared = draw(channels, 1, STRONG, seed=seed) + 0.5 * draw(channels, per_channel, STRONG, seed=seed + 1)
    spectrum = torch.arange(1, STRONG + 1) ** -0.6
    scale = (0.7 * draw(channels, seed=seed + 2)).exp()
    large = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
    scale[large[: max(1, int(MASSIVE * channels))]] *= 100
    scale = scale.repeat_interleave(per_channel)
    factor = shared.flatten(0, 1) * spectrum * scale[:, None]
    moment = (factor @ factor.T).double()
    moment.diagonal().add_(0.1 * scale.double().square())
    mean = (0.5 * draw(width, seed=seed + 3) * scale).double()
    return mean, moment.addr_(mean, mean)


def statistics_of(group: PrunableGroup, width: int, weight: Tensor, seed: int) -> dict[str, Tensor]:
    """Return all sums at one consumer that `probe_obs` and least squares read."""
    mean, moment = rows_like_real(width, weight[0, 0].numel(), seed)
    moment.mul_(ROWS)
    u = width // group.num_units
    blocks = moment.unflatten(0, (-1, u)).unflatten(2, (-1, u)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    felt = draw(len(weight), 2 * len(weight), seed=seed + 5).double()
    felt *= torch.arange(1, len(weight) + 1).double()[:, None] ** -0.5
    noise = (0.5 * draw(group.num_units, seed=seed + 6)).double().exp()
    return {
        "row_weight": torch.tensor([ROWS]).double(),
        "samples": torch.tensor([ROWS]).double(),
        "input_sum": ROWS * mean[None],
        "input_moment": moment,
        "input_unit_moment": blocks.clone(),
        "output_sensitivity": ROWS * felt @ felt.T / len(weight),
        "probe_diag": ROWS * noise * blocks.diagonal(dim1=1, dim2=2).sum(1) / moment.trace(),
    }


def made_for(model: nn.Module, group: PrunableGroup, seed: int) -> tuple[dict[str, Tensor], CalibrationStats]:
    """Return random weights by path, and statistics, of a group's consumers."""
    weights: dict[str, Tensor] = {}
    stats = CalibrationStats()
    _, width = shape_of(model, group)
    for index, one in enumerate(group.consumers):
        path, own = one.read_by.path, seed + 1000 * index
        shape = model.get_parameter(path).shape
        spread = (0.3 * draw(1, shape[1], *[1] * (len(shape) - 2), seed=own + 4)).exp()
        weights[path] = draw(*shape, seed=own) * spread / width**0.5
        weights[f"{one.consumer}.bias"] = torch.zeros(shape[0])
        stats.values[one.consumer_key] = statistics_of(one, width, weights[path], own)
    return weights, stats


def planned(groups: Sequence[PrunableGroup], scores: dict[str, Tensor]) -> PruningPlan:
    """Return the plan that removes the lowest units of each group."""
    kept = {
        group.name: sorted(scores[group.name].argsort()[int(REMOVED * group.num_units) :].tolist())
        for group in groups
    }
    return PruningPlan({name: tuple(units) for name, units in kept.items()})


@contextmanager
def watched(spent: Spent) -> Iterator[None]:
    """Add what the processor does, and the most memory that is held, in this context."""
    began = time.process_time()
    with Peak("cpu") as peak:
        yield
    spent.peak = max(spent.peak, peak.bytes - peak.before)
    spent.processor += time.process_time() - began


def measure(name: str, configs: Path, check: int) -> Spent:
    """Score and compensate all groups of a model, as many at a time as there are threads."""
    kind, file, _ = MODELS[name]
    path = configs / file
    with torch.device("meta"):
        model = kind.from_config(json.loads(path.read_text())) if path.is_file() else kind()
    groups, at_once, spent = groups_of(model), torch.get_num_threads(), Spent()
    seen = Counter[tuple[str, int, int]]()
    for start in range(0, len(groups), at_once):
        some = groups[start : start + at_once]
        weights, stats = {}, CalibrationStats()
        for index, group in enumerate(some):
            own, sums = made_for(model, group, 7 * (start + index))
            weights |= own
            stats.values |= sums.values
        dense = dict(weights)
        with watched(spent):
            began = time.perf_counter()
            scores = score(weights, some, stats, criterion="probe_obs").values
            scored = time.perf_counter()
            plan = planned(some, scores)
            compensate(weights, some, plan, stats, "least_squares", RIDGE, model=model)
            ended = time.perf_counter()
        spent.score += scored - began
        spent.compensate += ended - scored
        sizes = ", ".join(f"{group.name} {shape_of(model, group)}" for group in some)
        print(
            f"{name} score {scored - began:6.2f} s  least squares {ended - scored:6.2f} s  {sizes}",
            flush=True,
        )
        for group in some:
            size = (group.kind, *shape_of(model, group))
            if seen[size] < check:
                spent.ratios[group.name] = error_ratio(group, dense, stats, plan)
                print(f"{name} error ratio {spent.ratios[group.name]:.9f}  {group.name}", flush=True)
            seen[size] += 1
    return spent


def error_ratio(
    group: PrunableGroup, weights: dict[str, Tensor], stats: CalibrationStats, plan: PruningPlan
) -> float:
    """Return the exact error of what the plan removes, over that of what plain greedy removal in float64 does."""
    (one,) = group.consumers
    sums = {key: value for key, value in stats.of(one).values[group.name].items() if key != "input_moment"}
    mean = sums["input_sum"].sum(0) / ROWS
    sigma = stats.of(one).get(group.name, "input_moment") / ROWS
    sigma.addr_(mean, mean, alpha=-1)
    u = len(mean) // group.num_units
    columns = judged_columns(weights[one.read_by.path].double().flatten(1), sigma, sums, u)
    sigma.diagonal().add_(RIDGE * sigma.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(sigma))
    del sigma
    ours = plan.removed_units(group)
    mine = error_of(columns, inverse, ours, u)
    greedy = plain_greedy(columns.clone(), inverse.clone(), group.num_units, len(ours))
    return mine / error_of(columns, inverse, greedy, u)


def judged_columns(weight: Tensor, sigma: Tensor, sums: dict[str, Tensor], u: int) -> Tensor:
    """Return ``S^1/2 W D`` of `probe_obs`, (C, P)."""
    values, vectors = torch.linalg.eigh(sums["output_sensitivity"] / ROWS)
    felt = (vectors * values.clamp(min=0).sqrt()) @ vectors.T @ weight
    parts = [slice(start, start + u) for start in range(0, len(sigma), u)]
    expected = torch.stack([(felt[:, p] @ sigma[p, p] * felt[:, p]).sum() for p in parts])
    measured = sums["probe_diag"] / ROWS
    factor = (measured.sum() / expected.sum() * measured / expected).sqrt()
    return felt * factor.sqrt().repeat_interleave(u)


def units_columns(units: Sequence[int], u: int) -> Tensor:
    """Return the columns of units."""
    return (torch.tensor(units)[:, None] * u + torch.arange(u)).flatten()


def error_of(columns: Tensor, inverse: Tensor, units: Sequence[int], u: int) -> float:
    """Return ``tr(W_R [A_RR]^-1 W_R^T)``."""
    r = units_columns(units, u)
    factor = torch.linalg.cholesky(inverse[r][:, r])
    return float(torch.linalg.solve_triangular(factor, columns[:, r].T, upper=False).square().sum())


def plain_greedy(columns: Tensor, inverse: Tensor, units: int, count: int) -> list[int]:
    """Return the first `count` units of greedy set OBS; both arguments are overwritten."""
    u = len(inverse) // units
    left, order = list(range(units)), []
    for _ in range(count):
        blocks = (
            inverse.unflatten(0, (-1, u))
            .unflatten(2, (-1, u))
            .diagonal(dim1=0, dim2=2)
            .permute(2, 0, 1)[left]
        )
        by_unit = columns.T.unflatten(0, (-1, u))[left]  # (n, u, C)
        if u == 1:
            costs = by_unit.square().sum((1, 2)) / blocks.flatten()
        else:
            whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), by_unit, upper=False)
            costs = whitened.square().sum((1, 2))
        g = left.pop(int(costs.argmin()))
        here = slice(g * u, (g + 1) * u)
        explained = torch.linalg.solve(inverse[here, here], inverse[here])
        columns.addmm_(columns[:, here].clone(), explained, alpha=-1)
        inverse.addmm_(inverse[:, here].clone(), explained, alpha=-1)
        order.append(g)
    return order


def main() -> None:
    """Measure, and print JSON as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--check", type=int, default=0, help="groups of each kind and size to hold against greedy"
    )
    parser.add_argument(
        "--configs", type=Path, default=Path("../shared/configs"), help="folder of config files"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, float | int | None] = {"threads": torch.get_num_threads()}
    ratios, peak = [], 0
    for name in arguments.models:
        spent = measure(name, arguments.configs, arguments.check)
        found[MODELS[name][2]] = round(spent.score + spent.compensate, 1)
        found[f"{name}_processor_seconds"] = round(spent.processor, 1)
        ratios += spent.ratios.values()
        peak = max(peak, spent.peak)
    found |= {"worst_error_ratio": max(ratios, default=None), "peak_gb": round(peak / 1e9, 2)}
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Cost against quality of several runs: one plot for every pair of a cost and a quality that they have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData

MEASURED_ON = ("name", "mode", "features_sha256", "num_generated", "num_real")
TIMED_ON = ("device", "dtype", "num_threads", "batch_size")


@dataclass(frozen=True)
class Cost:
    """What a slim model saves.

    Attributes:
        words: Its name.
        label: Of the axis.
        value: How many times as good as the dense model the run's last one is; None if that is not known.
        alike: Only runs of which this is equal share an axis.
    """

    words: str
    label: str
    value: Callable[[RunData], float | None]
    alike: Callable[[RunData], Hashable] = lambda run: None


@dataclass(frozen=True)
class Quality:
    """What a slim model loses; low is good.

    Attributes:
        words: Its name.
        key: Of the metric.
        alike: Only runs of which this is equal share an axis.
        label: Of the axis; None for `words`.
        has_dense: Whether it is also known of the dense model.
        lost: Whether it is 1 minus the metric that counts.
    """

    words: str
    key: str
    alike: Callable[[RunData], Hashable]
    label: Callable[[RunData], str] | None = None
    has_dense: bool = False
    lost: bool = False

    def value(self, run: RunData, subject: str) -> float | None:
        """Return it for a subject."""
        found = run.metric(subject, self.key)
        return 1 - found if found is not None and self.lost else found

    def interval(self, run: RunData) -> list[float]:
        """Return its 95 % interval for the run's last model; from the value to itself if there is none."""
        found = run.metric(run.final, f"{self.key}_ci95")
        if not found:
            return [self.value(run, run.final) or 0.0] * 2
        return [1 - found[1], 1 - found[0]] if self.lost else found


class Point(NamedTuple):
    """A run on a plot: cost x, quality y with its interval, and the quality of its dense model."""

    run: RunData
    x: float
    y: float
    interval: list[float]
    dense: float | None

    @property
    def model(self) -> str:
        """The model that was pruned."""
        return self.run.data.get("model") or "model"


class View(NamedTuple):
    """The plots of one pair, and what is to be said of them."""

    cost: str
    quality: str
    panels: list[dict[str, Any]]
    remarks: list[str]


def _reduction(share: float | None) -> float | None:
    return 1 / share if share else None


def _data(run: RunData) -> Hashable:
    return run.data.get("data")


def _featured(distance: str) -> Callable[[RunData], Hashable]:
    """Return what says what has to agree for two distances of features to be comparable."""
    return lambda run: (_data(run), *(run.metric(run.final, f"{distance}_{key}") for key in MEASURED_ON))


def _by_network(key: str) -> Callable[[RunData], Hashable]:
    """Return what says on which data and with which network something was measured."""
    return lambda run: (_data(run), run.metric(run.final, key))


def _timed(run: RunData) -> Hashable:
    """Return what has to agree for two speed-ups to be comparable."""
    call = run.metric(run.final, "call") or {}
    return (run.data.get("device"), *(call.get(key) for key in TIMED_ON))


COSTS: Mapping[str, Cost] = {
    "call": Cost(
        "speed, measured",
        "speed-up of one call (measured)",
        lambda run: run.speedup(run.final) if run.metric(run.final, "call") else None,
        _timed,
    ),
    "macs": Cost("MACs", "MACs, dense / slim", lambda run: _reduction(run.left("macs"))),
    "params": Cost("parameters", "parameters, dense / slim", lambda run: _reduction(run.left("params"))),
    "peak": Cost(
        "peak memory",
        "peak memory of a call, dense / slim",
        lambda run: _reduction(run.ratio(run.final, "peak_memory_bytes")),
        lambda run: (run.data.get("device"), run.metric(run.final, "peak_memory_method")),
    ),
}
QUALITIES: Mapping[str, Quality] = {
    "frechet": Quality(
        "Fréchet distance", "frechet", _featured("frechet"), lambda run: run.frechet_name, has_dense=True
    ),
    "fd_dinov2": Quality(
        "DINOv2",
        "fd_dinov2",
        _featured("fd_dinov2"),
        lambda run: run.metric(run.reference, "fd_dinov2_name") or "Fréchet distance on DINOv2 features",
        has_dense=True,
    ),
    "excess_error": Quality("excess error", "excess_error", _data),
    "pair_pixels": Quality(
        "pixels of pairs", "pair_pixels", _data, lambda run: "error of pairs of the same noise, pixels"
    ),
    "pair_features": Quality(
        "features of pairs",
        "pair_features",
        _by_network("pair_network"),
        lambda run: "error of pairs of the same noise, features",
    ),
    "lpips": Quality(
        "LPIPS", "lpips", _by_network("lpips_name"), lambda run: "LPIPS to the dense model's samples"
    ),
    "mse": Quality("squared error", "mse", _data, lambda run: "squared error to the dense model's samples"),
    "ssim": Quality(
        "SSIM lost", "ssim", _data, lambda run: "1 − SSIM to the dense model's samples", lost=True
    ),
}


def views(runs: Sequence[RunData]) -> list[View]:
    """Return the plots for every pair of a cost and a quality in which runs can be compared, the best known first.

    Where none can, it is one without plots, which says why.
    """
    found = [_view(runs, cost, quality) for quality in QUALITIES for cost in COSTS]
    drawn = [view for view in found if view.panels]
    costs, qualities = {view.cost for view in drawn}, {view.quality for view in drawn}
    # Of the pairs that remain, those without plots say why there are none.
    others = [v for v in found if not v.panels and v.cost in costs and v.quality in qualities]
    return [*drawn, *others] or [_view(runs, "macs", "frechet")]


def not_compared(runs: Sequence[RunData], shown: Sequence[View]) -> list[str]:
    """Return the costs that several runs know, none of which were measured alike."""
    missing = [cost for key, cost in COSTS.items() if key not in {view.cost for view in shown}]
    return [cost.label for cost in missing if sum(cost.value(run) is not None for run in runs) > 1]


def on_front(points: Sequence[Point]) -> list[Point]:
    """Return the points to which no other is better in cost or quality and as good in the other, by cost."""
    kept = [
        point
        for point in points
        if not any(
            other.x >= point.x and other.y <= point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )
    ]
    return sorted(kept, key=lambda point: (point.x, point.y))


def _view(runs: Sequence[RunData], cost: str, quality: str) -> View:
    """Draw runs grouped by what makes them comparable; say why there are groups and what is left out."""
    saves, loses = COSTS[cost], QUALITIES[quality]
    known = [run for run in runs if loses.value(run, run.final) is not None]
    shown = [run for run in known if saves.value(run)]
    groups: dict[Hashable, list[RunData]] = {}
    for run in shown:
        groups.setdefault((loses.alike(run), saves.alike(run)), []).append(run)
    panels = [_panel(members, saves, loses) for members in groups.values() if len(members) > 1]
    ways, clocks = ({alike(run) for run in shown} for alike in (loses.alike, saves.alike))
    remarks = []
    if len(ways) > 1:
        remarks.append(
            f"The runs were measured in {len(ways)} ways (features, number of samples or reference images differ). "
            f"{loses.words[0].upper()}{loses.words[1:]}s are not comparable across these"
            f"{', so each has its own plot' * (len(panels) > 1)}."
        )
    if len(clocks) > 1:
        remarks.append(
            f"The cost was measured in {len(clocks)} ways (device, type, threads or batch differ), which do not "
            "compare."
        )
    left_out = {
        "no other run was measured alike": [m[0] for m in groups.values() if len(m) == 1],
        f"they have no {loses.words} of a pruned model": [run for run in runs if run not in known],
        f"of these it is not known: {saves.label}": [run for run in known if run not in shown],
    }
    for why, those in left_out.items():
        if those:
            remarks.append(f"Not plotted, since {why}: {', '.join(run.name for run in those)}.")
    return View(cost, quality, panels, remarks)


def _panel(runs: Sequence[RunData], cost: Cost, quality: Quality) -> dict[str, Any]:
    """Return title and plot of runs that are comparable."""
    points = []
    for run in runs:
        x, y = cost.value(run), quality.value(run, run.final)
        assert x is not None
        assert y is not None
        dense = quality.value(run, run.reference) if quality.has_dense else None
        points.append(Point(run, x, y, quality.interval(run), dense))
    label = quality.label(runs[0]) if quality.label else quality.words
    count = runs[0].metric(runs[0].final, f"{quality.key}_num_generated")
    of = ", ".join([*([f"N = {count:,.0f}"] if count else []), str(runs[0].data.get("data"))])
    title = f"{label[0].upper()}{label[1:]} ({of})"
    return {"title": title, "figure": _plot(points, cost.label, label)}


def _plot(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Draw runs, coloured by model, the front among them, and each model's dense figure as a dashed line."""
    models = sorted({point.model for point in points})
    shapes = [svg.SHAPES[which % len(svg.SHAPES)] for which in range(len(models))]
    left, right = svg.padded([1.0, *(point.x for point in points)], log=False)
    xs = svg.Scale(min(left, 0.95), right, 60, 700)
    dense = {point.model: point.dense for point in points if point.dense is not None}
    values = [value for point in points for value in (point.y, *point.interval)] + [*dense.values()]
    ys = svg.value_scale(values, 372, 42)
    body = svg.axes(xs, ys, x_label, y_label + ", log" * ys.log + " (lower is better)")
    front = on_front(points)
    if len(front) > 1:
        body += svg.path([(xs(point.x), ys(point.y)) for point in front], "front")
    taken: list[tuple[float, float, float]] = []
    body += "".join(_dense_lines(dense, models, shapes, xs, ys, taken))
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        which = models.index(point.model)
        cls, x, name = f"p{which % 5}", xs(point.x), point.run.name
        body += svg.line(x, ys(point.interval[0]), x, ys(point.interval[1]), f"whisker {cls}")
        tip = f"{name}: {fmt.times(point.x)}, {fmt.number(point.y)} {fmt.span(point.interval)}"
        body += svg.marker(x, ys(point.y), shapes[which], f"dot {cls}", tip, 5.5)
        body += _tag(name, x, ys(point.y), taken, xs.stop, "own" if point in front else "")
    height = 418.0
    if len(models) > 1:
        entries = [(model, shapes[k], f"dot p{k % 5}") for k, model in enumerate(models)]
        for row in range(0, len(entries), 2):
            body += svg.legend(entries[row : row + 2], xs.start, height + 18)
            height += 24
    alt = f"{y_label} against {x_label} for {', '.join(point.run.name for point in points)}."
    return svg.drawing(body, 720, height, alt)


def _dense_lines(
    dense: Mapping[str, float],
    models: Sequence[str],
    shapes: Sequence[str],
    xs: svg.Scale,
    ys: svg.Scale,
    taken: list[tuple[float, float, float]],
) -> Iterator[str]:
    """Draw the dense models at a cost of 1; lines that would carry the same figure have one name."""
    tagged = set()
    for model, value in sorted(dense.items()):
        which, shown = models.index(model), fmt.number(value)
        cls = f"p{which % 5}" if len(models) > 1 else "s0"
        yield svg.line(xs.start, ys(value), xs.stop, ys(value), f"ref {cls}")
        yield svg.marker(xs(1.0), ys(value), shapes[which], f"dot {cls}", f"dense {model}: {shown}", 5)
        if shown not in tagged:
            tagged.add(shown)
            yield _tag("dense", xs(1.0), ys(value), taken, xs.stop)


def _tag(
    name: str, x: float, y: float, taken: list[tuple[float, float, float]], limit: float, cls: str = ""
) -> str:
    """Return a label beside a point, moved until it lies on no other label."""
    shown = name if len(name) <= 36 else name[:34] + "…"
    width = svg.text_width(shown)
    start = x + 10 if x + 10 + width <= limit else x - 10 - width
    base = y
    for shift in (-7, 15, -21, 29, -35, 43, -49, 57, -63, 71):
        base = y + shift
        if not any(abs(base - other) < 14 and start < e and s < start + width for s, other, e in taken):
            break
    taken.append((start, base, start + width))
    at, anchor = (x - 10, "end") if start < x else (start, "start")
    return svg.label(at, base, shown, f"t ink halo {cls}".strip(), anchor)

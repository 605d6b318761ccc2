"""Several runs held against each other: speed against quality, and a table; what cannot be compared shares no axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections.results import Cell, frechet, kernel

MEASURED_ON = ("name", "mode", "features_sha256", "num_generated", "num_real")
TIMED_ON = ("device", "dtype", "num_threads", "batch_size")


BODY = template(
    """
{% if panels %}
<section style="margin-top:8px"><h2>Speed and quality</h2>
<p class="soft">Down and to the right is better. Whiskers are 95 % intervals, the dashed line is the dense model.</p>
{% endif %}
{% for text in remarks %}<p>{{ text }}</p>{% endfor %}
{% for panel in panels %}
<h3 style="margin-top:18px">{{ panel.title }}</h3>
<figure class="wide">{{ panel.figure }}<figcaption class="detail">{{ panel.note }}</figcaption></figure>
{% endfor %}
{% if panels %}</section>{% endif %}

<section><h2>All runs</h2>
<div class="scroll"><table class="compare">
<thead><tr><th scope="col">Run</th>
{%- for column in columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for run in runs %}
{% set row, model = loop.index0, run.data.get('model') %}
<tr><th scope="row"><a href="#run{{ loop.index }}">{{ run.name }}</a>
{%- if model %}<span class="detail">{{ model }}</span>{% endif %}</th>
{%- for cells in columns.values() %}{{ cells[row] }}{% endfor %}</tr>
{% endfor %}
</tbody></table></div></section>
"""
)


class Point(NamedTuple):
    """A run on the plot: speed-up x, Fréchet distance y with its interval, and the distance of its dense model."""

    name: str
    model: str
    x: float
    y: float
    interval: list[float]
    dense: float


def comparison(runs: Sequence[RunData]) -> Markup:
    """Return the plots and the table that hold several runs against each other, as HTML."""
    found, remarks = panels(runs)
    return BODY(panels=found, remarks=remarks, runs=runs, columns=columns(runs))


def panels(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the runs grouped by what their distances were measured on; say why there are groups and what is left out."""
    shown = [run for run in runs if run.metric(run.final, "frechet") is not None and run.left("macs")]
    groups: dict[tuple[Any, ...], list[RunData]] = {}
    for run in shown:
        groups.setdefault(_measured_on(run), []).append(run)
    found = [_panel(members) for members in groups.values() if len(members) > 1]
    remarks = []
    if len(groups) > 1:
        remarks.append(
            f"The runs were measured in {len(groups)} ways (features, number of samples or reference images differ). "
            f"Fréchet distances are not comparable across these{', so each has its own plot' * (len(found) > 1)}."
        )
    left_out = {
        "no other run was measured alike": [m[0].name for m in groups.values() if len(m) == 1],
        "they have no Fréchet distance of a pruned model": [run.name for run in runs if run not in shown],
    }
    remarks += [f"Not plotted, since {why}: {', '.join(names)}." for why, names in left_out.items() if names]
    return found, remarks


def _measured_on(run: RunData) -> tuple[Any, ...]:
    """Return what has to agree for two Fréchet distances to be comparable."""
    return (run.data.get("data"), *(run.metric(run.final, f"frechet_{key}") for key in MEASURED_ON))


def _timed_on(run: RunData) -> tuple[Any, ...] | None:
    """Return what has to agree for two speed-ups to be comparable, None without a measured one."""
    call = run.metric(run.final, "call")
    return call and (run.data.get("device"), *(call[key] for key in TIMED_ON))


def _panel(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return title, note and plot of runs whose Fréchet distances are comparable."""
    timings = {_timed_on(run) for run in runs}
    if len(timings) == 1 and None not in timings:
        axis, note = "speed-up of one call (measured)", "measured, each run against its own dense model"
        speed = [run.speedup(run.final) for run in runs]
    else:
        why = "some runs have no latency" if None in timings else "latencies come from different set-ups"
        axis, note = "speed-up by MACs (dense / pruned)", f"the MACs ratio, since {why}"
        speed = [1 / left for run in runs if (left := run.left("macs"))]
    points = []
    for run, x in zip(runs, speed, strict=True):
        y, interval = (run.metric(run.final, key) for key in ("frechet", "frechet_ci95"))
        dense = run.metric(run.reference, "frechet")
        points.append(Point(run.name, run.data["model"], x or 0.0, y, interval, dense))
    count = runs[0].metric(runs[0].final, "frechet_num_generated")
    title = f"{runs[0].frechet_name} (N = {count:,.0f}, {runs[0].data.get('data')})"
    figure = _plot(points, axis, runs[0].frechet_name)
    return {"title": title, "note": f"Speed-up: {note}.", "figure": figure}


def _plot(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Draw the runs, coloured by model, each model's dense distance as a dashed line."""
    models = sorted({point.model for point in points})
    shapes = [svg.SHAPES[which % len(svg.SHAPES)] for which in range(len(models))]
    found = {(models.index(point.model), fmt.number(point.dense)): point.dense for point in reversed(points)}
    dense = sorted((which, value) for (which, _), value in found.items())
    left, right = svg.padded([1.0, *(point.x for point in points)], log=False)
    xs = svg.Scale(min(left, 0.95), right, 60, 700)
    values = [value for point in points for value in (point.y, point.dense, *point.interval)]
    ys = svg.value_scale(values, 372, 42)
    body = svg.axes(xs, ys, x_label, y_label + ", log" * ys.log + " (lower is better)")
    taken: list[tuple[float, float, float]] = []
    tagged = set()
    for which, value in dense:
        cls, shown = f"p{which % 5}" if len(models) > 1 else "s0", fmt.number(value)
        body += svg.line(xs.start, ys(value), xs.stop, ys(value), f"ref {cls}")
        tip = f"dense {models[which]}: {shown}"
        body += svg.marker(xs(1.0), ys(value), shapes[which], f"dot {cls}", tip, 5)
        if shown not in tagged:
            tagged.add(shown)
            body += _tag("dense", xs(1.0), ys(value), taken, xs.stop)
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        which = models.index(point.model)
        cls, x = f"p{which % 5}", xs(point.x)
        body += svg.line(x, ys(point.interval[0]), x, ys(point.interval[1]), f"whisker {cls}")
        tip = f"{point.name}: {fmt.times(point.x)}, {fmt.number(point.y)} {fmt.span(point.interval)}"
        body += svg.marker(x, ys(point.y), shapes[which], f"dot {cls}", tip, 5.5)
        body += _tag(point.name, x, ys(point.y), taken, xs.stop)
    height = 418.0
    if len(models) > 1:
        entries = [(model, shapes[k], f"dot p{k % 5}") for k, model in enumerate(models)]
        for row in range(0, len(entries), 2):
            body += svg.legend(entries[row : row + 2], xs.start, height + 18)
            height += 24
    alt = f"{y_label} against {x_label} for {', '.join(point.name for point in points)}."
    return svg.drawing(body, 720, height, alt)


def _tag(name: str, x: float, y: float, taken: list[tuple[float, float, float]], limit: float) -> str:
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
    return svg.label(at, base, shown, "t ink halo", anchor)


def columns(runs: Sequence[RunData]) -> dict[str, list[Cell]]:
    """Return the columns of the table by title, one cell per run; columns that no run fills are left out."""
    cells: dict[str, Callable[[RunData], Cell]] = {
        "MACs left": lambda r: Cell(fmt.percent(r.left("macs"))),
        "Parameters left": lambda r: Cell(fmt.percent(r.left("params"))),
        "Speed-up, call": lambda r: Cell(fmt.times(r.speedup(r.final))),
        "Speed-up, sampling": lambda r: Cell(fmt.times(r.speedup(r.final, "sampling"))),
        "Fréchet, dense": lambda r: Cell(fmt.number(r.metric(r.reference, "frechet"))),
        "Fréchet, final": lambda r: frechet(r, r.final),
        "Kernel distance": lambda r: kernel(r, r.final),
        "Excess error": lambda r: Cell(fmt.number(r.metric(r.final, "excess_error"))),
        "Run time": lambda r: Cell(fmt.seconds(sum(r.entry("seconds").values()) or None)),
    }
    table = {title: [cell(run) for run in runs] for title, cell in cells.items()}
    return {title: row for title, row in table.items() if any(cell.text != fmt.MISSING for cell in row)}

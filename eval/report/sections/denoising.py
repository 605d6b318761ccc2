"""Denoising error by timestep: on real images at each noise level, and as a ratio to the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 50

BODY = template(
    """
<p class="soft">Error on {{ held_out }}images at each noise level, and as a ratio to {{ reference }}: where the
ratio peaks, the cut hurt most.</p>
<div class="figures">{% for figure in figures %}<figure>{{ figure }}</figure>{% endfor %}</div>
"""
)


def section(run: RunData) -> Section | None:
    """Show the errors; None if none were measured."""
    errors = {subject: run.metric(subject, "denoising_error") for subject in run.subjects}
    base = errors.pop(run.reference)
    if not base:
        return None
    ratios = {
        subject: [a / b if a is not None and b else None for a, b in zip(row, base, strict=True)]
        for subject, row in errors.items()
    }
    figures = [
        by_bucket(run, {run.reference: base, **errors}, "mean squared error"),
        by_bucket(run, ratios, f"ratio to {run.reference}", marks=[1.0]),
    ]
    body = BODY(figures=figures, reference=run.reference, held_out=run.held_out)
    return Section(body, "Denoising error by timestep", link="Denoising error")


def by_bucket(
    run: RunData, series: Mapping[str, Sequence[float | None]], y_label: str, marks: Sequence[float] = ()
) -> Markup:
    """Draw one line per subject over the timestep buckets, with a gap at None, and dashed ones at `marks`."""
    values = [*marks, *(value for row in series.values() for value in row if value is not None)]
    count = max(len(row) for row in series.values())
    xs, ys = svg.Scale(0, max(1, count - 1), 54, 458), svg.value_scale(values, 232, 50)
    ticks = range(0, count, math.ceil(count / 10))
    body = svg.axes(xs, ys, "timestep bucket (0 = least noise)", y_label + " (log)" * ys.log, ticks)
    for value in marks:
        body += svg.line(xs.start, ys(value), xs.stop, ys(value), "ref")
    entries = []
    for subject, row in series.items():
        index = run.subjects.index(subject)
        cls, shape = f"s{index % 6}", svg.SHAPES[index % len(svg.SHAPES)]
        known = [(k, value) for k, value in enumerate(row) if value is not None]
        for _, part in groupby(enumerate(known), key=lambda place: place[1][0] - place[0]):  # neighbours
            body += svg.path([(xs(k), ys(value)) for _, (k, value) in part], f"line {cls}")
        for k, value in known:
            tip = f"{subject}, bucket {k}: {fmt.number(value)}"
            body += svg.marker(xs(k), ys(value), shape, f"dot {cls}", tip, 3.6)
        entries.append((subject, shape, f"dot {cls}"))
    body += svg.legend(entries, xs.start, 16)
    alt = f"Denoising error by timestep bucket, {y_label}, for {', '.join(series)}."
    return svg.drawing(body, 480, 280, alt)

"""Errors by timestep: against the reference's own predictions, on real images at each noise level, and as a ratio."""

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
<p class="soft">
{%- if excess %}Excess error: how far predictions are from those of {{ reference }} at each noise level, squared, as a
share of its own; {{ reference }} itself has none.{% endif %}
{%- if errors %}{{ ' ' if excess }}Error on {{ held_out }}images at each noise level, and as a ratio to
{{ reference }}: where the ratio peaks, the cut hurt most.{% endif %}
{%- if images %} Upright strokes are 95{{ thin }}% intervals over {{ images }} images, the same in every
bucket.{% endif %}</p>
<div class="figures">{% for figure in figures %}<figure>{{ figure }}</figure>{% endfor %}</div>
"""
)

Series = Mapping[str, Sequence[float | None]]
Bounds = Mapping[str, Sequence[Sequence[float] | None]]


def section(run: RunData) -> Section | None:
    """Show the errors; None if none were measured."""
    errors = _known(run, run.subjects, "denoising_error")
    base = errors.get(run.reference)
    excess = _known(run, run.subjects[1:], "excess_error_by_bucket")
    figures = []
    if any(value is not None for row in excess.values() for value in row):
        bounds = _known(run, excess, "excess_error_by_bucket_ci95")
        figures.append(by_bucket(run, excess, "excess error", bounds=bounds))
    if base:
        ratios = {
            subject: [a / b if a is not None and b else None for a, b in zip(row, base, strict=True)]
            for subject, row in errors.items()
            if subject != run.reference
        }
        bounds = _known(run, errors, "denoising_error_by_bucket_ci95")
        figures.append(by_bucket(run, errors, "mean squared error", bounds=bounds))
        bounds = _known(run, ratios, "denoising_error_ratio_by_bucket_ci95")
        name = f"ratio to {run.reference}"
        figures.append(by_bucket(run, ratios, name, marks=[1.0], bounds=bounds))
    if not figures:
        return None
    measured = run.metric(run.final, "excess_error_by_bucket_ci95")
    body = BODY(
        figures=figures,
        reference=run.reference,
        held_out=run.held_out,
        excess=bool(excess),
        errors=bool(base),
        images=run.metric(run.final, "denoising_images") if measured else None,
        thin=fmt.THIN,
    )
    title = "Denoising error" if base else "Excess error"
    return Section(body, f"{title} by timestep", link=title)


def _known(run: RunData, subjects: Sequence[str] | Series, key: str) -> dict[str, list]:
    """Return a list of each of these subjects that has it, by bucket."""
    return {name: found for name in subjects if (found := run.metric(name, key))}


def by_bucket(
    run: RunData, series: Series, y_label: str, marks: Sequence[float] = (), bounds: Bounds | None = None
) -> Markup:
    """Draw one line per subject over the timestep buckets, with a gap at None, and dashed ones at `marks`.

    An interval of `bounds` is an upright stroke; what of it lies at or below zero, where no error is, is not drawn.
    """
    bounds = bounds or {}
    values = [*marks, *(value for row in series.values() for value in row if value is not None)]
    ends = [end for row in bounds.values() for interval in row for end in interval or () if end > 0]
    count = max(len(row) for row in series.values())
    xs, ys = svg.Scale(0, max(1, count - 1), 54, 458), svg.value_scale([*values, *ends], 232, 50)
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
        within = dict(enumerate(bounds.get(subject, ())))
        for k, value in known:
            said = f"{subject}, bucket {k}: {fmt.number(value)}"
            if interval := within.get(k):
                low, high = (min(max(end, ys.low), ys.high) for end in interval)
                body += svg.line(xs(k), ys(low), xs(k), ys(high), f"whisker {cls}")
                said += f" ({fmt.span(interval)})"
            body += svg.marker(xs(k), ys(value), shape, f"dot {cls}", said, 3.6)
        entries.append((subject, shape, f"dot {cls}"))
    body += svg.legend(entries, xs.start, 16)
    alt = f"Error by timestep bucket, {y_label}, for {', '.join(series)}."
    return svg.drawing(body, 480, 280, alt)

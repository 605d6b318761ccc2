"""Several runs held against each other: cost against quality, and a table; what cannot be compared shares no axis."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import yaml
from markupsafe import Markup

from eval.report import fmt
from eval.report.data import RunData, leaves
from eval.report.front import COSTS, QUALITIES, not_compared, views
from eval.report.html import template
from eval.report.sections.results import Cell, frechet, kernel

MOST_SETTINGS = 8
"""Columns of settings that differ, at most."""
NAMES = ("name", "title", "run_dir", "store")
"""Settings that only say which run it is."""

BODY = template(
    """
{% if shown[0].panels %}
<section class="plots" style="margin-top:8px"><h2>Speed and quality</h2>
<p class="soft">Down and to the right is better. Whiskers are 95 % intervals, the dashed line is the dense model. No run
is better in one and as good in the other than those in bold, which a line joins.
{%- for label in not_compared %} The {{ label }}: no two runs were measured alike.{% endfor %}</p>
{% for what, names in choices.items() if names | length > 1 %}
<p class="choice" role="radiogroup" aria-label="{{ what }}"><span class="soft">{{ what | capitalize }}</span>
{%- for key, label in names.items() %}
<label><input type="radio" name="{{ what }}" id="{{ what }}-{{ key }}"
{{- ' checked' if key == shown[0][what] }}> {{ label }}</label>
{%- endfor %}</p>
{% endfor %}
{% if shown | length > 1 %}
<style>{% for view in shown %}
.plots:not(:has(#cost-{{ view.cost }}:checked)) .view.cost-{{ view.cost }},
.plots:not(:has(#quality-{{ view.quality }}:checked)) .view.quality-{{ view.quality }} { display: none; }
{% endfor %}</style>
{% endif %}
{% for view in shown %}
<div class="view cost-{{ view.cost }} quality-{{ view.quality }}">
{% for text in view.remarks %}<p>{{ text }}</p>{% endfor %}
{% for panel in view.panels %}
<h3 style="margin-top:18px">{{ panel.title }}</h3>
<figure class="wide">{{ panel.figure }}</figure>
{% endfor %}
</div>
{% endfor %}
</section>
{% else %}
{% for text in shown[0].remarks %}<p>{{ text }}</p>{% endfor %}
{% endif %}

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


def comparison(runs: Sequence[RunData]) -> Markup:
    """Return the plots and the table that hold several runs against each other, as HTML."""
    shown = views(runs)
    choices = {
        "cost": {key: cost.words for key, cost in COSTS.items() if key in {view.cost for view in shown}},
        "quality": {
            key: quality.words
            for key, quality in QUALITIES.items()
            if key in {view.quality for view in shown}
        },
    }
    return BODY(
        shown=shown,
        choices=choices,
        not_compared=not_compared(runs, shown),
        runs=runs,
        columns=settings(runs) | columns(runs),
    )


def settings(runs: Sequence[RunData]) -> dict[str, list[Cell]]:
    """Return columns of what was set in one run and not in another, by the names of the settings."""
    known = [dict(leaves(yaml.safe_load(run.data.get("recipe_yaml") or "") or {})) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in known for key in one) if key not in NAMES]
    found = {key: [one.get(key) for one in known] for key in keys}
    differ = {key: values for key, values in found.items() if len({json.dumps(v) for v in values}) > 1}
    return {
        key: [Cell(fmt.MISSING if value is None else str(value)) for value in differ[key]]
        for key in list(differ)[:MOST_SETTINGS]
    }


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

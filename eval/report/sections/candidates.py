"""Several plans for one target: what each comes to, and the error that was measured of it before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 13
BODY = template(
    """
<p class="soft">{{ words }}</p>
<div class="scroll"><table>
<thead><tr><th scope="col">criterion</th><th scope="col">allocation</th><th scope="col">blocks</th>
<th scope="col">MACs left</th><th scope="col">parameters left</th>
{% for name in targets %}<th scope="col">{{ name }}</th>{% endfor %}
<th scope="col">predicted error</th><th scope="col">measured excess error</th><th scope="col">ratio to the first</th>
</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.chosen %} class="own"{% endif %}><th scope="row">{% if row.chosen %}<b>{{ row.criterion }}</b>
{%- else %}{{ row.criterion }}{% endif %}<span class="detail">{{ row.small }}</span></th>
<td>{{ row.allocation }}</td>
{% for text, small in row.cells %}<td>{{ text }}
{%- if small %}<span class="detail">{{ small }}</span>{% endif %}</td>{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if left_out %}<p class="detail">{{ left_out }}</p>{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the candidates; None where there was the recipe's own plan alone."""
    found = run.entry("candidates")
    if not found:
        return None
    measured = [row for row in found["rows"] if row["why"] is None]
    targets = list(dict.fromkeys(name for row in measured for name in row["targets"]))
    rows = [_row(number, row, found["rows"], targets) for number, row in enumerate(found["rows"], start=1)]
    shown = [row for row in rows if row is not None]
    return Section(
        BODY(words=_words(found, measured), targets=targets, rows=shown, left_out=_left_out(found["rows"])),
        "Candidates",
    )


def _words(found: Mapping[str, Any], measured: list[Mapping[str, Any]]) -> str:
    """Say what was measured, on what, and what came of it."""
    plans = sum(row["same_as"] is None for row in measured)
    on = "calibration did not see" if found["held_out"] else "calibration saw, too, at other timesteps"
    best = found["rows"][found["chosen"]]
    said = (
        f"{fmt.plural(len(found['rows']), 'candidate')} for the same target came to {fmt.plural(plans, 'plan')}. Each "
        f"was carried out on a copy of the dense model (compensation: {found['compensation'].replace('_', ' ')}; no "
        f"training) and measured on {fmt.plural(found['samples'], 'sample')} that {on}. In bold the one that went on, "
        "with the lowest error of those that meet the target; a prediction is the sum of its scores, where these are "
        "changes of the model's output."
    )
    if bounds := best["ratio_ci95"]:
        apart = "" if bounds[0] <= 1 <= bounds[1] else " by more than chance"
        below = "" if apart else "; these samples do not tell the two apart"
        said += (
            f" Its error is {fmt.number(best['ratio'])} ({fmt.span(bounds)}) of that of the recipe's own plan"
            f"{apart}{below}."
            " The lowest of several is lower than it would be on other samples; what those say is in the results."
        )
    return said


def _row(
    number: int, row: Mapping[str, Any], rows: list[Mapping[str, Any]], targets: list[str]
) -> Mapping[str, Any] | None:
    """Return the cells of a candidate; None for one that was left out."""
    if row["why"] is not None:
        return None
    small = f"candidate {number}" + (", the recipe's own" if number == 1 else "")
    if row["same_as"] is not None:
        small += f"; the plan of candidate {row['same_as'] + 1}"
    if not row["meets"]:
        small += f"; misses the target by {fmt.percent(row['missed'])}, or costs more than the first"
    depth = (
        fmt.percent(row["depth_share"], 0) + f" of what goes ({row['blocks']})" if row["blocks"] else "none"
    )
    share = fmt.MISSING if row["macs_ratio"] is None else fmt.percent(row["macs_ratio"])
    cells = [(depth, "" if row["depth"] == "by scores" else f"asked: {row['depth']}"), (share, "")]
    cells += [(fmt.percent(row["params_ratio"]), "")]
    cells += [(row["targets"].get(name, fmt.MISSING), "") for name in targets]
    predicted = fmt.MISSING if row["predicted"] is None else fmt.number(row["predicted"])
    cells += [(predicted, ""), (fmt.number(row["excess_error"]), _span(row["excess_error_ci95"]))]
    cells += [(fmt.number(row["ratio"]), _span(row["ratio_ci95"]))]
    return {**row, "small": small, "cells": cells}


def _span(bounds: list[float] | None) -> str:
    return fmt.span(bounds) if bounds else ""


def _left_out(rows: list[Mapping[str, Any]]) -> str:
    """Say which candidates could not be made, and why."""
    reasons = [f"{row['name']} ({row['why']})" for row in rows if row["why"] is not None]
    return f"Not possible: {'; '.join(reasons)}." if reasons else ""

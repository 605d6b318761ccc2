"""Sets of blocks that were measured together: the choice beside that of the sum of single scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE, WITHIN = 33, "cuts"

BODY = template(
    """
<h3 style="margin-top:22px">Which blocks go together</h3>
<p class="soft">{{ measured }} of blocks measured in {{ forwards }} of one sample: the mean squared change of the
model's output without the whole set, as a share of the output's mean square. Where the sum of single changes is another
number, blocks act on each other.</p>
<div class="scroll"><table>
<thead><tr><td></td><th scope="col">blocks</th><th scope="col">cost left, all else dense</th>
<th scope="col">sum of single changes</th><th scope="col">measured together</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.name }}</th><td class="path">{{ row.blocks }}</td><td class="num">{{ row.left }}</td>
<td class="num">{{ row.sum }}</td><td class="num">{{ row.change }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if kept %}<p class="detail">The plan stayed as it was: {{ kept }}.</p>{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the search; None without one, or if no block goes."""
    found = run.entry("depth")
    if not found or not found["start"]:
        return None
    names = {"start": "by the sum of their scores", "chosen": "by measuring sets"}
    rows = [_row(words, found[key], found) for key, words in names.items()]
    return Section(
        BODY(
            measured=fmt.plural(len(found["measured"]), "set"),
            forwards=fmt.plural(found["forwards"], "forward"),
            rows=rows,
            kept=found["kept"],
        )
    )


def _row(name: str, chosen: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    """Return the words of one choice of blocks."""

    def share(value: float | None) -> str:
        return fmt.MISSING if value is None else fmt.number(value / found["power"])

    return {
        "name": name,
        "blocks": ", ".join(chosen["removed"]),
        "left": fmt.percent(chosen["cost"] / found["dense"]),
        "sum": share(chosen["sum_alone"]),
        "change": share(chosen["change"]),
    }

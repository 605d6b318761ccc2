"""Where each criterion would cut: one row per criterion, one column per group, shaded by the share that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import Section, template
from eval.report.sections.cuts import beginnings, kind_words, stage_name

PLACE, WITHIN = 32, "cuts"
ROW = 20
GAP = 18  # between kinds
WIDTH = 900
WIDEST = 52.0
NUMBERED = 27.0  # a column as wide as this holds its percentage

BODY = template(
    """
{% if figure %}
<h3 style="margin-top:22px">Where each criterion would cut</h3>
<p class="soft">The same target and scope with the scores of every criterion that this run's statistics allow; in bold
the one that it went by. A column is one group, numbered by its place in the model; the figure is the percentage of its
units that would go.</p>
<div class="scroll"><figure>{{ figure }}</figure></div>
{% endif %}
{% if words %}<p class="detail" style="margin-top:10px">{{ words }}</p>{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the comparison, and in words what it leaves out; None if none was made."""
    found = run.entry("criteria")
    if not found:
        return None
    drawn = figure(found["groups"], found["rows"]) if "rows" in found else None
    return Section(BODY(figure=drawn, words=found.get("note") or left_out(found["left_out"])))


def left_out(entries: Sequence[Mapping[str, Any]]) -> str:
    """Say which criteria are left out, and why."""
    reasons = [f"{', '.join(entry['names'])} ({entry['why']})" for entry in entries]
    return f"Not computed: {'; '.join(reasons)}." if reasons else ""


def figure(groups: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Draw the comparison; None if there is only the run's own criterion.

    `groups` are in model order; a row is a criterion with a share for each group, ``own`` that which the run went by.
    """
    if len(rows) < 2:
        return None
    kinds: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        kinds.setdefault(group["kind"], []).append(index)
    left = max(svg.text_width(row["name"]) for row in rows) + 16
    slot = min(WIDEST, (WIDTH - left - GAP * (len(kinds) - 1)) / len(groups))
    top, bottom = 22.0, 22.0 + ROW * len(rows)
    body = "".join(
        svg.label(left - 10, top + line * ROW + 14, row["name"], "t ink own" if row["own"] else "t", "end")
        for line, row in enumerate(rows)
    )
    x = left
    for kind, members in kinds.items():
        modules = [groups[index]["module"] for index in members]
        body += svg.label(x, 13, kind_words(kind), "t ink")
        for line, row in enumerate(rows):
            shares = {groups[index]["module"]: row["shares"][index] for index in members}
            body += _cells(row["name"], shares, x, top + line * ROW, slot)
        body += _places(modules, x, bottom + 15, slot)
        x += max(len(members) * slot, svg.text_width(kind_words(kind))) + GAP
    key, width = _key(left, bottom + 34)
    alt = f"Share of each of {len(groups)} groups that {len(rows)} criteria would cut at this run's target"
    alt += f"; its own is {rows[0]['name']}."
    return svg.drawing(body + key, max(x - GAP, width) + 4, bottom + 50, alt)


def _cells(name: str, shares: Mapping[str, float], x: float, y: float, slot: float) -> str:
    """Return what a criterion cuts of one kind: shade by share, with the percentage where there is room."""
    body = ""
    for place, (module, share) in enumerate(shares.items()):
        heat, at = svg.heat_class(share), x + place * slot
        tip = f"{name}, {module}: {fmt.percent(share, 0)} cut"
        body += svg.rect(at, y, slot - min(1.0, slot / 4), ROW - 1, heat, tip)
        if slot >= NUMBERED:
            ink = "t num onheat" if int(heat[1:]) > 4 else "t num ink"
            body += svg.label(at + slot / 2 - 0.5, y + 14, f"{100 * share:.0f}", ink, "middle")
    return body


def _places(modules: Sequence[str], x: float, y: float, slot: float) -> str:
    """Return where in the model the columns of one kind lie: block numbers, or stages where they begin and fit."""
    stages = [stage_name(module) for module in modules]
    words, _, numbers = zip(*(stage.rpartition(" ") for stage in stages), strict=True)
    if len(set(words)) == 1 and all(number.isdigit() for number in numbers):
        stages = numbers
    body, free = "", x
    for place, stage in beginnings(stages):
        at = x + place * slot
        if at < free:
            continue
        if stage.isdigit() and slot >= 14:
            body, free = body + svg.label(at + slot / 2, y, stage, "t num", "middle"), at
        else:
            body, free = body + svg.label(at, y, stage), at + svg.text_width(stage) + 6
    return body


def _key(x: float, y: float) -> tuple[str, float]:
    """Return the colour scale, and where it ends."""
    title, end = "share of the group cut", "all"
    start = x + svg.text_width(title) + 24
    words = svg.label(x, y + 10, title, "t") + svg.label(start - 6, y + 10, "0", "t num", "end")
    scale = svg.heat_scale(start, y, 18, 12) + svg.label(start + 168, y + 10, end, "t num")
    return words + scale, start + 168 + svg.text_width(end)

"""Where each criterion would cut: one row per criterion, one column per group, shaded by the share that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections import Section
from eval.report.sections.cuts import kind_words, stage_name

PLACE, WITHIN = 31, "cuts"
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


@dataclass(frozen=True)
class Criterion:
    """What one criterion would cut: a share of each group; `own` marks the one that the run went by."""

    name: str
    own: bool
    shares: list[float]


@dataclass(frozen=True)
class Group:
    """Where a group lies in the model, and of what kind it is."""

    module: str
    kind: str


def section(run: RunData) -> Section | None:
    """Show the comparison, and in words what it leaves out; None if none was made."""
    found = run.entry("criteria")
    if not found:
        return None
    groups = [Group(entry["module"], entry["kind"]) for entry in found.get("groups", [])]
    rows = [Criterion(e["name"], e["own"], e["shares"]) for e in found.get("rows", [])]
    return Section(BODY(figure=figure(groups, rows), words=found.get("note") or left_out(found)))


def left_out(found: Mapping[str, Any]) -> str:
    """Say which criteria are left out, and why."""
    reasons = [f"{', '.join(entry['names'])} ({entry['why']})" for entry in found.get("left_out", [])]
    return f"Not computed: {'; '.join(reasons)}." if reasons else ""


def figure(groups: Sequence[Group], rows: Sequence[Criterion]) -> Markup | None:
    """Draw the comparison; None if there is only the run's own criterion."""
    if len(rows) < 2:
        return None
    kinds = list(dict.fromkeys(group.kind for group in groups))
    left = max(svg.text_width(row.name) for row in rows) + 16
    slot = min(WIDEST, (WIDTH - left - GAP * (len(kinds) - 1)) / len(groups))
    top, bottom = 22.0, 22.0 + ROW * len(rows)
    parts = [
        svg.label(left - 10, top + line * ROW + 14, row.name, "t ink own" if row.own else "t", "end")
        for line, row in enumerate(rows)
    ]
    x = left
    for kind in kinds:
        members = [index for index, group in enumerate(groups) if group.kind == kind]
        modules = [groups[index].module for index in members]
        parts.append(svg.label(x, 13, kind_words(kind), "t ink"))
        for line, row in enumerate(rows):
            parts += _cells(row, members, modules, x, top + line * ROW, slot)
        parts += _places(modules, x, bottom + 15, slot)
        x += max(len(members) * slot, svg.text_width(kind_words(kind))) + GAP
    key, width = _key(left, bottom + 34)
    alt = (
        f"Share of each of {len(groups)} groups that {len(rows)} criteria would cut at this run's target; "
        f"its own is {rows[0].name}."
    )
    return svg.drawing("".join(parts) + key, max(x - GAP, width) + 4, bottom + 50, alt)


def _cells(
    row: Criterion, members: Sequence[int], modules: Sequence[str], x: float, y: float, slot: float
) -> list[str]:
    """Return what a criterion cuts of one kind: shade by share, with the percentage where there is room."""
    parts = []
    for place, (index, module) in enumerate(zip(members, modules, strict=True)):
        share, at = row.shares[index], x + place * slot
        heat = svg.heat_class(share)
        tip = f"{row.name}, {module}: {fmt.percent(share, 0)} cut"
        parts.append(svg.rect(at, y, slot - min(1.0, slot / 4), ROW - 1, heat, tip))
        if slot >= NUMBERED:
            ink = "t num onheat" if int(heat[1:]) > 4 else "t num ink"
            parts.append(svg.label(at + slot / 2 - 0.5, y + 14, f"{100 * share:.0f}", ink, "middle"))
    return parts


def _places(modules: Sequence[str], x: float, y: float, slot: float) -> list[str]:
    """Return where in the model the columns of one kind lie: block numbers, or stages where they begin and fit."""
    stages = [stage_name(module) for module in modules]
    families = {stage.rpartition(" ")[0] for stage in stages}
    if len(families) == 1 and all(stage.rpartition(" ")[2].isdigit() for stage in stages):
        stages = [stage.rpartition(" ")[2] for stage in stages]
    parts, free, before = [], x, ""
    for place, stage in enumerate(stages):
        at = x + place * slot
        single = stage.isdigit() and slot >= 14
        if stage != before and at >= free:
            parts.append(
                svg.label(at + slot / 2, y, stage, "t num", "middle") if single else svg.label(at, y, stage)
            )
            free = at if single else at + svg.text_width(stage) + 6
        before = stage
    return parts


def _key(x: float, y: float) -> tuple[str, float]:
    """Return the colour scale, and where it ends."""
    title, end = "share of the group cut", "all"
    start = x + svg.text_width(title) + 24
    parts = [svg.label(x, y + 10, title, "t"), svg.label(start - 6, y + 10, "0", "t num", "end")]
    parts.append(svg.heat_scale(start, y, 18, 12))
    parts.append(svg.label(start + 168, y + 10, end, "t num"))
    return "".join(parts), start + 168 + svg.text_width(end)

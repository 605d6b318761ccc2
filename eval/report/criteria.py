"""Where each criterion would cut: a row a criterion, a column a group, as shade the share that goes."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report import charts, fmt, svg
from eval.report.load import CriteriaCuts
from eval.report.svg import Figure

ROW = 20
GAP = 18  # between kinds
WIDTH = 900
WIDEST = 52.0
NUMBERED = 27.0  # a column as wide as this holds its percentage


def figure(cuts: CriteriaCuts) -> Figure | None:
    """Draw the comparison; None if there is only the run's own criterion."""
    if len(cuts.rows) < 2:
        return None
    kinds = list(dict.fromkeys(kind for _, kind in cuts.groups))
    left = max(svg.text_width(row.name) for row in cuts.rows) + 16
    slot = min(WIDEST, (WIDTH - left - GAP * (len(kinds) - 1)) / len(cuts.groups))
    top, bottom = 22.0, 22.0 + ROW * len(cuts.rows)
    parts = [
        svg.label(left - 10, top + line * ROW + 14, row.name, "t ink own" if row.own else "t", "end")
        for line, row in enumerate(cuts.rows)
    ]
    x = left
    for kind in kinds:
        members = [index for index, (_, its) in enumerate(cuts.groups) if its == kind]
        parts.append(svg.label(x, 13, charts.kind_words(kind), "t ink"))
        parts += _cells(cuts, members, x, top, slot)
        parts += _places([cuts.groups[index][0] for index in members], x, bottom + 15, slot)
        x += max(len(members) * slot, svg.text_width(charts.kind_words(kind))) + GAP
    key, width = _key(left, bottom + 34)
    alt = (
        f"Share of each of {len(cuts.groups)} groups that {len(cuts.rows)} criteria would cut at this run's target; "
        f"its own is {cuts.rows[0].name}."
    )
    return svg.drawing("criteria", "".join(parts) + key, max(x - GAP, width) + 4, bottom + 50, alt)


def _cells(cuts: CriteriaCuts, members: Sequence[int], x: float, top: float, slot: float) -> list[str]:
    """Return the columns of one kind: shade by share, with the percentage where there is room."""
    parts = []
    for line, row in enumerate(cuts.rows):
        y = top + line * ROW
        for place, index in enumerate(members):
            share, at = row.shares[index], x + place * slot
            heat = svg.heat_class(share)
            tip = f"{row.name}, {cuts.groups[index][0]}: {fmt.percent(share, 0)} cut"
            parts.append(svg.rect(at, y, slot - min(1.0, slot / 4), ROW - 1, heat, tip))
            if slot >= NUMBERED:
                ink = "t num onheat" if int(heat[1:]) > 4 else "t num ink"
                parts.append(svg.label(at + slot / 2 - 0.5, y + 14, f"{100 * share:.0f}", ink, "middle"))
    return parts


def _places(modules: Sequence[str], x: float, y: float, slot: float) -> list[str]:
    """Return where in the model the columns of one kind lie: block numbers, or stages where they begin and fit."""
    stages = [charts.stage_name(module) for module in modules]
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

"""Where each criterion would cut: a row a criterion, a column a group, as shade the share that goes."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report import charts, fmt, svg
from eval.report.load import CriteriaCuts
from eval.report.svg import Figure

ROW = 19
WIDTH = 820


def figure(cuts: CriteriaCuts) -> Figure | None:
    """Draw the comparison; None if there is only the run's own criterion."""
    if len(cuts.rows) < 2:
        return None
    order = _by_kind(cuts.groups)
    left = max(svg.text_width(row.name) for row in cuts.rows) + 16
    gaps = len({kind for _, kind in cuts.groups}) - 1
    slot = min(46.0, (WIDTH - left - 10 * gaps) / len(order))
    parts, x, kind, top = [], left, None, 22.0
    bottom = top + ROW * len(cuts.rows)
    for index in order:
        module, this = cuts.groups[index]
        if this != kind:
            x += 10 if kind is not None else 0
            parts.append(svg.label(x, 12, charts.kind_words(this), "t ink"))
            kind = this
        for line, row in enumerate(cuts.rows):
            share = row.shares[index]
            tip = f"{row.name}, {module}: {fmt.percent(share, 0)} cut"
            parts.append(svg.rect(x, top + line * ROW, max(slot - 1, 1), ROW - 2, svg.heat_class(share), tip))
        x += slot
    for line, row in enumerate(cuts.rows):
        y = top + line * ROW + 13
        parts.append(svg.label(left - 10, y, row.name, "t ink own" if row.own else "t", "end"))
    parts.append(svg.label(left, bottom + 14, "first block →", "t"))
    scale = left + svg.text_width("first block →") + 44
    parts += [svg.rect(scale + k * 18, bottom + 6, 18, 11, svg.heat_class(k / 8)) for k in range(9)]
    parts.append(svg.label(scale - 8, bottom + 15, "0", "t num", "end"))
    parts.append(svg.label(scale + 170, bottom + 15, "all of the group cut", "t"))
    alt = (
        f"Share of each of {len(order)} groups that {len(cuts.rows)} criteria would cut at this run's target."
    )
    width = max(x, scale + 170 + svg.text_width("all of the group cut")) + 4
    return svg.drawing("criteria", "".join(parts), width, bottom + 24, alt)


def _by_kind(groups: Sequence[tuple[str, str]]) -> list[int]:
    """Return the groups' places, those of a kind together, else in model order."""
    kinds = list(dict.fromkeys(kind for _, kind in groups))
    return sorted(range(len(groups)), key=lambda index: kinds.index(groups[index][1]))

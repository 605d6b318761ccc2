"""Cuts: how much of every group is kept, as a list of bars, and for many groups as columns in model order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 30
MANY_GROUPS = 48  # from here on the cuts are drawn by depth and the list of bars is folded
KIND_CLASSES = {"attention_heads": "k0", "ffn_channels": "k1", "resnet_channels": "k2", "blocks": "k3"}
KIND_WORDS = {"ffn_channels": "FFN channels", "resnet_channels": "ResNet channels"}

BARS = template(
    """
<div class="bars" role="list">
{% for cut in cuts %}
<div role="listitem"><span class="name path">{{ cut.module }}</span>
{% if cut.removed %}
<span class="bar {{ cut.cls }} gone"></span><span class="num">{{ cut.words }}</span><span class="num soft pct"></span>
{% else %}
<span class="bar {{ cut.cls }}"><i style="width:{{ '%.1f' | format(100 * cut.share) }}%"></i></span>
<span class="num">{{ cut.words }}</span><span class="num soft pct">{{ cut.share | percent }}</span>
{% endif %}
</div>
{% endfor %}
</div>
"""
)
BODY = template(
    """
<p class="chips">
{%- for cls, kind, words in totals %}
<span><span class="swatch {{ cls }}"></span><b>{{ kind }}</b> {{ words }}</span>
{%- endfor %}
{% if removed %}<span><span class="swatch gone"></span>removed with its block or expert</span>{% endif %}</p>
{% if depth %}
<p class="soft">One column per group, in model order from left to right: the coloured part is kept.</p>
<div class="scroll"><figure>{{ depth }}</figure></div>
<details><summary>All {{ count }} groups as a list</summary>{{ bars }}</details>
{% else %}
{{ bars }}
{% endif %}
"""
)


Cut = Mapping[str, Any]
"""What happened to one group: `kept` of `total` units, or `removed` with its whole block; see `read_cuts`."""


def section(run: RunData) -> Section | None:
    """Show where the cuts fell; None for a run without groups."""
    cuts = read_cuts(run.data.get("cuts") or [])
    if not cuts:
        return None
    # Blocks that stay are only counted.
    shown = [cut for cut in cuts if cut["kind"] != "blocks" or cut["removed"]]
    body = BODY(
        totals=_totals(cuts),
        removed=any(cut["removed"] for cut in shown),
        depth=depth(cuts) if len(cuts) > MANY_GROUPS else None,
        bars=BARS(cuts=shown),
        count=len(shown),
    )
    return Section(body, "Where the cuts fell", link="Cuts")


def read_cuts(entries: Sequence[Mapping[str, Any]]) -> list[Cut]:
    """Return the entries with colour ``cls``, kept ``share`` and ``words``; new kinds take the next free colours."""
    new = sorted({entry["kind"] for entry in entries} - set(KIND_CLASSES))
    classes = KIND_CLASSES | {kind: f"k{4 + index % 3}" for index, kind in enumerate(new)}
    return [
        {**cut, "cls": classes[cut["kind"]], "share": cut["kept"] / cut["total"], "words": _words(cut)}
        for cut in entries
    ]


def _words(cut: Cut) -> str:
    """Return what is left of a group."""
    if cut["removed"]:
        return "removed with its block or expert" if cut["kind"] != "blocks" else "block removed"
    return f"{cut['kept']:,} of {cut['total']:,}"


def kind_words(kind: str) -> str:
    """Return the name of a kind as people write it."""
    return KIND_WORDS.get(kind, kind.replace("_", " "))


def _totals(cuts: Sequence[Cut]) -> list[tuple[str, str, str]]:
    """Return colour, name and kept and total units of each kind; units in removed blocks count as gone."""
    found = []
    for kind, cls in {cut["kind"]: cut["cls"] for cut in cuts}.items():
        members = [cut for cut in cuts if cut["kind"] == kind]
        kept = sum(cut["kept"] for cut in members if not cut["removed"])
        words = f"{kept:,} of {sum(cut['total'] for cut in members):,} kept in {fmt.plural(len(members), 'group')}"
        found.append((cls, kind_words(kind), words))
    return found


def depth(cuts: Sequence[Cut]) -> Markup:
    """Draw one column per group in model order, one band per kind: how much of each is kept. For many groups."""
    kinds = [kind for _, kind in sorted({(cut["cls"], cut["kind"]) for cut in cuts})]
    left, width, band, gap = 40, 960, 64, 30
    slot = (width - left - 8) / len(cuts)
    foot = len(kinds) * (band + gap)
    body = ""
    for row, kind in enumerate(kinds):
        top = row * (band + gap) + 22
        body += svg.label(left, top - 8, kind_words(kind), "t ink")
        for y, text in ((top + band, "0"), (top, "all")):
            body += svg.label(left - 7, y + 4, text, "t num", "end") + svg.line(left, y, width - 8, y, "grid")
        for index, cut in enumerate(cuts):
            if cut["kind"] == kind:
                body += _column(cut, left + index * slot, top, max(1.0, slot - 1), band)
    body += _stages(cuts, left, slot, foot + 4)
    alt = f"Kept share of {len(cuts)} groups in model order, by kind."
    return svg.drawing(body, width, foot + 34, alt)


def _column(cut: Cut, x: float, top: float, width: float, height: float) -> str:
    title = f"{cut['module']} ({kind_words(cut['kind'])}): {cut['words']}"
    if cut["removed"]:
        return svg.hatched(x, top, width, height, title)
    kept = height * cut["share"]
    track = svg.rect(x, top, width, height, "track", title)
    return track + svg.rect(x, top + height - kept, width, kept, f"fill {cut['cls']}", title)


def _stages(cuts: Sequence[Cut], left: float, slot: float, y: float) -> str:
    """Return ticks and names where a new stage of the model begins, as far as names fit."""
    body, free = "", 0.0
    for index, stage in beginnings([stage_name(cut["module"]) for cut in cuts]):
        x = left + index * slot
        body += svg.line(x, y - 4, x, y + 4, "axis")
        if x >= free and x + svg.text_width(stage) <= left + slot * len(cuts) + 8:
            body += svg.label(x, y + 17, stage, "t")
            free = x + svg.text_width(stage) + 8
    return body


def beginnings(names: Sequence[str]) -> list[tuple[int, str]]:
    """Return place and name where a name differs from the one before."""
    return [(place, name) for place, name in enumerate(names) if place == 0 or name != names[place - 1]]


def stage_name(module: str) -> str:
    """Return the part of the model that a module lies in: ``down_blocks.0.…`` is ``down 0``."""
    head = module.split(".")[:2]
    word = head[0].removesuffix("s").removesuffix("_block").replace("_", " ")
    return f"{word} {head[1]}" if len(head) > 1 and head[1].isdigit() else word

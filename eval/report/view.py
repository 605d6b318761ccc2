"""What the templates show of one run, gathered: words, rows, bars and drawings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.report import charts, criteria, fmt, images, maps, tables, words
from eval.report.folding import Folding, folding
from eval.report.load import Cut, Run
from eval.report.svg import Figure

MANY_GROUPS = 48  # from here on the cuts are drawn by depth and the list of bars is folded


@dataclass(frozen=True)
class Sinks:
    """The sink section: verdict in words, maps of the strongest sites, and what is not shown."""

    verdict: str
    found: bool
    maps: list[maps.SiteMaps]
    bars: list[dict[str, Any]]
    key: list[Figure]
    rest: str


@dataclass
class View:
    """One run, ready for both templates."""

    run: Run
    anchor: str
    by: str
    headline: str
    verdict: list[str]
    warnings: list[str]
    notes: list[str]
    asked: list[tuple[str, str]]
    got: list[tuple[str, str]]
    tiles: list[tuple[str, str, str]]
    blocks: list[tables.Block]
    samples: images.Samples | None
    cut_rows: list[dict[str, Any]]
    cut_totals: list[dict[str, Any]]
    depth: Figure | None
    criteria: Figure | None
    criteria_words: str
    recovery: Figure | None
    smoothed: bool
    denoising: list[Figure]
    sinks: Sinks | None
    heads: Figure | None
    head_counts: list[tuple[str, int, int]]
    folding: Folding | None
    stages: list[dict[str, Any]]
    facts: list[tuple[str, str]]
    sections: list[tuple[str, str]] = field(default_factory=list)


def view(run: Run, index: int) -> View:
    """Gather everything that the templates show of one run."""
    many = len(run.cuts) > MANY_GROUPS
    shown = View(
        run=run,
        anchor=f"run{index + 1}",
        by=_by(run),
        headline=words.headline(run),
        verdict=words.verdict(run),
        warnings=words.warnings(run),
        notes=words.notes(run),
        asked=words.facts(run.asked),
        got=words.facts(run.got),
        tiles=_tiles(run),
        blocks=tables.results(run),
        samples=images.samples(run),
        cut_rows=_cut_rows(run.cuts),
        cut_totals=_cut_totals(run.cuts),
        depth=charts.depth(run.cuts) if many else None,
        criteria=criteria.figure(run.criteria) if run.criteria else None,
        criteria_words=_criteria_words(run),
        recovery=charts.recovery(run.recovery) if run.recovery else None,
        smoothed=run.recovery is not None and charts.is_smoothed(run.recovery),
        denoising=charts.denoising(run),
        sinks=_sinks(run) if run.sites else None,
        heads=charts.diagnostics(run.heads) if _sink_heads(run) else None,
        head_counts=charts.head_counts(run.heads),
        folding=folding(run.outputs, run.outputs_note),
        stages=_stages(run),
        facts=_facts(run),
    )
    present = (
        ("results", "Results", shown.blocks),
        ("samples", "Samples", shown.samples),
        ("cuts", "Cuts", shown.cut_rows),
        ("recovery", "Recovery", shown.recovery),
        ("denoising", "Denoising error", shown.denoising),
        ("sinks", "Sinks", shown.sinks),
        ("heads", "Heads", shown.head_counts),
        (
            "measured",
            "How it was measured" if run.metrics else "This run",
            shown.facts or shown.stages or shown.notes,
        ),
    )
    shown.sections = [(key, title) for key, title, there in present if there]
    return shown


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return the figures at the top as (name, value, small print)."""
    found = []
    for key, name in (("macs", "MACs left"), ("params", "parameters left")):
        value, asked = words.reached(run, key), run.asked.get(key)
        if value is not None:
            fraction = isinstance(asked, (int, float)) and not isinstance(asked, bool) and asked <= 1
            pair = [
                fmt.quantity(run.metric(s, key)) for s in (run.reference, run.final) if run.metric(s, key)
            ]
            found.append(
                (name, fmt.percent(value), f"asked {fmt.percent(asked)}" if fraction else " → ".join(pair))
            )
    fast, call = words.speedup(run, run.final), run.metric(run.final, "call")
    if fast is not None:
        batch = f"one call, batch {call['batch_size']}" if call and call.get("batch_size") else "one call"
        found.append(("speed", fmt.times(fast), batch))
    size = run.ratio(run.final, "file_bytes")
    if size is not None:
        pair = [fmt.quantity(run.metric(s, "file_bytes"), "B") for s in (run.reference, run.final or "")]
        found.append(("file size", fmt.percent(size), " → ".join(pair)))
    own, base = run.metric(run.final, "frechet"), run.metric(run.reference, "frechet")
    if own is not None:
        small = f"{run.reference} {fmt.number(base)}" if base is not None else ""
        found.append(("Fréchet distance", fmt.number(own), small))
    return found


def _cut_rows(cuts: Sequence[Cut]) -> list[dict[str, Any]]:
    """Return the bars: every group, and every removed block; blocks that stay are only counted."""
    kinds = [cut.kind for cut in cuts]
    return [
        {
            "label": cut.module,
            "kind": charts.kind_words(cut.kind),
            "cls": charts.kind_class(cut.kind, kinds),
            "share": 100 * cut.kept / cut.total,
            "percent": "" if cut.removed else fmt.percent(cut.kept / cut.total, 0),
            "words": charts.cut_words(cut),
            "removed": cut.removed,
            "blocks": "█" * round(16 * cut.kept / cut.total) + "░" * (16 - round(16 * cut.kept / cut.total)),
        }
        for cut in cuts
        if cut.kind != "blocks" or cut.removed
    ]


def _cut_totals(cuts: Sequence[Cut]) -> list[dict[str, Any]]:
    """Return kept and total units by kind; units in removed blocks count as gone."""
    kinds: dict[str, list[Cut]] = {}
    for cut in cuts:
        kinds.setdefault(cut.kind, []).append(cut)
    found = []
    for kind, members in kinds.items():
        kept, total = (
            sum(0 if cut.removed else cut.kept for cut in members),
            sum(cut.total for cut in members),
        )
        found.append(
            {
                "kind": charts.kind_words(kind),
                "cls": charts.kind_class(kind, list(kinds)),
                "words": f"{kept:,} of {total:,} kept in {len(members)} group{'s' if len(members) != 1 else ''}",
                "percent": fmt.percent(kept / total, 0),
            }
        )
    return found


def _criteria_words(run: Run) -> str:
    return "" if run.criteria is None else run.criteria.note or run.criteria.words


def _sinks(run: Run) -> Sinks:
    ranked = maps.strongest(run.sites)
    found = any(maps.has_sinks(site) for site in ranked)
    shown = [site for site in ranked if maps.has_sinks(site)][: maps.MAX_SITES] if found else ranked[:1]
    rest = [site for site in ranked if site not in shown]
    text = ""
    if found and rest:
        top = max(maps.peak_mass(site) for site in rest)
        names = ", ".join(site.module for site in rest[:6]) + (
            f" and {len(rest) - 6} more" if len(rest) > 6 else ""
        )
        why = f"sink mass at most {fmt.number(top, 2)}" if top >= maps.SINK_MASS_FLOOR else "no sinks there"
        text = f"Not drawn ({why}): {names}."
    return Sinks(
        verdict=maps.overview(run.sites),
        found=found,
        maps=[maps.site_maps(site, index) for index, site in enumerate(shown)],
        bars=[] if found else _sink_bars(run),
        key=maps.key(),
        rest=text,
    )


def _sink_bars(run: Run) -> list[dict[str, Any]]:
    """Return, a site, how near its strongest key comes to being a sink."""
    shares = [maps.peak_relative(site) / site.threshold for site in run.sites]
    full = max(1.15, *shares)
    return [
        {
            "label": site.module,
            "share": 100 * share / full,
            "mark": 100 / full,
            "words": f"{fmt.times(maps.peak_relative(site))} uniform, sink from {site.threshold:.3g}×",
        }
        for site, share in zip(run.sites, shares, strict=True)
    ][:24]


def _sink_heads(run: Run) -> bool:
    """Tell whether any head has enough sink mass for a plot over it."""
    return any(head.sink_mass >= maps.SINK_MASS_FLOOR for head in run.heads)


def _by(run: Run) -> str:
    """Return the line under the title: model, run, data, date."""
    name = f"run {run.name}" if run.name != run.title else None
    created = re.sub(r"(?<=\d)T(?=\d)", " ", run.created) if run.created else None
    return " · ".join(part for part in (run.model, name, run.data, created) if part)


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return what was run on what, as label and text."""
    threads = (run.metric(run.final or run.reference, "call") or {}).get("num_threads")
    timed = f"; latency on {fmt.plural(threads, 'thread')}" if run.device and threads else ""
    found = [("Model", run.model), ("Data", run.data), ("Device", f"{run.device or ''}{timed}")]
    found += [(name, str(value)) for name, value in run.facts.items()]
    for name, values in (("Versions", run.versions), ("Seeds", run.seeds)):
        found.append((name, ", ".join(f"{key} {value}" for key, value in values.items())))
    return [(name, text) for name, text in found if text]


def _stages(run: Run) -> list[dict[str, Any]]:
    total = sum(run.seconds.values()) or 1.0
    return [
        {"name": name, "text": fmt.seconds(value), "share": 100 * value / total}
        for name, value in run.seconds.items()
    ]

"""Sinks: where attention piles up, by head, timestep and token, and whether it does at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from eval.report import drift, fmt, grids, svg
from eval.report.data import RunData
from eval.report.html import Section, template
from eval.report.sites import SINK_MASS_FLOOR, Site, read_sites

PLACE = 60
MAX_SITES = 8
MAX_BARS = 24
MAX_KEYS = 192
PANEL = 84

BODY = template(
    """
{% macro maps() %}
<div class="keys">{{ key | join }}</div>
{% for site in shown %}
<div class="site"><h3 class="path">{{ site.module }}</h3><p>{{ site.words }}</p>
<div class="pair"><div>{{ site.heads }}</div>
{%- if site.drift %}<div>{{ site.drift }}</div>{% endif %}<div class="scroll">{{ site.positions }}</div></div></div>
{% endfor %}
{% endmacro %}
<p>{{ verdict }}</p>
{% if not bars %}
<p class="soft">A sink is a token that draws far more attention than its share. Each site shows how much of each head's
attention goes to sinks; the path of their centroid over the image from the noisiest timestep (ring) on, and how many of
the sinks that were there then are still the same; and where they are. A token that stands out in every grid is a stable
sink; one that moves from grid to grid drifts with the timestep.</p>
{{ maps() }}
{% if rest %}<p class="soft">{{ rest }}</p>{% endif %}
{% else %}
<p class="soft">Strongest key of each site, over all timesteps, mean over heads.
{%- if marked %} The mark is where a key would count as a sink.{% endif %}</p>
<div class="bars">
{% for site in bars %}
<div><span class="name path">{{ site.module }}</span>
<span class="bar k4"><i style="width:{{ '%.1f' | format(100 * site.nearness / full) }}%"></i>
{%- if marked %}<u style="left:{{ '%.1f' | format(100 / full) }}%"></u>{% endif %}</span>
<span class="num">{{ site.peak_relative | times }} uniform
{%- if marked %}, sink from {{ '%.3g' | format(site.threshold) }}×{% endif %}</span>
{#- #}<span></span></div>
{% endfor %}
</div>
<details><summary>Maps of the strongest site</summary>{{ maps() }}</details>
{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the strongest sites, or how near the sites come to having sinks; None without statistics of sinks."""
    sites = read_sites(run)
    if not sites:
        return None
    ranked = strongest(sites)
    shown = [site for site in ranked if site.has_sinks][:MAX_SITES]
    body = BODY(
        verdict=overview(sites),
        bars=[] if shown else sites[:MAX_BARS],
        marked=sites[0].threshold is not None,
        full=max(1.15, *(site.nearness for site in sites)),
        shown=[site_maps(site) for site in shown or ranked[:1]],
        key=key(),
        rest=_rest(ranked[len(shown) :]),
    )
    return Section(body, "Attention sinks", link="Sinks")


def strongest(sites: Sequence[Site]) -> list[Site]:
    """Return the sites sorted by sink mass, then by relative mass, strongest first."""
    return sorted(sites, key=lambda site: (-site.peak_mass, -site.nearness))


def _rest(sites: Sequence[Site]) -> str:
    """Say which sites are not drawn."""
    if not sites:
        return ""
    top = max(site.peak_mass for site in sites)
    why = f"sink mass at most {fmt.number(top, 2)}" if top >= SINK_MASS_FLOOR else "no sinks there"
    return f"Not drawn ({why}): {_first([site.module for site in sites], 6)}."


def _first(names: Sequence[str], most: int) -> str:
    """Join the first names and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def overview(sites: Sequence[Site]) -> str:
    """Say in words whether there are sinks, with the numbers that decide it."""
    with_sinks, places = sum(site.has_sinks for site in sites), fmt.plural(len(sites), "attention site")
    if not with_sinks:
        top = max(strongest(sites), key=lambda site: site.peak_relative)
        return (
            f"No attention sinks. At none of the {places} do sink keys take {fmt.percent(SINK_MASS_FLOOR)} of a "
            f"head's attention at any timestep. The strongest single key, at {top.module}, gets "
            f"{fmt.times(top.peak_relative)} the uniform share"
            f"{'' if top.threshold is None else f'; a sink needs {top.threshold:.3g}×'}. "
            "Sink-aware scores have little to act on in this model."
        )
    top = strongest(sites)[0]
    return (
        f"Sinks at {with_sinks} of {places}. The strongest is {top.module}: its sink keys take up to "
        f"{fmt.percent(top.peak_mass, 0)} of a head's attention, and one key gets up to "
        f"{fmt.times(top.peak_relative)} the uniform share."
    )


def site_maps(site: Site) -> dict[str, Any]:
    """Return one site as shown: words, both maps, and the drift of its sinks if it has any."""
    return {
        "module": site.module,
        "words": describe(site),
        "heads": _head_map(site),
        "positions": _grid_map(site, site.grid) if site.grid else _key_map(site),
        "drift": drift.figure(site) if site.has_sinks else None,
    }


def describe(site: Site) -> str:
    """Say how strong the sinks of a site are and whether they stay in place over the timesteps."""
    means, keys = site.sink_mass.mean(axis=0), site.key_mass.shape[1]
    text = f"{len(means)} heads, {keys:,} keys"
    text += f" ({site.grid[0]} × {site.grid[1]} tokens)" if site.grid else ""
    if not site.has_sinks:
        return f"{text}. No sinks: at most {fmt.times(site.peak_relative)} the uniform share on one key."
    text += f". Strongest head {means.argmax()}: mean sink mass {fmt.number(float(means.max()), 2)}."
    always, ever = site.sinks.all(axis=0), site.sinks.any(axis=0)
    if not ever.any():
        return text + " No key is a sink on average over samples: sinks sit elsewhere from image to image."
    for when, keys in (("every timestep", always), ("some timesteps only", ever & ~always)):
        text += f" Sink at {when}: {_keys(site, keys)}." if keys.any() else ""
    return text


def _keys(site: Site, chosen: ArrayLike) -> str:
    """Name keys: by row and column on a grid, else by number."""
    keys, grid = np.flatnonzero(chosen), site.grid
    names = [f"({k // grid[1]}, {k % grid[1]})" if grid else str(k) for k in keys]
    return f"{'token' if grid else 'key'}{'s' if len(keys) > 1 else ''} {_first(names, 4)}"


def _head_map(site: Site) -> Markup:
    """Draw sink mass, one row per head, one column per timestep bucket."""
    buckets, heads = site.sink_mass.shape
    left, top = 24, 22
    cell_w = 176 / buckets
    cell_h = 15.0 if heads <= 24 else max(2.5, 360 / heads)
    body = svg.label(0, 12, "sink mass, one row per head", "t ink")
    for head in range(heads):
        y = top + head * cell_h
        if heads <= 12 or head % max(1, heads // 8) == 0:
            body += svg.label(left - 6, y + cell_h / 2 + 4, head, "t num", "end")
        for bucket, mass in enumerate(site.sink_mass[:, head].tolist()):
            tip = f"head {head}, bucket {bucket}: {fmt.number(mass)}" if buckets * heads <= 512 else ""
            height = cell_h - (cell_h > 5)
            body += svg.rect(left + bucket * cell_w, y, cell_w - 1, height, svg.heat_class(mass), tip)
    right, bottom = left + buckets * cell_w, top + heads * cell_h
    body += grids.bucket_ends(left, right, bottom + 14)
    alt = f"Sink mass of {heads} heads over {buckets} timestep buckets at {site.module}; peak {site.peak_mass:.2f}."
    return svg.drawing(body, right + 4, bottom + 22, alt)


def _share(site: Site) -> NDArray[np.float64]:
    """Map relative mass to [0, 1] by logarithm: uniform or less is 0, all mass on one key is 1."""
    return np.log(np.clip(site.relative_mass, 1.0, None)) / math.log(max(site.key_mass.shape[1], 2))


def _grid_map(site: Site, grid: list[int]) -> Markup:
    """Draw one token grid per timestep bucket: relative mass by colour, sinks outlined."""
    share, sinks = grids.pooled(_share(site), grid), grids.pooled(site.sinks, grid)
    buckets, rows, columns = share.shape
    cell = PANEL / max(rows, columns)
    across = min(buckets, 8)
    step_x, step_y = columns * cell + 10, rows * cell + 24
    body = svg.label(0, 12, "attention by token, one grid per timestep bucket", "t ink")
    for bucket in range(buckets):
        x, y = (bucket % across) * step_x + 1, (bucket // across) * step_y + 22
        body += grids.panel(share[bucket], x, y, cell, f"bucket {bucket}")
        body += _outlines(sinks[bucket], x, y, cell)
        body += svg.label(x + columns * cell / 2, y + rows * cell + 14, bucket, "t num", "middle")
    if (factor := grids.reduction(grid)) > 1:
        words = f"largest of {factor} × {factor} tokens per cell"
        body += svg.label(across * step_x - 9, 12, words, "t", "end")
    lines, last = math.ceil(buckets / across), (buckets - 1) % across
    foot = (lines - 1) * step_y + rows * cell + 52
    body += grids.bucket_ends(1, last * step_x + 1 + columns * cell, foot)
    alt = f"Relative attention mass by token at {site.module} for {buckets} timestep buckets, sinks outlined."
    return svg.drawing(body, max(across * step_x - 8, 320), foot + 6, alt)


def _outlines(sinks: NDArray[Any], x: float, y: float, cell: float) -> str:
    size = max(cell, 4.0)
    x, y = x - (size - cell) / 2, y - (size - cell) / 2
    return "".join(svg.rect(x + c * cell, y + r * cell, size, size, "sink") for r, c in np.argwhere(sinks))


def _key_map(site: Site) -> Markup:
    """Draw relative mass, one row per timestep bucket, one column per key (text tokens); sinks outlined."""
    keys = site.key_mass.shape[1]
    factor = grids.reduction([1, keys], MAX_KEYS)
    share, sinks = (
        grids.pooled(values, [1, keys], most=MAX_KEYS)[:, 0] for values in (_share(site), site.sinks)
    )
    buckets, columns = share.shape
    left, top, width, height = 24, 22, 640, 15
    cell, bottom = width / columns, top + buckets * height
    body = svg.label(0, 12, "attention by key (across) and timestep bucket (down, 0 = least noise)", "t ink")
    for bucket in range(buckets):
        y = top + bucket * height
        body += svg.label(left - 6, y + 12, bucket, "t num", "end")
        body += svg.rect(left, y, width, height - 1, "h0", f"bucket {bucket}")
    body += f'<g transform="translate({left} {top}) scale(1 {height / cell:g})">'
    body += grids.cells(share, 0, 0, cell) + "</g>"
    for bucket, column in np.argwhere(sinks):
        body += svg.rect(left + column * cell, top + bucket * height, max(cell, 3), height - 1, "sink")
    for key in svg.linear_ticks(0, keys - 1, 8):
        body += svg.label(left + (key // factor + 0.5) * cell, bottom + 14, int(key), "t num", "middle")
    if factor > 1:
        body += svg.label(left + width, 12, f"largest of {factor} keys per column", "t", "end")
    alt = f"Relative attention mass by key at {site.module} for {buckets} timestep buckets, sinks outlined."
    return svg.drawing(body, left + width + 4, bottom + 22, alt)


def key() -> list[Markup]:
    """Draw the colour scales of both maps, the second with the mark of a sink."""
    figures = []
    scales = {"sink mass": ("0", "½", "1"), "attention on a key": ("≤ uniform", "√M ×", "all (M ×)")}
    for name, ends in scales.items():
        start = svg.text_width(name) + 12
        width = start + 202
        body = svg.label(0, 22, name, "t ink") + svg.heat_scale(start, 10, 22, 14)
        for place, (text, anchor) in enumerate(zip(ends, ("start", "middle", "end"), strict=True)):
            body += svg.label(start + place * 99, 40, text, "t num", anchor)
        if figures:
            body += svg.rect(width + 16, 10, 14, 14, "sink") + svg.label(width + 38, 22, "sink", "t ink")
            width += 80
        figures.append(svg.drawing(body, width, 46, f"Colour scale of {name}: {', '.join(ends)}."))
    return figures

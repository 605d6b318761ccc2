"""Sinks: where attention piles up, by head, timestep and token, and whether it does at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.report import drift, fmt, grids, svg
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections import Section
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
<p class="soft">Strongest key of each site, over all timesteps, mean over heads. The mark is where a key would count as
a sink.</p>
<div class="bars">
{% for bar in bars %}
<div><span class="name path">{{ bar.label }}</span>
<span class="bar k4"><i style="width:{{ bar.share }}%"></i><u style="left:{{ bar.mark }}%"></u></span>
<span class="num">{{ bar.words }}</span><span></span></div>
{% endfor %}
</div>
<details><summary>Maps of the strongest site all the same</summary>{{ maps() }}</details>
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
        bars=[] if shown else _bars(sites),
        shown=[site_maps(site) for site in shown or ranked[:1]],
        key=key(),
        rest=_rest(ranked[len(shown) :]),
    )
    return Section(body, "Attention sinks", link="Sinks")


def strongest(sites: Sequence[Site]) -> list[Site]:
    """Return the sites sorted by sink mass, then by relative mass, strongest first."""
    return sorted(sites, key=lambda site: (-site.peak_mass, -site.peak_relative / site.threshold))


def _rest(sites: Sequence[Site]) -> str:
    """Say which sites are not drawn."""
    if not sites:
        return ""
    top = max(site.peak_mass for site in sites)
    names = ", ".join(site.module for site in sites[:6])
    more = f" and {len(sites) - 6} more" if len(sites) > 6 else ""
    why = f"sink mass at most {fmt.number(top, 2)}" if top >= SINK_MASS_FLOOR else "no sinks there"
    return f"Not drawn ({why}): {names}{more}."


def _bars(sites: Sequence[Site]) -> list[dict[str, str]]:
    """Return for each site how near its strongest key comes to being a sink."""
    full = max(1.15, *(site.peak_relative / site.threshold for site in sites))
    return [
        {
            "label": site.module,
            "share": f"{100 * site.peak_relative / site.threshold / full:.1f}",
            "mark": f"{100 / full:.1f}",
            "words": f"{fmt.times(site.peak_relative)} uniform, sink from {site.threshold:.3g}×",
        }
        for site in sites[:MAX_BARS]
    ]


def overview(sites: Sequence[Site]) -> str:
    """Say in words whether there are sinks, with the numbers that decide it."""
    ranked = strongest(sites)
    with_sinks = [site for site in ranked if site.has_sinks]
    places = f"{len(sites)} attention site{'s' if len(sites) != 1 else ''}"
    if not with_sinks:
        top = max(ranked, key=lambda site: site.peak_relative)
        return (
            f"No attention sinks. At none of the {places} do sink keys take {fmt.percent(SINK_MASS_FLOOR)} of a "
            f"head's attention at any timestep. The strongest single key, at {top.module}, gets "
            f"{fmt.times(top.peak_relative)} the uniform share; a sink needs {top.threshold:.3g}×. "
            "Sink-aware scores have little to act on in this model."
        )
    top = ranked[0]
    return (
        f"Sinks at {len(with_sinks)} of {places}. The strongest is {top.module}: its sink keys take up to "
        f"{fmt.percent(top.peak_mass, 0)} of a head's attention, and one key gets up to "
        f"{fmt.times(top.peak_relative)} the uniform share."
    )


def site_maps(site: Site) -> dict[str, Any]:
    """Return one site as shown: words, both maps, and the drift of its sinks if it has any."""
    return {
        "module": site.module,
        "words": describe(site),
        "heads": _head_map(site),
        "positions": _grid_map(site) if site.grid else _key_map(site),
        "drift": drift.figure(site) if site.has_sinks else None,
    }


def describe(site: Site) -> str:
    """Say how strong the sinks of a site are and whether they stay in place over the timesteps."""
    mass, keys = site.sink_mass, site.key_mass.shape[1]
    means = np.nanmean(mass, axis=0) if np.isfinite(mass).any() else np.zeros(mass.shape[1])
    text = f"{mass.shape[1]} heads, {keys:,} keys"
    text += f" ({site.grid[0]} × {site.grid[1]} tokens)" if site.grid else ""
    if not site.has_sinks:
        return f"{text}. No sinks: at most {fmt.times(site.peak_relative)} the uniform share on one key."
    text += f". Strongest head {int(np.nanargmax(means))}: mean sink mass {fmt.number(float(np.nanmax(means)), 2)}."
    sinks = site.sinks
    if not sinks.any():
        return text + " No key is a sink on average over samples: sinks sit elsewhere from image to image."
    always, some = np.flatnonzero(sinks.all(axis=0)), np.flatnonzero(sinks.any(axis=0) & ~sinks.all(axis=0))
    if len(always):
        text += f" Sink at every timestep: {_keys(site, always)}."
    if len(some):
        text += f" Sink at some timesteps only: {_keys(site, some)}."
    return text


def _keys(site: Site, keys: NDArray[np.intp], most: int = 4) -> str:
    """Name keys: by row and column on a grid, else by number."""
    shown = [f"({k // site.grid[1]}, {k % site.grid[1]})" if site.grid else str(k) for k in keys[:most]]
    word = "token" if site.grid else "key"
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{word}{'s' if len(keys) > 1 else ''} {', '.join(shown)}{more}"


def _head_map(site: Site) -> Markup:
    """Draw sink mass, one row per head, one column per timestep bucket."""
    buckets, heads = site.sink_mass.shape
    left, top = 24, 22
    cell_w = min(24.0, 176 / buckets)
    cell_h = 15.0 if heads <= 24 else max(2.5, 360 / heads)
    parts = [svg.label(0, 12, "sink mass, one row per head", "t ink")]
    tips = buckets * heads <= 512
    for head in range(heads):
        y = top + head * cell_h
        if heads <= 12 or head % max(1, heads // 8) == 0:
            parts.append(svg.label(left - 6, y + cell_h / 2 + 4, head, "t num", "end"))
        for bucket in range(buckets):
            value = site.sink_mass[bucket, head]
            tip = f"head {head}, bucket {bucket}: {fmt.number(float(value))}" if tips else ""
            cls = "nodata" if math.isnan(value) else svg.heat_class(float(value))
            parts.append(
                svg.rect(left + bucket * cell_w, y, cell_w - 1, cell_h - (1 if cell_h > 5 else 0), cls, tip)
            )
    bottom = top + heads * cell_h
    parts += grids.bucket_ends(left, left + buckets * cell_w, bottom + 14)
    alt = f"Sink mass of {heads} heads over {buckets} timestep buckets at {site.module}; peak {site.peak_mass:.2f}."
    return svg.drawing("".join(parts), left + buckets * cell_w + 4, bottom + 22, alt)


def _share(relative: NDArray[np.float64], keys: int) -> NDArray[np.float64]:
    """Map relative mass to [0, 1] by logarithm: uniform or less is 0, all mass on one key is 1."""
    return np.log(np.clip(relative, 1.0, None)) / math.log(max(keys, 2))


def _grid_map(site: Site) -> Markup:
    """Draw one token grid per timestep bucket: relative mass by colour, sinks outlined."""
    assert site.grid is not None
    rows, columns = site.grid
    factor = math.ceil(max(rows, columns) / grids.MAX_SIDE)
    share = grids.pooled(_share(site.relative_mass, rows * columns).reshape(-1, rows, columns), factor)
    sinks = grids.pooled(site.sinks.astype(float).reshape(-1, rows, columns), factor) > 0
    buckets, rows, columns = share.shape
    cell = PANEL / max(rows, columns)
    across = min(buckets, 8)
    step_x, step_y = columns * cell + 10, rows * cell + 24
    parts = [svg.label(0, 12, "attention by token, one grid per timestep bucket", "t ink")]
    for bucket in range(buckets):
        x, y = (bucket % across) * step_x + 1, (bucket // across) * step_y + 22
        parts.append(svg.rect(x, y, columns * cell, rows * cell, "h0", f"bucket {bucket}"))
        parts.append(grids.cells(share[bucket], x, y, cell))
        parts.append(_outlines(sinks[bucket], x, y, cell))
        parts.append(svg.label(x + columns * cell / 2, y + rows * cell + 14, bucket, "t num", "middle"))
    if factor > 1:
        parts.append(
            svg.label(across * step_x - 9, 12, f"largest of {factor} × {factor} tokens per cell", "t", "end")
        )
    lines, last = math.ceil(buckets / across), (buckets - 1) % across
    foot = (lines - 1) * step_y + rows * cell + 52
    parts += grids.bucket_ends(1, last * step_x + 1 + columns * cell, foot)
    alt = f"Relative attention mass by token at {site.module} for {buckets} timestep buckets, sinks outlined."
    width = max(across * step_x - 8, 320)
    return svg.drawing("".join(parts), width, foot + 6, alt)


def _outlines(sinks: NDArray[np.bool_], x: float, y: float, cell: float) -> str:
    size = max(cell, 4.0)
    return "".join(
        svg.rect(x + c * cell - (size - cell) / 2, y + r * cell - (size - cell) / 2, size, size, "sink")
        for r, c in zip(*np.nonzero(sinks), strict=True)
    )


def _key_map(site: Site) -> Markup:
    """Draw relative mass, one row per timestep bucket, one column per key (text tokens); sinks outlined."""
    keys = site.key_mass.shape[1]
    factor = math.ceil(keys / MAX_KEYS)
    share, sinks = _share(site.relative_mass, keys), site.sinks
    if factor > 1:
        pad = ((0, 0), (0, -keys % factor))
        share = np.pad(share, pad).reshape(len(share), -1, factor).max(axis=2)
        sinks = np.pad(sinks, pad).reshape(len(sinks), -1, factor).any(axis=2)
    buckets, columns = share.shape
    left, top, width, height = 24, 22, 640, 15
    cell = width / columns
    parts = [
        svg.label(0, 12, "attention by key (across) and timestep bucket (down, 0 = least noise)", "t ink")
    ]
    for bucket in range(buckets):
        y = top + bucket * height
        parts.append(svg.label(left - 6, y + 12, bucket, "t num", "end"))
        parts.append(svg.rect(left, y, width, height - 1, "h0", f"bucket {bucket}"))
    parts.append(f'<g transform="translate({left} {top}) scale(1 {height / cell:g})">')
    parts.append(grids.cells(share, 0, 0, cell) + "</g>")
    for bucket, column in zip(*np.nonzero(sinks), strict=True):
        parts.append(svg.rect(left + column * cell, top + bucket * height, max(cell, 3), height - 1, "sink"))
    bottom = top + buckets * height
    for key in svg.linear_ticks(0, keys - 1, 8):
        parts.append(svg.label(left + (key // factor + 0.5) * cell, bottom + 14, int(key), "t num", "middle"))
    if factor > 1:
        parts.append(svg.label(left + width, 12, f"largest of {factor} keys per column", "t", "end"))
    alt = f"Relative attention mass by key at {site.module} for {buckets} timestep buckets, sinks outlined."
    return svg.drawing("".join(parts), left + width + 4, bottom + 22, alt)


def key() -> list[Markup]:
    """Draw the colour scales of both maps."""
    figures = []
    scales = (("sink mass", ("0", "½", "1")), ("attention on a key", ("≤ uniform", "√M ×", "all (M ×)")))
    for number, (name, ends) in enumerate(scales):
        start = svg.text_width(name) + 12
        parts = [svg.label(0, 22, name, "t ink")]
        parts.append(svg.heat_scale(start, 10, 22, 14))
        for share, text in zip((0, 0.5, 1), ends, strict=True):
            anchor = ("start", "middle", "end")[int(share * 2)]
            parts.append(svg.label(start + share * 198, 40, text, "t num", anchor))
        width = start + 202
        if number:
            parts.append(svg.rect(width + 16, 10, 14, 14, "sink"))
            parts.append(svg.label(width + 38, 22, "sink", "t ink"))
            width += 80
        alt = f"Colour scale of {name}: {', '.join(ends)}."
        figures.append(svg.drawing("".join(parts), width, 46, alt))
    return figures

"""The top of a run's report: its figures at a glance, the verdict in words, what was asked and got, and warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import template
from eval.report.provenance import note, noted
from eval.report.warnings import warnings

WORDS = {"macs": "MACs", "params": "parameters", "ratio": "prunable parameters removed", "hit": "target hit"}

AMOUNTS = {"latency_ms": "ms", "memory_gb": "GB"}
"""Targets that are no shares, and their units."""

BODY = template(
    """
<dl class="tiles">
{% for name, value, small in tiles %}
<div class="tile"><dt>{{ name }}</dt><dd>{{ value }}<small>{{ small }}</small></dd></div>
{% endfor %}
</dl>
<div class="verdict">{% for sentence in verdict %}<p>{{ sentence }}</p>{% endfor %}</div>
{% for title, entries in (("Asked", asked), ("Got", got)) if entries %}
<p class="chips"><span class="head">{{ title }}</span>
{%- for name, text in entries %}<span>{{ name }} <b>{{ text }}</b></span>{% endfor %}</p>
{% endfor %}
{% if warnings %}
<div class="warnings" role="note"><p>Before you trust these numbers</p>
<ul>{% for text in warnings %}<li>{{ text }}</li>{% endfor %}</ul></div>
{% endif %}
"""
)


def summary(run: RunData) -> Markup:
    """Return the top of a run's report as HTML."""
    watched, read = noted(run)
    shown = _top(watched)
    return shown + note(run, read)


def _top(run: RunData) -> Markup:
    return BODY(
        tiles=_tiles(run),
        verdict=verdict(run),
        asked=facts(run.entry("asked")),
        got=facts(run.entry("got")),
        warnings=warnings(run),
    )


def _left(run: RunData) -> list[tuple[str, float, float | None]]:
    """Return of MACs and parameters, as far as it is known, the share that is left and the share that was asked."""
    found = [(key, run.left(key), run.entry("asked").get(key)) for key in ("macs", "params")]
    return [(key, share, asked) for key, share, asked in found if share is not None]


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Return the figures at the top as (name, value, small print)."""
    found = []
    for key, share, asked in _left(run):
        small = f"asked {fmt.percent(asked)}" if asked else _from_to(run, key, fmt.quantity)
        found.append((f"{WORDS[key]} left", fmt.percent(share), small))
    if (fast := run.speedup(run.final)) is not None:
        batch = run.metric(run.final, "call")["batch_size"]
        found.append(("speed", fmt.times(fast), f"one call, batch {batch}"))
    if (size := run.ratio(run.final, "file_bytes")) is not None:
        found.append(("file size", fmt.percent(size), _from_to(run, "file_bytes", fmt.size)))
    if (own := run.metric(run.final, "frechet")) is not None:
        base = run.metric(run.reference, "frechet")
        found.append(("Fréchet distance", fmt.number(own), f"{run.reference} {fmt.number(base)}"))
    elif (alike := run.metric(run.final, "ssim")) is not None:
        before = [f"{name} {fmt.number(run.metric(name, 'ssim'))}" for name in run.subjects[1:-1]]
        found.append(("SSIM", fmt.number(alike), "; ".join([f"to {run.reference}", *before])))
    pixels, features = pair(run, run.final)
    if pixels is not None and features is not None:
        both = " | ".join(fmt.percent(share, 0 if share >= 0.1 else 1) for share in (pixels, features))
        found.append(("pixels | features", both, f"distance to {run.reference}"))
    return found


def pair(run: RunData, subject: str) -> tuple[float | None, float | None]:
    """Return how far a subject's samples are from the reference's of the same noise, in pixels and in features."""
    return run.metric(subject, "pair_pixels"), run.metric(subject, "pair_features")


def _from_to(run: RunData, key: str, show: Callable[[float], str]) -> str:
    """Return a metric of the first and of the last subject, as far as it was measured."""
    values = [run.metric(subject, key) for subject in (run.reference, run.final)]
    return " → ".join(show(value) for value in values if value)


def headline(run: RunData) -> str:
    """Return the run in one line of numbers."""
    parts = [f"{fmt.percent(share)} of the {WORDS[key]}" for key, share, _ in _left(run)[:1]]
    if (fast := run.speedup(run.final)) is not None:
        parts.append(f"calls {fmt.times(fast)} as fast")
    if (worse := run.ratio(run.final, "frechet")) is not None:
        parts.append(f"{fmt.times(worse)} the Fréchet distance of {run.reference}")
    elif (alike := run.metric(run.final, "ssim")) is not None:
        parts.append(f"SSIM {fmt.number(alike)} to {run.reference}")
    return ", ".join(parts)


def verdict(run: RunData) -> list[str]:
    """Return the verdict as sentences with numbers and intervals."""
    return [sentence for sentence in (_size(run), _speed(run), *_quality(run), _pair(run)) if sentence]


def _size(run: RunData) -> str:
    left = [
        f"{fmt.percent(share)} of the {WORDS[key]}" + (f" (asked: {fmt.percent(asked)})" if asked else "")
        for key, share, asked in _left(run)
    ]
    return f"The {run.final} model keeps {' and '.join(left)}." if left else ""


def _speed(run: RunData) -> str:
    call, base = run.metric(run.final, "call"), run.metric(run.reference, "call")
    if call is None:
        return ""

    def said(which: str, words: str = "") -> str:
        interval = run.speedup_interval(run.final, which)
        return f"{fmt.times(run.speedup(run.final, which))}{words}" + (f" ({interval})" if interval else "")

    parts = [f"One denoiser call at batch {call['batch_size']} is {said('call', ' as fast')}"]
    if run.speedup(run.final, "sampling") is not None:
        parts.append(f"a whole sampling run {said('sampling')}")
    parts.append(f"median times of a call {fmt.seconds(base['median_s'])} → {fmt.seconds(call['median_s'])}")
    return "; ".join(parts) + "."


def _quality(run: RunData) -> list[str]:
    own, base = run.metric(run.final, "frechet"), run.metric(run.reference, "frechet")
    if own is None:
        return _consistency(run)

    def said(subject: str) -> str:
        interval = fmt.span(run.metric(subject, "frechet_ci95"))
        return f"{fmt.number(run.metric(subject, 'frechet'))} (95{fmt.THIN}% interval {interval})"

    against = f" against {said(run.reference)} for {run.reference}"
    ratio = f", {fmt.times(own / base)}{_resolved(run)}" if base else ""
    between = [f"The {name} model, before that, is at {said(name)}." for name in run.subjects[1:-1]]
    return [f"Its {run.frechet_name} is {said(run.final)}{against}{ratio}.", *between]


def _consistency(run: RunData) -> list[str]:
    """Say how alike the samples are to those of the reference, where no distance between sets was measured."""

    def said(subject: str) -> str:
        value, bounds = run.metric(subject, "ssim"), run.metric(subject, "ssim_ci95")
        return f"{fmt.number(value)}" + (f" (95{fmt.THIN}% interval {fmt.span(bounds)})" if bounds else "")

    if run.metric(run.final, "ssim") is None:
        return []
    between = [f"; {name}, before that, {said(name)}" for name in run.subjects[1:-1]]
    return [
        f"From the same noise its samples have an SSIM of {said(run.final)} to {run.reference}{''.join(between)}."
    ]


def _pair(run: RunData) -> str:
    """Say how far the samples moved in pixels and in what they show."""

    def said(key: str) -> str:
        bounds = run.metric(run.final, f"{key}_ci95")
        return fmt.percent(run.metric(run.final, key)) + (
            f" ({fmt.span(bounds, fmt.percent)})" if bounds else ""
        )

    if None in pair(run, run.final):
        return ""
    network = run.metric(run.final, "pair_network")
    return (
        f"From the same noise its samples are, of the distance between two unrelated ones of {run.reference}, "
        f"{said('pair_pixels')} away in pixels and {said('pair_features')} in {network} features."
    )


def _resolved(run: RunData) -> str:
    """Tell whether final subject and reference differ, by the paired interval of their ratio."""
    ratio = run.metric(run.final, "frechet_ratio_ci95")
    if not ratio:  # a distance of zero has none
        return ""
    if run.metric(run.final, "frechet_warning"):
        judged = "too few samples for these features to tell the two apart"
    elif ratio[0] <= 1 <= ratio[1]:
        judged = "this run does not tell the two apart"
        if share := run.metric(run.final, "frechet_detectable"):
            judged += f", and would have told {fmt.percent(share, 0)} apart"
    else:
        judged = f"{'worse' if ratio[0] > 1 else 'better'} by more than chance"
    return f" (95{fmt.THIN}% {fmt.span(ratio)}): {judged}"


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the entries of `asked` or `got` as label and text; null is left out."""
    found = []
    for key, value in values.items():
        name = key.removesuffix("_ratio") if key not in AMOUNTS else key.rpartition("_")[0]
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif key in AMOUNTS:
            text = f"{value:g} {AMOUNTS[key]}"
        elif isinstance(value, (int, float)):
            text = fmt.percent(value)
        elif isinstance(value, str):
            text = value if key == "criterion" else value.replace("_", " ")
        else:
            continue
        found.append((WORDS.get(name, name.replace("_", " ")), text))
    return found

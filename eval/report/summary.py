"""The top of a run's report: its figures at a glance, the verdict in words, what was asked and got, and warnings."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from eval.report import fmt
from eval.report.data import RunData
from eval.report.figures import frechet_name, is_fraction, reached, speedup, speedup_interval
from eval.report.html import template
from eval.report.warnings import warnings

WORDS = {"macs": "MACs", "params": "parameters", "ratio": "prunable parameters removed", "hit": "target hit"}

BODY = template(
    """
{% if tiles %}
<dl class="tiles">
{% for name, value, small in tiles %}
<div class="tile"><dt>{{ name }}</dt><dd>{{ value }}<small>{{ small }}</small></dd></div>
{% endfor %}
</dl>
{% endif %}
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
    return BODY(
        tiles=_tiles(run),
        verdict=verdict(run),
        asked=facts(run.entry("asked")),
        got=facts(run.entry("got")),
        warnings=warnings(run),
    )


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Return the figures at the top as (name, value, small print)."""
    found = []
    for key, name in (("macs", "MACs left"), ("params", "parameters left")):
        value, asked = reached(run, key), run.entry("asked").get(key)
        if value is not None:
            fraction = isinstance(asked, (int, float)) and not isinstance(asked, bool) and asked <= 1
            pair = [
                fmt.quantity(run.metric(s, key)) for s in (run.reference, run.final) if run.metric(s, key)
            ]
            found.append(
                (name, fmt.percent(value), f"asked {fmt.percent(asked)}" if fraction else " → ".join(pair))
            )
    fast, call = speedup(run, run.final), run.metric(run.final, "call")
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


def headline(run: RunData) -> str:
    """Return the run in one line of numbers."""
    parts = []
    macs, params = reached(run, "macs"), reached(run, "params")
    if macs is not None:
        parts.append(f"{fmt.percent(macs)} of the MACs")
    elif params is not None:
        parts.append(f"{fmt.percent(params)} of the parameters")
    fast = speedup(run, run.final)
    if fast is not None:
        parts.append(f"calls {fmt.times(fast)} as fast")
    worse = run.ratio(run.final, "frechet")
    if worse is not None:
        parts.append(f"{fmt.times(worse)} the Fréchet distance of {run.reference}")
    return ", ".join(parts)


def verdict(run: RunData) -> list[str]:
    """Return the verdict as sentences with numbers and intervals."""
    found = [sentence for sentence in (_size(run), _speed(run), *_quality(run)) if sentence]
    return found if run.metrics else [*found, "Nothing has been measured: the run has no evaluation yet."]


def _size(run: RunData) -> str:
    macs, params = reached(run, "macs"), reached(run, "params")
    left = []
    for key, value in (("macs", macs), ("params", params)):
        if value is not None:
            asked = run.entry("asked").get(key)
            wish = f" (asked: {fmt.percent(asked)})" if is_fraction(asked) else ""
            left.append(f"{fmt.percent(value)} of the {WORDS[key]}{wish}")
    if not left:
        return ""
    return f"The {f'{run.final} model' if run.final else 'plan'} keeps {' and '.join(left)}."


def _speed(run: RunData) -> str:
    fast, whole = speedup(run, run.final), speedup(run, run.final, "sampling")
    call = run.metric(run.final, "call")
    if fast is None or call is None:
        return ""
    base = run.metric(run.reference, "call")
    batch = f" at batch {call['batch_size']}" if call.get("batch_size") else ""
    parts = [f"One denoiser call{batch} is {fmt.times(fast)} as fast"]
    if interval := speedup_interval(run, run.final):
        parts[0] += f" ({interval})"
    if whole is not None:
        interval = speedup_interval(run, run.final, "sampling")
        parts.append(f"a whole sampling run {fmt.times(whole)}{f' ({interval})' if interval else ''}")
    if base:
        parts.append(
            f"median times of a call {fmt.seconds(base['median_s'])} → {fmt.seconds(call['median_s'])}"
        )
    return "; ".join(parts) + "."


def _quality(run: RunData) -> list[str]:
    own, base = run.metric(run.final, "frechet"), run.metric(run.reference, "frechet")
    if own is None:
        return []

    def said(subject: str, value: float) -> str:
        interval = run.metric(subject, "frechet_ci95")
        return fmt.number(value) + (f" (95{fmt.THIN}% interval {fmt.span(interval)})" if interval else "")

    sentences = [f"Its {frechet_name(run)} is {said(run.final or '', own)}"]
    if base is not None:
        sentences[0] += f" against {said(run.reference, base)} for {run.reference}, {fmt.times(own / base)}"
        sentences[0] += _resolved(run, own, base) if base else ""
    sentences[0] += "."
    between = [s for s in run.subjects[1:-1] if run.metric(s, "frechet") is not None]
    for subject in between:
        sentences.append(
            f"The {subject} model, before that, is at {said(subject, run.metric(subject, 'frechet'))}."
        )
    return sentences


def _resolved(run: RunData, own: float, base: float) -> str:
    """Tell whether final subject and reference differ, by the paired interval of their ratio if there is one."""
    ratio = run.metric(run.final, "frechet_ratio_ci95")
    a, b = run.metric(run.final, "frechet_ci95"), run.metric(run.reference, "frechet_ci95")
    if ratio:
        apart, how = not ratio[0] <= 1 <= ratio[1], f" (95{fmt.THIN}% {fmt.span(ratio)})"
    elif a and b:
        apart, how = a[1] < b[0] or b[1] < a[0], ""
    else:
        return "; no interval was measured, so do not read small differences"
    if not apart:
        return f"{how}: this run does not tell the two apart"
    return f"{how}: {'worse' if own > base else 'better'} by more than chance"


def facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the entries of `asked` or `got` as label and text; empty and nested values are left out."""
    found = []
    for key, value in values.items():
        name = key.removesuffix("_ratio") if key != "ratio" else key
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, (int, float)):
            share = name in WORDS and is_fraction(value)
            text = fmt.percent(value) if share else fmt.quantity(value) if value >= 1e4 else f"{value:g}"
        elif isinstance(value, str):
            text = value if key == "criterion" else value.replace("_", " ")
        else:
            continue
        found.append((WORDS.get(name, key.replace("_", " ")), text))
    return found

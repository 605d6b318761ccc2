"""How it was measured: model, data and machine, time by stage, what the figures mean, and the recipe."""

from __future__ import annotations

from typing import Any

from eval.report import fmt
from eval.report.data import RunData
from eval.report.figures import LEAST_LEVEL, LEVEL, frechet_name
from eval.report.html import template
from eval.report.sections import Section

PLACE = 80

BODY = template(
    """
{% if facts %}
<dl class="facts">{% for name, text in facts %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
{% endif %}
{% if stages %}
<h3>Time by stage, {{ total | seconds }} in all</h3>
<div class="bars narrow">
{% for stage in stages %}
<div><span class="name">{{ stage.name }}</span><span class="bar k4"><i style="width:{{ stage.share }}%"></i></span>
<span class="num">{{ stage.text }}</span><span></span></div>
{% endfor %}
</div>
{% endif %}
{% if notes %}
<h3 style="margin-top:22px">What the figures mean</h3>
<ul class="notes">{% for text in notes %}<li>{{ text }}</li>{% endfor %}</ul>
{% endif %}
{% if recipe %}<details><summary>Recipe as it ran</summary><pre><code>{{ recipe }}</code></pre></details>{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show how the figures came about; None if nothing is known of it."""
    found = {"facts": _facts(run), "stages": _stages(run), "notes": notes(run)}
    if not any(found.values()):
        return None
    body = BODY(**found, total=sum(run.entry("seconds").values()), recipe=run.data.get("recipe_yaml"))
    return Section(body, "How it was measured" if run.metrics else "This run")


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return what was run on what, as label and text."""
    device, call = run.data.get("device"), run.metric(run.final or run.reference, "call") or {}
    timed = f"; latency on {fmt.plural(call['num_threads'], 'thread')}" if call.get("num_threads") else ""
    found = {
        "Model": run.data.get("model"),
        "Data": run.data.get("data"),
        "Device": device and device + timed,
    }
    found |= {name: str(value) for name, value in run.entry("facts").items()}
    for name in ("versions", "seeds"):
        found[name.capitalize()] = ", ".join(f"{key} {value}" for key, value in run.entry(name).items())
    return [(name, text) for name, text in found.items() if text]


def _stages(run: RunData) -> list[dict[str, Any]]:
    """Return the time of each stage, and its share of the whole in per cent."""
    seconds = run.entry("seconds")
    total = sum(seconds.values()) or 1.0
    return [
        {"name": name, "text": fmt.seconds(value), "share": f"{100 * value / total:.1f}"}
        for name, value in seconds.items()
    ]


def notes(run: RunData) -> list[str]:
    """Return how the figures were measured and what they do not say."""
    final = run.final or run.reference
    found = _frechet_notes(run)
    if run.metric(final, "kernel") is not None:
        found.append(
            "Kernel distance: unbiased polynomial-kernel MMD² on the same features, mean ± standard deviation over "
            "subsets. It may be slightly negative. The ± is the spread of subsets, not a confidence interval."
        )
    if run.metric(final, "ssim") is not None:
        found.append(
            f"SSIM and MSE compare each image with the {run.reference} model's from the same noise. They measure "
            "how little has changed, not how good the images are."
        )
    if run.metric(final, "denoising_error_mean") is not None or run.metric(final, "denoising_error"):
        found.append(
            f"Denoising error: mean squared error to the training target on {run.held_out}images, same image and noise "
            f"in every timestep bucket. Excess error: mean ‖ε − ε_{run.reference}‖² / mean ‖ε_{run.reference}‖²."
        )
    if run.metric(run.reference, "macs") is not None:
        method = run.metric(run.reference, "macs_method") or "counted while one call runs, FLOPs / 2"
        found.append(f"MACs: {method}. Memory: weights and activations of that call.")
    call = run.metric(final, "call")
    if call:
        facts = [
            fmt.plural(call[k], w) for k, w in (("runs", "round"), ("num_threads", "thread")) if call.get(k)
        ]
        facts += [str(call[k]) for k in ("dtype", "device") if call.get(k)]
        found.append(
            "Latency: medians of rounds in which all models take turns, in one process"
            + (f" ({', '.join(facts)})" if facts else "")
            + ". A speed-up is the median of the rounds' ratios, which on a busy machine is not quite the ratio of the "
            "medians. Trust the ratio; the seconds belong to this machine."
        )
    return found + _coverage_notes(run) + list(run.data.get("notes") or [])


def _coverage_notes(run: RunData) -> list[str]:
    """Return why an interval of a speed-up is missing or covers less than 95 %."""
    short = [
        name
        for which, name in (("call", "one call"), ("sampling", "sampling"))
        if (coverage := run.metric(run.final, f"speedup_{which}_coverage")) is not None and coverage < LEVEL
    ]
    if not short:
        return []
    return [
        f"Few rounds were timed for the speed-up of {' and '.join(short)}. The range of n rounds covers the median "
        f"with 1 − 2¹⁻ⁿ; below {fmt.percent(LEAST_LEVEL, 0)} (four rounds or fewer) no interval is shown, and with "
        "five the percentage before it is what it covers. Six rounds or more (evaluate.latency.runs, "
        f"sampling_runs) give {fmt.percent(LEVEL, 0)}."
    ]


def _frechet_notes(run: RunData) -> list[str]:
    """Return what the Fréchet distance and its intervals are."""
    found = []
    name = frechet_name(run)
    base = run.metrics.get(run.reference, {})
    if base.get("frechet") is not None:
        facts = [str(base[k]) for k in ("frechet_mode",) if base.get(k)]
        counts = (("frechet_num_generated", "generated"), ("frechet_num_real", "real"))
        facts += [f"{base[k]:,.0f} {word} images" for k, word in counts if base.get(k)]
        facts_text = ", ".join(facts)
        found.append(
            f"{name}{f' ({facts_text})' if facts else ''}: distance of two Gaussians fitted to features of "
            f"generated and of {run.held_out}real images; lower is better."
            + (
                ""
                if "FID" in name
                else " These are not Inception features: it is not FID, nor comparable with it."
            )
        )
    if run.metric(run.final, "frechet_ratio_ci95"):
        found.append(
            "Intervals of the Fréchet distance: bootstrap over generated images. The interval of the ratio pairs "
            "images of the same noise, so it is the one to judge a difference by."
        )
    return found

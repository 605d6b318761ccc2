"""How it was measured: model, data and machine, time by stage, what the figures mean, and the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from eval.report import fmt
from eval.report.data import LEAST_LEVEL, LEVEL, RunData
from eval.report.html import Section, template

PLACE = 80

BODY = template(
    """
<dl class="facts">{% for name, text in facts %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
{% if seconds %}
<h3>Time by stage, {{ total | seconds }} in all</h3>
<div class="bars narrow">
{% for name, time in seconds.items() %}
{% set share = '%.1f' | format(100 * time / total) %}
<div><span class="name">{{ name }}</span><span class="bar k4"><i style="width:{{ share }}%"></i></span>
<span class="num">{{ time | seconds }}</span><span></span></div>
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


def section(run: RunData) -> Section:
    """Show how the figures came about."""
    seconds = run.entry("seconds")
    body = BODY(
        facts=_facts(run),
        seconds=seconds,
        total=sum(seconds.values()) or 1.0,
        notes=list(notes(run)),
        recipe=run.data.get("recipe_yaml"),
    )
    return Section(body, "How it was measured")


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return what was run on what, as label and text."""
    found = {name: run.data.get(name) for name in ("model", "data", "protocol", "device")}
    if found["device"] and (call := run.metric(run.final, "call")):
        found["device"] += f"; latency on {fmt.plural(call['num_threads'], 'thread')}"
    for name in ("versions", "seeds"):
        found[name] = ", ".join(f"{key} {value}" for key, value in run.entry(name).items())
    return [(name.capitalize(), text) for name, text in found.items() if text]


def notes(run: RunData) -> Iterator[str]:
    """Yield how the figures were measured and what they do not say."""
    final, dense = run.final, run.reference
    yield from _frechet_notes(run)
    if run.metric(final, "kernel") is not None:
        yield (
            "Kernel distance: unbiased polynomial-kernel MMD² on the same features, mean over subsets. It may be "
            "slightly negative."
            + (
                " Its interval is over the generated images and the draw of the subsets."
                if run.metric(final, "kernel_ci95")
                else " The ± is the spread of subsets, not a confidence interval."
            )
        )
    if (mode := run.metric(final, "fd_dinov2_mode")) is not None:
        yield f"{run.metric(final, 'fd_dinov2_name')}: Fréchet distance on DINOv2's class token ({mode})."
    if (mode := run.metric(final, "cmmd_mode")) is not None:
        yield (
            f"{run.metric(final, 'cmmd_name')}: 1,000 times the squared discrepancy of CLIP's image embeddings under a "
            f"Gaussian kernel ({mode}); slightly above zero even for equal sets."
        )
    if (network := run.metric(final, "clip_score_network")) is not None:
        yield f"CLIP score: 100 × the cosine of image and prompt, by {network}."
    if (mode := run.metric(final, "lpips_mode")) is not None:
        yield f"LPIPS: perceptual distance to the {dense} model's sample of the same noise; images {mode}."
    if run.metric(final, "precision") is not None:
        yield (
            "Precision and recall: shares of generated images within the third nearest neighbour of a real one, and of "
            "real images within that of a generated one (Kynkäänniemi et al. 2019). Density and coverage: the same "
            "question with five neighbours, which outliers do not inflate (Naeem et al. 2020). They depend on the "
            "number of images of either set."
        )
    if run.metric(final, "pair_pixels") is not None:
        yield (
            f"Pixels' and features' distance: mean squared distance to the {dense} model's sample of the same noise, "
            f"over that between two unrelated samples of {dense}. Features that moved less than pixels mean that "
            "pictures show much the same, drawn otherwise."
        )
    if run.metric(final, "ssim") is not None:
        yield (
            f"SSIM and MSE compare each image with the {dense} model's from the same noise. They measure "
            "how little has changed, not how good the images are."
        )
    if run.metric(final, "denoising_error"):
        yield (
            f"Denoising error: mean squared error to the training target on {run.held_out}images, same image and noise "
            f"in every timestep bucket. Excess error: mean ‖ε − ε_{dense}‖² / mean ‖ε_{dense}‖²."
        )
    if method := run.metric(dense, "macs_method"):
        yield f"MACs: {method}. Memory: weights and activations of that call."
    if call := run.metric(final, "call"):
        rounds, threads = fmt.plural(call["runs"], "round"), fmt.plural(call["num_threads"], "thread")
        yield (
            "Latency: medians of rounds in which all models take turns, in one process "
            f"({rounds}, {threads}, {call['dtype']}, {call['device']}). "
            "A speed-up is the median of the rounds' ratios, which on a busy machine is not quite the ratio of the "
            "medians. Trust the ratio; the seconds belong to this machine."
        )
    timed = {"one call": "speedup_call_coverage", "sampling": "speedup_sampling_coverage"}
    coverage = {name: run.metric(final, key) for name, key in timed.items()}
    if short := [name for name, share in coverage.items() if share is not None and share < LEVEL]:
        yield (
            f"Few rounds were timed for the speed-up of {' and '.join(short)}. The range of n rounds covers the median "
            f"with 1 − 2¹⁻ⁿ; below {fmt.percent(LEAST_LEVEL, 0)} (four rounds or fewer) no interval is shown, and with "
            "five the percentage before it is what it covers. Six rounds or more (evaluate.latency.runs, "
            f"sampling_runs) give {fmt.percent(LEVEL, 0)}."
        )


def _frechet_notes(run: RunData) -> Iterator[str]:
    """Yield what the Fréchet distance and its intervals are."""
    names = ("mode", "num_generated", "num_real")
    mode, generated, real = (run.metric(run.reference, f"frechet_{name}") for name in names)
    if mode is None:
        return
    other = " These are not Inception features: it is not FID, nor comparable with it."
    yield (
        f"{run.frechet_name} ({mode}, {generated:,.0f} generated images, {real:,.0f} real images): distance of two "
        f"Gaussians fitted to features of generated and of {run.held_out}real images; lower is better."
        f"{'' if 'FID' in run.frechet_name else other}"
    )
    if run.metric(run.final, "frechet_ratio_ci95"):
        yield (
            "Intervals of the Fréchet distance: bootstrap over generated images. The interval of the ratio pairs "
            "images of the same noise, so it is the one to judge a difference by."
        )

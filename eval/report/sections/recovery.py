"""Recovery: losses while the slim model was trained back, and what it made meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import PATHS, Section, template
from eval.report.sections.samples import CRISP_SIDE, PAGE_SIDE, STRIP_SIDE, VIDEO, data_uri, side_by_side

PLACE = 40
WINDOWS = 40  # means in the smoothed curve of the loss
MOST_ROWS = 6  # evaluations whose images are shown
MOST_STEPS = 600  # of the curve that shows every step

BODY = template(
    """
<p class="soft">Training loss after the cut
{%- if blocks %}, mean over {{ blocks }} blocks that were each trained by itself{% endif %}
{%- if smoothed %}. Faint: every recorded step. Strong: mean over windows.{% else %}, step by step.{% endif %}
{%- if held_out %} Dots: the same loss on samples that are not trained on, with the averaged weights
{%- if best is not none %}; the weights after step {{ "{:,}".format(best) }}, where it is lowest, are the result
{%- endif %}.
{%- endif %}</p>
<figure class="wide">{{ figure }}</figure>
{% if lengths %}
<p class="soft">Averages of other lengths, shares of the training, made at its end; that of the lowest held-out loss
is the result.</p>
{{ lengths }}
{% endif %}
{% if rows %}
<p class="soft">What the averaged weights made from the same noise, by steps taken
{%- if dense %}; at the bottom the {{ dense }} model{% endif %}.</p>
<div class="band{% if not crisp %} wide{% endif %}"
  style="--n:{{ columns }};grid-template-columns:max-content repeat({{ columns }},1fr)">
{% for name, uris in rows %}
<span class="who">{{ name }}</span>
{% for uri in uris %}
<img{% if crisp %} class="crisp"{% endif %} src="{{ uri }}" width="{{ width }}" height="{{ height }}"
  alt="{{ name }}, sample {{ loop.index }}">
{% endfor %}
{% endfor %}
</div>
{% endif %}
{% if table %}
<details><summary>All {{ blocks }} blocks: error on held-out inputs, squared, by the dense output's square</summary>
{{ table }}</details>
{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the loss; None if nothing was trained."""
    steps, loss = (run.entry("recovery").get(key, []) for key in ("steps", "loss"))
    if not loss:
        return None
    blocks = run.entry("recovery").get("blocks", [])
    rows = [(block["block"], _cells(block)) for block in blocks]
    table = PATHS(names=("cut", "trained", "taken"), rows=rows) if rows else None
    held_out, best = run.entry("recovery").get("held_out") or {}, run.entry("recovery").get("best_step")
    evaluations = [*zip(held_out.get("steps", []), held_out.get("loss", []), strict=True)]
    lengths = run.entry("recovery").get("lengths") or {}
    body = BODY(
        lengths=_lengths(lengths) if lengths else None,
        smoothed=len(loss) >= 2 * WINDOWS,
        held_out=bool(evaluations),
        best=best,
        figure=curve(steps, loss, evaluations, best),
        blocks=len(blocks),
        table=table,
        **_pictures(run),
    )
    return Section(body, "Recovery")


def _lengths(found: Mapping[str, float]) -> Markup:
    """Return a table of the held-out losses by length of the average."""
    best = min(found, key=found.__getitem__)
    rows = [
        (
            name if name == "ema_decay" else f"σ = {name}",
            [fmt.number(loss), "yes" if name == best else "no"],
        )
        for name, loss in found.items()
    ]
    return PATHS(names=("held-out loss", "taken"), rows=rows)


def _pictures(run: RunData) -> dict[str, Any]:
    """Return what the page shows of validation images: a row for some evaluations each, and one of the dense model."""
    if not run.data.get("validation"):
        return {"rows": []}
    tensors = run.tensors(run.data["validation"])
    steps, pictures = tensors["steps"].tolist(), tensors["pictures"]  # (E,), (E, K, C, H, W)
    height, width = pictures.shape[-2:]
    medium = run.entry("sample").get("medium")
    columns = min(pictures.shape[1], side_by_side(max(height, width), medium))
    most = STRIP_SIDE if medium == VIDEO else PAGE_SIDE
    chosen = sorted({round(k * (len(steps) - 1) / max(1, MOST_ROWS - 1)) for k in range(MOST_ROWS)})
    rows = [(_after(steps[k]), [data_uri(image, most) for image in pictures[k, :columns]]) for k in chosen]
    dense = run.tensors(run.data["samples"])[run.reference] if run.data.get("samples") else None
    if dense is not None and dense.shape[1:] == pictures.shape[2:] and len(dense) >= columns:
        rows.append((run.reference, [data_uri(image, most) for image in dense[:columns]]))
    return {
        "rows": rows,
        "dense": run.reference if rows[-1][0] == run.reference else None,
        "columns": columns,
        "crisp": max(height, width) <= CRISP_SIDE,
        "height": height,
        "width": width,
    }


def _after(step: int) -> str:
    return "as it was cut" if step == 0 else f"step {step:,}"


def _cells(block: Mapping[str, Any]) -> list[str]:
    taken = "yes" if block["kept"] else "no, it stays as it was cut"
    return [fmt.number(block["before"]), fmt.number(block["after"]), taken]


def curve(
    steps: Sequence[int],
    loss: Sequence[float],
    held_out: Sequence[tuple[int, float]] = (),
    best: int | None = None,
) -> Markup:
    """Draw the loss by optimiser step: every step faint, and if there are many the mean over windows strong.

    Held-out losses, (step, loss), are dots on a line; the one after the step `best` is a diamond.
    """
    first = min([steps[0], *(step for step, _ in held_out)])
    xs = svg.Scale(first, max(steps[-1], first + 1), 54, 730)
    ys = svg.value_scale([*loss, *(value for _, value in held_out)], 232, 34)
    thin = max(1, len(loss) // MOST_STEPS)
    raw = [(xs(s), ys(v)) for s, v in zip(steps[::thin], loss[::thin], strict=True)]
    body = svg.axes(xs, ys, "optimiser step", "loss (log)" if ys.log else "loss") + svg.path(raw, "raw")
    if len(loss) >= 2 * WINDOWS:
        window = len(loss) // WINDOWS
        chunks = [slice(start, start + window) for start in range(0, len(loss), window)]
        body += svg.path([(xs(fmean(steps[c])), ys(fmean(loss[c]))) for c in chunks], "line s2")
    body += svg.path([(xs(step), ys(value)) for step, value in held_out], "line s3")
    for step, value in held_out:
        tip = f"after step {step:,}: {fmt.number(value)} held out"
        body += svg.marker(xs(step), ys(value), "diamond" if step == best else "circle", "dot s3", tip)
    alt = f"Recovery loss from {fmt.number(loss[0])} to {fmt.number(loss[-1])} over {len(steps)} records."
    if held_out:
        names = [("training", "circle", "dot s2"), ("held out", "circle", "dot s3")]
        names += [("taken", "diamond", "dot s3")] if best is not None else []
        body += svg.legend(names, 470, 16)
        alt += f" Held out from {fmt.number(held_out[0][1])} to {fmt.number(held_out[-1][1])}."
    return svg.drawing(body, 760, 280, alt)

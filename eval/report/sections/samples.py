"""Samples: what every subject draws from the same noise, one below the other."""

from __future__ import annotations

import base64
import io

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 20
BANDS = 2  # rows of samples on the page
CRISP_SIDE = 64  # images up to this side are enlarged by whole pixels
PNG_SIDE = 128  # images up to this side are kept pixel for pixel
PAGE_SIDE = 256  # larger images are scaled down to this side

BODY = template(
    """
<p class="soft">A column is one noise{{ shared }}. What changes down a column is what pruning changed.
{{ shown }} of {{ '{:,}'.format(total) }} kept samples, {{ order }}, not hand-picked
{%- if scaled %}; {{ width }} × {{ height }} pixels scaled down{% endif %}.</p>
{% for start in range(0, shown, columns) %}
{% set said = captions[start:start + columns] %}
<div class="band{% if not crisp %} wide{% endif %}"
  style="--n:{{ columns }};grid-template-columns:max-content repeat({{ columns }},1fr)">
{% if said | select | list %}
<span class="who corner"></span>
{% for caption in said %}
<span class="cap" title="{{ caption }}">{{ caption | truncate(90) }}</span>
{% endfor %}
{{ blank * (columns - said | length) }}
{% endif %}
{% for subject, row in uris.items() %}
<span class="who">{{ subject }}</span>
{% for caption in said %}
{% set uri = row[start + loop.index0] %}
<img{% if crisp %} class="crisp"{% endif %} src="{{ uri }}" width="{{ width }}" height="{{ height }}"
  alt="{{ subject }}, sample {{ start + loop.index }}{% if caption %}, {{ caption }}{% endif %}">
{% endfor %}
{{ blank * (columns - said | length) }}
{% endfor %}
</div>
{% endfor %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the samples; None if the run kept none."""
    if not run.data.get("samples"):
        return None
    tensors = run.tensors(run.data["samples"])
    images = {name: tensors[name] for name in run.subjects}
    labels, prompts = tensors.get("labels"), run.data.get("captions") or []
    total, _, height, width = images[run.reference].shape
    columns = 10 if max(height, width) <= 32 else 8 if max(height, width) <= 128 else 4
    chosen = choose(total, labels, BANDS * columns)
    captions = [prompts[i] if i < len(prompts) else "" if labels is None else str(labels[i]) for i in chosen]
    columns = min(columns, len(chosen))
    uris = {name: [data_uri(pixels[i]) for i in chosen] for name, pixels in images.items()}
    body = BODY(
        uris=uris,
        captions=captions,
        shared=" and one class" if labels is not None else " and one prompt" if prompts else "",
        order="the first of each class" if labels is not None else "in the order they were drawn",
        shown=len(chosen),
        total=total,
        columns=columns,
        crisp=max(height, width) <= CRISP_SIDE,
        height=height,
        width=width,
        scaled=max(height, width) > PAGE_SIDE,
        blank=Markup("<span></span>"),
    )
    return Section(body, "Samples from the same noise", link="Samples")


def choose(count: int, labels: NDArray | None, most: int) -> list[int]:
    """Return indices of the samples to show: the first of every class, then the second, and so on."""
    if labels is None:
        return list(range(min(count, most)))
    order = [
        (int((labels[:index] == label).sum()), label, index) for index, label in enumerate(labels.tolist())
    ]
    return [index for _, _, index in sorted(order)][:most]


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode ``(1 or 3, H, W)`` uint8: small images as PNG, large ones scaled to `PAGE_SIDE` as JPEG."""
    grey = len(pixels) == 1
    image, buffer = Image.fromarray(pixels[0] if grey else pixels.transpose(1, 2, 0).copy()), io.BytesIO()
    if max(image.size) <= PNG_SIDE:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

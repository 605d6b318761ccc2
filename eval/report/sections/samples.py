"""Samples: what every subject makes from the same noise, one below the other, and two of them under one handle.

The handle is `slider.js`, which lays the pictures of the first band over each other; without scripts the band is all
that is shown.

A run keeps one picture per sample (`eval.media.pictures`) and says in ``sample`` of what: ``medium`` and ``shape``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 20
VIDEO, SOUND = "video", "sound"  # as `eval.media` calls them, which imports torch
BANDS = 2  # rows of samples on the page
CRISP_SIDE = 64  # images up to this side are enlarged by whole pixels
PNG_SIDE = 128  # images up to this side are kept pixel for pixel
PAGE_SIDE = 256  # larger images are scaled down to this side
STRIP_SIDE = 640  # and the frames of a video, side by side, to this one

BODY = template(
    """
<p class="soft">A column is one noise{{ shared }}. What changes down a column is what pruning changed.
{{ shown }} of {{ '{:,}'.format(total) }} kept samples, {{ order }}, not hand-picked
{%- if scaled %}; {{ width }} × {{ height }} pixels scaled down{% endif %}.{{ said_of_all }}</p>
<div class="slider{% if not crisp %} wide{% endif %}" hidden style="--ratio:{{ '%.3f' | format(width / height) }}">
<p class="choice"><label>Under one handle <select>
{%- for left, right in pairs %}
<option value="{{ left }} {{ right }}">{{ subjects[left] }} | {{ subjects[right] }}</option>
{%- endfor %}</select></label></p>
<div class="stage"></div>
<label class="handle"><span class="end"></span>
<input type="range" min="0" max="100" value="50" aria-label="Where one picture ends and the other begins">
<span class="end"></span></label>
<h3>Side by side</h3>
</div>
{% for start in range(0, shown, columns) %}
{% set first = loop.first %}
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
{% set of = loop.index0 %}
<span class="who">{{ subject }}</span>
{% for caption in said %}
{% set uri = row[start + loop.index0] %}
<img{% if crisp %} class="crisp"{% endif %}{% if first %} data-of="{{ of }}"{% endif %} src="{{ uri }}"
  width="{{ width }}" height="{{ height }}"
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
    sample = run.entry("sample")
    columns = side_by_side(max(height, width), sample.get("medium"))
    chosen = choose(total, labels, BANDS * columns)
    captions = [prompts[i] if i < len(prompts) else "" if labels is None else str(labels[i]) for i in chosen]
    columns = min(columns, len(chosen))
    most = STRIP_SIDE if sample.get("medium") == VIDEO else PAGE_SIDE
    uris = {name: [data_uri(pixels[i], most) for i in chosen] for name, pixels in images.items()}
    body = BODY(
        uris=uris,
        subjects=run.subjects,
        pairs=list(combinations(range(len(run.subjects)), 2)),
        captions=captions,
        shared=" and one class" if labels is not None else " and one prompt" if prompts else "",
        order="the first of each class" if labels is not None else "in the order they were drawn",
        shown=len(chosen),
        total=total,
        columns=columns,
        crisp=max(height, width) <= CRISP_SIDE,
        height=height,
        width=width,
        scaled=max(height, width) > most,
        said_of_all=_words(sample, width),
        blank=Markup("<span></span>"),
    )
    return Section(body, "Samples from the same noise", link="Samples")


def side_by_side(side: int, medium: str | None) -> int:
    """Return how many samples stand side by side."""
    if medium == VIDEO:
        return 2
    if medium == SOUND:
        return 4
    return 10 if side <= 32 else 8 if side <= 128 else 4


def _words(sample: Mapping[str, Any], width: int) -> str:
    """Say what a picture is where it is not the sample itself."""
    if sample.get("medium") == VIDEO:
        frames, _, _, one = sample["shape"]
        if frames == 1:
            return " Each is a video of one frame."
        return f" Each is {width // one} of the {frames:,} frames of a video, from the first to the last."
    if sample.get("medium") == SOUND:
        channels, length = sample["shape"]
        said = f"{channels} channel{'s' * (channels > 1)} of {length:,} samples"
        drawn = "time to the right, frequency upwards (logarithmic), loud is dark"
        return f" Each is the spectrogram of a sound ({said}): {drawn}."
    return ""


def choose(count: int, labels: NDArray | None, most: int) -> list[int]:
    """Return indices of the samples to show: the first of every class, then the second, and so on."""
    if labels is None:
        return list(range(min(count, most)))
    order = [
        (int((labels[:index] == label).sum()), label, index) for index, label in enumerate(labels.tolist())
    ]
    return [index for _, _, index in sorted(order)][:most]


def data_uri(pixels: NDArray[np.uint8], most: int = PAGE_SIDE) -> str:
    """Encode ``(1 or 3, H, W)`` uint8: small images as PNG, large ones scaled to at most that side as JPEG."""
    grey = len(pixels) == 1
    image, buffer = Image.fromarray(pixels[0] if grey else pixels.transpose(1, 2, 0).copy()), io.BytesIO()
    if max(image.size) <= PNG_SIDE:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

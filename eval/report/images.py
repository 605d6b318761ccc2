"""Sample images for the page: small ones enlarged without blur, large ones scaled down, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.report.load import Run

CRISP_SIDE = 64  # images up to this side are enlarged by whole pixels
PAGE_SIDE = 256  # larger images are scaled down to this side for the page
STRIP_SIDE = 48  # side to which small images are enlarged in the markdown twin


@dataclass(frozen=True)
class Band:
    """A row of samples for every subject: columns share noise (and label)."""

    captions: list[str]
    rows: list[tuple[str, list[str]]]
    start: int


@dataclass(frozen=True)
class Samples:
    """All bands of a run and how to show them."""

    bands: list[Band]
    columns: int
    crisp: bool
    shown: int
    total: int
    side: tuple[int, int]
    scaled: bool


def samples(run: Run) -> Samples | None:
    """Choose and encode the samples; None if the run has none."""
    if not run.samples:
        return None
    first = next(iter(run.samples.values()))
    height, width = first.shape[2:]
    chosen = _chosen(run, bands=2)
    columns = min(_columns(run), len(chosen))
    bands = []
    for start in range(0, len(chosen), columns):
        picked = chosen[start : start + columns]
        rows = [(name, [data_uri(images[i]) for i in picked]) for name, images in run.samples.items()]
        bands.append(Band([_caption(run, i) for i in picked], rows, start))
    side = max(height, width)
    return Samples(
        bands, columns, side <= CRISP_SIDE, len(chosen), len(first), (height, width), side > PAGE_SIDE
    )


def strips(run: Run) -> tuple[list[str], list[tuple[str, bytes]]]:
    """Return the captions of the first band and one PNG strip a subject; the captions are empty without labels."""
    if not run.samples:
        return [], []
    picked = _chosen(run, bands=1)
    captions = [_caption(run, i) for i in picked]
    return [c for c in captions if c], [
        (name, _strip([x[i] for i in picked])) for name, x in run.samples.items()
    ]


def _columns(run: Run) -> int:
    """Return how many samples stand side by side."""
    side = max(next(iter(run.samples.values())).shape[2:])
    return 10 if side <= 32 else 8 if side <= 128 else 4


def _chosen(run: Run, bands: int) -> list[int]:
    """Return indices of the samples to show: the first of every class, then the second, and so on."""
    count, most = len(next(iter(run.samples.values()))), bands * _columns(run)
    if run.labels is None:
        return list(range(min(count, most)))
    seen: dict[int, int] = {}
    order = []
    for index, label in enumerate(run.labels):
        order.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(order)][:most]


def _caption(run: Run, index: int) -> str:
    if run.captions and index < len(run.captions):
        return run.captions[index]
    return str(run.labels[index]) if run.labels is not None else ""


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Turn ``(1 or 3, H, W)`` into an image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode ``(C, H, W)`` uint8: small images as PNG, large ones scaled to `PAGE_SIDE` as JPEG."""
    image, buffer = _image(pixels), io.BytesIO()
    if max(image.size) <= 128:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _strip(images: list[NDArray[np.uint8]], gap: int = 4) -> bytes:
    tiles = [_image(pixels) for pixels in images]
    side = max(tiles[0].size)
    if side <= CRISP_SIDE:
        factor = max(1, STRIP_SIDE // side)
        size = (tiles[0].width * factor, tiles[0].height * factor)
        tiles = [tile.resize(size, Image.Resampling.NEAREST) for tile in tiles]
    elif side > PAGE_SIDE // 2:
        for tile in tiles:
            tile.thumbnail((PAGE_SIDE // 2, PAGE_SIDE // 2), Image.Resampling.LANCZOS)
    width, height = tiles[0].size
    sheet = Image.new("RGBA", (len(tiles) * (width + gap) - gap, height), (0, 0, 0, 0))
    for index, tile in enumerate(tiles):
        sheet.paste(tile.convert("RGBA"), (index * (width + gap), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=side <= CRISP_SIDE)
    return buffer.getvalue()

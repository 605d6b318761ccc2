"""One encoded image -> one tensor, whatever its mode and size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pruning.errors import PruningError

MODES = {1: "L", 3: "RGB"}

BITS, PHOTOMETRIC, FORMAT = 258, 262, 339
"""Tags of TIFF 6.0: BitsPerSample, PhotometricInterpretation (0: the value 0 is white), SampleFormat (2: signed)."""


def open_image(value: object) -> Image.Image:
    """Open an image from what a table's cell may hold: bytes, a path, ``{bytes, path}``, or a PIL image.

    Raises:
        PruningError: If the cell is empty or of another type.
        OSError: If it cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray)):
        try:
            return Image.open(io.BytesIO(value))
        except UnidentifiedImageError as error:  # its own message holds an address in memory
            raise OSError(f"its {len(value)} bytes are of no known image format") from error
    if isinstance(value, (str, Path)) and str(value):
        return Image.open(value)
    if isinstance(value, Image.Image):
        return value
    found = "nothing" if value is None or value in ("", b"") else f"a {type(value).__name__}"
    raise PruningError(f"expected an encoded image or a path, found {found}")


def to_tensor(image: Image.Image, channels: int, resolution: int) -> Tensor:
    """Return float32 in [-1, 1] of shape ``(channels, resolution, resolution)``.

    Palettes are resolved, transparency lies over white, 16 bits are scaled to 8. The shorter side is resized to
    `resolution` (bicubic, antialiased), the centre is cropped. Only what the crop keeps is resized: the window of a
    whole image of ``round(side * scale)`` pixels, with the filter reaching beyond its edges, so that the pixels are
    those of resizing first.

    Args:
        image: Of any mode, as opened: its pixels not yet loaded.
        channels: 1 (grey) or 3 (RGB).
        resolution: Height and width.

    Raises:
        PruningError: For an image whose range is not known (floating point, 32 bits, signed).
    """
    levels = _black_and_white(image)
    image = _convert(ImageOps.exif_transpose(image), levels, MODES[channels])
    width, height = image.size
    scale = resolution / min(width, height)
    wide, high = max(resolution, round(width * scale)), max(resolution, round(height * scale))
    left, top = (wide - resolution) // 2, (high - resolution) // 2
    window = (left, top, left + resolution, top + resolution)
    if (wide, high) == image.size:
        image = image.crop(window)
    else:
        along, down = width / wide, height / high
        box = (left * along, top * down, window[2] * along, window[3] * down)
        image = image.resize((resolution, resolution), Image.Resampling.BICUBIC, box)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).reshape(resolution, resolution, channels)
    return pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1


def _black_and_white(image: Image.Image) -> tuple[int, int] | None:
    """Return the values of black and white of an image of more than 8 bits, None for any other; nothing is guessed.

    A PNG of 16 bits fills them by its specification, and so does what Pillow reads from netpbm and JPEG 2000. A TIFF
    says how many bits a sample has. Pillow's mode ``I`` holds 32 bits or signed values, of which no range is known: a
    PruningError, as floating point is.
    """
    tags: Any = getattr(image, "tag_v2", {BITS: (16,)})
    signed = 2 in np.ravel(tags.get(FORMAT, 1))
    if signed or image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        kind = "floating point" if image.mode == "F" else "32 bits, or signed"
        raise PruningError(
            f"mode {image.mode!r} ({kind}): which values are black and white is not known; store it with 8 or with "
            "full 16 bits"
        )
    raw = next(iter(getattr(image, "tile", ())), (None,))[-1]  # Pillow scales their pixels, not the colour
    if "transparency" in image.info and raw in ("L;2", "L;4", "RGB;16B"):
        raise PruningError(
            "which colour of this PNG is transparent is not known; store it with 8 bits or alpha"
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    largest = 2 ** tags[BITS][0] - 1
    return (largest, 0) if tags.get(PHOTOMETRIC) == 0 else (0, largest)


def _convert(image: Image.Image, levels: tuple[int, int] | None, mode: str) -> Image.Image:
    """Return `image` in 8 bits, as grey or RGB."""
    if levels is not None:
        black, white = levels
        values = np.asarray(image)
        grey = np.rint((values - float(black)) / ((white - black) / 255))
        clear = values == image.info.get("transparency", -1)  # of a PNG, the one grey that is transparent
        image = Image.fromarray(np.where(clear, 255, grey).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return image.convert(mode)

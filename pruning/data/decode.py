"""One encoded image -> one tensor, whatever its mode and size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pruning.data.levels import Depth, check_colours, depth_of, is_wide, to_8_bits
from pruning.errors import PruningError

MODES = {1: "L", 3: "RGB"}


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


def convert(image: Image.Image, channels: int, depth: Depth | None = None) -> Image.Image:
    """Return `image` as grey (1) or RGB (3): palettes resolved, transparency over white, 16 bits scaled to 8.

    Args:
        image: Any mode.
        channels: 1 or 3.
        depth: What its file says of its samples, if the pixels have been loaded since.

    Raises:
        PruningError: For images whose range is not known (floating point, 32 bits, signed), and for other numbers of
            channels.
    """
    if channels not in MODES:
        raise PruningError(f"channels {channels}: images are read as 1 (grey) or 3 (RGB) channels")
    if image.mode == "F":
        raise PruningError(
            "mode 'F' (floating point pixels, range unknown); store the image with 8 or 16 bits"
        )
    depth = depth or depth_of(image)
    check_colours(image, depth)
    if is_wide(image):
        image = to_8_bits(image, depth)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return image.convert(MODES[channels])


def to_tensor(image: Image.Image, channels: int, resolution: int) -> Tensor:
    """Return float32 in [-1, 1] of shape ``(channels, resolution, resolution)``.

    The shorter side is resized to `resolution` (bicubic, antialiased), the centre is cropped. Only what the crop keeps
    is resized: the window of a whole image of ``round(side * scale)`` pixels, with the filter reaching beyond its
    edges, so that the pixels are those of resizing first.
    """
    depth = depth_of(image)
    image = convert(ImageOps.exif_transpose(image), channels, depth)
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

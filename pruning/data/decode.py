"""One encoded image -> one tensor, whatever its mode and size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

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


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` as grey (1) or RGB (3): palettes resolved, transparency over white, 16 bits scaled to 8.

    Raises:
        PruningError: For floating point images, whose range is not known, and for other numbers of channels.
    """
    if channels not in MODES:
        raise PruningError(f"channels {channels}: images are read as 1 (grey) or 3 (RGB) channels")
    if image.mode == "F":
        raise PruningError(
            "mode 'F' (floating point pixels, range unknown); store the image with 8 or 16 bits"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit PNG and TIFF
        pixels = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(pixels / 257.0), 0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return image.convert(MODES[channels])


def to_tensor(image: Image.Image, channels: int, resolution: int) -> Tensor:
    """Return float32 in [-1, 1] of shape ``(channels, resolution, resolution)``.

    The shorter side is resized to `resolution` (bicubic, antialiased), the centre is cropped.
    """
    image = convert(ImageOps.exif_transpose(image), channels)
    width, height = image.size
    scale = resolution / min(width, height)
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    image = image.crop((left, top, left + resolution, top + resolution))
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).reshape(resolution, resolution, channels)
    return pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1

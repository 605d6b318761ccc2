"""Integer images of more than 8 bits -> 8 bits, by the range that the file says; nothing is guessed.

A PNG of 16 bits fills them by its specification (section 12.4: samples of fewer significant bits are scaled up), and
so do what Pillow reads from netpbm and JPEG 2000. A TIFF says how many bits a sample has. Where nothing says the range
(32 bits, signed values) the image is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pruning.errors import PruningError

BITS, PHOTOMETRIC, LARGEST, SAMPLE_FORMAT, LARGEST_SAMPLE = 258, 262, 281, 339, 341
"""Tags of TIFF 6.0: BitsPerSample, PhotometricInterpretation, MaxSampleValue, SampleFormat, SMaxSampleValue."""

FILLED = ("PNG", "PPM", "JPEG2000")
"""Formats that Pillow gives as 16 bits, whatever the file uses of them."""


@dataclass(frozen=True)
class Depth:
    """What a file says of its samples.

    Attributes:
        bits: Bits from black to white; None where the file does not say.
        significant: Fewer bits that a PNG says were measured; its samples should have been scaled up from them.
        inverted: Whether 0 is white.
    """

    bits: int | None
    significant: int | None = None
    inverted: bool = False


def is_wide(image: Image.Image) -> bool:
    """Tell whether the pixels are integers of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def depth_of(image: Image.Image) -> Depth:
    """Return what the file of an image says of its samples; to be asked before the pixels are loaded.

    Raises:
        PruningError: If its values are signed, or it holds colours of fewer than the 16 bits that they take.
    """
    if hasattr(image, "tag_v2"):
        return _tiff_depth(image)
    if image.format in FILLED:
        return Depth(16, _png_significant_bits(image) if image.format == "PNG" else None)
    return Depth(16 if image.format is None and image.mode != "I" else None)


def to_8_bits(image: Image.Image, depth: Depth) -> Image.Image:
    """Return a wide image as grey of 8 bits, rounded.

    Raises:
        PruningError: If the range of the values is not known, or a value is outside of it.
    """
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if depth.bits is None:
        raise PruningError(
            f"mode {image.mode!r}, whole numbers from {low} to {high} of which none is known to be white; store it "
            "with 8 or with full 16 bits"
        )
    bits = depth.bits
    if depth.significant and high < 2**depth.significant and (pixels % 2 ** (bits - depth.significant)).any():
        bits = depth.significant  # not scaled up, against the specification
    top = 2**bits - 1
    if low < 0 or high > top:
        raise PruningError(
            f"its values go from {low} to {high}, by what the file says from 0 to {top}; store it with 8 or with full "
            "16 bits"
        )
    levels = np.rint(pixels.astype(np.float64) / (top / 255)).astype(np.uint8)
    return Image.fromarray(255 - levels if depth.inverted else levels)


def check_colours(image: Image.Image, depth: Depth) -> None:
    """Refuse colours of 16 bits of which Pillow kept the upper 8 where only lower ones are used.

    Raises:
        PruningError: For such an image.
    """
    if depth.significant and not is_wide(image):
        high = max(np.asarray(band).max() for band in image.split()[:3])
        if high < 2 ** max(depth.significant - 8, 0):
            raise PruningError(
                f"its colours of 16 bits use the lower {depth.significant} bits, of which 8 cannot be read; store it "
                "with 8 or with full 16 bits"
            )


def _tiff_depth(image: Image.Image) -> Depth:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    bits = max(_values(tags, BITS), default=1)
    if 2 in _values(tags, SAMPLE_FORMAT):
        raise PruningError(
            f"its values are signed ({bits} bits), and which are black and white is not known; store it unsigned, with "
            "8 or with full 16 bits"
        )
    if not 8 < bits <= 16:
        return Depth(bits if bits <= 8 else None)
    largest = [int(value) for tag in (LARGEST, LARGEST_SAMPLE) for value in _values(tags, tag)]
    # A largest value of 2^n - 1 tells of n bits; any other is a statistic by TIFF 6.0.
    said = [n for value in largest if (n := value.bit_length()) > 8 and value == 2**n - 1]
    if not is_wide(image):
        return Depth(bits, min((n for n in said if n < bits), default=None))
    return Depth(min(said, default=bits), inverted=tags.get(PHOTOMETRIC) == 0)


def _values(tags: Any, tag: int) -> tuple[Any, ...]:
    found = tags.get(tag, ())
    return found if isinstance(found, tuple) else (found,)


def _png_significant_bits(image: Image.Image) -> int | None:
    """Return the significant bits of a PNG of 16 bits that says so in a chunk sBIT, if they are fewer; else None."""
    file: Any = getattr(image, "fp", None)
    if file is None:
        return None
    place, found = file.tell(), None
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"IEND"):
                break
            body = file.read(length + 4)[:length]
            if kind == b"IHDR" and body[8] != 16:
                break
            if kind == b"sBIT" and body:
                found = max(body)
    finally:
        file.seek(place)
    return found if found and found < 16 else None

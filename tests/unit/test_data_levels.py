"""Images of more than 8 bits: the range is what the file says, or the image is refused."""

from __future__ import annotations

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.data import ImageData
from pruning.data.decode import open_image, to_tensor
from pruning.errors import PruningError


def stored(values: list[int], kind: str, dtype: type = np.uint16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([values, values], dtype=dtype)).save(buffer, kind)
    return buffer.getvalue()


def packed_12_bits(low: int, high: int) -> bytes:
    """Return a TIFF of 2 x 2 pixels with 12 bits a sample, as cameras and scanners write them."""
    row = bytes([low >> 4, (low & 15) << 4 | high >> 8, high & 255])
    entries = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 2), (279, 6)]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 3, 1, v) for tag, v in entries
    )
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    return head.ljust(200, b"\0") + row * 2


def grey(data: bytes, channels: int = 1) -> list[int]:
    found = to_tensor(open_image(data), channels, 2)[0, 0]
    return ((found + 1) * 127.5).round().int().tolist()


def png(depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """Return a PNG of 2 x 2 pixels, of which one grey or colour is transparent."""
    head = struct.pack(">IIBBBBB", 2, 2, depth, colour, 0, 0, 0)
    parts = [
        (b"IHDR", head),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress((b"\0" + row) * 2)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_the_transparent_grey_of_16_bits_lies_over_white():
    assert grey(png(16, 0, struct.pack(">HH", 1000, 0x8080), struct.pack(">H", 1000))) == [255, 128]
    assert grey(png(16, 0, struct.pack(">HH", 1000, 0x8080), struct.pack(">H", 1001))) == [4, 128]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent"),
    [
        (16, 2, struct.pack(">6H", 1000, 1000, 1000, 9, 9, 9), struct.pack(">3H", 1000, 1000, 1000)),
        (4, 0, b"\x3f", struct.pack(">H", 3)),
        (2, 0, b"\xd0", struct.pack(">H", 1)),
    ],
)
def test_a_transparent_colour_that_is_not_known_is_refused(depth, colour, row, transparent):
    with pytest.raises(
        PruningError, match="which colour of this PNG is transparent is not known; store it with 8"
    ):
        grey(png(depth, colour, row, transparent))


def test_signed_samples_are_refused():
    data = bytearray(packed_12_bits(0, 4095))  # 8 bits, signed: compression becomes the sample format
    signed = data.replace(struct.pack("<HHII", 258, 3, 1, 12), struct.pack("<HHII", 258, 3, 1, 8))
    signed = signed.replace(struct.pack("<HHII", 279, 3, 1, 6), struct.pack("<HHII", 339, 3, 1, 2))
    with pytest.raises(PruningError, match=r"signed.*which values are black and white is not known"):
        grey(bytes(signed))


SIXTEEN = [0, 0x8080]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (stored([0, 65535], "PNG"), [0, 255]),
        (stored([0, 4095], "PNG"), [0, 16]),  # dark, for a PNG fills its 16 bits
        (stored(SIXTEEN, "TIFF"), [0, 128]),
        (packed_12_bits(0, 4095), [0, 255]),
        (b"P5 2 2 4095\n" + np.array([0, 4095] * 2, dtype=">u2").tobytes(), [0, 255]),
        (stored(SIXTEEN, "JPEG2000"), [0, 128]),
    ],
    ids=["png", "png dark", "tiff", "tiff 12 packed", "pgm 12", "jpeg 2000"],
)
def test_the_file_says_the_range(data: bytes, expected: list[int]):
    assert grey(data) == expected


def test_a_tiff_in_which_0_is_white():
    plain = bytearray(stored([0, 65535], "TIFF"))
    entry = struct.pack("<HHI", 262, 3, 1)
    place = plain.index(entry) + len(entry)
    plain[place : place + 2] = b"\0\0"
    assert grey(bytes(plain)) == [255, 0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            open_image(stored([0, 4095], "TIFF", np.int32)),
            r"mode 'I' \(32 bits, or signed\): which values are black",
        ),
        (Image.fromarray(np.array([[0, 65535]], dtype=np.int32)), "store it with 8 or with full 16 bits"),
        (
            Image.new("F", (2, 2)),
            r"mode 'F' \(floating point\): which values are black and white is not known",
        ),
    ],
)
def test_ranges_that_nothing_says_are_refused(image: Image.Image, message: str):
    with pytest.raises(PruningError, match=message):
        to_tensor(image, 1, 1)


def colour_png(value: int) -> bytes:
    """Return a PNG of 2 x 2 pixels with 16 bits a colour, which Pillow cannot write."""
    rows = b"".join(b"\0" + struct.pack(">H", value) * 6 for _ in range(2))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_16_bits():
    assert grey(colour_png(0x8080), 3) == [128, 128]
    assert grey(colour_png(0xFFF0), 3) == [255, 255]


def test_a_data_set_that_is_nearly_black_is_said(caplog: pytest.LogCaptureFixture):
    def data(level: int) -> ImageData:
        image = to_tensor(open_image(stored([0, level], "PNG")), 1, 2)
        return ImageData("mine[train]", (1, 2, 2), 3, lambda i: image)

    with caplog.at_level(logging.WARNING):
        data(5000 * 2).check_readable(labels=False)
        assert caplog.text == ""
        data(4095).check_readable(labels=False)
    assert (
        "mine[train]: the brightest pixel of 3 images is 16 of 255; if their files hold fewer" in caplog.text
    )


def test_a_long_strip_takes_no_memory(monkeypatch: pytest.MonkeyPatch):
    """Only what the crop keeps is resized: 3 rows of 30,000 pixels would become 256 of 2,560,000."""
    asked = []
    plain = Image.Image.resize

    def resize(self, size, *args, **options):
        asked.append(size)
        return plain(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    strip = Image.fromarray(np.tile(np.arange(3, dtype=np.uint8)[:, None] * 100, (1, 30_000)))
    assert to_tensor(strip, 1, 256).shape == (1, 256, 256)
    assert asked == [(256, 256)]


@pytest.mark.parametrize("size", [(37, 60), (60, 37), (64, 48), (500, 375)])
def test_cropping_first_gives_what_resizing_first_gives(size: tuple[int, int]):
    """Smooth pictures, to one level of rounding between the two passes of the filter."""
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 2, size[1]))
    picture = Image.fromarray((127 + 120 * np.sin(2 * x + y) * np.cos(3 * y)).astype(np.uint8))
    scale = 32 / min(size)
    whole = picture.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 32) // 2, (whole.height - 32) // 2
    expected = torch.from_numpy(np.array(whole.crop((left, top, left + 32, top + 32)), dtype=np.float32))
    assert float(((to_tensor(picture, 1, 32)[0] + 1) * 127.5 - expected).abs().max()) <= 1.001

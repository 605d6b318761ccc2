"""Images of every mode and shape."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.data.decode import open_image, to_tensor
from pruning.errors import PruningError

RED = (255, 0, 0)


def pixel(image: Image.Image, channels: int = 3) -> tuple[int, ...]:
    return tuple(((to_tensor(image, channels, 2)[:, 0, 0] + 1) * 127.5).round().int().tolist())


def palette(transparency: int | None = None) -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 2), RED), RED),
        (palette(), RED),
        (palette(transparency=1), (255, 255, 255)),
        (palette(transparency=0), RED),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),  # one fifth black over white
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((2, 2), 0x8080, dtype=np.uint16)), (128, 128, 128)),
    ],
    ids=["RGB", "P", "P-clear", "P-opaque", "RGBA-clear", "RGBA-fifth", "LA", "L", "1", "CMYK", "I;16"],
)
def test_modes(image: Image.Image, expected: tuple[int, ...]):
    assert pixel(image) == expected


def test_grey_of_colour():
    assert pixel(Image.new("RGB", (2, 2), RED), channels=1) == (76,)  # 0.299 * 255, ITU-R 601


def test_range_and_layout():
    image = Image.new("RGB", (2, 2), (0, 255, 51))
    found = to_tensor(image, 3, 2)
    assert found.shape == (3, 2, 2)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_centre_of_a_wide_image_is_kept():
    columns = np.tile(np.array([0, 0, 100, 100, 0, 0], dtype=np.uint8), (2, 1))  # 2 high, 6 wide
    found = to_tensor(Image.fromarray(columns), 1, 2)
    torch.testing.assert_close(found, torch.full((1, 2, 2), 100 / 127.5 - 1))


@pytest.mark.parametrize("size", [(3, 7), (7, 3), (1, 1), (40, 41)])
def test_any_size_becomes_the_asked_one(size: tuple[int, int]):
    found = to_tensor(Image.new("L", size, 255), 1, 5)
    assert found.shape == (1, 5, 5)
    assert bool((found == 1).all())


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (16, 8))
    found = to_tensor(Image.fromarray(stripes), 1, 4)
    assert float(found.abs().max()) < 0.1  # grey, not stripes


def test_camera_rotation_is_applied():
    image = Image.new("L", (4, 2), 0)
    image.putpixel((0, 0), 255)
    stored = io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(stored, "PNG", exif=exif)
    found = to_tensor(open_image(stored.getvalue()), 1, 2)
    assert found.shape == (1, 2, 2)
    upright = to_tensor(image.rotate(180), 1, 2)
    assert torch.equal(found, upright)


def test_cells(tmp_path):
    image = Image.new("L", (2, 2), 9)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for cell in (
        data,
        str(tmp_path / "a.png"),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        image,
    ):
        assert open_image(cell).getpixel((0, 0)) == 9


@pytest.mark.parametrize(
    ("cell", "found"), [(None, "nothing"), ({"bytes": None, "path": None}, "nothing"), (3, "a int")]
)
def test_empty_cells(cell: object, found: str):
    with pytest.raises(PruningError, match=f"expected an encoded image or a path, found {found}"):
        open_image(cell)

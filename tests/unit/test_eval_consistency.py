"""SSIM and MSE to the reference's images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from eval.consistency import image_mse, image_ssim, ssim_window
from eval.run import measure_all
from eval.types import Context, Subject


def measured(context: Context) -> dict[str, dict[str, Any]]:
    return measure_all(context, ["consistency"])


def pictures(n: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(
        256, (n, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(("side", "window"), [(256, 11), (16, 11), (11, 11), (10, 9), (8, 7), (4, 3), (1, 1)])
def test_the_window_fits_and_is_the_one_torchmetrics_derives(side: int, window: int) -> None:
    size, sigma = ssim_window(side, side)
    assert size == window
    assert 2 * int(3.5 * sigma + 0.5) + 1 == window


@pytest.mark.parametrize("side", [8, 16])
def test_identical_images(side: int) -> None:
    images = pictures(3, side)
    assert image_ssim(images, images).tolist() == pytest.approx([1, 1, 1])
    assert image_mse(images, images).tolist() == [0, 0, 0]


def test_flat_images_by_hand() -> None:
    # No variance: SSIM is the luminance term (2 a b + c1) / (a^2 + b^2 + c1) with c1 = (0.01 * 255)^2.
    a, b, c1 = 100.0, 200.0, 2.55**2
    x, y = (torch.full((1, 1, 16, 16), int(v), dtype=torch.uint8) for v in (a, b))
    assert float(image_ssim(x, y)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


@pytest.mark.parametrize("n", [1, 3])
def test_mse_by_hand_image_by_image(n: int) -> None:
    images = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    other = images.clone()
    other[0, 0, 0, 0] = 255  # one of twelve values is off by one
    assert image_mse(images, other).tolist() == pytest.approx([1 / 12] + [0] * (n - 1))


def test_measured_against_the_first_subject() -> None:
    dense = pictures(10, 8)
    near = dense.clone()
    near[::2, :, 0, 0] ^= 1
    far = pictures(10, 8, seed=1)
    images = {"dense": dense, "near": near, "far": far}
    subjects = {name: Subject(sample=lambda ids, x=x: x[ids]) for name, x in images.items()}
    result = measured(Context(subjects, num_samples=10, batch_size=4))
    assert result["dense"]["ssim"] == pytest.approx(1)
    assert result["dense"]["mse"] == 0
    assert result["near"]["mse"] == pytest.approx(0.5 / 64 / 255**2)
    assert 1 > result["near"]["ssim"] > 0.99 > result["far"]["ssim"]
    low, high = result["near"]["mse_ci95"]
    assert low < result["near"]["mse"] < high
    assert result["far"]["ssim_window"] == 7


def test_sizes_that_differ() -> None:
    subjects = {
        "dense": Subject(sample=lambda ids: pictures(4, 8)[ids]),
        "slim": Subject(sample=lambda ids: pictures(4, 4)[ids]),
    }
    with pytest.raises(
        ValueError, match=r"subject 'slim', metric 'consistency': images of shape \(4, 1, 4, 4\)"
    ):
        measured(Context(subjects, num_samples=4))

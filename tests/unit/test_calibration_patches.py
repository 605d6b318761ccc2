"""Moments of patches without unfolding, against unfolding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.calibration import STATISTICS
from pruning.calibration.rows import Consumer
from pruning.calibration.seeing import Image, Rows
from pruning.calibration.statistics import patches
from pruning.calibration.triangle import Symmetric
from tests.unit.calibration_setup import whole


def consumer(units: int, channels: int, conv: nn.Module, start: int = 0) -> Consumer:
    return Consumer("conv", "conv", conv, start, channels, units, 4)


def unfolded(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)


NAMES = ("row_weight", "input_sum", "input_sq", "input_unit_moment", "input_moment")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(5, 4), (3, 3), (2, 7), (1, 1), (1, 2)])
@pytest.mark.parametrize("units", [6, 3])
@pytest.mark.parametrize("strip", [1, 360, patches.STRIP])  # a channel, parts of some, and the whole
def test_sums_are_those_of_the_unfolded_rows(
    name: str, size: tuple[int, int], units: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "STRIP", strip)
    statistic: Any = STATISTICS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, *size, generator=generator, dtype=torch.float64)
    u = torch.rand(4, generator=generator, dtype=torch.float64)
    place = consumer(units, 6, nn.Conv2d(6, 4, 3, padding=1))
    rows = u.repeat_interleave(size[0] * size[1])
    expected = statistic.measure(Rows(unfolded(x), rows, place))
    found = statistic.of_image(Image(x, u, place))
    assert found.shape == expected.shape
    if isinstance(found, Symmetric):
        found, expected = whole(found), whole(expected)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "fast"),
    [
        ({"padding": 1}, True),
        ({"padding": "same"}, True),
        ({"padding": 0}, False),
        ({"padding": 1, "stride": 2}, False),
        ({"padding": 1, "dilation": 2}, False),
    ],
)
def test_only_convolutions_that_keep_the_size_are_read_as_images(options: dict[str, Any], fast: bool) -> None:
    conv = nn.Conv2d(8, 4, 3, **options)
    image = consumer(3, 6, conv, start=2).image(torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 4, 4))
    assert (image is not None) is fast
    if image is not None:
        assert image[0, :, 0, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert consumer(3, 6, nn.Linear(6, 2)).image(torch.zeros(1, 5, 6)) is None

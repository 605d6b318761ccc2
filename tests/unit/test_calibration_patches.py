"""Moments of patches without unfolding, against unfolding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning.calibration.consumer import Consumer
from torch import Tensor, nn

from pruning.calibration import STATISTICS
from pruning.types import ParamSlice, PrunableGroup


def group_of(units: int, channels: int, start: int = 0) -> PrunableGroup:
    part = ParamSlice("conv.weight", 1, channels // units, start)
    return PrunableGroup("g", "m", "resnet_channels", units, (), (part,))


def unfolded(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)


NAMES = ("row_weight", "input_sum", "input_sq", "input_unit_moment", "input_moment")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(5, 4), (3, 3), (2, 7), (1, 1), (1, 2)])
@pytest.mark.parametrize("units", [6, 3])
def test_sums_are_those_of_the_unfolded_rows(name: str, size: tuple[int, int], units: int) -> None:
    statistic: Any = STATISTICS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, *size, generator=generator, dtype=torch.float64)
    u = torch.rand(4, generator=generator, dtype=torch.float64)
    group = group_of(units, 6)
    rows = u.repeat_interleave(size[0] * size[1])
    expected = statistic.measure(unfolded(x), rows, group)
    found = statistic.of_image(x, u, group)
    assert found.shape == expected.shape
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
    consumer = Consumer(group_of(3, 6, start=2), conv, 2, 6)
    image = consumer.image(torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 4, 4))
    assert (image is not None) is fast
    if image is not None:
        assert image[0, :, 0, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert Consumer(group_of(3, 6), nn.Linear(6, 2), 0, 6).image(torch.zeros(1, 5, 6)) is None

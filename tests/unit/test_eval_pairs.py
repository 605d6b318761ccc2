"""Pairs: pixels and features of samples from the same noise, on one scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eval import pairs
from eval.features import load_features
from eval.pairs import pair_errors
from eval.run import measure_all
from eval.types import Context, Subject


class Means(nn.Module):
    """The mean of every channel: shifting pixels within an image changes nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def pictures(seed: int, n: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (n, 3, 1, 1), generator=generator)
    noise = torch.randint(-40, 41, (n, 3, 6, 6), generator=generator)
    return (levels + noise).clamp(0, 255).to(torch.uint8)


def measured(**images: Tensor) -> dict:
    context = Context(
        {name: Subject(sample=lambda ids, x=x: x[ids]) for name, x in images.items()},
        features=lambda: load_features(Means()),
        num_samples=len(images["dense"]),
        batch_size=150,
    )
    return measure_all(context, ["pairs"])


def test_by_hand() -> None:
    reference, samples = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [4.0]])
    apart, spread = pair_errors(samples, reference)  # the mean is 2
    assert apart.tolist() == [1, 0]
    assert spread.tolist() == [8, 8]


def test_unrelated_draws_are_at_one_and_equal_ones_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ROWS", 7)
    dense = pictures(0)
    found = measured(dense=dense, twin=dense.clone(), other=pictures(1))
    assert found["dense"]["pair_pixels"] == found["twin"]["pair_features"] == 0
    for key in ("pair_pixels", "pair_features"):
        low, high = found["other"][f"{key}_ci95"]
        assert low < 1 < high
        assert found["other"][key] == pytest.approx(1, abs=0.15)
        assert 0 < found["other"][f"{key}_detectable"] < 0.5
    assert found["other"]["pair_network"] == "Means"


def test_shifted_pixels_keep_the_features() -> None:
    dense = pictures(0)
    found = measured(dense=dense, shifted=dense.roll(1, -1))["shifted"]
    assert found["pair_features"] == pytest.approx(0, abs=1e-9)
    assert found["pair_pixels"] > 0.05


def test_a_reference_of_equal_samples_has_no_scale() -> None:
    grey = torch.full((5, 3, 4, 4), 9, dtype=torch.uint8)
    assert measured(dense=grey, other=grey.clone()) == {"dense": {}, "other": {}}


def test_sizes_that_differ() -> None:
    with pytest.raises(
        ValueError, match=r"subject 'other', metric 'pairs': samples of shape \(20, 3, 5, 5\)"
    ):
        measured(dense=pictures(0, 20), other=pictures(0, 20)[..., :5, :5])

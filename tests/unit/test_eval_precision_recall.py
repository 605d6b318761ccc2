"""Precision, recall, density and coverage against torch-fidelity and against the papers' formulas row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.metric_prc import calculate_precision_recall_part

from eval import precision_recall as file
from eval.features import load_features
from eval.precision_recall import distances, precision_recall, reaches
from eval.run import measure_all
from eval.types import Context, Subject


def drawn(n: int, seed: int, shift: float = 0.0, scale: float = 1.0, width: int = 6) -> Tensor:
    return shift + scale * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def by_loops(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    """Density and coverage as Naeem et al. write them, one ball after the other."""
    inside = np.zeros((len(generated), len(real)))
    for j, centre in enumerate(real):
        others = sorted(np.linalg.norm(np.delete(real, j, 0) - centre, axis=1))
        for i, point in enumerate(generated):
            inside[i, j] = np.linalg.norm(point - centre) <= others[k - 1]
    return inside.sum() / (k * len(generated)), float(inside.any(0).mean())


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 0.6), (0.2, 1.5), (1000.0, 1.0)])
@pytest.mark.parametrize("cells", [1 << 23, 97])
def test_all_four_agree(shift: float, scale: float, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "CELLS", cells)  # so few that blocks of one row are made
    real, generated = drawn(80, 0, min(shift, 999.5)), drawn(60, 1, shift, scale)
    found = {key: float(values.mean()) for key, values in precision_recall(real, generated).items()}
    precision, recall = calculate_precision_recall_part(generated.double(), real.double())
    assert found["precision"] == pytest.approx(precision, abs=1e-6)
    assert found["recall"] == pytest.approx(recall, abs=1e-6)
    assert 0 < found["recall"] < 1
    density, coverage = by_loops(real.double().numpy(), generated.double().numpy(), 5)
    assert found["density"] == pytest.approx(density)
    assert found["coverage"] == pytest.approx(coverage)


def test_equal_sets_and_sets_far_apart() -> None:
    real = drawn(30, 0)
    same = precision_recall(real, real.clone())
    assert {key: float(value.mean()) for key, value in same.items() if key != "density"} == {
        "precision": 1.0,
        "recall": 1.0,
        "coverage": 1.0,
    }
    apart = precision_recall(real, real + 100)
    assert all(float(value.sum()) == 0 for value in apart.values())


def test_distances_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others = drawn(9, 0), drawn(13, 1)
    monkeypatch.setattr(file, "CELLS", 20)
    found = torch.cat([squares for _, squares in distances(rows, others)])
    wanted = (rows.double()[:, None] - others.double()).square().sum(2)
    assert torch.allclose(found, wanted, rtol=1e-12)


def test_the_reach_of_a_row_leaves_out_the_row_itself_and_counts_its_twin() -> None:
    line = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    first, second = reaches(line, (1, 2))
    assert first.tolist() == [0, 0, 1, 4]
    assert second.tolist() == [1, 1, 1, 9]


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match=r"5 real and 9 generated images; both must be at least 6, for each"):
        precision_recall(drawn(5, 0), drawn(9, 1))
    with pytest.raises(ValueError, match=r"and one d, found real \(9, 6\) and generated \(9, 5\)"):
        precision_recall(drawn(9, 0), drawn(9, 1, width=5))


class Corners(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def pictures(n: int, seed: int, low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=generator)


def test_measured_by_subject_with_paired_ratios_and_power() -> None:
    images = {"dense": pictures(60, 1), "twin": pictures(60, 1), "far": pictures(60, 2, low=90)}
    context = Context(
        {name: Subject(sample=lambda ids, x=x: x[ids]) for name, x in images.items()},
        real=lambda: pictures(70, 3),
        features=lambda: load_features(Corners()),
        num_samples=60,
        batch_size=25,
    )
    found = measure_all(context, ["precision_recall", "fid"])
    assert found["twin"]["precision"] == found["dense"]["precision"] > found["far"]["precision"] > 0
    assert found["dense"]["coverage"] > found["far"]["coverage"]
    assert found["twin"]["recall_ratio_ci95"] == [1, 1]
    assert found["dense"]["precision_detectable"] is None
    low, high = found["far"]["precision_ratio_ci95"]
    assert low < found["far"]["precision_ratio"] < high
    assert found["far"]["precision_detectable"] > 0.01
    assert found["far"]["precision_size_1pct"] > 60
    assert found["far"]["precision_features"] == "Corners"
    # The paired ratio of Fréchet distances has its power from the bootstrap.
    assert found["far"]["frechet_detectable"] > 0
    assert found["dense"]["frechet_detectable"] is found["twin"]["frechet_detectable"] is None

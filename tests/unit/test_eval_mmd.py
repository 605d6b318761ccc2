"""Standard errors of squared discrepancies, held to fresh samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eval import mmd
from eval.cmmd import gaussian
from eval.kid import cubic, subset_distances
from eval.mmd import parts, standard_error


def drawn(n: int, generator: torch.Generator, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, 3, generator=generator, dtype=torch.float64)


def unbiased(kernel: mmd.Kernel, real: Tensor, generated: Tensor) -> float:
    n = len(generated)
    own = kernel(generated, generated)
    return float((own.sum() - own.diagonal().sum()) / (n * (n - 1)) - 2 * kernel(generated, real).mean())


@pytest.mark.parametrize("kernel", [cubic, gaussian])
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_the_error_is_that_of_fresh_samples(kernel: mmd.Kernel, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    real = drawn(2000, generator)
    draws = [drawn(120, generator, shift) for _ in range(300)]
    fresh = torch.tensor([unbiased(kernel, real, x) for x in draws]).std()
    errors = torch.tensor([standard_error(parts(kernel, real, x)) for x in draws[:60]])
    assert float(errors.mean() / fresh) == pytest.approx(1, abs=0.2)


def test_the_paired_error_is_that_of_fresh_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    real = drawn(2000, generator)
    pairs = []
    for _ in range(300):
        dense = drawn(120, generator, 0.3)
        pairs.append((dense + 0.1 * drawn(120, generator) + 0.1, dense))
    differences = [unbiased(cubic, real, a) - unbiased(cubic, real, b) for a, b in pairs]
    fresh = torch.tensor(differences).std()
    found = [(parts(cubic, real, a), parts(cubic, real, b)) for a, b in pairs[:40]]
    errors = torch.tensor([standard_error(a, b) for a, b in found])
    assert float(errors.mean() / fresh) == pytest.approx(1, abs=0.2)
    assert float(errors.mean()) < 0.7 * float(torch.tensor([standard_error(a) for a, _ in found]).mean())


def test_a_subject_against_itself_has_no_error() -> None:
    owed = parts(
        cubic, drawn(30, torch.Generator().manual_seed(0)), drawn(20, torch.Generator().manual_seed(1))
    )
    assert standard_error(owed, owed) == 0


def test_fewer_partners_and_smaller_blocks_hardly_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    real, generated = drawn(900, generator), drawn(700, generator, 0.5)
    whole = standard_error(parts(cubic, real, generated))
    monkeypatch.setattr(mmd, "ROWS", 13)
    assert standard_error(parts(cubic, real, generated)) == pytest.approx(whole, rel=1e-12)
    monkeypatch.setattr(mmd, "PARTNERS", 300)
    monkeypatch.setattr(mmd, "QUADRATIC", 150)
    assert standard_error(parts(cubic, real, generated)) == pytest.approx(whole, rel=0.15)


def test_a_row_is_no_partner_of_itself() -> None:
    real, generated = torch.zeros(2, 1), torch.tensor([[1.0], [2.0], [3.0]])
    owed = parts(lambda a, b: a @ b.T, real, generated)  # k(x, y) = x y
    assert owed.linear.tolist() == [5, 8, 9]  # 2 x (sum of the others) / 2


def test_subsets_are_those_of_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    generator = torch.Generator().manual_seed(3)
    real, generated = drawn(60, generator), drawn(50, generator)
    network = torch.nn.Identity()
    network.num_features = 3  # type: ignore[assignment]
    metric = KernelInceptionDistance(feature=network, subsets=7, subset_size=20)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        mean, std = metric.compute()
    found = subset_distances(real, generated, subsets=7, subset_size=20, seed=5)
    assert float(found.mean()) == pytest.approx(float(mean), rel=1e-12)
    assert float(found.std(unbiased=False)) == pytest.approx(float(std), rel=1e-9)

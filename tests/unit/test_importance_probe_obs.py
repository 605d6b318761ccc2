"""Probe-OBS by hand, against the dense formula, a simulation in which its assumptions hold, and real removals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning.calibration import calibrate
from pruning.groups import find_groups
from pruning.importance import needs_of, score
from pruning.importance.obs import RIDGE
from pruning.models.families import denoise
from pruning.surgery import compensate, mask_plan
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan
from tests.models import dit
from tests.unit.calibration_setup import noised, settings
from tests.unit.importance_rows import linear_group, random_rows, random_weight, stats_of
from tests.unit.test_importance_obs import brute_force, regularised

SAMPLES = 2.0


def seen(group: PrunableGroup, rows: Tensor, sensitivity: Tensor, effects: Tensor) -> CalibrationStats:
    """Statistics of `rows` and, over two samples, of S (C, C) and E z_g^2 (G,)."""
    stats = stats_of(group, rows)
    stats.values[group.name] |= {
        "samples": torch.tensor([SAMPLES]).double(),
        "output_sensitivity": SAMPLES * sensitivity.double(),
        "probe_diag": SAMPLES * effects.double(),
    }
    return stats


def scored(weight: Tensor, group: PrunableGroup, stats: CalibrationStats) -> Tensor:
    return score({"m.out.weight": weight}, [group], stats, criterion="probe_obs").values[group.name]


def test_probe_obs_by_hand():
    # Rows (+-1, +-2): Sigma = diag(1, 4), gamma = 0.025. W = (3, 1), S = 4: V = (6, 2), V^2 = (36, 4).
    # Without compensation 36 * 1 = 36 and 4 * 4 = 16 are expected; 72 and 32 were measured, twice as much of each.
    group = linear_group(2, 1, kind="ffn_channels")
    rows = torch.tensor([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    stats = seen(group, rows, torch.tensor([[4.0]]), torch.tensor([72.0, 32]))
    got = scored(torch.tensor([[3.0, 1.0]]), group, stats).tolist()
    assert got == pytest.approx([2 * 36 * 1.025, 2 * 4 * 4.025], rel=1e-8)


def test_a_unit_is_scaled_half_way_to_its_own_measured_effect():
    # As above, but 324 and 16 were measured: rho_g = 9 and 1, rho = 340 / 52 = 85 / 13.
    group = linear_group(2, 1, kind="ffn_channels")
    rows = torch.tensor([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    stats = seen(group, rows, torch.tensor([[4.0]]), torch.tensor([324.0, 16]))
    got = scored(torch.tensor([[3.0, 1.0]]), group, stats).tolist()
    rho = 85 / 13
    assert got == pytest.approx([(rho * 9) ** 0.5 * 36 * 1.025, (rho * 1) ** 0.5 * 4 * 4.025], rel=1e-8)


def test_an_error_that_the_model_does_not_feel_costs_nothing():
    # Unit 0 writes to output channel 0 alone, unit 1 to channel 1, which nothing reads.
    group = linear_group(2, 1, kind="ffn_channels")
    stats = seen(group, random_rows(50, 2), torch.diag(torch.tensor([1.0, 0])), torch.ones(2))
    got = scored(torch.tensor([[1.0, 0], [0, 100]]), group, stats)
    assert float(got[1]) < 1e-6 * float(got[0])
    nothing = seen(group, random_rows(50, 2), torch.zeros(2, 2), torch.zeros(2))
    assert scored(torch.eye(2), group, nothing).abs().max() < 1e-12


@pytest.mark.parametrize(("units", "u"), [(5, 2), (9, 1)])
def test_scores_follow_the_dense_formula(units: int, u: int):
    kind = "attention_heads" if u > 1 else "ffn_channels"
    group, width = linear_group(units, u, kind=kind), units * u
    weight, rows = random_weight(4, width), random_rows(60, width)
    sensitivity = torch.cov(random_rows(30, 4, seed=7).T)
    effects = torch.linspace(1, 2, units).double()
    values, vectors = torch.linalg.eigh(sensitivity)
    felt = vectors @ values.sqrt().diag() @ vectors.T @ weight
    centred = rows - rows.mean(0)
    parts = [slice(g * u, (g + 1) * u) for g in range(units)]
    alone = torch.stack([(centred[:, p] @ felt[:, p].T).square().sum(1).mean() for p in parts])
    factor = (effects.sum() / alone.sum() * effects / alone).sqrt()
    scaled = felt * factor.sqrt().repeat_interleave(u)
    order, costs = brute_force(scaled, regularised(rows), units, u)
    got = scored(weight, group, seen(group, rows, sensitivity, effects))
    assert got.argsort().tolist() == order
    assert float(got.sum()) == pytest.approx(sum(costs), rel=1e-7)


def test_costs_are_the_change_of_the_output_where_the_assumptions_hold():
    """Rows with independent sensitivities, ``z_R`` simulated with the compensation that surgery applies.

    The ridge acts as noise of variance gamma in every input, which the simulation adds.
    """
    units, u, tokens, samples = 4, 2, 8, 6000
    group, width = linear_group(units, u), units * u
    generator = torch.Generator().manual_seed(3)
    x = random_rows(samples * tokens, width)
    mix = torch.randn(3, 3, generator=generator).double()
    q = torch.randn(samples * tokens, 3, generator=generator).double() @ mix
    weight, centred = random_weight(3, width), x - x.mean(0)
    out = q @ weight * centred  # (rows, P)
    effects = out.unflatten(0, (samples, tokens)).sum(1).unflatten(1, (units, u)).sum(2).square().mean(0)
    stats = seen(group, x, tokens * q.T @ q / len(q), effects)
    got = scored(weight, group, stats)
    sigma = centred.T @ centred / len(x)
    gamma = RIDGE * sigma.diagonal().mean()
    ridged = sigma + gamma * torch.eye(width).double()
    noisy = centred + gamma.sqrt() * torch.randn(centred.shape, generator=generator).double()
    order = got.argsort()
    for count in (1, 2, 3):
        gone = torch.zeros(units, dtype=torch.bool)
        gone[order[:count]] = True
        r = gone.repeat_interleave(u)
        explained = torch.linalg.solve(ridged[~r][:, ~r], sigma[~r][:, r])  # B^T
        residual = noisy[:, r] - noisy[:, ~r] @ explained
        z = (q @ weight[:, r] * residual).sum(1).unflatten(0, (samples, tokens)).sum(1)
        assert float(got[order[:count]].sum()) == pytest.approx(float(z.square().mean()), rel=0.06)


def test_token_weights_weigh_the_rows_of_every_part():
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    needs = needs_of("probe_obs", groups) | needs_of("flap", groups)
    variants, drop = ("on", "permuted"), settings(unstable=1.0, stable=1.0, rho=1.05, alpha=20.0)
    stats = calibrate(model, groups, noised(model), needs=needs, variants=variants, settings=drop)
    weights = dict(model.named_parameters())
    for criterion in ("probe_obs", "flap"):
        off, on, permuted = (
            score(weights, groups, stats, criterion=criterion, weighting=name).values
            for name in ("off", *variants)
        )
        for group in groups:
            assert not torch.allclose(on[group.name], off[group.name], rtol=1e-3)
            assert not torch.allclose(on[group.name], permuted[group.name], rtol=1e-3)


def test_scores_predict_what_real_removals_change():
    """Summed scores of the lowest half of the heads, in absolute units, against the change after least squares."""
    model = dit()
    groups = find_groups(model, ["attention_heads"])
    batches = noised(model, 64, 32)
    stats = calibrate(model, groups, batches, needs=needs_of("probe_obs", groups))
    scores = score(dict(model.named_parameters()), groups, stats, criterion="probe_obs").values
    for group in groups:
        order = scores[group.name].argsort().tolist()
        plan = PruningPlan({group.name: tuple(sorted(order[2:]))})
        slim = dit()
        compensate(slim, groups, plan, stats, "least_squares")
        slim = mask_plan(slim, plan, groups)
        changes = []
        with torch.no_grad():
            for batch in batches:
                change = denoise(model, batch.call) - denoise(slim, batch.call)
                changes.append(change.double().square().flatten(1).sum(1))
        predicted = float(scores[group.name][order[:2]].sum())
        assert 0.8 < predicted / float(torch.cat(changes).mean()) < 1.5

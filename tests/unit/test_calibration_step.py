"""Whose rows a denoiser call holds, at which timestep, with which weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from pruning.calibration.draws import permutations, random_signs, subset
from pruning.calibration.step import Step, StepReader, by_bucket, timestep_weights
from pruning.errors import PruningError


class Denoiser(nn.Module):
    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True):
        return sample


def reader(buckets: int = 4) -> StepReader:
    return StepReader(Denoiser(), 1000, timestep_weights("uniform", buckets))


def latents(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None]


def read(source: StepReader, values: Sequence[float], timestep: object) -> Step:
    return source.read((latents(*values),), {"timestep": timestep})


def test_buckets_from_the_calls_own_timesteps() -> None:
    step = read(reader(), (1, 2, 3, 4), torch.tensor([0, 249, 250, 999]))
    assert step.buckets.tolist() == [0, 0, 1, 3]
    assert read(reader(), (1, 2), 1000).buckets.tolist() == [3, 3]  # flow matching's first step
    assert read(reader(), (1, 2), torch.tensor(500.0)).buckets.tolist() == [2, 2]
    assert reader().read((latents(1.0), 500, None), {}).buckets.tolist() == [2]


def test_a_trajectory_goes_on_until_the_noise_rises() -> None:
    source = reader()
    assert read(source, (1, 2), 900).samples == (0, 1)
    assert read(source, (1, 2), 900).samples == (0, 1)  # a second evaluation of the same step
    assert read(source, (3, 4), 500).samples == (0, 1)
    assert read(source, (5, 6), 900).samples == (2, 3)  # the next trajectory
    assert read(source, (5,), 400).samples == (4,)  # another batch


def test_guidance_branches_are_the_same_samples() -> None:
    source = reader()
    step = read(source, (1, 2, 1, 2), 900)
    assert step.samples == (0, 1, 0, 1)
    assert len(set(step.keys)) == 4
    assert read(source, (3, 4, 3, 4), 800).keys == step.keys
    source.identify([7, 9])
    assert read(source, (1, 2, 3, 4), 900).samples == (7, 9, 7, 9)
    source.identify([7, 9], [1, 2])
    assert read(source, (1, 2, 3, 4), 900).buckets.tolist() == [1, 2, 1, 2]
    source.identify(torch.tensor([7, 9]), 3)
    assert read(source, (1, 2), 0).buckets.tolist() == [3, 3]


def test_rows_of_a_larger_batch_belong_to_its_samples() -> None:
    step = read(reader(), (1, 2), 10)
    assert step.row_of(6, "x").tolist() == [0, 0, 0, 1, 1, 1]


def test_rows_that_are_no_multiple_belong_to_the_call_if_it_has_one_bucket() -> None:
    assert read(reader(), (1, 2), 10).row_of(3, "'ff'").tolist() == [0, 0, 0]
    step = read(reader(), (1, 2), torch.tensor([10, 900]))
    assert step.row_of(4, "'ff'").tolist() == [0, 0, 1, 1]
    with pytest.raises(
        PruningError, match="'ff' sees a batch of 3, which is no multiple of the denoiser's batch of 2"
    ):
        step.row_of(3, "'ff'")


@pytest.mark.parametrize("timestep", [-1, 1001, math.nan])
def test_timesteps_out_of_range(timestep: float) -> None:
    with pytest.raises(PruningError, match="num_train_timesteps is 1000, so they must be from 0 to 1000"):
        read(reader(), (1,), timestep)


def test_calls_that_do_not_fit() -> None:
    with pytest.raises(PruningError, match="3 timesteps for a batch of 2"):
        read(reader(), (1, 2), torch.tensor([1, 2, 3]))
    with pytest.raises(PruningError, match="without a sample or a timestep"):
        reader().read((latents(1.0),), {"timestep": None})
    source = reader()
    source.identify([1, 2, 3])
    with pytest.raises(PruningError, match="batch of 2, but the samples said to come next are 3"):
        read(source, (1, 2), 10)
    with pytest.raises(PruningError, match="sample indices must be non-negative"):
        source.identify([-1])
    with pytest.raises(PruningError, match=r"must be one, or one per sample, found 2 for 3 samples"):
        reader().identify([0, 1, 2], [0, 1])
    with pytest.raises(PruningError, match=r"timestep buckets must be from 0 to 3, found \[4\]"):
        source.identify([1], 4)
    timeless = StepReader(nn.Linear(1, 1), 1000, timestep_weights("uniform", 4))
    with pytest.raises(
        PruningError,
        match=r"Linear\.forward has no argument named timestep or timesteps \(it has self, input\)",
    ):
        timeless.read((latents(1.0),), {})


def test_what_is_said_of_a_call_is_not_read_from_it() -> None:
    timeless = StepReader(nn.Linear(1, 1), 1000, timestep_weights("uniform", 4))
    timeless.identify([3, 5], [1, 2], [0.25, 0.75])
    step = timeless.read((), {"x": [latents(1.0)]})
    assert (step.samples, step.buckets.tolist(), step.timesteps.tolist()) == ((3, 5), [1, 2], [0.25, 0.75])
    timeless.identify([3, 5], timesteps=[100, 600, 100, 600])
    step = timeless.read((), {})
    assert step.samples == (3, 5, 3, 5)
    assert step.buckets.tolist() == [0, 2, 0, 2]
    with pytest.raises(PruningError, match="3 timesteps were said for 2 samples"):
        timeless.identify([3, 5], timesteps=[1, 2, 3])
    timeless.identify([3], timesteps=[1001])
    with pytest.raises(PruningError, match="must be from 0 to 1000"):
        timeless.read((), {})


def test_times_from_0_to_1_are_not_taken_for_the_least_noise() -> None:
    source = reader()
    with pytest.raises(PruningError, match=r"it takes times from 0 to 1.*say the buckets"):
        read(source, (1, 2), 1.0)
    with pytest.raises(PruningError, match="it takes times from 0 to 1"):
        read(source, (1, 2), torch.tensor([0.3, 0.5]))
    assert read(source, (1, 2), 999.0).buckets.tolist() == [3, 3]
    assert read(source, (1, 2), 0.9).buckets.tolist() == [0, 0]  # a trajectory's last step
    source.identify([7, 9])
    assert read(source, (1, 2), 0.0).buckets.tolist() == [0, 0]
    with pytest.raises(PruningError, match="it takes times from 0 to 1"):
        read(source, (1, 2), torch.tensor([0.3, 0.5]))
    source.identify([7, 9], [1, 2])
    assert read(source, (1, 2), torch.tensor([0.3, 0.5])).buckets.tolist() == [1, 2]


def test_timestep_weights() -> None:
    assert timestep_weights("uniform", 3).tolist() == [1.0, 1.0, 1.0]
    # bucket 0 is the least noise; log-decreasing from the noisiest, in four steps
    by_hand = [0.8, 1.2 - 0.4 * math.log(3) / math.log(4), 1.0, 1.2]
    assert timestep_weights("obs_diff", 4).tolist() == pytest.approx(by_hand)
    assert timestep_weights("obs_diff", 8).tolist() == pytest.approx([w for w in by_hand for _ in range(2)])
    assert timestep_weights([1, 2], 2).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("kind", "buckets", "message"),
    [
        ("snr", 4, "timestep_weights 'snr': give 4 numbers.*words that need none: uniform, obs_diff"),
        ([1.0], 4, r"must be 4 positive numbers, found \[1\.0\]"),
        ([1.0, -1.0], 2, "must be 2 positive numbers"),
        ([1.0, math.nan], 2, "must be 2 positive numbers"),
    ],
)
def test_weights_out_of_range(kind: str | list[float], buckets: int, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        timestep_weights(kind, buckets)


def test_rows_are_sorted_by_bucket() -> None:
    assert list(by_bucket(torch.tensor([2, 2]))) == [(2, slice(None))]
    found = {bucket: where.tolist() for bucket, where in by_bucket(torch.tensor([3, 0, 3]))}
    assert found == {0: [1], 3: [0, 2]}


def test_draws_belong_to_the_sample_and_not_to_the_batch() -> None:
    both, alone = subset(3, [5, 8], 40, 6), subset(3, [8], 40, 6)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
    assert both.shape == (2, 6)
    assert all(len(row.unique()) == 6 and row.max() < 40 for row in both)
    assert not torch.equal(subset(4, [8], 40, 6), alone)
    order = permutations(3, [5, 8], 16)
    assert torch.equal(order.sort(-1).values, torch.arange(16).expand(2, 16))
    assert torch.equal(order[1], permutations(3, [8], 16)[0])


def test_signs_are_fair_and_fresh_at_every_timestep() -> None:
    signs = random_signs(0, [1, 1, 2], [10.0, 20.0, 10.0], (1000,))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(1).abs().max() < 0.15
    assert (signs @ signs.T / 1000 - torch.eye(3)).abs().max() < 0.15
    assert torch.equal(signs[1], random_signs(0, [1], [20.0], (1000,))[0])

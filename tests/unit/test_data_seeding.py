"""Draws by sample index."""

from __future__ import annotations

import pytest
import torch

from pruning.data import indexed_noise, sample_generator
from pruning.errors import PruningError


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    together = indexed_noise([3, 9, 4], (2, 5), seed=7)
    assert torch.equal(together[1], indexed_noise([9], (2, 5), seed=7)[0])
    assert together.shape == (3, 2, 5)
    assert together.dtype == torch.float32


def test_samples_seeds_and_streams_differ():
    draws = [
        torch.randn(4, generator=sample_generator(seed, index, stream))
        for seed in (0, 1, -1, 2**40)
        for index in (0, 1, 2)
        for stream in (0, 1)
    ]
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)


def test_no_two_samples_share_a_generator():
    seeds = {sample_generator(5, index).initial_seed() for index in range(20_000)}
    assert len(seeds) == 20_000
    assert max(seeds) < 2**32  # torch's CPU generator reads 32 bits of its seed


def test_draws_are_fixed_for_ever():
    assert [sample_generator(0, i, 1).initial_seed() for i in range(3)] == [
        3144930883,
        1626978197,
        1649460082,
    ]


def test_noise_is_standard_normal():
    noise = indexed_noise(range(200), (64,), seed=0)
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03


def test_no_samples_give_an_empty_batch():
    assert indexed_noise([], (1, 2, 2), seed=0).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("index", [-1, 2**32])
def test_index_out_of_range(index: int):
    with pytest.raises(PruningError, match=f"sample index {index} is out of range"):
        sample_generator(0, index)

"""Noised batches: buckets, seeds, batch sizes."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pruning.data import Conditioner, noised_batches, open_images
from pruning.data.batches import bucket_timesteps
from pruning.errors import PruningError
from tests.models import dit, unet2d


def batches(model=None, scheduler=None, **changes):
    model = model or dit()
    settings = {"indices": [4, 1, 30], "batch_size": 2, "timestep_buckets": 3, "seed": 5, **changes}
    data = open_images("digits", split="test", channels=1, resolution=8)
    return noised_batches(data, Conditioner(model), scheduler or DDIMScheduler(), **settings)


def test_every_chunk_goes_through_every_bucket():
    found = [(batch.bucket, batch.sample_ids.tolist()) for batch in batches()]
    assert found == [(0, [4, 1]), (1, [4, 1]), (2, [4, 1]), (0, [30]), (1, [30]), (2, [30])]


def test_batches_can_be_gone_through_again_and_know_their_size():
    found = batches()
    assert (found.num_train_timesteps, found.timestep_buckets) == (1000, 3)
    first, second = list(found), list(found)
    assert sum(len(batch.sample_ids) for batch in first) == 9
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.target, b.target)
        assert all(torch.equal(value, b.call[name]) for name, value in a.call.items())


def test_call_and_target():
    data = open_images("digits", split="test", channels=1, resolution=8)
    batch = next(iter(batches()))
    assert set(batch.call) == {"hidden_states", "timestep", "class_labels"}
    labels = data.labels([4, 1])
    assert labels is not None
    assert torch.equal(batch.call["class_labels"], labels)
    assert torch.equal(batch.call["timestep"], batch.timesteps)
    assert batch.target.shape == batch.call["hidden_states"].shape == (2, 1, 8, 8)
    abar = DDIMScheduler().alphas_cumprod[batch.timesteps][:, None, None, None]
    clean = (batch.call["hidden_states"] - (1 - abar).sqrt() * batch.target) / abar.sqrt()
    torch.testing.assert_close(clean, data.images([4, 1]), atol=1e-4, rtol=0)


def test_a_sample_has_the_same_noise_in_every_bucket_and_its_timestep_in_the_bucket():
    first = list(batches())[:3]
    for batch in first:
        assert torch.equal(batch.target, first[0].target)  # epsilon: the target is the noise
        assert (batch.timesteps * 3 // 1000).tolist() == [batch.bucket] * 2
    assert not torch.equal(first[0].call["hidden_states"], first[1].call["hidden_states"])


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(prediction_type="v_prediction"), FlowMatchEulerDiscreteScheduler()]
)
def test_nothing_depends_on_the_batch_size_or_the_order(scheduler):
    def by_sample(**changes):
        return {
            (int(i), batch.bucket): (batch.call["hidden_states"][k], batch.target[k], batch.timesteps[k])
            for batch in batches(scheduler=scheduler, **changes)
            for k, i in enumerate(batch.sample_ids)
        }

    one, other = by_sample(), by_sample(batch_size=1, indices=[30, 4, 1])
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert all(torch.equal(a, b) for a, b in zip(values, other[key], strict=True))


def test_another_seed_gives_other_noise():
    assert not torch.equal(next(iter(batches())).target, next(iter(batches(seed=6))).target)


def test_calls_take_the_asked_dtype():
    batch = next(iter(batches(model=unet2d(num_class_embeds=10), dtype=torch.bfloat16)))
    assert batch.call["sample"].dtype == torch.bfloat16
    assert batch.call["class_labels"].dtype == batch.timesteps.dtype == torch.int64
    assert batch.target.dtype == torch.float32


@pytest.mark.parametrize(("total", "buckets"), [(1000, 8), (10, 3), (7, 7), (5, 1)])
def test_bucket_timesteps_fill_their_buckets(total: int, buckets: int):
    t = bucket_timesteps(range(400), total, buckets, seed=1)
    assert t.shape == (400, buckets)
    assert torch.equal(t * buckets // total, torch.arange(buckets).expand(400, -1))
    assert set(t.flatten().tolist()) == set(range(total)) or total == 1000
    assert int(t.min()) >= 0
    assert int(t.max()) < total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"timestep_buckets": 0}, "timestep_buckets 0: must be 1 to 1000"),
        ({"timestep_buckets": 1001}, "timestep_buckets 1001: must be 1 to 1000"),
        ({"indices": []}, "no images asked"),
        ({"indices": [0, 359]}, "360 images asked, but the split holds 359"),
    ],
)
def test_bad_requests_fail_before_the_first_batch(changes: dict, message: str):
    with pytest.raises(PruningError, match=message):
        batches(**changes)

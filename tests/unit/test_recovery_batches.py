"""Batches: a function of seed and position, whatever the split; label dropout; decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import LabelEmbedding

from pruning.data import ImageData
from pruning.data import images as image_data
from pruning.errors import PruningError
from pruning.recovery import recover_images
from pruning.recovery.batches import Share, sample_order, step_draws
from pruning.recovery.labels import hold_label_embeddings
from pruning.recovery.recorded import ImageSource
from pruning.settings import Recover
from tests.models import unet2d
from tests.unit.recovery_setup import shown, small, stripes

CPU = torch.device("cpu")


def _source(scheduler=None, data=None, **changes) -> ImageSource:
    settings = Recover(batch_size=8, label_dropout=0.5, gradient_accumulation=changes.pop("micro_batches", 1))
    scheduler = DDIMScheduler() if scheduler is None else scheduler
    share = Share(settings, seed=3, device=CPU, **changes)
    return ImageSource(shown(small(), scheduler, stripes() if data is None else data), share)


def test_every_epoch_is_a_fresh_permutation_without_gaps():
    order = sample_order(5, 0, 15, seed=1).view(3, 5)
    assert all(sorted(epoch.tolist()) == [0, 1, 2, 3, 4] for epoch in order)
    assert len({tuple(epoch.tolist()) for epoch in order}) > 1
    assert torch.equal(sample_order(5, 7, 6, seed=1), order.flatten()[7:13])  # spans epochs, any start
    assert not torch.equal(sample_order(50, 0, 50, seed=1), sample_order(50, 0, 50, seed=2))


def test_data_smaller_than_the_batch_are_repeated_by_epochs():
    counts = sample_order(3, 0, 12, seed=0).bincount()
    assert counts.tolist() == [4, 4, 4]


def test_timesteps_are_one_in_each_part_and_in_range():
    timesteps, _ = step_draws(step=4, batch_size=10, num_timesteps=1000, label_dropout=0.0, seed=0)
    assert sorted((timesteps // 100).tolist()) == list(range(10))
    assert (timesteps // 100).tolist() != list(range(10))
    many = torch.cat([step_draws(s, 3, 1000, 0.0, 0)[0] for s in range(400)])
    assert int(many.min()) >= 0
    assert int(many.max()) <= 999
    assert abs(many.double().mean().item() - 499.5) < 10  # standard error of stratified draws: 2.8


def test_more_samples_than_timesteps():
    timesteps, _ = step_draws(0, 6, 2, 0.0, 0)
    assert sorted(timesteps.tolist()) == [0, 0, 0, 1, 1, 1]


def test_label_dropout_has_its_rate_and_is_deterministic():
    dropped = torch.cat([step_draws(step, 64, 1000, 0.1, seed=7)[1] for step in range(200)])
    rate = dropped.double().mean().item()
    assert abs(rate - 0.1) < 4 * (0.1 * 0.9 / dropped.numel()) ** 0.5
    again = torch.cat([step_draws(step, 64, 1000, 0.1, seed=7)[1] for step in range(200)])
    assert torch.equal(dropped, again)
    assert not torch.equal(dropped, torch.cat([step_draws(s, 64, 1000, 0.1, seed=8)[1] for s in range(200)]))
    assert not step_draws(0, 64, 1000, 0.0, seed=7)[1].any()


def test_dropped_samples_get_the_unconditional_class_and_others_their_own():
    source = _source()
    labels, dropped = [], []
    for batch in source.batches(0, 4):
        own = stripes().labels(batch.sample_ids)
        assert torch.equal(batch.call["class_labels"], torch.where(batch.dropped, 10, own))
        labels.append(batch.call["class_labels"])
        dropped.append(batch.dropped)
    assert 0 < int(torch.cat(dropped).sum()) < 32
    assert 10 in torch.cat(labels).tolist()


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler()], ids=["ddim", "flow"]
)
def test_a_step_is_the_same_however_it_is_split(scheduler):
    whole = list(_source(scheduler).batches(0, 3))
    pieces = [[*_source(scheduler, micro_batches=2, processes=2, rank=rank).batches(0, 3)] for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [part for rank in (0, 1) for part in pieces[rank][2 * step : 2 * step + 2]]
        assert [part.position for part in parts] == [8 * step + k for k in (0, 2, 4, 6)]
        for name, value in batch.call.items():
            assert torch.equal(torch.cat([part.call[name] for part in parts]), value)
        assert torch.equal(torch.cat([part.target for part in parts]), batch.target)
        assert torch.equal(torch.cat([part.sample_ids for part in parts]), batch.sample_ids)


def test_starting_late_gives_the_batches_of_an_earlier_start():
    late = next(_source().batches(5, 6))
    early = list(_source().batches(0, 6))[5]
    assert torch.equal(late.call["hidden_states"], early.call["hidden_states"])
    assert torch.equal(late.timesteps, early.timesteps)


def test_noise_follows_the_scheduler_and_differs_between_samples():
    batch = next(_source().batches(0, 1))
    images = stripes().images(batch.sample_ids)
    abar = DDIMScheduler().alphas_cumprod[batch.timesteps.long()].view(-1, 1, 1, 1)
    expected = (
        abar.sqrt() * images + (1 - abar).sqrt() * batch.target
    )  # epsilon prediction: the target is the noise
    torch.testing.assert_close(batch.call["hidden_states"], expected)
    assert len({tuple(noise.flatten().tolist()) for noise in batch.target}) == 8


def _counting(length: int = 6) -> tuple[ImageData, list[int]]:
    data, seen = stripes(length), []

    def fetch(index):
        seen.append(index)
        return stripes(length).fetch(index)

    return replace(data, fetch=fetch), seen


def test_images_are_decoded_once_where_memory_allows(monkeypatch):
    data, seen = _counting()
    cached = list(_source(data=data).batches(0, 4))
    assert sorted(seen) == list(range(6))
    data, seen = _counting()
    monkeypatch.setattr(image_data, "CACHE_BYTES", 0)
    threaded = list(_source(data=data).batches(0, 4))
    assert len(seen) == 32
    for one, other in zip(cached, threaded, strict=True):
        assert torch.equal(one.call["hidden_states"], other.call["hidden_states"])
        assert torch.equal(one.sample_ids, other.sample_ids)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_broken_image_is_named(cache_bytes, monkeypatch):
    def fetch(index):
        if index == 4:
            raise PruningError("stripes: image 4 cannot be decoded")
        return stripes().fetch(index)

    monkeypatch.setattr(image_data, "CACHE_BYTES", cache_bytes)
    source = _source(data=replace(stripes(), fetch=fetch))
    with pytest.raises(PruningError, match="image 4 cannot be decoded"):
        list(source.batches(0, 4))


def test_label_embeddings_are_held_in_eval_mode():
    model = small().train()
    hold_label_embeddings(model)
    embeddings = [m for m in model.modules() if isinstance(m, LabelEmbedding)]
    assert len(embeddings) == 2  # one a block
    assert not any(m.training for m in embeddings)
    assert model.training
    assert model.transformer_blocks[0].ff.training


def test_dropout_needs_a_call_without_a_class():
    model = unet2d(num_class_embeds=10)
    source = shown(model, DDIMScheduler(), stripes())
    assert source.without is None
    with pytest.raises(PruningError, match=r"label_dropout=0.2, but the model knows no call without a class"):
        recover_images(model, None, source, Recover(label_dropout=0.2, distill_weight=0))

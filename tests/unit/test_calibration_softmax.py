"""Streamed attention statistics against the whole map, by hand and by expectation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.calibration.attention import softmax
from pruning.calibration.attention.reading import Reading
from pruning.calibration.attention.softmax import BLOCK_ELEMENTS, AttentionCall, StreamedSoftmax
from pruning.calibration.attention.streaming import attended, sink_sums
from pruning.calibration.draws import subset
from pruning.errors import PruningError
from pruning.settings import SinkWeights
from tests.unit.calibration_setup import attention_call, dense_attention

PADDING = torch.tensor([[True] * 20, [True] * 13 + [False] * 7])[:, None, None, :]


def variants() -> dict[str, AttentionCall]:
    plain = attention_call()
    full = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(3)) > 0.4
    full[:, :, :, 0] = True
    alibi = -(torch.arange(20)[:, None] - torch.arange(20)).abs().float()
    return {
        "plain": plain,
        "scale": replace(plain, scale=0.1),
        "cross": attention_call(keys=7),
        "grouped-query": replace(attention_call(heads=4), key=plain.key[:, :2], value=plain.value[:, :2]),
        "key padding": replace(plain, mask=PADDING),
        "full mask": replace(plain, mask=full),
        "head mask": replace(plain, mask=full | torch.tensor([True, False, False])[:, None, None]),
        "diffusers' additive mask": replace(plain, mask=torch.where(PADDING, 0.0, -10000.0)),
        "additive bias": replace(plain, mask=alibi),
        "causal": replace(plain, causal=True),
        "causal and padding": replace(plain, causal=True, mask=PADDING),
        "bfloat16": AttentionCall("a", *(t.bfloat16() for t in (plain.query, plain.key, plain.value))),
    }


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("block_elements", [1, 60, 300, BLOCK_ELEMENTS])
def test_exact_sums_agree_with_the_dense_softmax(
    name: str, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "BLOCK_ELEMENTS", block_elements)
    call = variants()[name]
    dense = dense_attention(call)
    sums = sink_sums(StreamedSoftmax(call))
    torch.testing.assert_close(sums.mass, dense.mean(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(sums.square, dense.square().mean(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(sums.mass.sum(-1), torch.ones(sums.mass.shape[:2]).double(), atol=1e-6, rtol=0)


def test_expected_mass_of_an_indifferent_head() -> None:
    call = replace(attention_call(queries=3, keys=3), causal=True)
    sums = sink_sums(StreamedSoftmax(call))
    assert sums.expected is not None
    by_hand = torch.tensor([1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3]).double() / 3
    torch.testing.assert_close(sums.expected, by_hand.expand(2, 3, 3))
    assert sink_sums(StreamedSoftmax(replace(call, causal=False))).expected is None


@pytest.mark.parametrize("additive", [False, True])
def test_fully_masked_rows_are_skipped(additive: bool) -> None:
    mask = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    mask[:, :, 5:] = False  # only queries 0..4 see anything
    call = replace(attention_call(), mask=torch.where(mask, 0.0, -10000.0) if additive else mask)
    sums = sink_sums(StreamedSoftmax(call))
    rows = dense_attention(attention_call())[:, :, :5]
    torch.testing.assert_close(sums.mass, rows.mean(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(sums.mass.sum(-1), torch.ones(2, 3).double(), atol=1e-6, rtol=0)


def test_a_head_with_all_its_mass_on_one_key() -> None:
    query, key = torch.ones(1, 1, 4, 1), torch.zeros(1, 1, 9, 1)
    key[0, 0, 6] = 200.0
    sums = sink_sums(StreamedSoftmax(AttentionCall("a", query, key, key)))
    one = torch.zeros(9).double()
    one[6] = 1.0
    torch.testing.assert_close(sums.mass[0, 0], one)
    torch.testing.assert_close(sums.square[0, 0], one)


def test_an_indifferent_head_attends_evenly() -> None:
    call = AttentionCall("a", torch.zeros(1, 1, 4, 2), torch.randn(1, 1, 8, 2), torch.zeros(1, 1, 8, 2))
    sums = sink_sums(StreamedSoftmax(call))
    torch.testing.assert_close(sums.mass, torch.full((1, 1, 8), 1 / 8).double())


def test_sampled_queries_are_unbiased_and_the_error_is_honest() -> None:
    call = attention_call(batch=1, heads=2, queries=60, keys=6)
    truth = sink_sums(StreamedSoftmax(call)).mass
    masses, errors = [], []
    for sample in range(400):
        sums = sink_sums(StreamedSoftmax(call, subset(0, [sample], 60, 15)))
        masses.append(sums.mass)
        errors.append((sums.square - sums.mass.square()) / 14 * (1 - 15 / 60))
    mean, spread = torch.stack(masses).mean(0), torch.stack(masses).std(0)
    assert ((mean - truth).abs() < 4 * spread / 20).all()
    predicted = torch.stack(errors).mean(0).sqrt()
    torch.testing.assert_close(predicted, spread, rtol=0.15, atol=0)


def test_all_queries_drawn_is_exact() -> None:
    call = attention_call()
    drawn = sink_sums(StreamedSoftmax(call, subset(0, [0, 1], 20, 20)))
    torch.testing.assert_close(drawn.mass, sink_sums(StreamedSoftmax(call)).mass, atol=1e-7, rtol=0)


def test_sampled_rows_use_their_own_mask() -> None:
    call = replace(attention_call(), causal=True)
    queries = torch.tensor([[3, 7], [0, 19]])
    sums = sink_sums(StreamedSoftmax(call, queries))
    dense = dense_attention(call)
    for sample in range(2):
        torch.testing.assert_close(
            sums.mass[sample], dense[sample][:, queries[sample]].mean(1), atol=1e-6, rtol=0
        )


def test_attended_is_the_head_mean_for_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    call = attention_call(keys=7)
    weight = torch.rand(2, 7, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.einsum("bhnm,bm->bhn", dense_attention(call), weight).mean(1)
    for block_elements in (10, BLOCK_ELEMENTS):
        monkeypatch.setattr(softmax, "BLOCK_ELEMENTS", block_elements)
        found = attended(StreamedSoftmax(call), weight)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().size() // tensor.element_size())
        return out


@pytest.mark.parametrize("queries", [None, 128])
def test_nothing_of_size_n_times_m_is_held_at_4096_tokens(queries: int | None) -> None:
    call = attention_call(batch=1, heads=2, queries=4096, keys=4096)
    drawn = None if queries is None else subset(0, [0], 4096, queries)
    with LargestTensor() as largest:
        reading = Reading(call, SinkWeights(), drawn)
        assert float(reading.sums.mass.sum()) == pytest.approx(2.0, abs=1e-4)
        if queries is not None:
            assert reading.attended(reading.indicator).shape == (1, 4096)
        assert reading.indicator.shape == (1, 4096)
    assert largest.elements <= BLOCK_ELEMENTS < 4096 * 4096


def test_an_attention_of_unknown_form_is_named() -> None:
    flat = torch.zeros(2, 20, 4)
    with pytest.raises(
        PruningError, match=r"attention 'attn': query, key and value have shapes \[\(2, 20, 4\)"
    ):
        StreamedSoftmax(AttentionCall("attn", flat, flat, flat))
    with pytest.raises(PruningError, match="query heads a multiple of the key heads"):
        StreamedSoftmax(replace(attention_call(heads=3), key=torch.zeros(2, 2, 20, 4)))

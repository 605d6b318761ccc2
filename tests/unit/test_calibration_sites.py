"""Which modules are attention, and which attention weights the rows of a group."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from pruning.calibration import calibrate
from pruning.calibration.attention.sites import is_attention, measured_sites, weighting_site
from pruning.errors import PruningError
from pruning.groups import discover
from pruning.groups.base import columns
from pruning.importance import score
from pruning.stages.caveats import unseen
from pruning.types import CalibrationStats, PrunableGroup
from tests.family.test_zoo_measuring import noised
from tests.unit.calibration_setup import held
from tests.zoo import ZOO, build


def heads(model: nn.Module) -> list[PrunableGroup]:
    return list(discover(model, ["attention_heads"]))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("flux2", "single_transformer_blocks.0.attn"),
        ("kandinsky5", "visual_transformer_blocks.0.self_attention"),
        ("joyimage_edit", "double_blocks.0.attn"),
        ("prx", "blocks.0.attention"),
        ("sd15", "down_blocks.0.attentions.0.transformer_blocks.0.attn1"),
    ],
)
def test_attention_is_known_by_its_projections(name: str, path: str) -> None:
    assert is_attention(build(ZOO[name]).get_submodule(path))


def test_linear_attention_forms_no_weights_to_look_at() -> None:
    tiny = ZOO["sana"]
    model = build(tiny)
    groups = heads(model)
    linear, cross = "transformer_blocks.0.attn1", "transformer_blocks.0.attn2"
    assert linear not in measured_sites(model, groups)
    assert cross in measured_sites(model, groups)
    first = next(group for group in groups if group.module == linear)
    assert weighting_site(model, first) is None
    stats = calibrate(model, groups, held(noised(tiny, model)), needs=["sink_mass", "row_weight"])
    with pytest.raises(PruningError, match=f"'sink_mass' was not gathered for '{linear}:attention_heads'"):
        score(model, groups, stats, criterion="sink_mass")


def test_the_attention_of_the_same_stream_weights_a_feed_forward() -> None:
    model = build(ZOO["ltx2"])
    block = "transformer_blocks.0"

    def site(name: str) -> str | None:
        group = PrunableGroup(name, f"{block}.{name}", "ffn_channels", 4, 1, consumed_by=(columns("x", 1),))
        return weighting_site(model, group)

    assert site("ff") == f"{block}.attn1"
    assert site("audio_ff") == f"{block}.audio_attn1"


def test_attention_that_goes_sample_by_sample_takes_batches_of_one() -> None:
    tiny = ZOO["mochi"]
    model = build(tiny)
    with pytest.raises(
        PruningError, match="attention is measured sample by sample; calibrate with a batch size of 1"
    ):
        calibrate(model, heads(model), held(noised(tiny, model)), needs=["sink_mass"])


def test_attention_that_spells_its_softmax_out_is_refused() -> None:
    tiny = ZOO["unet1d"]
    model = build(tiny)
    with pytest.raises(
        PruningError, match=r"SelfAttention1d does not call .*choose a criterion and a weighting that"
    ):
        calibrate(model, heads(model), held(noised(tiny, model)), needs=["sink_mass"])


def test_what_is_optional_is_left_out_where_attention_cannot_be_seen() -> None:
    tiny = ZOO["consisid"]  # its face is seen by attention that spells its softmax out
    model = build(tiny)
    groups, source = heads(model), held(noised(tiny, model))
    needs = ["sink_mass", "row_weight"]
    stats = calibrate(model, groups, source, needs=needs, optional=needs)
    seen = {group.module for group in groups if stats.has(group.module, "sink_mass")}
    assert {*stats.meta["unseen"]} == {group.module for group in groups} - seen
    assert seen == {group.module for group in groups if group.module.startswith("transformer_blocks")}
    assert all(stats.has(group.consumers[0].consumer_key, "row_weight") for group in groups)
    assert "does not call F.scaled_dot_product_attention" in unseen(stats)[0]
    assert unseen(CalibrationStats()) == []


def test_attention_over_prompts_of_different_lengths_is_left_out_where_it_is_optional() -> None:
    tiny = ZOO["wan"]
    model = build(tiny)
    long = list(noised(tiny, model))
    text = {"encoder_hidden_states": long[0].call["encoder_hidden_states"][:, :-1]}
    short = replace(long[0], call={**long[0].call, **text})
    needs = ["key_mass"]
    stats = calibrate(model, heads(model), held([*long, short]), needs=needs, optional=needs)
    assert {path.rpartition(".")[2] for path in stats.meta["unseen"]} == {"attn2"}
    assert stats.has("blocks.0.attn1", "key_mass")
    assert not stats.has("blocks.0.attn2", "key_mass")
    assert "prompts or samples are of different lengths" in unseen(stats)[0]
    with pytest.raises(PruningError, match="calibrate at one resolution and prompt length"):
        calibrate(model, heads(model), held([*long, short]), needs=needs)


@pytest.mark.parametrize(
    ("needs", "variants"), [(["sink_mass", "key_mass"], []), (["sink_mass", "row_weight"], ["on"])]
)
def test_what_a_criterion_or_a_weighting_reads_is_not_optional(needs: list[str], variants: list[str]) -> None:
    tiny = ZOO["unet1d"]
    model = build(tiny)
    with pytest.raises(PruningError, match=r"SelfAttention1d does not call"):
        calibrate(
            model,
            heads(model),
            held(noised(tiny, model)),
            needs=needs,
            variants=variants,
            optional=["sink_mass", "row_weight"],
        )

"""The model card."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard

from pruning.errors import PruningError
from pruning.export.base import ExportRequest
from pruning.export.card import model_card
from pruning.groups import find_groups
from pruning.settings import Export
from pruning.surgery import apply_plan
from pruning.types import PruningPlan
from tests.models import dit, unet2d_condition

FACTS = {
    "base_model": "someone/digits",
    "license": "apache-2.0",
    "data": "digits, training split",
    "asked": {"macs": 0.5, "criterion": "sink"},
    "got": {
        "macs_ratio": 0.49876,
        "blocks": ["a", "b"],
        "exact": True,
        "call": {"median_s": 0.5, "runs": 15},
    },
    "recovery": {"steps": 900},
    "metrics": {"dense": {"frechet": 1.23456, "macs": 1234567}, "recovered": {"frechet": 1.5}},
    "measured": ["1,000 samples | 20 steps"],
    "limits": ["Digits only."],
    "recipe": "model:\n  source: x\n",
    "versions": {"torch": "2.15"},
}


def _card(card, model=None, scheduler: str | None = "DDIMScheduler", whole=False) -> str:
    model = dit() if model is None else model
    request = ExportRequest(model, "slim", Export(), card, None, None, False)
    return model_card(request, "transformer", scheduler, whole_pipeline=whole)


def _pruned():
    model = dit()
    kept = {g.name: tuple(range(g.num_units // 2)) for g in find_groups(model, ("attention_heads",))}
    return apply_plan(model, PruningPlan(kept=kept))


def _front(card: str) -> dict:
    """Return what a YAML reader and the hub's own reader find before the text; they have to agree."""
    front, text = card.removeprefix("---\n").split("\n---\n", 1)
    read = ModelCard(card)
    assert yaml.safe_load(front) == read.data.to_dict()
    assert read.text.strip() == text.strip()
    return read.data.to_dict()


def test_the_front_matter_is_what_the_hub_reads():
    front = _front(_card(FACTS))
    [results] = front.pop("model-index")
    assert front == {
        "library_name": "diffusers",
        "license": "apache-2.0",
        "base_model": "someone/digits",
        "tags": ["sinkprune", "structured-pruning"],
    }
    assert results["name"] == "slim"
    assert _front(_card({})) == {"library_name": "diffusers", "tags": ["sinkprune", "structured-pruning"]}


def test_the_hub_is_told_the_numbers_of_this_model():
    name = "Fréchet distance on digits-classifier features"
    figures = {
        name: {"value": 0.1479, "interval": [0.07, 0.222]},
        "parameters": 1_500_000,
        "device": "cpu",
        "exact": True,
    }
    card = _card(
        {"title": "Slim", "data": "digits", "metrics": {"dense": {name: 0.14}, "recovered": figures}}
    )
    results = ModelCard(card).data.eval_results
    assert [(r.metric_name, r.metric_value) for r in results] == [(name, 0.1479), ("parameters", 1_500_000)]
    assert [r.metric_type for r in results] == [
        "frechet-distance-on-digits-classifier-features",
        "parameters",
    ]
    assert {(r.dataset_name, r.dataset_type) for r in results} == {("digits", "digits")}
    assert {r.task_type for r in results} == {"unconditional-image-generation"}
    assert f"| {name} | 0.14 | 0.1479 (0.07 to 0.222) |" in card.splitlines()
    assert "| parameters |  | 1,500,000 |" in card.splitlines()
    assert "| exact |  | yes |" in card.splitlines()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("/home/me/My Photos/", "my-photos"),
        (None, "unknown"),
        ("—", "unknown"),
    ],
)
def test_the_data_of_a_result_is_a_hub_id_or_a_plain_word(data, kind):
    card = _card({"data": data, "metrics": {"recovered": {"FID": 3.5}}}, unet2d_condition())
    [result] = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.metric_type, result.task_type) == (kind, "fid", "text-to-image")


@pytest.mark.parametrize(
    "text",
    ['Slim: "half" the #MACs', "a\n---\nb: [c", "- x: {y}", "it's & *that* | `this`", "%YAML 1.2", "---"],
)
def test_no_text_breaks_the_front_matter(text):
    facts = {**FACTS, "title": text, "license": text, "data": text, "base_model": text}
    facts["metrics"] = {"recovered": {text: 1.5}}
    card = _card(facts)
    front = _front(card)
    assert front["license"] == text
    assert "base_model" not in front
    [index] = front["model-index"]
    [result] = index["results"]
    assert index["name"] == result["dataset"]["name"] == " ".join(text.split())
    assert result["metrics"][0]["name"] == text
    assert f"# {' '.join(text.split())}" in card.splitlines()


@pytest.mark.parametrize("source", ["bundled:models/digits-dit", "/home/me/model", "model"])
def test_a_base_model_that_is_no_hub_id_stays_out_of_the_front_matter(source):
    card = _card({"base_model": source})
    assert "base_model" not in _front(card)
    assert f"copy of `{source}`" in card


def test_what_was_pruned_is_counted_against_the_stock_architecture():
    card = _card({}, _pruned())
    assert "| attention heads | 6 | 12 | 50% |" in card
    assert "feed-forward" not in card
    dense, slim = (sum(p.numel() for p in m.parameters()) for m in (dit(), _pruned()))
    assert (
        f"{slim:,} parameters; the stock architecture of its config has {dense:,} ({slim / dense:.1%} kept)."
        in card
    )


def test_the_last_unit_of_a_layer_is_counted():
    model = dit()
    heads = find_groups(model, ("attention_heads",))
    apply_plan(model, PruningPlan(kept={heads[0].name: (0,)}))
    total = sum(group.num_units for group in heads)
    left = total - heads[0].num_units + 1
    assert f"| attention heads | {left} | {total} |" in _card({}, model)


def test_facts_are_shown():
    card = _card(FACTS)
    for line in (
        "| macs_ratio | 0.4988 |",
        "| blocks | a, b |",
        "| exact | yes |",
        "| call | median_s 0.5, runs 15 |",
        "| steps | 900 |",
        "| | dense | recovered |",
        "| frechet | 1.235 | 1.5 |",
        "| macs | 1,234,567 |  |",
        "- 1,000 samples | 20 steps",
        "- Digits only.",
        "apache-2.0.",
        "  source: x",
    ):
        assert line in card.splitlines(), line


def test_without_facts_nothing_is_left_open():
    card = _card({}, scheduler=None)
    assert "The weights derive from the base model; its licence holds for them." in card
    assert "- No scheduler is included; use the base model's." in card
    assert "## Recipe" not in card
    assert "None" not in card
    assert "The weights derive from `x/y`" in _card({"base_model": "x/y"})


def test_cells_cannot_break_the_table():
    assert "| a\\|b | c d |" in _card({"got": {"a|b": "c\nd"}})


def test_unknown_facts_are_refused():
    with pytest.raises(PruningError, match="unknown card fact 'licence'; valid: title, summary"):
        _card({"licence": "mit"})

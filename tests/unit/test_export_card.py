"""The model card."""

from __future__ import annotations

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from pruning.export.card import Facts, model_card
from pruning.groups import find_groups
from pruning.surgery import apply_plan
from pruning.types import PruningPlan
from tests.models import dit, unet2d_condition

FACTS = {
    "title": "Slim",
    "base_model": "someone/digits",
    "data": "digits, training split",
    "asked": {"macs": 0.5, "criterion": "sink"},
    "got": {"macs_ratio": 0.49876, "exact": True, "removed": {"attention_heads": "6 of 12"}},
    "recovery": {"steps": 900, "last_loss": None},
    "metrics": {
        "dense": {"frechet": (1.23456, None), "macs": (1234567, None)},
        "recovered": {"frechet": (1.5, None)},
    },
    "measured": ["1,000 samples | 20 steps"],
    "recipe": "model:\n  source: x\n",
    "versions": {"torch": "2.15"},
}


def _card(facts, model=None, whole=False) -> str:
    model = dit() if model is None else model
    return model_card(model, torch.float32, Facts(**facts), part="transformer", whole_pipeline=whole)


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
        "base_model": "someone/digits",
        "tags": ["sinkprune", "structured-pruning"],
    }
    assert results["name"] == "Slim"
    assert _front(_card({})) == {"library_name": "diffusers", "tags": ["sinkprune", "structured-pruning"]}


def test_the_hub_is_told_the_numbers_of_this_model():
    name = "Fréchet distance on digits-classifier features"
    figures = {name: (0.1479, [0.07, 0.222]), "parameters": (1_500_000, None)}
    metrics = {"dense": {name: (0.14, None)}, "recovered": figures}
    card = _card({"title": "Slim", "data": "digits", "metrics": metrics})
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


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("/home/me/My Photos/", "my-photos"),
        ("", "unknown"),
        ("—", "unknown"),
    ],
)
def test_the_data_of_a_result_is_a_hub_id_or_a_plain_word(data, kind):
    card = _card({"data": data, "metrics": {"recovered": {"FID": (3.5, None)}}}, unet2d_condition())
    [result] = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.metric_type, result.task_type) == (kind, "fid", "text-to-image")


@pytest.mark.parametrize(
    "text",
    ['Slim: "half" the #MACs', "a\n---\nb: [c", "- x: {y}", "it's & *that* | `this`", "%YAML 1.2", "---"],
)
def test_no_text_breaks_the_front_matter(text):
    facts = {**FACTS, "title": text, "data": text, "base_model": text}
    facts["metrics"] = {"recovered": {text: (1.5, None)}}
    card = _card(facts)
    front = _front(card)
    assert "base_model" not in front
    [index] = front["model-index"]
    [result] = index["results"]
    assert index["name"] == result["dataset"]["name"] == " ".join(text.split())
    assert result["metrics"][0]["name"] == text
    assert f"# {' '.join(text.split())}" in card.splitlines()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("bundled:models/digits-dit", "bundled:models/digits-dit"),
        ("/home/me/model", "model"),
        ("model", "model"),
    ],
)
def test_a_base_model_that_is_no_hub_id_stays_out_of_the_front_matter(source, said):
    card = _card({"base_model": source})
    assert "base_model" not in _front(card)
    assert f"copy of `{said}`" in card


def test_a_pruned_model_says_how_it_is_loaded_and_how_large_it_is():
    model = _pruned()
    card = _card({}, model)
    count = sum(p.numel() for p in model.parameters())
    assert f"`DiTTransformer2DModel` with {count:,} parameters in float32." in card
    lines = card.splitlines()
    assert "import pruning  # the package sinkprune: lets diffusers build the slim shapes" in lines
    assert 'model = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")' in lines
    assert "import pruning" not in _card({}).replace("`import pruning`", "")


def test_facts_are_shown():
    card = _card(FACTS)
    for line in (
        "| macs_ratio | 0.4988 |",
        "| exact | yes |",
        "| removed | attention_heads 6 of 12 |",
        "| steps | 900 |",
        "| last_loss | none |",
        "| | dense | recovered |",
        "| frechet | 1.235 | 1.5 |",
        "| macs | 1,234,567 |  |",
        "- 1,000 samples | 20 steps",
        "  source: x",
    ):
        assert line in card.splitlines(), line


def test_without_facts_nothing_is_left_open():
    card = _card({})
    assert "The weights derive from the base model; its licence holds for them." in card
    assert "## Recipe" not in card
    assert "None" not in card
    assert "\n\n\n" not in card + _card(FACTS)
    assert "The weights derive from `x/y`" in _card({"base_model": "x/y"})


def test_cells_cannot_break_the_table():
    assert "| a\\|b | c d |" in _card({"got": {"a|b": "c\nd"}})

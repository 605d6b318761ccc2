"""No stale reuse: every leaf of the recipe is flipped, and the results that depend on it must be others.

The table says, for every knob, which results depend on it *by themselves* (what comes before them held fixed). Dropping
a key from what a stage reads, or a comparison from what a calibration is held against, breaks a row of it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruning.recipe import Recipe, load_recipe
from pruning.settings import Limit, knobs_of
from pruning.settings.candidates import CANDIDATES
from pruning.stages.calibration import SHOWN as CALIBRATION_SHOWN
from pruning.stages.calibration import first_pass_key, wanted
from pruning.stages.observing import observation_key
from pruning.stages.run import Run
from pruning.stages.runner import BY_NAME
from pruning.stages.stage import value_at
from pruning.store import Key, Result

BASE = ("score.criterion=sink", "prune.selection=block_by_block", "calibrate.sink_weights.mode=paper")
"""Settings under which every key matters: sinks are weighted, and blocks are measured again."""

SHOWN = "first_pass calibrate prune"  # what the model is shown; `prune` measures block by block
SEEN = "samples image_features fd_dinov2 cmmd clip_score"
PRINTED = "export report"  # they print the whole recipe
EVERYTHING = f"first_pass calibrate score plan prune recover evaluate {SEEN} denoising cost {PRINTED}"

TABLE: dict[str, tuple[Any, str]] = {
    "name": ("other", ""),
    "title": ("Other", ""),
    "seed": (1, f"{SHOWN} score recover evaluate {SEEN} denoising"),
    "model.source": ("bundled:models/digits-unet", EVERYTHING),
    "model.variant": ("fp16", EVERYTHING),
    "model.null_class": ("last", EVERYTHING),
    "model.dtype": ("bfloat16", f"{SHOWN} score recover evaluate {SEEN} denoising cost"),
    "data.source": ("elsewhere", EVERYTHING),
    "data.split": ("validation", f"{SHOWN} recover evaluate {SEEN} denoising"),
    "data.eval_split": ("validation", f"evaluate {SEEN} denoising"),
    "data.resolution": (32, f"{SHOWN} recover evaluate {SEEN} denoising"),
    "data.image_column": ("x", f"{SHOWN} recover evaluate {SEEN} denoising"),
    "data.label_column": ("x", f"{SHOWN} recover evaluate {SEEN} denoising"),
    "data.caption_column": ("x", f"{SHOWN} recover evaluate {SEEN} denoising"),
    "pipeline": ({"height": 512}, f"{SHOWN} evaluate {SEEN} denoising"),
    "calibrate.num_samples": (129, SHOWN),
    "calibrate.timestep_buckets": (9, f"{SHOWN} evaluate denoising"),
    "calibrate.provider": ("sampling", f"{SHOWN} recover evaluate denoising"),
    "calibrate.num_steps": (21, f"{SHOWN} evaluate denoising"),
    "calibrate.guidance_scale": (2.0, f"{SHOWN} evaluate denoising"),
    "calibrate.queries": (16, SHOWN),
    "calibrate.rows": (16, "calibrate prune"),
    "calibrate.timestep_weights": ("obs_diff", SHOWN),
    "calibrate.criteria": (["taylor"], "calibrate"),
    "calibrate.diagnostics": (False, "calibrate"),
    "calibrate.sink_weights.unstable": (0.5, "calibrate prune"),
    "calibrate.sink_weights.stable": (0.5, "calibrate prune"),
    "calibrate.sink_weights.alpha": (5.0, SHOWN),
    "calibrate.sink_weights.rho": (9.0, SHOWN),
    "calibrate.sink_weights.mode": ("hard", SHOWN),
    "calibrate.sink_weights.deviations": (3.0, SHOWN),
    "calibrate.sink_weights.epsilon": (0.1, SHOWN),
    "calibrate.sink_weights.kappa": (2.0, "calibrate prune"),
    "score.criterion": ("probe", "first_pass calibrate score prune"),
    "score.weighting": ("permuted", "calibrate score prune"),
    "prune.kinds": (["ffn_channels"], "first_pass calibrate score plan"),
    "prune.target.macs": (0.6, "plan"),
    "prune.target.params": (0.6, "plan"),
    "prune.target.ratio": (0.1, "plan"),
    "prune.target.latency": (0.6, "plan"),
    "prune.target.latency_ms": (60.0, "plan"),
    "prune.target.memory_gb": (0.1, "plan"),
    "prune.scope": ("local", "plan"),
    "prune.round_to": (8, "plan"),
    "prune.min_units": (2, "plan"),
    "prune.limits": ([Limit(max_ratio=0.5)], "plan"),
    "prune.per_cost": (False, "plan"),
    "prune.compensation": ("fold", "prune"),
    "prune.ridge": (0.02, "prune"),
    "prune.selection": ("one_shot", "prune"),
    "prune.rounds": (2, "prune"),
    "prune.modulation_error": (0.01, "plan"),
    "prune.share_embedders": (True, "plan"),
    "recover.enabled": (False, "recover evaluate"),
    "recover.provider": ("renoised", "recover"),
    "recover.method": ("blocks", "recover"),
    "recover.num_samples": (255, "recover"),
    "recover.train": ("lora", "recover"),
    "recover.lora_rank": (4, "recover"),
    "recover.lora_alpha": (8.0, "recover"),
    "recover.steps": (151, "recover"),
    "recover.batch_size": (32, "recover"),
    "recover.learning_rate": (1e-3, "recover"),
    "recover.warmup_steps": (7, "recover"),
    "recover.schedule": ("constant", "recover"),
    "recover.weight_decay": (0.1, "recover"),
    "recover.distill_weight": (0.9, "recover"),
    "recover.feature_weight": (0.1, "recover"),
    "recover.label_dropout": (0.2, "recover"),
    "recover.ema_decay": (0.9, "recover"),
    "recover.grad_clip": (None, "recover"),
    "recover.optimizer": ("adamw8bit", "recover"),
    "recover.gradient_checkpointing": (True, "recover"),
    "recover.eval_every": (50, "recover"),
    "recover.loss_weighting": ("min_snr", "recover"),
    "recover.gradient_accumulation": (2, "recover"),
    "recover.mixed_precision": ("bf16", "recover"),
    "recover.max_seconds": (60.0, "recover"),
    "evaluate.num_samples": (999, f"evaluate {SEEN}"),
    "evaluate.num_steps": (19, f"evaluate {SEEN}"),
    "evaluate.sampler": (None, f"evaluate {SEEN}"),
    "evaluate.guidance_scale": (2.0, f"evaluate {SEEN}"),
    "evaluate.features": ("inception", "evaluate image_features"),
    "evaluate.num_real": (99, "evaluate image_features fd_dinov2 cmmd"),
    "evaluate.networks.dinov2": ("facebook/dinov2-small", "evaluate fd_dinov2"),
    "evaluate.networks.cmmd": ("other/clip", "evaluate cmmd"),
    "evaluate.networks.clip": ("other/clip", "evaluate clip_score"),
    "evaluate.networks.lpips": ("vgg", "evaluate"),
    "evaluate.denoising_samples": (99, "evaluate denoising"),
    "evaluate.metrics": (["cost"], "evaluate"),
    "evaluate.latency.batch_size": (16, "evaluate"),
    "evaluate.latency.runs": (9, "evaluate"),
    "evaluate.latency.sampling_runs": (0, "evaluate"),
    "evaluate.latency.threads": (None, "evaluate"),
    "evaluate.latency.modes": (["eager", "compiled"], "evaluate"),
    "evaluate.latency.batch_sizes": ([1], "evaluate"),
    "export.formats": ([], ""),
    "export.dtype": ("float32", "evaluate cost"),
    "export.max_shard_size": ("1GB", ""),
}
"""Knob -> another value, and the results that depend on it beside those that print the whole recipe."""

PLANNED = (
    "prune.kinds",
    "prune.target.macs",
    "prune.target.params",
    "prune.target.ratio",
    "prune.target.latency",
    "prune.target.latency_ms",
    "prune.target.memory_gb",
    "prune.scope",
    "prune.round_to",
    "prune.min_units",
    "prune.limits",
    "prune.per_cost",
)
"""Keys that any plan depends on."""

ELSEWHERE = {
    "prune.depth.budget": "takes blocks; tested below",
    "prune.depth.samples": "counts where there is a budget; tested below",
    "prune.candidates": "several are for one shot; tested below",
    "prune.candidate_samples": "as prune.candidates",
    "recover.held_out": "takes evaluations; tested below",
    "recover.early_stop": "as recover.held_out",
    "recover.validation_images": "as recover.held_out",
    "recover.ema_lengths": "as recover.held_out",
    "prune.earlier": "makes runs of their own; tested in e2e/test_rounds",
    "prune.earlier_steps": "as prune.earlier",
    "model.start": "needs a slim model; tested in e2e/test_rounds",
    "model.subfolder": "the model of these tests has no other; tested in test_stages_workspace",
    "model.revision": "as model.subfolder",
}
"""Knobs that are not flipped here, and why."""


def keys(recipe: Recipe) -> dict[str, str]:
    """Return the id of every result of a run; the outcome of earlier stages is held fixed."""
    run = Run(recipe, progress=False)
    run.result = lambda name: SimpleNamespace(output_hash=name)  # type: ignore[assignment, method-assign]
    found = {name: stage.key(run).id for name, stage in BY_NAME.items()}
    found["first_pass"] = first_pass_key(run, wanted(run)).id
    for what in (*SEEN.split(), "denoising", "cost"):
        found[what] = observation_key(run, what, "subject").id
    return found


def replaced(section: Any, key: str, value: Any) -> Any:
    head, _, rest = key.partition(".")
    return dataclasses.replace(
        section, **{head: replaced(getattr(section, head), rest, value) if rest else value}
    )


@pytest.fixture(scope="module")
def base() -> tuple[Recipe, dict[str, str]]:
    recipe = load_recipe("quickstart", BASE)
    return recipe, keys(recipe)


def test_every_knob_is_neutral_or_in_the_table():
    knobs = {knob.key: knob.neutral for knob in knobs_of(Recipe)}
    assert {key for key, neutral in knobs.items() if not neutral} == {*TABLE, *ELSEWHERE}
    assert {key for key, neutral in knobs.items() if neutral} == {
        "device",
        "run_dir",
        "store",
        "calibrate.batch_size",
        "calibrate.checkpointing",
        "calibrate.memory_gb",
        "recover.checkpoint_every",
        "recover.keep_checkpoints",
        "recover.tracker",
        "evaluate.batch_size",
        "evaluate.protocol",
    }


@pytest.mark.parametrize("key", TABLE)
def test_what_depends_on_a_knob_changes_with_it_and_nothing_else(base, key):
    recipe, before = base
    value, dependent = TABLE[key]
    assert value_at(dataclasses.asdict(recipe), key) != value_at(
        dataclasses.asdict(replaced(recipe, key, value)), key
    )
    after = keys(replaced(recipe, key, value))
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {*dependent.split(), *PRINTED.split()}


@pytest.mark.parametrize("key", ["data.split", "calibrate.num_samples"])
def test_low_rank_layers_depend_on_what_they_are_measured_on(base, key):
    recipe, value = replaced(base[0], "prune.modulation_error", 0.01), TABLE[key][0]
    before, after = keys(recipe), keys(replaced(recipe, key, value))
    assert after["plan"] != before["plan"]


@pytest.mark.parametrize(
    "key", [knob.key for knob in knobs_of(Recipe) if knob.neutral and knob.key != "device"]
)
def test_a_neutral_knob_changes_no_result_but_what_prints_it(base, key):
    recipe, before = base
    value = value_at(dataclasses.asdict(recipe), key)
    other = {
        "evaluate.protocol": "quick",
        "recover.tracker": "wandb",
        "store": "x",
        "calibrate.checkpointing": True,
        "calibrate.memory_gb": 8.0,
    }
    after = keys(
        replaced(
            recipe, key, other[key] if value is None else f"{value}x" if isinstance(value, str) else value + 1
        )
    )
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {*PRINTED.split()}


@pytest.mark.parametrize("key", ["held_out", "early_stop", "validation_images"])
def test_evaluations_while_training_are_part_of_the_recovery(base, key):
    recipe = replaced(base[0], "recover.eval_every", 50)
    before, after = keys(recipe), keys(replaced(recipe, f"recover.{key}", 4))
    assert {name for name in before if after[name] != before[name]} == {"recover", *PRINTED.split()}


def test_validation_images_depend_on_how_is_sampled(base):
    recipe = replaced(base[0], "recover.eval_every", 50)
    shown = replaced(recipe, "recover.validation_images", 4)
    for section, changes in ((recipe, False), (shown, True)):
        after = keys(replaced(section, "evaluate.num_steps", 19))["recover"]
        assert (after != keys(section)["recover"]) == changes


@pytest.mark.parametrize("key", ["params", "ratio"])
def test_another_kind_of_target_is_another_plan(base, key):
    recipe, before = base
    plan = keys(replaced(replaced(recipe, "prune.target.macs", None), f"prune.target.{key}", 0.5))["plan"]
    assert plan != before["plan"]


MEASURED = ("model.dtype", "evaluate.latency.batch_size", "evaluate.latency.threads")
"""Keys that a plan depends on whose target is measured, beside those of any plan."""


@pytest.mark.parametrize("target", ["latency=0.6", "latency_ms=50", "memory_gb=0.1"])
def test_a_target_that_is_measured_depends_on_how(target, monkeypatch):
    recipe = load_recipe("quickstart", [f"prune.target.{target}"])
    before = keys(recipe)
    timed = MEASURED if target.startswith("latency") else MEASURED[:1]
    for key in (*MEASURED, "evaluate.latency.runs", "evaluate.latency.modes"):
        changed = keys(replaced(recipe, key, TABLE[key][0]))["plan"] != before["plan"]
        expected = key in timed and not (key == "evaluate.latency.threads" and torch.get_num_threads() == 1)
        assert changed == expected, key
    monkeypatch.setattr(Run, "device_name", "cuda:0 (another card)")
    assert keys(recipe)["plan"] != before["plan"]


SEARCHED = (*PLANNED, *CALIBRATION_SHOWN)
"""Keys that a plan depends on whose blocks are searched, beside those of the search itself."""


def test_a_search_of_blocks_depends_on_what_it_is_shown():
    recipe = load_recipe("quickstart", ["prune.kinds=[ffn_channels, blocks]", "prune.depth.budget=5"])
    before = keys(recipe)
    alone = [key for key in TABLE if key.startswith("prune.target.") and key != "prune.target.macs"]
    left_out = ("calibrate.provider", "prune.kinds", *alone)
    flips = {key: value for key, (value, _) in TABLE.items() if key not in left_out}
    flips |= {"prune.depth.budget": 6, "prune.depth.samples": 8}
    for key, value in flips.items():
        changed = keys(replaced(recipe, key, value))["plan"] != before["plan"]
        of_the_model = (key.startswith("model.") and key != "model.dtype") or key == "data.source"
        decided = ("prune.depth", "prune.modulation_error", "prune.share_embedders")
        assert changed == (key.startswith(decided) or key in SEARCHED or of_the_model), key


def test_without_a_search_the_plan_is_the_one_that_it_always_was(base):
    recipe, before = base
    assert keys(replaced(recipe, "prune.depth.samples", 8))["plan"] == before["plan"]
    extra = BY_NAME["plan"].extra
    assert extra is not None
    assert extra(Run(recipe, progress=False)) == {}


JUDGED = ("model.dtype", "prune.compensation", "prune.ridge", "prune.candidate_samples")
"""Keys that a plan depends on that is chosen among candidates, beside those of any plan and what models are shown."""


def test_a_choice_among_candidates_depends_on_what_they_are_measured_by():
    recipe = load_recipe("quickstart", ["prune.candidates=3"])
    before = keys(recipe)
    assert before["plan"] != keys(load_recipe("quickstart"))["plan"]
    kept = ("calibrate.provider", "prune.depth.", "model.source", "model.null_class", "prune.selection")
    flips = {key: value for key, (value, _) in TABLE.items() if not key.startswith(kept)}
    flips |= {"prune.candidates": 4, "prune.candidate_samples": 8}
    for key, value in flips.items():
        changed = keys(replaced(recipe, key, value))["plan"] != before["plan"]
        decided = ("prune.modulation_error", "prune.share_embedders", "prune.candidates", "model.variant")
        depends = (*PLANNED, *CALIBRATION_SHOWN, *JUDGED, *decided, "data.source")
        assert changed == (key in depends), key
    run = Run(recipe, progress=False)
    run.result = lambda name: SimpleNamespace(output_hash=f"other {name}")  # type: ignore[assignment, method-assign]
    extra = BY_NAME["plan"].extra
    assert extra is not None
    assert extra(run)["statistics"] == "other calibrate"


def test_candidates_ask_for_more_of_the_one_calibration_and_the_first_eight_for_nothing():
    counts = (1, 8, len(CANDIDATES))
    one, eight, every = (
        wanted(Run(load_recipe("quickstart", [f"prune.candidates={n}"]), progress=False)) for n in counts
    )
    assert eight.needs == one.needs
    assert {*every.needs} > {*one.needs}
    assert every.variants == one.variants == ()


def test_null_and_what_it_stands_for_are_one():
    for short, long in (
        ("recover.warmup_steps=null", "recover.warmup_steps=15"),
        ("evaluate.features=null", "evaluate.features=bundled:models/digits-classifier"),
        ("score.weighting=null", "score.weighting=off"),
    ):
        one, other = (keys(load_recipe("quickstart", [asked])) for asked in (short, long))
        same = {name for name in one if one[name] == other[name]}
        assert {"calibrate", "score", "recover", "evaluate"} <= same, short


def test_latency_depends_on_the_device_and_what_a_model_shows_does_not(base, monkeypatch):
    recipe, before = base
    monkeypatch.setattr(Run, "device_name", "cuda:0 (another card)")
    after = keys(recipe)
    assert {name for name in before if after[name] != before[name]} == {"evaluate"}
    monkeypatch.setattr(
        Run, "device", SimpleNamespace(type="cuda")
    )  # peak memory is measured in another way there
    assert observation_key(Run(recipe, progress=False), "cost", "subject").id != before["cost"]


def test_influence_is_of_exactly_the_kinds_that_were_shown(base):
    less = replaced(base[0], "prune.kinds", ["attention_heads"])
    for weighting, exact in (("influence", True), ("permuted", False)):
        runs = [
            Run(replaced(recipe, "score.weighting", weighting), progress=False) for recipe in (base[0], less)
        ]
        for of in (BY_NAME["calibrate"].key, lambda run: first_pass_key(run, wanted(run))):
            whole, part = map(of, runs)
            assert (whole.base != part.base) == exact


def test_an_observation_depends_on_whose_it_is(base):
    run = Run(base[0], progress=False)
    for what in ("samples", "cost", "of_a_metric_of_ones_own"):
        assert observation_key(run, what, "dense").id != observation_key(run, what, "slim").id


@pytest.mark.parametrize(
    ("section", "value"), [("needs", ["a"]), ("variants", []), ("kinds", ["attention_heads"])]
)
def test_a_calibration_that_lacks_something_does_not_serve(base, section, value):
    asked = {"needs": ["a", "b"], "variants": ["on"], "kinds": ["attention_heads", "ffn_channels"]}
    assert stage_key(base, "calibrate").asked.keys() == asked.keys()
    check_less_serves_not(asked, section, value)


@pytest.mark.parametrize(("section", "value"), [("sees", []), ("kinds", ["ffn_channels"])])
def test_a_first_pass_that_lacks_something_does_not_serve(base, section, value):
    run = Run(base[0], progress=False)
    asked = {"kinds": ["attention_heads", "ffn_channels"], "sees": ["stability"]}
    assert first_pass_key(run, wanted(run)).asked == asked
    check_less_serves_not(asked, section, value)


def stage_key(base, name: str) -> Key:
    return BY_NAME[name].key(Run(base[0], progress=False))


def check_less_serves_not(asked: dict[str, list[str]], section: str, value: list[str]) -> None:
    more, less = Key("k", {}, {}, asked), Key("k", {}, {}, {**asked, section: value})
    results = [
        Result(Path(), {"kind": "k", "id": key.id, "base": key.base, "asked": key.asked})
        for key in (more, less)
    ]
    assert [result.serves(less) for result in results] == [True, True]
    assert [result.serves(more) for result in results] == [True, False]

"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from eval.run import check_metrics
from pruning.errors import PruningError
from pruning.recipe import (
    Recipe,
    bundled_recipes,
    find_recipe,
    load_recipe,
    to_yaml,
)
from pruning.settings import Data, Evaluate, Limit, Recover, knobs_of
from pruning.settings.protocols import PROTOCOLS, departures

TARGET = "prune:\n  target:\n    macs: 0.5\n"


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str, name: str = "r.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def test_values_go_over_defaults_and_overrides_over_both(write):
    path = write("name: mine\nseed: 3\nscore:\n  criterion: wanda\n" + TARGET)
    recipe = load_recipe(path, ["seed=4", "calibrate.queries=64", "recover.learning_rate=1e-3"])
    assert (recipe.name, recipe.seed, recipe.score.criterion) == ("mine", 4, "wanda")
    assert recipe.calibrate.queries == 64
    assert recipe.recover.learning_rate == 1e-3
    assert recipe.run_dir == "runs/mine"
    assert recipe.evaluate == Recipe().evaluate


def test_limits_become_dataclasses_and_the_yaml_of_a_recipe_reads_back(write):
    text = TARGET + "  limits:\n    - {match: 'blocks.0.*', max_ratio: 0.25}\n"
    recipe = load_recipe(write(text), ["prune.kinds=[attention_heads]"])
    assert recipe.prune.limits[0].max_ratio == 0.25
    assert recipe.prune.kinds == ["attention_heads"]
    assert load_recipe(write(to_yaml(recipe), "again.yaml")) == recipe


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_off_and_no_are_words(write, word):
    recipe = load_recipe(write(f"score: {{weighting: {word}}}\nrecover: {{mixed_precision: no}}\n" + TARGET))
    assert recipe.score.weighting == word
    assert recipe.recover.mixed_precision == "no"
    assert load_recipe(write(TARGET), [f"score.weighting={word}"]).score.weighting == word
    assert load_recipe(write(to_yaml(recipe), "again.yaml")) == recipe


def test_truth_values_and_numbers_are_read_as_such(write):
    recipe = load_recipe(write("recover: {enabled: false, learning_rate: 1e-4, ema_decay: .5}\n" + TARGET))
    assert recipe.recover.enabled is False
    assert (recipe.recover.learning_rate, recipe.recover.ema_decay) == (1e-4, 0.5)


@pytest.mark.parametrize(
    "text", ["1e-4", "007", "0123456", "off", "2026-01-01", "my [v2] photos", "Digits: a # b"]
)
def test_text_stays_the_text_that_was_written(write, text):
    recipe = load_recipe(write(TARGET), [f"title={text}", f"model.revision={text}", f"data.source={text}"])
    assert (recipe.title, recipe.model.revision, recipe.data.source) == (text, text, text)
    if "[" not in text and "#" not in text:
        assert load_recipe(write(f"title: {text.replace(': ', ' ')}\n" + TARGET)).title == text.replace(
            ": ", " "
        )
    assert load_recipe(write(to_yaml(recipe), "again.yaml")) == recipe


def test_quotes_around_text_are_no_part_of_it_and_null_is_null(write):
    recipe = load_recipe(write(TARGET), ["title='a b'", "model.revision=null", "model.variant='null'"])
    assert (recipe.title, recipe.model.revision, recipe.model.variant) == ("a b", None, "null")


@pytest.mark.parametrize(
    "text",
    ["Run #5 of sweep", "# 5", "&a b", "*a", "!x", "it''s", "'a' and 'b'", "~", "a: [", " x ", "{a: 1}"],
)
def test_text_of_an_override_is_taken_literally(write, text):
    recipe = load_recipe(write(TARGET), [f"title={text}", f"data.source={text}", f"store={text}"])
    assert (recipe.title, recipe.data.source, recipe.store) == (text, text, text)
    assert load_recipe(write(to_yaml(recipe), "again.yaml")) == recipe


def test_empty_is_null_where_text_may_be_null(write):
    recipe = load_recipe(write(TARGET), ["title=", "model.revision=", 'store="a # b"'])
    assert (recipe.title, recipe.model.revision, recipe.store) == ("", None, "a # b")


@pytest.mark.parametrize("key", ["title", "model.source", "model.revision", "seed", "recover"])
def test_the_mark_of_a_missing_value_is_no_value(write, key):
    with pytest.raises(
        PruningError, match=rf"{key}: '\?\?\?' (stands for a value that is missing; give one|is )"
    ):
        load_recipe(write(TARGET), [f"{key}=???"])


def test_text_that_utf8_cannot_write_is_refused(write):
    message = r"title: 'caf\\udce9' cannot be written as UTF-8; type it anew"
    with pytest.raises(PruningError, match=f"command line: {message}"):
        load_recipe(write(TARGET), ["title=caf\udce9"])
    with pytest.raises(PruningError, match=f"r.yaml: {message}"):
        load_recipe(write('title: "caf\\udce9"\n' + TARGET))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "recover=null",
            "recover: null is .*; its keys are enabled, method, .*, steps, .*; recover.enabled=false switches it off",
        ),
        ("recover=", "recover: null is not a mapping"),
        (
            "prune.target=null",
            "prune.target: null is not a mapping; its keys are macs, params, ratio, latency, latency_ms, memory_gb$",
        ),
        ("prune={target: ~}", "prune.target: null is not a mapping"),
    ],
)
def test_a_section_is_not_null(write, override, message):
    with pytest.raises(PruningError, match=message):
        load_recipe(write(TARGET), [override])
    key, _, value = override.partition("=")
    if value and "." not in key:
        with pytest.raises(PruningError, match=message):
            load_recipe(write(f"{key}: {value}\n"))


def test_what_is_nested_deeply_and_what_is_long_gets_a_short_message(write):
    for text in ("title: " + "[" * 2000, "title: " + "[" * 2000 + "]" * 2000):
        with pytest.raises(PruningError, match=r"r\.yaml: cannot be read as YAML: .* nested too deeply"):
            load_recipe(write(text))
    with pytest.raises(
        PruningError, match=r"prune.kinds: '\[{59}… cannot be read as YAML: its .* too deeply"
    ):
        load_recipe(write(TARGET), ["prune.kinds=" + "[" * 2000])
    long = "x" * 5000
    for override in (f"seed={long}", f"prune={long}", f"score.criterion={long}", f"prune.scope={long}", long):
        with pytest.raises(PruningError) as caught:
            load_recipe(write(TARGET), [override])
        assert "x…" in str(caught.value)
        assert len(str(caught.value)) < 600
    assert all(len(text) < 200 for _, text in _replace(Recipe(), "seed", long).problems())


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("+3", 3), ("0", 0)])
def test_whole_numbers_are_decimal(write, text, number):
    assert load_recipe(write(f"seed: {text}\n" + TARGET)).seed == number
    assert load_recipe(write(TARGET), [f"seed={text}"]).seed == number


@pytest.mark.parametrize("text", ["1_000", "0x10", "12:30", "'5'", "!!str 5"])
def test_what_is_no_whole_number_is_not_made_one(write, text):
    with pytest.raises(PruningError, match=r"seed: '.*' is a str; expected a whole number"):
        load_recipe(write(f"seed: {text}\n" + TARGET))


@pytest.mark.parametrize("written", [r"costs \${x}", r"a \${b} ${name}", r"back\\${name}"])
def test_dollar_and_brace_read_back(write, written):
    recipe = load_recipe(write(TARGET), [f"title={written}", "name=n"])
    assert "${" in recipe.title or recipe.title.endswith("n")
    assert load_recipe(write(to_yaml(recipe), "again.yaml")) == recipe


def test_merge_keys_put_a_mapping_under_the_own_keys(write):
    text = "x-small: &small {steps: 3, batch_size: 2}\nrecover:\n  <<: *small\n  steps: 4\n" + TARGET
    recover = load_recipe(write(text)).recover
    assert (recover.steps, recover.batch_size) == (4, 2)
    text = "recover:\n  <<: [{steps: 3}, {steps: 5, batch_size: 7}]\n" + TARGET
    recover = load_recipe(write(text)).recover
    assert (recover.steps, recover.batch_size) == (3, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "recover: {<<: 3}\n",
            "(?s:.*)expected a mapping or list of mappings for merging",
        ),
        ("recover: &x {steps: *x}\n", "found unconstructable recursive node"),
        (
            "seed: !!python/object/apply:os.getpid []\n",
            "could not determine a constructor for the tag 'tag:yaml.org,2002:python/",
        ),
        ("? [a]\n: 1\n", "(?s:.*)found unhashable key"),
    ],
)
def test_yaml_that_means_nothing_here(write, text, message):
    with pytest.raises(PruningError, match=f"cannot be read as YAML: {message}"):
        load_recipe(write(text))


@pytest.mark.parametrize(
    ("old", "new"), [("score.omega", "score.weighting"), ("calibrate.omega", "calibrate.sink_weights")]
)
def test_a_key_of_an_earlier_version_names_the_new_one(write, old, new):
    with pytest.raises(PruningError, match=rf"{old} is unknown; it is called {new} now"):
        load_recipe(write(TARGET), [f"{old}=x"])


@pytest.mark.parametrize(("key", "name"), [("evaluate.metrics", "fid"), ("export.formats", "diffusers")])
def test_nothing_is_named_twice(write, key, name):
    with pytest.raises(PruningError, match=f"{key}: names {name} more than once; name each once"):
        load_recipe(write(TARGET), [f"{key}=[{name},{name}]"])


def test_of_two_overrides_of_one_key_the_last_holds(write):
    recipe = load_recipe(
        write(TARGET), ["evaluate.latency={runs: 3}", "evaluate.latency.runs=4", "seed=1", "seed=2"]
    )
    assert (recipe.evaluate.latency.runs, recipe.seed) == (4, 2)


def test_an_empty_section_is_its_defaults(write):
    assert load_recipe(write("recover:\nevaluate: {}\n" + TARGET)).recover == Recipe().recover


@pytest.mark.parametrize("override", ["prune.target.ratio=0.3", "prune.target.params=0.7"])
def test_a_target_on_the_command_line_replaces_the_recipes(write, override):
    target = load_recipe(write(TARGET), [override]).prune.target
    key, value = override.removeprefix("prune.target.").split("=")
    assert {k: v for k, v in vars(target).items() if v is not None} == {key: float(value)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prune:\n  taget:\n    macs: 0.5\n",
            r"r\.yaml: prune\.taget is unknown; did you mean prune\.target\?",
        ),
        (
            "prune:\n  target:\n    mac: 0.5\n",
            r"prune\.target\.mac is unknown; did you mean prune\.target\.macs\?",
        ),
        ("calibrat: {}\n", r"calibrat is unknown; did you mean calibrate\?"),
        ("prune:\n  criterion: obs\n", r"prune\.criterion is unknown; did you mean score\.criterion\?"),
        (
            "prune:\n  limits: [{mach: x}]\n",
            r"limits\[0\]\.mach is unknown; did you mean prune\.limits\[0\]\.match",
        ),
        ("score: {'12345': 1}\n", r"score\.12345 is unknown; valid here: criterion, weighting"),
    ],
)
def test_a_typo_names_the_nearest_key_and_the_place(write, text, message):
    with pytest.raises(PruningError, match=message):
        load_recipe(write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: many\n", r"seed: 'many' is a str; expected a whole number"),
        ("seed: 1.5\n", r"seed: 1\.5 is a float; expected a whole number"),
        ("seed: true\n", r"seed: True is a bool; expected a whole number"),
        ("name: [1]\n", r"name: \['1'\] is a list; expected text"),
        (
            "prune:\n  target: {macs: half}\n",
            r"prune\.target\.macs: 'half' is a str; expected a number or null",
        ),
        (
            "prune:\n  kinds: ffn_channels\n",
            r"prune\.kinds: 'ffn_channels' is a str; expected a list of text",
        ),
        ("prune:\n  limits: [3]\n", r"prune\.limits\[0\]: 3 is not a mapping; its keys are match, max_ratio"),
        ("prune: 3\n", r"prune: 3 is not a mapping; its keys are kinds, target"),
        ("recover: {enabled: 3.5}\n", r"recover\.enabled: 3\.5 is a float; expected true or false"),
    ],
)
def test_a_wrong_type_names_key_value_and_type(write, text, message):
    with pytest.raises(PruningError, match=message):
        load_recipe(write(text))


def test_all_unknown_keys_and_wrong_types_come_at_once(write):
    with pytest.raises(PruningError) as caught:
        load_recipe(write("seed: x\nscore: {critrion: obs}\nrecover: {stps: 3}\n"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.count("r.yaml: ") == 1 for line in lines)


def test_all_values_that_make_no_sense_come_at_once_with_their_places(write):
    text = "prune:\n  target: {macs: 1.5}\n  kinds: [heads]\nscore: {criterion: wnda}\n"
    with pytest.raises(PruningError) as caught:
        load_recipe(write(text), ["calibrate.batch_size=0"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "command line: calibrate.batch_size: 0 must be at least 1"
    assert lines[1].endswith(next(line for line in lines if "did you mean 'wanda'" in line)[-20:])
    assert any("prune.target.macs: 1.5 is not in (0, 1]" in line for line in lines)
    assert any(
        "prune.kinds: unknown group kind 'heads'" in line and "attention_heads" in line for line in lines
    )
    assert len(lines) == 4


def _replace(recipe: Recipe, key: str, value: object) -> Recipe:
    head, _, rest = key.partition(".")
    if not rest:
        return dataclasses.replace(recipe, **{head: value})
    return dataclasses.replace(recipe, **{head: _replace(getattr(recipe, head), rest, value)})


@pytest.mark.parametrize(
    ("key", "value", "place", "message"),
    [
        ("name", "a/b", "name", "it names a folder"),
        ("seed", -1, "seed", "not in [0"),
        ("device", "gpu", "device", "none of auto, cpu"),
        ("model.source", "", "model.source", "is empty"),
        ("model.dtype", "float", "model.dtype", "valid: float32, bfloat16, float16"),
        ("model.null_class", "first", "model.null_class", "auto, last, none"),
        ("data.resolution", 0, "data.resolution", "at least 1"),
        ("calibrate.num_samples", 0, "calibrate.num_samples", "at least 1"),
        ("calibrate.queries", 1, "calibrate.queries", "at least 2"),
        ("calibrate.provider", "noise", "calibrate.provider", "did you mean 'noised'"),
        ("calibrate.timestep_weights", "log", "calibrate.timestep_weights", "uniform, obs_diff"),
        ("calibrate.criteria", ["obbs"], "calibrate.criteria", "did you mean 'obs'"),
        ("calibrate.sink_weights.alpha", 0.0, "calibrate.sink_weights.alpha", "> 0"),
        ("calibrate.sink_weights.rho", -1.0, "calibrate.sink_weights.rho", "> 0"),
        ("calibrate.sink_weights.mode", "soft", "calibrate.sink_weights.mode", "ratio, paper, hard"),
        ("score.weighting", "yes", "score.weighting", "off, on, permuted"),
        ("prune.kinds", [], "prune.kinds", "is empty"),
        ("prune.scope", "locl", "prune.scope", "did you mean 'local'"),
        ("prune.compensation", "obs", "prune.compensation", "none, fold, least_squares"),
        ("prune.round_to", 0, "prune.round_to", "at least 1"),
        ("prune.min_units", 0, "prune.min_units", "at least 1"),
        ("prune.ridge", -0.1, "prune.ridge", "at least 0"),
        ("recover.steps", 0, "recover.steps", "at least 1"),
        ("recover.warmup_steps", 10**9, "recover.warmup_steps", "more than steps"),
        ("recover.learning_rate", 0.0, "recover.learning_rate", "> 0"),
        ("recover.grad_clip", float("inf"), "recover.grad_clip", "finite"),
        ("recover.distill_weight", 1.1, "recover.distill_weight", "not in [0, 1]"),
        ("recover.ema_decay", 1.0, "recover.ema_decay", "not in [0, 1)"),
        ("recover.schedule", "linear", "recover.schedule", "cosine, constant"),
        ("recover.loss_weighting", "snr", "recover.loss_weighting", "uniform, min_snr"),
        ("recover.mixed_precision", "fp32", "recover.mixed_precision", "no, bf16, fp16"),
        ("calibrate.sink_weights.unstable", 2.0, "calibrate.sink_weights.unstable", "not in [-100, 1]"),
        ("calibrate.sink_weights.stable", -1e300, "calibrate.sink_weights.stable", "not in [-100, 1]"),
        ("evaluate.num_samples", 1, "evaluate.num_samples", "at least 2"),
        ("evaluate.latency.threads", 0, "evaluate.latency.threads", "at least 1"),
        ("export.dtype", "int8", "export.dtype", "float32, bfloat16, float16"),
        ("export.formats", ["onx"], "export.formats", "unknown exporter"),
        ("export.max_shard_size", "big", "export.max_shard_size", "no size"),
        ("export.max_shard_size", "500MiB", "export.max_shard_size", "e.g. 500MB"),
        ("export.max_shard_size", "0MB", "export.max_shard_size", "no size"),
        ("prune.ridge", float("nan"), "prune.ridge", "nan must be a finite number"),
        ("evaluate.guidance_scale", float("inf"), "evaluate.guidance_scale", "finite"),
        ("prune.limits", [Limit(max_ratio=float("nan"))], "prune.limits[0].max_ratio", "finite"),
    ],
)
def test_every_rule_names_its_key(key, value, place, message):
    recipe = _replace(_replace(Recipe(), "prune.target.macs", 0.5), key, value)
    problems = dict(recipe.problems())
    assert list(problems) == [place]
    assert message in problems[place]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.depth.budget=-1"], r"prune\.depth\.budget: -1 must be at least 0"),
        (["prune.depth.budget=2.5"], r"prune\.depth\.budget: 2\.5 is a float; expected a whole number"),
        (["prune.depth.samples=0"], r"prune\.depth\.samples: 0 must be at least 1"),
        (["prune.depth.sets=5"], r"prune\.depth\.sets is unknown"),
        (
            ["prune.depth.budget=5"],
            r"prune\.depth\.budget: 5 sets .* no blocks may go: kinds is attention_heads, ffn",
        ),
        (
            ["prune.depth.budget=5", "prune.kinds=[blocks]", "calibrate.provider=sampling"],
            r"prune\.depth\.budget: 5 sets .* calibrate\.provider is 'sampling'; set calibrate\.provider=noised",
        ),
    ],
)
def test_a_search_of_blocks_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(PruningError, match=message):
        load_recipe("quickstart", overrides)
    assert (
        load_recipe("quickstart", ["prune.depth.budget=5", "prune.kinds=[blocks]"]).prune.depth.samples == 32
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.candidates=0"], r"prune\.candidates: 0 is not in \[1, \d+\]; so many are known"),
        (["prune.candidates=99"], r"prune\.candidates: 99 is not in \[1, \d+\]; so many are known"),
        (["prune.candidates=2.5"], r"prune\.candidates: 2\.5 is a float; expected a whole number"),
        (["prune.candidates=[probe]"], r"prune\.candidates: .* expected a whole number"),
        (["prune.candidate_samples=1"], r"prune\.candidate_samples: 1 must be at least 2"),
        (
            ["prune.candidates=3", "prune.selection=block_by_block"],
            r"prune\.candidates: 3 plans .* selection is 'block_by_block', .*; set selection=one_shot",
        ),
        (
            [
                "prune.candidates=3",
                "score={criterion: obs, weighting: guided}",
                "calibrate={provider: sampling, guidance_scale: 2}",
            ],
            r"prune\.candidates: 3 plans .* score\.weighting is 'guided', .* leave one of them out",
        ),
    ],
)
def test_candidates_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(PruningError, match=message):
        load_recipe("quickstart", overrides)
    assert load_recipe("quickstart").prune.candidates == 1
    assert load_recipe("quickstart", ["prune.candidates=8"]).prune.candidates == 8


def test_guided_rows_need_a_guided_sampler():
    recipe = _replace(_replace(Recipe(), "prune.target.macs", 0.5), "score.weighting", "guided")
    problems = dict(recipe.problems())
    assert list(problems) == ["score.weighting", "calibrate.guidance_scale"]
    assert "calibrate.provider is 'noised'; set calibrate.provider=sampling" in problems["score.weighting"]
    assert "null must be a number above 1 for score.weighting=guided" in problems["calibrate.guidance_scale"]
    recipe = _replace(_replace(recipe, "calibrate.provider", "sampling"), "calibrate.guidance_scale", 4.0)
    assert not recipe.problems()


@pytest.mark.parametrize(
    ("steps", "given", "warmup"), [(5, None, 0), (100, None, 10), (9000, None, 50), (5, 3, 3)]
)
def test_warmup_follows_the_steps(write, steps, given, warmup):
    written = "null" if given is None else given
    recipe = load_recipe(write(f"{TARGET}\nrecover: {{steps: {steps}, warmup_steps: {written}}}"))
    assert recipe.recover.warmup == warmup


@pytest.mark.parametrize(
    ("source", "given", "features"),
    [
        ("digits", None, "bundled:models/digits-classifier"),
        ("photos", None, "inception"),
        ("photos", "bundled:models/digits-classifier", "bundled:models/digits-classifier"),
    ],
)
def test_features_follow_the_data(source, given, features):
    recipe = Recipe(data=Data(source=source), evaluate=Evaluate(features=given))
    assert recipe.features == features


@pytest.mark.parametrize("name", ["quickstart", "digits-unet"])
def test_recipes_for_the_digits_can_be_copied_for_other_data(name):
    assert load_recipe(name, ["data.source=photos"]).features == "inception"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "at least one of macs, params, ratio, latency, latency_ms, memory_gb must be given, found none"),
        ({"latency": 1.5}, "1.5 is not in (0, 1]; it is the fraction that remains"),
        ({"latency_ms": 0.0}, "0.0 is not in (0, 1e9]; it is in milliseconds"),
        ({"memory_gb": -1.0}, "-1.0 is not in (0, 1e6]; it is in GB"),
        ({"params": 0.0}, "not in (0, 1]"),
        ({"ratio": 1.0}, "not in [0, 1)"),
    ],
)
def test_target_rules(target, message):
    recipe = Recipe()
    for key, value in target.items():
        recipe = _replace(recipe, f"prune.target.{key}", value)
    assert [text for _, text in recipe.problems() if message in text]


def test_limits_must_bound_something(write):
    text = TARGET + "  limits: [{match: 'a*'}, {match: b, max_ratio: 2.0}, {match: c, min_units: -1}]\n"
    with pytest.raises(PruningError) as caught:
        load_recipe(write(text))
    assert "prune.limits[0]: limit for 'a*' bounds nothing" in str(caught.value)
    assert "prune.limits[1].max_ratio: 2.0 is not in [0, 1]" in str(caught.value)
    assert "prune.limits[2].min_units: -1 must be at least 1" in str(caught.value)


@pytest.mark.parametrize("override", ["seed", "=3", "prune..target=3"])
def test_an_override_needs_a_key_and_a_value(write, override):
    with pytest.raises(PruningError, match=r"command line: '.*' is not an override; write key\.path=value"):
        load_recipe(write(TARGET), [override])


@pytest.mark.parametrize(
    "override", ["prune.limits=[{match: a, max_ratio: 2}]", "prune.target={macs: 2}", "prune.target.macs=2"]
)
def test_a_bad_value_inside_an_override_is_placed_on_the_command_line(write, override):
    with pytest.raises(
        PruningError, match=r"^command line: prune\.(limits\[0\]\.max_ratio|target\.macs): 2\.0 is"
    ):
        load_recipe(write(TARGET), [override])


def test_an_override_whose_value_is_no_yaml_is_quoted(write):
    with pytest.raises(PruningError, match=r"command line: prune\.kinds: '\[a' cannot be read as YAML"):
        load_recipe(write(TARGET), ["prune.kinds=[a"])


def test_a_typo_on_the_command_line_says_so(write):
    with pytest.raises(
        PruningError, match=r"command line: prune\.taget is unknown; did you mean prune\.target\?"
    ):
        load_recipe(write(TARGET), ["prune.taget.macs=0.3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "a recipe is a mapping of sections, found a list"),
        ("seed: [1\n", "cannot be read as YAML"),
        ("seed: 1\nseed: 2\n", "cannot be read as YAML: the key 'seed' stands here twice"),
        ("run_dir: ${nam}/x\n" + TARGET, r"run_dir: .*nam"),
    ],
)
def test_files_that_are_no_recipe(write, text, message):
    with pytest.raises(PruningError, match=message):
        load_recipe(write(text))


def test_a_recipe_is_found_by_path_by_run_or_by_bundled_name(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = bundled_recipes()["quickstart"]
    for argument in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        assert find_recipe(argument) == bundled
    mine = write("", "quickstart.yaml")
    assert find_recipe("quickstart.yaml").resolve() == mine
    (tmp_path / "run").mkdir()
    inner = write("run_dir: elsewhere\n" + TARGET, "run/recipe.yaml")
    assert find_recipe("run").resolve() == inner
    assert load_recipe("run").run_dir == "run"
    assert load_recipe("run", ["run_dir=other"]).run_dir == "other"


def test_a_folder_that_is_no_run_is_called_so(tmp_path):
    with pytest.raises(PruningError, match=r"it is a folder without a recipe\.yaml, and none of"):
        find_recipe(tmp_path)


@pytest.mark.parametrize("argument", ["quickstrt", "elsewhere/quickstart.yaml"])
def test_an_unknown_recipe_lists_the_bundled_ones(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    message = r"no recipe .*: it is neither a file nor a run directory, and none of .*quickstart.*did you mean .quickst"
    with pytest.raises(PruningError, match=message):
        find_recipe(argument)


@pytest.mark.parametrize("name", ["quickstart", "digits-unet", "ddpm-cifar10", "sd15", "dit-xl-2-256"])
def test_bundled_recipes_are_valid_and_carry_their_own_name(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title


def test_every_knob_says_what_it_does_and_its_class_lists_it():
    for knob in knobs_of(Recipe):
        assert knob.meaning.endswith("."), knob.key
    assert "    steps: Optimizer steps.\n" in (Recover.__doc__ or "")


def test_a_recipe_as_a_dict_is_plain():
    assert dataclasses.asdict(Recipe())["calibrate"]["sink_weights"]["alpha"] == 4.0


PIPELINE = """pipeline:
  height: 512
  guidance_scale: 4
  negative_prompt: 'on'
  sigmas: [1.0, 5e-1]
  attention_kwargs: {scale: .5}
  use_karras: true
"""


def test_arguments_of_the_pipeline_have_free_names(write):
    recipe = load_recipe(
        write(PIPELINE + TARGET), ["pipeline.width=640", "pipeline.height=null", "pipeline.prompt_2='7'"]
    )
    assert recipe.pipeline == {
        "height": None,
        "guidance_scale": 4,
        "negative_prompt": "on",
        "sigmas": [1.0, 0.5],
        "attention_kwargs": {"scale": 0.5},
        "use_karras": True,
        "width": 640,
        "prompt_2": "7",
    }
    assert type(recipe.pipeline) is dict
    assert load_recipe(write(to_yaml(recipe), "again.yaml")) == recipe
    assert load_recipe(write("pipeline:\n" + TARGET)).pipeline == {}
    assert load_recipe(write(TARGET), ["pipeline={height: 8}"]).pipeline == {"height": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline=512", "pipeline: 512 is not a mapping; write name: value below it"),
        ("pipeline=null", "pipeline: None is not a mapping"),
        ("pipeline.eta=.nan", "pipeline: nan must be a finite number"),
        ("pipeline.eta=[1", r"pipeline: '\[1' cannot be read as YAML"),
    ],
)
def test_arguments_that_are_no_json_are_refused(write, override, message):
    with pytest.raises(PruningError, match=message):
        load_recipe(write(TARGET), [override])


def test_arguments_given_in_python_are_of_json_types():
    recipe = _replace(_replace(Recipe(), "prune.target.macs", 0.5), "pipeline", {"latents": object()})
    assert recipe.problems()[0][0] == "pipeline"
    assert "expected a mapping" in recipe.problems()[0][1]


def test_a_protocol_fills_the_knobs_that_are_not_given(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("evaluate: {protocol: cifar_ddim100_50k, num_samples: 10000}\n" + TARGET)
    section = load_recipe(path).evaluate
    assert (section.num_samples, section.num_steps, section.sampler) == (10_000, 100, "DDIMScheduler")
    assert section.features == "inception"
    assert departures("cifar_ddim100_50k", section) == {"num_samples": (50_000, 10_000)}
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(load_recipe(path)))
    assert load_recipe(again).evaluate == section


def test_a_protocol_on_the_command_line_goes_before_the_file_and_not_before_the_command_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("evaluate: {num_samples: 77, num_steps: 3, denoising_samples: 9}\n" + TARGET)
    section = load_recipe(path, ["evaluate.num_samples=5", "evaluate.protocol=dit_250_50k"]).evaluate
    assert (section.num_samples, section.num_steps, section.denoising_samples) == (5, 250, 9)
    assert load_recipe(path, ["evaluate.protocol=null"]).evaluate.num_samples == 77


def test_an_unknown_protocol_is_answered_with_the_valid_ones(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("evaluate: {protocol: coco30}\n" + TARGET)
    with pytest.raises(
        PruningError, match=r"evaluate.protocol: 'coco30' is not valid.*coco30k.*valid: quick, cifar_"
    ):
        load_recipe(path)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_a_valid_evaluation_of_metrics_that_there_are(name):
    section = Evaluate(protocol=name, **PROTOCOLS[name].knobs)
    assert section.problems() == []
    check_metrics(section.metrics)
    assert departures(name, section) == {}

"""``sinkprune plan`` of a model: what it is at real size and what a target makes of it, without weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pruning.cli import USER_ERROR, main
from pruning.cli.model import names_model
from pruning.models.mapped import map_denoiser
from pruning.types import PruningPlan
from tests.shared import SHARED
from tests.zoo import ZOO, build

CONFIGS = SHARED / "configs"

SD3 = {"_class_name": "SD3Transformer2DModel", **ZOO["sd3"].config}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd3.json").write_text(json.dumps(SD3))
    return tmp_path


def plan(capsys, *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def refused(capsys, *words: str) -> str:
    assert main(["plan", *words]) == USER_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    return " ".join(said.err.split())


def test_a_model_without_a_target(workplace, capsys):
    found = plan(capsys, "sd3.json")
    assert found["class"] == "SD3Transformer2DModel"
    assert found["input"] == "4 x 8 x 8 latents (64 x 64 px), 77 + 256 text tokens"
    assert found["macs"] > found["params"]
    table = 12 * 12 * 32  # positions are a buffer that is saved
    assert found["bytes"] == {
        name: size * (found["params"] + table)
        for name, size in {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}.items()
    }
    assert found["plan"] is None
    assert {row["kind"]: row["groups"] for row in found["kinds"]}["attention_heads"] == 3
    assert list(Path().iterdir()) == [Path("sd3.json")]


@pytest.mark.parametrize(
    ("option", "share"),
    [("--macs", 0.7), ("--params", 0.8), ("--ratio", 0.3)],
    ids=["macs", "params", "ratio"],
)
def test_any_target_is_met(workplace, capsys, option, share):
    found = plan(capsys, "sd3.json", option, str(share), "--save", "plans/plan.json")
    rows = {row["kind"]: row for row in found["kinds"]}
    assert found["plan"]["hit"]
    if option == "--macs":
        assert found["plan"]["macs"] == pytest.approx(share * found["macs"], rel=0.01)
    elif option == "--params":
        assert found["plan"]["params"] == pytest.approx(share * found["params"], rel=0.01)
    else:
        assert rows["ffn_channels"]["asked_ratio"] == pytest.approx(share)
    assert rows["attention_heads"]["asked_ratio"] == rows["ffn_channels"]["asked_ratio"]
    for kind in (
        "attention_heads",
        "ffn_channels",
    ):  # four heads: a step is a quarter, and channels make up for it
        assert rows[kind]["got_ratio"] == pytest.approx(rows[kind]["asked_ratio"], abs=0.25)
    gone = found["params"] - found["plan"]["params"]
    assert found["plan"]["bytes"]["float32"] == found["bytes"]["float32"] - 4 * gone
    kept = PruningPlan.load("plans/plan.json").kept
    assert {cut["group"]: cut["kept"] for cut in found["groups"] if cut["group"] in kept} == {
        name: len(units) for name, units in kept.items()
    }
    assert found["path"] == "plans/plan.json"


def test_kinds_and_rounding(workplace, capsys):
    found = plan(capsys, "sd3.json", "--ratio", "0.4", "--kinds", "ffn_channels", "--round-to", "16")
    rows = {row["kind"]: row for row in found["kinds"]}
    assert rows["attention_heads"]["removed"] == 0
    assert rows["attention_heads"]["asked_ratio"] is None
    assert {cut["kept"] % 16 for cut in found["groups"] if cut["kind"] == "ffn_channels"} == {0}


def test_tables_fit_a_terminal(workplace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", "sd3.json", "--macs", "0.7"]) == 0
    out = capsys.readouterr().out
    assert "asked: 0.7 of the dense MACs" in out
    assert "1 sample: 4 x 8 x 8 latents" in out
    assert "file, int8" in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_a_folder_and_what_is_bundled(workplace, capsys):
    (workplace / "model" / "transformer").mkdir(parents=True)
    (workplace / "model" / "transformer" / "config.json").write_text(json.dumps(SD3))
    assert plan(capsys, "model")["params"] == plan(capsys, "sd3.json")["params"]
    assert plan(capsys, "bundled:models/digits-dit", "--ratio", "0.5")["class"] == "DiTTransformer2DModel"


def test_models_are_told_from_recipes(workplace):
    (workplace / "run").mkdir()
    (workplace / "run" / "recipe.yaml").write_text("")
    (workplace / "run" / "config.json").write_text("{}")
    assert names_model("owner/name")
    assert names_model("nowhere.json")
    assert not any(
        map(names_model, ("quickstart", "my.yaml", "recipes/quickstart.yaml", "run", "run/missing"))
    )


def test_a_class_whose_call_is_not_known(workplace, capsys):
    tiny = ZOO["wan_animate2"]
    Path("animate.json").write_text(json.dumps({"_class_name": tiny.cls, **tiny.config}))
    assert main(["plan", "animate.json", "--params", "0.98"]) == 0
    said = capsys.readouterr()
    assert f"MACs are not known: denoiser class {tiny.cls!r}" in " ".join(said.err.split())
    assert "attention_heads" in said.out
    text = refused(capsys, "animate.json", "--macs", "0.9")
    assert "target 0.9 of the dense MACs: MACs are not known" in text
    assert "ask for a share of the parameters, or a ratio" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "bad.json: cannot be read as JSON"),
        ("[1]", "bad.json: expected a mapping, found [1]"),
        ("{}", "the config names no class (_class_name is None)"),
        ('{"_class_name": "LlamaModel"}', "the class 'LlamaModel' is not a ModelMixin of diffusers"),
        ('{"_class_name": "AutoencoderKL"}', "AutoencoderKL is no denoiser: diffusers keeps those in"),
        (
            '{"_class_name": "DiTTransformer2DModel", "patch_size": "x"}',
            "diffusers cannot build DiTTransformer2D",
        ),
    ],
)
def test_bad_configs(workplace, capsys, text, message):
    Path("bad.json").write_text(text)
    assert message in refused(capsys, "bad.json", "--macs", "0.7")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.json"], "nowhere.json"),
        (["sd3.json", "--macs", "2"], "plan: target.macs: 2.0 is not in (0, 1]"),
        (["sd3.json", "--macs", "0.01"], "the least reachable is"),
        (["sd3.json", "--macs", "0.7", "--kinds", "haeds"], "haeds"),
        (["sd3.json", "--macs", "0.7", "--kinds", ""], "plan: kinds: is empty"),
        (
            ["sd3.json", "--macs", "0.7", "--kinds", "resnet_channels"],
            "has no groups of kind resnet_channels; it has",
        ),
        (["sd3.json", "--save", "plan.json"], "--save is for a plan, and a plan needs a target"),
        (
            ["sd3.json", "prune.target.macs=0.7"],
            "prune.target.macs=0.7 is for a recipe, and 'sd3.json' is a model",
        ),
        (["sd3.json", "--fresh"], "--fresh is for a recipe"),
        (["quickstart", "--macs", "0.7"], "--macs is for a model, and 'quickstart' is a recipe"),
    ],
)
def test_what_makes_no_sense(workplace, capsys, words, message):
    assert message in refused(capsys, *words)
    assert not Path("plan.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs the configurations of real models")
@pytest.mark.parametrize("name", ["flux2_dev", "qwen_image"])
def test_the_largest_models_take_little_memory(name):
    """What importing PyTorch takes is left out: with CUDA it alone is two thirds of a gigabyte."""
    code = (
        "import resource\nimport torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "from pruning.cli import main\n"
        f"assert main(['plan', {str(CONFIGS / f'{name}.json')!r}, '--macs', '0.7', '--json']) == 0\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    found, megabytes = done.stdout.splitlines()
    assert json.loads(found)["plan"]["hit"]
    assert int(megabytes) < 500


def test_a_plan_is_not_saved_over_something_else(workplace, capsys):
    for word, message in [
        ("", "is empty"),
        (".", "is a folder"),
        ("sd3.json", "holds something that is no plan"),
    ]:
        before = Path("sd3.json").read_text()
        assert main(["plan", "sd3.json", "--ratio", "0.3", "--save", word]) == USER_ERROR
        assert message in capsys.readouterr().err
        assert Path("sd3.json").read_text() == before
    for _ in range(2):
        assert main(["plan", "sd3.json", "--ratio", "0.3", "--save", "plan.json"]) == 0


def test_no_heads_at_all(workplace, capsys):
    Path("none.json").write_text(json.dumps({**SD3, "num_attention_heads": 0}))
    assert main(["plan", "none.json"]) == USER_ERROR
    assert "would be empty; a size in it is 0" in capsys.readouterr().err


@pytest.fixture
def model(workplace):
    build(ZOO["sd3"]).save_pretrained("model")
    assert main(["plan", "model", "--params", "0.7", "--save", "plan.json", "--json"]) == 0
    return Path("model")


def test_a_plan_is_carried_out_from_folder_to_folder(model, capsys):
    said = plan(capsys, "model", "--params", "0.7")
    assert (
        main(["prune", "model", "--plan", "plan.json", "--out", "slim", "--dtype", "bfloat16", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == said["plan"]["params"]
    assert found["bytes"] == Path("slim/diffusion_pytorch_model.safetensors").stat().st_size
    assert found["files"] == 1
    assert {p.dtype for p in map_denoiser(found["path"]).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model"], "prune of a model takes --plan and --out"),
        (["model", "--plan", "no.json", "--out", "slim"], "--plan: there is no file 'no.json'"),
        (["sd3.json", "--plan", "plan.json", "--out", "slim"], "is a config alone, without weights"),
        (["model", "--plan", "plan.json", "--out", "model/slim"], "it is the source, or lies in it"),
        (
            ["model", "seed=1"],
            "seed=1 is for a recipe, and 'model' is a model; its options are --plan, --out",
        ),
        (["quickstart", "--out", "slim"], "--out is for a model, and 'quickstart' is a recipe"),
    ],
)
def test_what_cannot_be_carried_out(model, capsys, words, message):
    capsys.readouterr()
    assert main(["prune", *words]) == USER_ERROR
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("slim").exists()

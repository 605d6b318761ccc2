"""The command: what it prints, where, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pruning.cli import INTERRUPTED, STAGE_HELP, USER_ERROR, build_parser, commands, console, main, tables
from pruning.cli.console import table, text_of
from pruning.data import UnreadableRow
from pruning.files import write_json
from pruning.groups import KINDS
from pruning.recipe import bundled_recipes
from pruning.settings.candidates import CANDIDATES
from pruning.stages.folder import STAGES, RunFolder
from pruning.store import Key, Store, locked
from tests.fixtures.report_runs import bare_run
from tests.shared import SHARED

CONFIGS = SHARED / "configs"
ROOT = str(Path(__file__).parents[2])

DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 3,
    "sample_size": 16,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}


DRY = ["run", "quickstart", "--dry-run", "model.source=dit.json"]
RUN = ["run", "quickstart", "model.source=model"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dit.json").write_text(json.dumps(DIT))
    return tmp_path


def dry_run(capsys, *arguments: str) -> dict:
    """Run ``--dry-run --json`` and return what it prints; it must leave nothing behind."""
    assert main(["run", *arguments, "--dry-run", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert not Path("runs").exists()
    return json.loads(out)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom pruning.cli import main\n"
        "for line in (['--help'], ['run', '--help'], ['record', '--help'], ['report', '--help'], ['--version']):\n"
        "    try: main(line)\n    except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'diffusers', 'rich', 'omegaconf', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_explains_itself(capsys):
    parser = build_parser()
    for command in ("run", *STAGE_HELP, "record", "sweep", "push", "show", "diff", "ls", "cp", "clean"):
        with pytest.raises(SystemExit) as end:
            parser.parse_args([command, "--help"])
        assert end.value.code == 0
    assert tuple(STAGE_HELP) == STAGES
    assert set(commands.COMMANDS) == {
        "run",
        *STAGES,
        "record",
        "sweep",
        "push",
        "show",
        "diff",
        "ls",
        "cp",
        "clean",
    }
    out = capsys.readouterr().out
    assert "usage: sinkprune run" in out
    assert "or more run directories" in " ".join(out.split())


def test_a_dry_run_on_a_bare_config_hits_the_target(workplace, capsys):
    found = dry_run(capsys, "quickstart", "model.source=dit.json", "prune.round_to=1")
    assert found["plan"]["hit"]
    assert found["plan"]["macs_ratio"] == pytest.approx(0.5, abs=0.01)
    assert {row["kind"]: (row["groups"], row["units"]) for row in found["kinds"]} == {
        "attention_heads": (3, 12),
        "ffn_channels": (3, 384),
    }
    assert found["basis"] == "uniform"
    assert len(found["groups"]) == 6
    # bfloat16: two bytes a parameter.
    assert found["bytes"] == 2 * found["params"]
    assert found["plan"]["bytes"] == 2 * found["plan"]["params"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_arguments_are_utf8_whatever_the_locale(tmp_path, locale):
    code = (
        "import sys\nfrom pruning import cli\nfrom pruning.cli import commands\n"
        "commands.COMMANDS['run'] = lambda arguments, console: sys.exit(ascii(arguments.overrides))\n"
        "cli.main()"
    )
    environment = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ROOT}

    def said(title: bytes) -> tuple[int, str]:
        words = [os.fsencode(sys.executable), b"-c", code.encode(), b"run", b"quickstart", b"title=" + title]
        done = subprocess.run(words, capture_output=True, env=environment, cwd=tmp_path, check=False)
        return done.returncode, done.stderr.decode()

    assert said("Café – 50 %".encode()) == (1, r"['title=Caf\xe9 \u2013 50 %']" + "\n")
    status, text = said(b"caf\xe9")
    assert status == USER_ERROR
    assert r"the argument 'title=caf\udce9' is not UTF-8; type it anew" in text


def test_a_dry_run_prints_tables(workplace, capsys):
    assert main([*DRY, "prune.round_to=1"]) == 0
    out = capsys.readouterr().out
    assert "attention_heads" in out
    assert "asked: 0.5 of the dense MACs\n" in out
    assert main([*DRY, "prune.round_to=64", "prune.kinds=[ffn_channels]", "prune.target.macs=0.93"]) == 0
    assert "asked: 0.93 of the dense MACs (not hit; this is the nearest)" in capsys.readouterr().out


def test_overrides_may_stand_anywhere(workplace, capsys):
    arguments = [
        "run",
        "--json",
        "quickstart",
        "model.source=dit.json",
        "--dry-run",
        "prune.target.params=0.9",
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["asked"] == "0.9 of the dense parameters"


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs the configurations of real models")
@pytest.mark.parametrize(
    ("recipe", "config", "params", "ratio"),
    [
        ("sd15", "sd15_unet", 859_520_964, 0.7),
        ("ddpm-cifar10", "ddpm_cifar10_32", 35_746_307, 0.556),
        ("dit-xl-2-256", "dit_xl_2_256", 749_826_464, 0.5),
    ],
)
def test_the_recipes_for_real_models_can_meet_their_targets(workplace, capsys, recipe, config, params, ratio):
    found = dry_run(capsys, recipe, f"model.source={CONFIGS / config}.json")
    assert found["params"] == params
    assert found["plan"]["macs_ratio"] == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstrt"], "no recipe 'quickstrt'.*did you mean 'quickstart'"),
        (
            ["run", "quickstart", "prune.taget=1"],
            "command line: prune.taget is unknown; did you mean prune.target",
        ),
        (
            ["run", "quickstart", "prune.target.macs=2"],
            r"command line: prune.target.macs: 2.0 is not in \(0, 1\]",
        ),
        (["plan", "quickstart", "score.criterion=wnda"], "did you mean 'wanda'.*valid: "),
        (
            ["run", "quickstart", "--from", "export", "--until", "plan"],
            "--from export comes after --until plan",
        ),
        ([*DRY, "model.source=nowhere/at/all"], "no such folder"),
        ([*DRY, "prune.target.macs=0.01"], "the least reachable is"),
        (
            [*DRY, "prune.kinds=[resnet_channels]"],
            "'dit.json' has no groups of kind resnet_channels; it has attention",
        ),
        ([*DRY, "prune.limits=[{match: nothing, max_ratio: 0.1}]"], "limit 'nothing' matches no group"),
        (["run", "quickstart", "model.source=dit.json"], "is a file; give the folder"),
        ([*RUN, "evaluate.metrics=[fd]"], "evaluate.metrics: unknown metric 'fd'"),
        (
            [*RUN, "evaluate.features=gone"],
            "evaluate.features: unknown feature extractor 'gone'; give",
        ),
        ([*RUN, "evaluate.sampler=DDIM"], "evaluate.sampler: 'DDIM' is no scheduler class"),
        ([*RUN, "data.eval_split=val"], "'val'.*train"),
        ([*RUN, "calibrate.num_samples=100000"], "100000 images asked, but the split holds"),
        ([*RUN, "evaluate.num_real=100000"], "100000 images asked, but the split holds"),
        ([*RUN, "data.source=gone/to/where"], "no such file or folder"),
        (["show", "."], "neither a run directory"),
        (["cp", "nothing", "x.yaml"], "no recipe 'nothing'"),
        (
            ["cp", "quickstart", "gone/x.yaml"],
            "^error: cannot write gone/x.yaml: there is no folder gone; make it",
        ),
        (["report", "empty", "gone"], "^error: gone: no such run directory; `sinkprune ls runs`"),
        (["report", "dit.json", "."], "^error: dit.json is not a run directory with a report; name runs"),
        (["report", "empty", "empty"], r"^error: empty/report/data\.json: (?!.*--debug)"),
        (["report", "empty", "empty", "--output", "x.md"], "^error: cannot write x.md: .* ends in .html"),
        (
            [*RUN, "model.source=bundled:models/gone"],
            "bundled are: bundled:[^ ]*(, bundled:[^ ]*)*\n",
        ),
    ],
)
def test_errors_are_one_message_on_standard_error(workplace, capsys, arguments, message):
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    if "model.source=model" in arguments:
        DiTTransformer2DModel(**{k: v for k, v in DIT.items() if k != "_class_name"}).save_pretrained(
            "model/transformer"
        )
        DDIMScheduler().save_pretrained("model/scheduler")
    Path("empty/report").mkdir(parents=True)
    Path("empty/report/data.json").write_text("{}")
    assert main(arguments) == USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    # Torch itself warns, at the first import of some parts, of a CUDA compiler without a device.
    err = "".join(line for line in captured.err.splitlines(True) if "CUDA_HOME" not in line)
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert re.search(message, err)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_debug_shows_the_traceback(workplace):
    with pytest.raises(ValueError, match="no recipe 'nothing'"):
        main(["run", "nothing", "--debug"])


def test_without_arguments_the_help_comes(capsys):
    assert main([]) == USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == build_parser().format_help()


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "quickstart", "--dryrun"])
    assert end.value.code == 2
    assert "unrecognized arguments: --dryrun" in capsys.readouterr().err


def test_only_what_is_missing_is_called_required(capsys):
    with pytest.raises(SystemExit):
        main(["run"])
    assert capsys.readouterr().err.endswith("the following arguments are required: RECIPE\n")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            PermissionError(13, "Permission denied", "/etc/x"),
            "/etc/x: permission denied (--debug shows where)",
        ),
        (UnreadableRow("row 3 is broken"), "row 3 is broken"),
        (ValueError("odd"), "ValueError: odd (--debug shows where)"),
    ],
)
def test_an_error_is_said_plainly(monkeypatch, capsys, error, text):
    def fail(arguments, console):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "ls", fail)
    assert main(["ls"]) == USER_ERROR
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize("text", ["[1]", "{", '{"name": "r", "model": 3, "data": {}}'])
def test_show_names_a_broken_run(workplace, capsys, text):
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/run.json").write_text(text)
    assert main(["show", "runs/x"]) == USER_ERROR
    assert capsys.readouterr().err.startswith("error: runs/x/run.json: ")


def test_every_stage_takes_the_advice_of_its_errors():
    """Errors of a run directory end in "take it over with --fresh", whichever command met them."""
    parser = build_parser()
    assert all(parser.parse_args([command, "r", "--fresh"]).fresh for command in ("run", *STAGE_HELP))


def test_an_interrupt_is_one_line(workplace, capsys, monkeypatch):
    def stop(arguments, console):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "ls", stop)
    assert main(["ls"]) == INTERRUPTED
    assert (
        capsys.readouterr().err == "stopped; what is done is kept, and the same command goes on from there\n"
    )


def test_a_bug_is_not_passed_off_as_a_users_mistake(monkeypatch):
    def broken(arguments, console):
        raise TypeError("a bug")

    monkeypatch.setitem(commands.COMMANDS, "ls", broken)
    with pytest.raises(TypeError, match="a bug"):
        main(["ls"])


def test_cp_copies_under_the_name_of_the_file_and_never_overwrites(workplace, capsys):
    assert main(["cp", "quickstart", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml\n"
    text, bundled = Path("mine.yaml").read_text(), bundled_recipes()["quickstart"].read_text()
    pairs = [p for p in zip(text.splitlines(), bundled.splitlines(), strict=True) if p[0] != p[1]]
    assert [re.split(r"\s+#", line)[0] for line, _ in pairs] == ["name: mine", 'title: ""']
    assert all(line.split("#")[1:] == before.split("#")[1:] for line, before in pairs), "comments stay"
    assert main(["cp", "sd15", "mine.yaml"]) == USER_ERROR
    assert "mine.yaml exists already" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == text
    Path("folder").mkdir()
    assert main(["cp", "recipes/sd15.yaml", "folder"]) == 0
    assert Path("folder/sd15.yaml").is_file()


def test_ls_names_recipes_criteria_and_runs(workplace, capsys):
    (workplace / "runs" / "mine").mkdir(parents=True)
    write_json(workplace / "runs" / "mine" / "run.json", {})
    assert main(["ls", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found["recipes"]} == set(bundled_recipes())
    assert {"random", "magnitude", "wanda", "sink"} <= {row["name"] for row in found["criteria"]}
    assert [row["run"] for row in found["runs"]] == ["runs/mine"]
    assert main(["ls", "metrics"]) == 0
    assert re.search(r"latency +Latency of one denoiser call", capsys.readouterr().out)
    assert main(["ls", "kinds", "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    assert [row["name"] for row in kinds] == list(KINDS)
    assert all(row["meaning"].endswith(".") for row in kinds)
    assert main(["ls", "candidates", "--json"]) == 0
    candidates = json.loads(capsys.readouterr().out)["candidates"]
    assert [row["number"] for row in candidates] == [str(k) for k in range(1, len(CANDIDATES) + 1)]
    assert candidates[0]["criterion"] == "the recipe's"


def test_a_table_of_no_models_has_no_rows():
    assert tables.subjects({}).row_count == 0
    assert tables.subjects({"dense": {}}).row_count == 1


def test_diff_shows_what_differs_between_two_recipes(workplace, capsys):
    main(["cp", "quickstart", "mine.yaml", "--json"])
    text = Path("mine.yaml").read_text().replace("macs: 0.5", "macs: 0.4")
    Path("mine.yaml").write_text(text.replace("name: mine", "name: quickstart"))
    capsys.readouterr()
    assert main(["diff", "quickstart", "mine.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {
        "title": ["Digits DiT, pruned and trained back", ""],
        "prune.target.macs": [0.5, 0.4],
    }
    assert main(["diff", "quickstart", "quickstart"]) == 0
    assert "no setting differs" in capsys.readouterr().out


def test_show_explains_a_pruned_checkpoint(workplace, capsys):
    from pruning import checkpoint, groups, surgery
    from pruning.types import PruningPlan
    from tests.models import dit

    model = dit()
    found = groups.find_groups(model)
    heads = next(group for group in found if group.kind == "attention_heads")
    surgery.apply_plan(model, PruningPlan(kept={heads.name: (0, 2)}))
    checkpoint.save(model, "slim")
    assert main(["show", "slim", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["class"] == "DiTTransformer2DModel"
    assert about["pruned"]
    assert about["parameters"] == sum(p.numel() for p in model.parameters())
    assert about["dtype"] == "F32"
    assert main(["show", "slim"]) == 0
    assert "pruned" in capsys.readouterr().out


def test_show_survives_a_checkpoint_that_is_none(workplace, capsys):
    Path("slim").mkdir()
    Path("slim/config.json").write_text('{"_structured_pruning": {"plan": [1], "modules": 3}}')
    assert main(["show", "slim"]) == 0
    Path("slim/x.safetensors").write_bytes(b"\x10" + bytes(20))
    assert main(["show", "slim"]) == USER_ERROR
    assert re.match(r"error: slim/x\.safetensors: cannot be read as safetensors", capsys.readouterr().err)
    Path("slim/config.json").write_text("[1]")
    assert main(["show", "slim"]) == USER_ERROR
    assert (
        "slim/config.json: expected a mapping, found [1]; it is no config of a model"
        in capsys.readouterr().err
    )


def test_show_prints_every_value_of_a_recipe(workplace, capsys):
    assert main(["show", "quickstart"]) == 0
    assert "max_shard_size: 10GB" in capsys.readouterr().out


def keep(run: Path, kind: str, seed: int) -> str:
    """Make a result in the store beside `run`, show it there, and return its name."""
    folder, store = RunFolder(run), Store(run.parent / ".store")
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "run.json").exists():
        write_json(run / "run.json", {"name": run.name, "model": {}, "data": {}, "results": {}})
    store.register(run)

    def work(folder: Path) -> dict:
        (folder / "sums").write_text("x" * 1000 * (seed + 1))
        return {"seconds": 1.0}

    result = store.make(Key(kind, {"seed": seed}, {}), work)
    folder.attach(kind, result, store)
    return result.name


def test_clean_takes_what_no_run_uses_and_nothing_else(workplace, capsys):
    used = {keep(Path("runs/a"), "calibrate", 0), keep(Path("runs/b"), "calibrate", 1)}
    unused = keep(Path("runs/b"), "plan", 2)
    used.add(keep(Path("runs/b"), "plan", 3))
    Path("runs/.store/.partial/recover-x").mkdir()
    assert main(["clean", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["removed"] == [unused, ".partial/recover-x"]
    assert (found["bytes"], found["kept"]) == (3000, 3)
    assert main(["ls", "results", "--json"]) == 0
    listed = {row["result"]: row["used by"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert listed.keys() == {f"runs/.store/{name}" for name in (*used, unused)}
    assert listed[f"runs/.store/{unused}"] == "–"
    assert main(["clean"]) == 0
    assert "removed: " in capsys.readouterr().out
    store = Store("runs/.store")
    assert {result.name for result in store.results()} == used
    assert not list(Path("runs/.store/.partial").iterdir())
    Path("runs/b").rename("elsewhere")
    assert main(["clean"]) == 0
    assert [result.kind for result in store.results()] == ["calibrate"]
    assert RunFolder("elsewhere").whole("plan").figures == {}  # what was moved away keeps its files


def test_runs_and_stores_elsewhere_are_listed_and_cleaned(workplace, capsys):
    store, folder = Store("kept"), RunFolder("mine/a")
    folder.path.mkdir(parents=True)
    (folder.path / "run.json").write_text('{"name": "a", "model": {}, "data": {}, "results": {}}')
    store.register(folder.path)
    result = store.make(Key("plan", {}, {}), lambda place: {"seconds": 1.0})
    assert main(["ls", "results", "kept", "--json"]) == 0
    assert [row["result"] for row in json.loads(capsys.readouterr().out)["results"]] == [
        f"kept/{result.name}"
    ]
    assert main(["ls", "runs", "mine", "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)["runs"]] == ["mine/a"]
    assert main(["clean", "kept", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [result.name]


def test_clean_touches_nothing_that_is_not_the_stores(workplace, capsys):
    Store("scratch").register(Path("runs/a"))
    theirs = [
        Path("scratch/thesis/chapter1/text"),
        Path("scratch/thesis/.DS_Store"),
        Path("scratch/README.txt"),
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert main(["clean", "scratch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert all(path.exists() for path in theirs)


def test_clean_waits_for_no_run_and_names_what_is_not_there(workplace, capsys):
    assert main(["clean", "nothing"]) == USER_ERROR
    assert "nothing: no results are kept there; name a folder of runs, or a store" in capsys.readouterr().err
    assert main(["clean"]) == 0
    assert capsys.readouterr().out.strip() == "nothing to remove"
    assert not list(workplace.glob("runs*"))
    keep(Path("runs/a"), "calibrate", 0)
    with locked(Path("runs/a/.lock"), "a", ""):
        assert main(["clean"]) == USER_ERROR
    assert "runs/a is in use by process" in capsys.readouterr().err


def lines_of(drawn, width: int) -> list[str]:
    """Draw a table as on a terminal of that width."""
    console = Console(width=width, file=io.StringIO(), soft_wrap=True)
    console.print(drawn)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [70, 80, 120])
def test_the_figures_of_a_run_fit_a_terminal(width):
    found = {"macs": 82.8e6, "params": 2.12e6, "file_bytes": 4.25e6, "call": {"median_s": 0.302}}
    found |= {
        "speedup_call": 1.724,
        "excess_error": 0.006484,
        "frechet": 22.21,
        "frechet_name": "FID of digits",
    }
    lines = lines_of(tables.subjects({"dense": found, "recovered": found}), width)
    assert max(map(len, lines)) <= max(width, 76), "76 is what whole words and numbers take"
    header, *rows, caption = [line.rstrip() for line in lines if line.strip() not in ("", "excess")]
    assert header.split()[-1] == "Fréchet"
    assert caption == "Fréchet: FID of digits"
    cells = ["82.8 M", "2.12 M", "4.25 MB", "302 ms", "1.72 ×", "0.006484", "22.21"]
    assert [re.split(r" {2,}", row) for row in rows] == [["dense", *cells], ["recovered", *cells]]


def test_numbers_are_set_to_the_right_and_words_are_not_broken():
    rows = [
        ("runs/.store/image_features/e50ab", "92.3 kB", "2026-11-27 00:39:21", "–"),
        ("b", "–", "", "a, b"),
    ]
    drawn = table(("result", "size", "finished", "used by"), rows)
    assert [column.justify for column in drawn.columns] == ["left", "right", "left", "left"]
    assert lines_of(drawn, 40)[1].startswith("runs/.store/image_features/e50ab")


def test_a_figure_has_one_form_whatever_its_value():
    assert [text_of(value, "frechet_ratio") for value in (0.999, 1.618)] == ["0.999", "1.618"]
    assert [text_of(value, "file_ratio") for value in (0.999, 1.618)] == ["99.9 %", "161.8 %"]


def test_a_run_ends_with_warnings_and_where_the_slim_model_is(workplace, capsys, monkeypatch):
    monkeypatch.setattr(commands, "measured", lambda folder: {"dense": {}, "pruned": {}})
    run = bare_run(Path("runs/a"))
    write_json(run / "run.json", {"name": "a", "model": {}, "data": {}, "results": {}})
    Path("runs/a/export/diffusers").mkdir(parents=True)
    with console.Console() as shown:
        shown.finish("run", commands._ended(RunFolder(run), "report"))
    captured = capsys.readouterr()
    assert re.search(r"slim model +runs/a/export/diffusers\nruns/a/report/report.html\n$", captured.out)
    assert captured.err.startswith("warning: No recovery: the pruned figures are straight after the cut")


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"frechet_pruned": 0.2, "frechet_recovered": 0.15, "ssim_recovered": 0.9}, "Fréchet 0.15"),
        ({"ssim_pruned": 0.8, "ssim_recovered": 0.95}, "SSIM 0.95"),
        ({"frechet_pruned": None, "spectral_error_pruned": 0.25}, "spectral error 0.25"),
        ({}, "–"),
    ],
)
def test_a_list_of_runs_shows_the_quality_that_was_measured(tmp_path, summary, said):
    write_json(tmp_path / "summary.json", summary)
    assert tables.figures(tmp_path)[-1] == said


def test_every_setting_is_listed_with_its_default_and_meaning(capsys):
    assert main(["ls", "settings", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert rows["recover.steps"] == {
        "key": "recover.steps",
        "default": "1,000",
        "type": "a whole number",
        "meaning": "Optimizer steps.",
    }
    assert rows["calibrate.num_samples"]["meaning"] == "Images, or samples that are generated and recorded."


def test_what_people_wait_for_imports_neither_torch_nor_diffusers(workplace):
    environment = {**os.environ, "PYTHONPATH": ROOT}
    typo = ["run", "quickstart", "score.criterion=x"]
    for words in (
        ["ls"],
        ["ls", "criteria"],
        ["ls", "kinds"],
        ["ls", "metrics"],
        ["ls", "settings"],
        typo,
        ["clean"],
    ):
        code = (
            f"import sys; from pruning.cli import main; main({words!r})\n"
            "print([m for m in ('torch', 'diffusers') if m in sys.modules])"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.splitlines()[-1] == "[]", words


def test_a_terminal_that_knows_only_ascii_is_no_reason_to_fail(workplace):
    keep(Path("runs/a"), "calibrate", 0)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (["ls"], ["ls", "--json"], ["show", "runs/a"]):
        done = subprocess.run(
            [sys.executable, "-m", "pruning", *words],
            capture_output=True,
            env={**environment, "PYTHONPATH": ROOT},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()

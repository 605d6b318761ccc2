"""The report: what it shows, what it says in words, what it refuses, and that it is one whole file."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from eval.report import build, charts, fmt, images, maps, svg, tables, words
from eval.report.load import Curve, Cut, load_run
from eval.report.page import escape_markdown, fence
from eval.report.tensors import Site
from eval.report.view import view
from tests.fixtures import report_runs

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects ids, links, sources and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.sources += [given["src"] or ""] if "src" in given else []
        assert not any(name.startswith("on") for name in given)
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace(fmt.THIN, " ")


def read(out: Path) -> tuple[Page, str]:
    """Return the page and the markdown twin, whose pictures have to be there and well formed."""
    twin = out.with_suffix(".md").read_text(encoding="utf-8")
    for link in re.findall(r"!\[.*?\]\((.*?)\)", twin):
        picture = out.parent / unquote(link)
        if picture.suffix == ".svg":
            ElementTree.fromstring(picture.read_bytes())
        else:
            Image.open(picture).verify()
    return Page(out.read_text(encoding="utf-8")), twin.replace(fmt.THIN, " ")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.digits_run(tmp_path_factory.mktemp("runs") / "quickstart")


def edited(path: Path, change: dict[str, Any]) -> Path:
    """Write a bare run whose data.json has the entries of `change`."""
    return report_runs.write(path, {"name": "x", "subjects": ["dense", "pruned"], **change})


def test_one_run_shows_every_section_in_page_and_twin(digits: Path, tmp_path: Path) -> None:
    out = build([digits], tmp_path / "new" / "report.html")
    assert out == tmp_path / "new" / "report.html"
    page, twin = read(out)
    titles = [
        "Results",
        "Samples from the same noise",
        "Where the cuts fell",
        "Recovery",
        "Denoising error by timestep",
    ]
    for title in [*titles, "Attention sinks", "Attention heads", "How it was measured"]:
        assert title in page.text
        assert f"## {title}" in twin
    for both in (
        "49.8 %",
        "least squares",
        "1.22×",
        "transformer_blocks.5.attn1",
        "Small N",
        "20 DDIM steps",
        "it is not FID",
    ):
        assert both in page.text
        assert escape_markdown(both) in twin
    assert "<trained> on scikit-learn" in page.text
    assert "<trained> on scikit-learn" in twin


def test_page_loads_nothing_from_elsewhere(digits: Path, tmp_path: Path) -> None:
    out = build([digits], tmp_path / "report.html")
    page, _ = read(out)
    assert len(page.sources) == 60  # 3 subjects x 20 samples
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    text = out.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|url\(|@import|//cdn", text)
    assert "default-src 'none'" in text


def test_plan_alone_has_no_empty_sections(tmp_path: Path) -> None:
    page, twin = read(build([report_runs.bare_run(tmp_path / "bare")], tmp_path / "r.html"))
    assert "The plan keeps 49.7 % of the MACs (asked: 50 %)." in page.text
    assert "Nothing has been measured" in page.text
    for title in ("Results", "Samples", "Recovery", "Attention", "Where the cuts", "How it was measured"):
        assert title not in page.text
        assert title not in twin


@pytest.mark.parametrize(
    ("created", "shown"), [("2026-05-04T10:31", "2026-05-04 10:31"), ("4 May 10:31 UTC", "4 May 10:31 UTC")]
)
def test_the_line_under_the_title_dates_the_run(tmp_path: Path, created: str, shown: str) -> None:
    run = edited(tmp_path / "x", {"created": created, "model": "m", "title": "T"})
    page, twin = read(build([run], tmp_path / "r.html"))
    assert f"m · run x · {shown}" in page.text
    assert f"m · run x · {shown}" in twin


def test_large_model_is_drawn_by_depth_with_removed_blocks(tmp_path: Path) -> None:
    out = build([report_runs.sd_run(tmp_path / "sd")], tmp_path / "r.html")
    page, twin = read(out)
    assert "All 70 groups as a list" in page.text
    assert "removed with its block" in page.text
    assert "down 0" in page.text
    assert 'class="hatch"' in out.read_text(encoding="utf-8")
    assert "Target missed: 68 % of the MACs were asked, 70.1 % are left" in page.text
    assert "No recovery: the pruned figures" in page.text
    assert "Recovery Training" not in page.text
    assert "a harbour at dawn" in page.text
    assert "no interval was measured" in twin
    assert "10 sites" not in page.text
    assert page.text.count("sink mass, a row a head") == maps.MAX_SITES
    assert "Not drawn (sink mass at most" in page.text
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    assert out.stat().st_size < 1_000_000


def test_no_sinks_is_said_and_maps_are_folded_away(tmp_path: Path) -> None:
    run = report_runs.digits_run(tmp_path / "n", strength=0.0)
    out = build([run], tmp_path / "r.html")
    page, twin = read(out)
    assert "No attention sinks. At none of the 6 attention sites" in page.text
    assert "No attention sinks." in twin
    assert "a sink needs 8×" in page.text
    assert "No head has a sink mass of 5 %" in page.text
    html = out.read_text(encoding="utf-8")
    assert html.index("Maps of the strongest site all the same") < html.index("sink mass, a row a head")
    assert html.count("sink mass, a row a head") == 1


def test_several_runs_share_an_axis_only_if_measured_alike(tmp_path: Path) -> None:
    runs = [
        report_runs.digits_run(tmp_path / f"d{k}", name=f"d{k}", macs=m) for k, m in enumerate((0.7, 0.5))
    ]
    other = report_runs.digits_run(tmp_path / "d2", name="d2", macs=0.4)
    data = json.loads((other / "report" / "data.json").read_text())
    for values in data["metrics"].values():
        values["frechet_num_generated"] = 500
    (other / "report" / "data.json").write_text(json.dumps(data))
    twin_of_other = report_runs.write(tmp_path / "d3", {**data, "name": "d3", "samples": None, "sinks": None})
    out = build([*runs, other, report_runs.bare_run(tmp_path / "bare"), twin_of_other], tmp_path / "all.html")
    page, twin = read(out)
    for text in (page.text, twin):
        assert "5 runs compared" in text
        assert "measured in 2 ways" in text
        assert "each has its own plot" in text
        assert "Not plotted, since they have no Fréchet distance of a pruned model: plan-only." in text
    first, second = (next(tmp_path.glob(f"all_files/speed-quality-{k}.svg")).read_text() for k in (0, 1))
    assert ">d0<" in first
    assert ">d1<" in first
    assert ">d2<" not in first
    assert ">d2<" in second
    assert all("speed-up of one call (measured)" in text for text in (first, second))
    assert {f"#run{k}" for k in (1, 2, 3, 4, 5)} <= set(page.links) <= {f"#{name}" for name in page.ids}


def test_a_run_that_compares_with_no_other_gets_no_plot(tmp_path: Path) -> None:
    runs = [report_runs.digits_run(tmp_path / "d0", name="d0"), report_runs.bare_run(tmp_path / "bare")]
    page, twin = read(build(runs, tmp_path / "all.html"))
    for text in (page.text, twin):
        assert "2 runs compared" in text
        assert "Speed and quality" not in text
        assert "Not plotted, since no other run was measured alike: d0." in text
    assert not list(tmp_path.glob("all_files/speed-quality-*.svg"))


def test_threads_of_run_and_of_latency_are_told_apart(tmp_path: Path) -> None:
    run = load_run(report_runs.digits_run(tmp_path, device="cpu (x86_64, 2 cores, 2 threads)"))
    for values in run.metrics.values():
        values["call"] = {"median_s": 0.1, "iqr_s": None, "num_threads": 1, "runs": 3}
    assert dict(view(run, 0).facts)["Device"] == "cpu (x86_64, 2 cores, 2 threads); latency on 1 thread"
    assert "one process (3 rounds, 1 thread)." in " ".join(words.notes(run))


def test_intervals_that_cover_less_than_95_percent_are_explained(tmp_path: Path) -> None:
    run = load_run(report_runs.digits_run(tmp_path))
    said = "Few rounds were timed for the speed-up of sampling."
    assert said not in " ".join(words.notes(run))
    measured = run.metrics[run.final or ""]
    measured |= {"speedup_sampling_ci95": [1.5, 1.7], "speedup_sampling_coverage": 0.9375}
    assert said in " ".join(words.notes(run))
    assert words.speedup_interval(run, run.final, "sampling").replace(fmt.THIN, " ") == "94 % 1.50× to 1.70×"
    measured["speedup_sampling_coverage"] = 0.75
    assert said in " ".join(words.notes(run))
    assert words.speedup_interval(run, run.final, "sampling") == ""


def test_training_that_made_it_worse_is_warned_of(tmp_path: Path) -> None:
    run = load_run(report_runs.digits_run(tmp_path))
    assert "Training back made it worse" not in " ".join(words.warnings(run))
    run.metrics["recovered"]["excess_error"] = 2 * run.metrics["pruned"]["excess_error"]
    assert "Training back made it worse: the excess error rose from" in " ".join(words.warnings(run))


@pytest.mark.parametrize(("steps", "strong"), [(79, False), (80, True)])
def test_a_strong_line_is_promised_only_where_there_is_one(tmp_path: Path, steps: int, strong: bool) -> None:
    curve = {"steps": list(range(steps)), "loss": [1.0 / (k + 1) for k in range(steps)]}
    page, _ = read(build([edited(tmp_path, {"recovery": curve})], tmp_path / "one.html"))
    assert ("Strong: mean over windows." in page.text) == strong
    assert ("line s2" in charts.recovery(Curve(curve["steps"], curve["loss"])).svg) == strong


def test_latencies_of_different_machines_fall_back_to_macs(tmp_path: Path) -> None:
    runs = [report_runs.digits_run(tmp_path / k, name=k, device=k) for k in ("here", "there")]
    page, _ = read(build(runs, tmp_path / "r.html"))
    assert "the MACs ratio, since latencies come from different set-ups" in page.text
    assert "speed-up by MACs (dense / pruned)" in page.text


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [report_runs.digits_run(tmp_path / k, name="same") for k in ("a", "b")]
    page, _ = read(build(runs, tmp_path / "r.html"))
    assert "same (a)" in page.text
    assert "same (b)" in page.text


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'|`*"
    subjects = {
        "dense": report_runs.subject(1.0, 10.0, 1.0, dense=True),
        evil: report_runs.subject(0.5, 12.0, 1.0),
    }
    cut = {"group": evil, "module": evil, "kind": evil, "kept": 1, "total": 2}
    many = [{**cut, "group": f"{evil}{k}"} for k in range(60)]
    data = {
        "name": evil,
        "title": evil,
        "model": evil,
        "subjects": list(subjects),
        "metrics": subjects,
        "cuts": many,
    }
    data |= {
        "recipe_yaml": f"a: {evil} ```",
        "versions": {evil: evil},
        "warnings": [evil],
        "asked": {evil: evil},
    }
    out = build([report_runs.write(tmp_path / "evil", data)], tmp_path / "r.html")
    page, twin = read(out)
    assert evil in page.text
    assert "<script" not in out.read_text(encoding="utf-8")
    assert "````yaml" in twin
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(twin)
    assert "<script" not in rendered
    assert rendered.count("<tr>") == 12 + 60 + 2  # measures, groups, two header rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": []}, "subjects: must be a list of distinct names"),
        ({"subjects": ["a", "a"]}, "subjects: must be a list of distinct names"),
        ({"subjects": "dense"}, r"data.json: subjects: must be a list, found 'dense' \(str\)"),
        ({"name": 3}, r"name: must be a string, found 3 \(int\)"),
        ({"metrics": []}, "metrics: must be a mapping"),
        ({"metrics": {"dense": {"frechet": "low"}}}, r"metrics.dense.frechet: must be a number, found 'low'"),
        ({"metrics": {"dense": {"frechet_ci95": [1]}}}, r"frechet_ci95: an interval must be \[low, high\]"),
        ({"metrics": {"dense": {"frechet_ci95": [2, 1]}}}, "with low <= high"),
        ({"metrics": {"dense": {"call": {"median_s": 0}}}}, "a latency must be above 0 seconds"),
        ({"metrics": {"dense": {"call": {}}}}, "call.median_s: must be a finite number, found nothing"),
        (
            {"cuts": [{"group": "g", "module": "m", "kind": "k", "kept": 3, "total": 2}]},
            r"cuts\[0\].kept: must lie between 0",
        ),
        (
            {"cuts": [{"group": "g", "module": "m", "kind": "k", "kept": 1, "total": 0}]},
            "total: must be a whole number >= 1",
        ),
        (
            {"cuts": [{"group": "g", "module": "m", "kind": "k", "kept": 1, "total": 1, "removed": 1}]},
            "must be true or false",
        ),
        (
            {"recovery": {"steps": [1, 2], "loss": [0.1]}},
            "steps and loss must be of one length, found 2 and 1",
        ),
        ({"recovery": {"steps": [2, 1], "loss": [0.1, 0.1]}}, "steps: must increase"),
        (
            {"diagnostics": {"heads": [{"group": "g", "head": 0, "sink_mass": 1.5}]}},
            r"sink_mass: must be a number in \[0, 1\]",
        ),
        ({"seconds": {"plan": -1}}, "seconds.plan: must be a number >= 0"),
        ({"samples": "../x.safetensors"}, "must be the name of a file beside data.json"),
        ({"samples": "gone.safetensors"}, "names 'gone.safetensors', but there is no file"),
    ],
)
def test_wrong_values_name_file_place_and_rule(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = edited(tmp_path / "run", change)
    with pytest.raises(ValueError, match=message) as error:
        build([run], tmp_path / "r.html")
    assert "data.json" in str(error.value)
    assert not (tmp_path / "r.html").exists()


def site(heads: int = 1, keys: int = 4, **values: np.ndarray) -> dict[str, np.ndarray]:
    mass = np.full((2, keys), 1 / keys, np.float32)
    found = {"sink_mass": np.zeros((2, heads), np.float32), "key_mass": mass, **values}
    return {f"m/{name}": array for name, array in found.items()}


@pytest.mark.parametrize(
    ("entry", "tensors", "message"),
    [
        ({"grid": [1, 3]}, site(), r"grid: must be \[rows, columns\] of 4 keys, found \[1, 3\]"),
        ({"heads": 2}, site(), r"'m/sink_mass' must be a float tensor \(timesteps, 2\)"),
        ({}, site(key_mass=np.zeros((3, 4), np.float32)), "must have one row a timestep bucket"),
        ({}, site(key_mass=np.full((2, 4), 9, np.float32)), r"means over samples, which lie in \[0, 1\]"),
        ({}, {"n/sink_mass": np.zeros((2, 1), np.float32)}, "has no tensor 'm/sink_mass'"),
    ],
)
def test_wrong_sink_tensors_are_refused(
    tmp_path: Path, entry: dict[str, Any], tensors: dict[str, np.ndarray], message: str
) -> None:
    sites = [{"module": "m", "heads": 1, "keys": 4, **entry}]
    data = {"subjects": ["dense"], "sinks": "s.safetensors", "sink_sites": sites}
    with pytest.raises(ValueError, match=message):
        load_run(report_runs.write(tmp_path, data, {"s.safetensors": tensors}))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"dense": np.zeros((2, 1, 4, 4), np.float32)},
            r"'dense' must be a uint8 tensor \(n, 1 or 3, H, W\)",
        ),
        ({"dense": np.zeros((2, 4, 4), np.uint8)}, "must be a uint8 tensor"),
        (
            {k: np.zeros((n, 1, 4, 4), np.uint8) for k, n in (("dense", 2), ("pruned", 3))},
            "the same number of images",
        ),
        (
            {"dense": np.zeros((2, 1, 4, 4), np.uint8), "labels": np.zeros(3, np.int64)},
            "'labels' must be one integer an image",
        ),
    ],
)
def test_wrong_samples_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    data = {"subjects": ["dense", "pruned"], "samples": "s.safetensors"}
    with pytest.raises(ValueError, match=message):
        load_run(report_runs.write(tmp_path, data, {"s.safetensors": tensors}))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run directory .*gone: does not exist"):
        build([tmp_path / "gone"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: has no report/data\.json"):
        build([tmp_path / "empty"], tmp_path / "r.html")
    run = report_runs.bare_run(tmp_path / "bare")
    (run / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        build([run], tmp_path / "r.html")
    (run / "summary.json").unlink()
    (run / "report" / "data.json").write_text("[]")
    with pytest.raises(ValueError, match=r"data\.json: must be a mapping"):
        build([run], tmp_path / "r.html")
    (run / "report" / "data.json").write_text('{"subjects": ["dense"], "samples": "data.json"}')
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        build([run], tmp_path / "r.html")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    run = report_runs.bare_run(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"must end in \.html"):
        build([run], tmp_path / "report.md")
    with pytest.raises(ValueError, match="at least one run directory"):
        build([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="must be a list of run directories"):
        build(str(run), tmp_path / "r.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        build([run], tmp_path / "file" / "r.html")


def test_a_failed_build_leaves_the_last_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = report_runs.bare_run(tmp_path / "bare")
    out = build([run], tmp_path / "out" / "r.html")
    before = out.read_bytes()
    with pytest.raises(ValueError, match="does not exist"):
        build([run, tmp_path / "gone"], out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match="No space left on device"):
        build([run], out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["r.html", "r.md"]


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    run = edited(tmp_path / "run", {"metrics": {"dense": {"frechet": float("nan"), "ssim": 1.0}}})
    loaded = load_run(run)
    assert loaded.metric("dense", "frechet") is None
    assert loaded.warnings == ["1 value(s) in data.json were not finite (NaN or infinity) and are left out."]


@pytest.mark.parametrize("value", [1e308, 10**400])
def test_values_too_large_to_be_written_are_left_out(tmp_path: Path, value: float) -> None:
    metrics = {"dense": {"excess_error": value, "ssim": 1.0}}
    assert load_run(edited(tmp_path / "run", {"metrics": metrics})).metric("dense", "excess_error") is None


def test_summary_fills_in_frechet_distances(tmp_path: Path) -> None:
    run = edited(tmp_path / "run", {"metrics": {"dense": {"frechet": 1.0}}})
    (run / "summary.json").write_text(json.dumps({"frechet_dense": 9.0, "frechet_pruned": 2.0}))
    loaded = load_run(run)
    assert (loaded.metric("dense", "frechet"), loaded.metric("pruned", "frechet")) == (1.0, 2.0)


def test_an_unknown_metric_gets_a_row(tmp_path: Path) -> None:
    run = load_run(
        edited(tmp_path, {"metrics": {"dense": {"clip_score": 0.31, "frechet_width": 64}, "pruned": {}}})
    )
    assert [(block.title, [row.label for row in block.rows]) for block in tables.results(run)] == [
        ("Other", ["clip score"])
    ]


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ([1.1, 1.3], "worse by more than chance"),
        ([0.9, 1.3], "does not tell the two apart"),
        ([0.7, 0.9], "better by"),
    ],
)
def test_verdict_judges_by_the_paired_ratio(tmp_path: Path, ratio: list[float], said: str) -> None:
    value = 10 * sum(ratio) / 2
    # The intervals of the two overlap in every case; the paired ratio decides.
    pruned = {"frechet": value, "frechet_ci95": [value - 4, value + 4], "frechet_ratio_ci95": ratio}
    metrics = {"dense": {"frechet": 10.0, "frechet_ci95": [6.0, 14.0]}, "pruned": pruned}
    assert said in " ".join(words.verdict(load_run(edited(tmp_path, {"metrics": metrics}))))


def test_verdict_without_paired_ratio_compares_the_intervals(tmp_path: Path) -> None:
    metrics = {
        "dense": {"frechet": 10.0, "frechet_ci95": [9, 11]},
        "pruned": {"frechet": 12.0, "frechet_ci95": [11.5, 13]},
    }
    assert "worse by more than chance" in " ".join(
        words.verdict(load_run(edited(tmp_path, {"metrics": metrics})))
    )
    metrics["pruned"]["frechet_ci95"] = [10.5, 13]
    assert "does not tell" in " ".join(words.verdict(load_run(edited(tmp_path, {"metrics": metrics}))))


def test_speedup_from_medians_and_its_true_coverage(tmp_path: Path) -> None:
    call = {"median_s": 0.1, "iqr_s": 0.03, "batch_size": 8}
    pruned = {
        "call": {**call, "median_s": 0.08},
        "speedup_call_ci95": [1.2, 1.3],
        "speedup_call_coverage": 0.9375,
    }
    metrics = {"dense": {"call": call, "macs": 100}, "pruned": {**pruned, "macs": 50}}
    run = load_run(edited(tmp_path, {"metrics": metrics}))
    assert words.speedup(run, "pruned") == pytest.approx(1.25)
    assert words.speedup_interval(run, "pruned").replace(fmt.THIN, " ") == "94 % 1.20× to 1.30×"
    said = " ".join(words.warnings(run)).replace(fmt.THIN, " ")
    assert "1.25× measured, 2.00× by MACs" in said  # 1.25 < 0.9 * 2
    assert "Noisy timing" in said  # 0.03 / 0.1 > 0.1
    assert "dense, one call: 30 %" in said


def test_a_target_that_the_plan_calls_missed_is_warned_of(tmp_path: Path) -> None:
    run = load_run(edited(tmp_path, {"asked": {"ratio": 0.3}, "got": {"ratio": 0.2, "hit": False}}))
    assert any(text.startswith("Target missed; this is the nearest plan") for text in words.warnings(run))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "0.0123"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (0, "0"),
        (None, "–"),
        (1.234e-5, "1.23 × 10⁻⁵"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert fmt.number(value) == text


def test_units_and_durations() -> None:
    plain = {fmt.quantity(v, "B").replace(fmt.THIN, " ") for v in (999, 4_836_000, 999_960, 1.72e9)}
    assert plain == {"999 B", "4.84 MB", "1 MB", "1.72 GB"}
    times = [fmt.seconds(v).replace(fmt.THIN, " ") for v in (2e-5, 0.0123, 4.567, 125, 3720)]
    assert times == ["20.0 µs", "12.3 ms", "4.57 s", "2 min 05 s", "1 h 02 min"]


def test_ticks_and_scales() -> None:
    assert svg.linear_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert svg.log_ticks(0.01, 10) == [0.01, 0.1, 1, 10]
    assert svg.Scale(1, 100, 0, 200, log=True)(10) == 100
    assert svg.Scale(0, 4, 100, 0)(1) == 75


def test_a_column_of_the_depth_chart_is_as_high_as_its_share() -> None:
    cuts = [Cut(f"g{k}", f"down_blocks.{k}.attn", "attention_heads", 3, 4, False) for k in range(3)]
    cuts[1] = Cut("g1", "down_blocks.1.attn", "attention_heads", 0, 4, True)
    root = ElementTree.fromstring(charts.depth(cuts).svg)
    boxes = root.findall("{*}rect")
    filled = [float(box.attrib["height"]) for box in boxes if box.attrib["class"].startswith("fill")]
    assert filled == [48.0, 48.0]  # 3/4 of the band's 64
    assert sum(box.attrib["class"] == "gone" for box in boxes) == 1
    names = [text.text for text in root.findall("{*}text")]
    assert names[-3:] == ["down 0", "down 1", "down 2"]


def test_loss_curve_breaks_where_the_loss_is_missing_and_stands_constant_losses() -> None:
    figure = charts.recovery(Curve([1, 2, 3, 4], [0.5, None, 0.4, 0.3]))
    raw = next(p for p in ElementTree.fromstring(figure.svg).findall("{*}path") if p.attrib["class"] == "raw")
    assert raw.attrib["d"].count("M") == 2
    assert "0.5 to 0.5" in charts.recovery(Curve([1], [0.5])).alt.replace("0.500", "0.5")


def uniform(keys: int, grid: tuple[int, int] | None = None) -> Site:
    return Site("m", grid, keys**0.5, np.zeros((2, 3)), np.full((2, keys), 1 / keys), None)


def test_uniform_attention_is_drawn_empty_and_called_sinkless() -> None:
    found = uniform(64, (8, 8))
    assert not maps.has_sinks(found)
    drawn = maps.site_maps(found, 0)
    classes = re.findall(r'class="(h\d|sink)"', drawn.positions.svg)
    assert classes == ["h0", "h0"]  # two buckets, nothing in them
    assert "No sinks: at most 1.00× the uniform share" in drawn.summary


def test_stable_and_moving_sinks_are_told_apart() -> None:
    key_mass = np.full((2, 16), 0.2 / 14)
    key_mass[:, 0] = 0.4
    key_mass[0, 5], key_mass[1, 10] = 0.4, 0.4  # r = 6.4 > sqrt(16)
    found = Site("m", (4, 4), 4.0, np.array([[0.1, 0.9], [0.1, 0.7]]), key_mass, None)
    text = maps.describe(found)
    assert "Strongest head 1: mean sink mass 0.80." in text
    assert "Sink at every timestep: token (0, 0)." in text
    assert "Sink at some timesteps only: tokens (1, 1), (2, 2)." in text
    root = ElementTree.fromstring(maps.site_maps(found, 0).positions.svg)
    outlined = [box for box in root.findall("{*}rect") if box.attrib["class"] == "sink"]
    assert len(outlined) == 4  # two a bucket
    assert float(outlined[0].attrib["width"]) == 21  # a panel of 84 over 4 tokens
    assert "up to 90 % of a head's attention" in maps.overview([found, uniform(16)]).replace(fmt.THIN, " ")
    assert maps.strongest([uniform(16), found])[0] is found


def test_large_grids_are_pooled_by_maximum() -> None:
    key_mass = np.full((1, 4096), 0.5 / 4095)
    key_mass[0, 4095] = 0.5
    figure = maps.site_maps(Site("m", (64, 64), 64.0, np.ones((1, 1)) * 0.5, key_mass, None), 0).positions
    outlined = [
        b for b in ElementTree.fromstring(figure.svg).findall("{*}rect") if b.attrib["class"] == "sink"
    ]
    assert len(outlined) == 1
    cell = maps.PANEL / 32
    centre = float(outlined[0].attrib["x"]) + float(outlined[0].attrib["width"]) / 2
    assert centre == pytest.approx(1 + 31.5 * cell, abs=0.01)
    assert "largest of 2 × 2 tokens a cell" in figure.svg


def test_missing_timesteps_and_odd_shapes_are_drawn() -> None:
    sink_mass = np.full((3, 40), np.nan)
    sink_mass[0] = 0.5
    key_mass = np.full((3, 1), np.nan)
    key_mass[0] = 1.0
    drawn = maps.site_maps(Site("m", None, 1.0, sink_mass, key_mass, np.ones((3, 1))), 0)
    assert drawn.heads.svg.count('"nodata"') == 80
    wide = Site("m", (2, 9), 4.2, np.zeros((9, 1)), np.full((9, 18), 1 / 18), None)
    ElementTree.fromstring(maps.site_maps(wide, 1).positions.svg)
    empty = Site("m", None, 2.0, np.full((1, 2), np.nan), np.full((1, 4), np.nan), None)
    assert "No sinks" in maps.site_maps(empty, 0).summary
    assert "No attention sinks" in maps.overview([empty])


def test_small_images_are_kept_pixel_for_pixel_and_classes_come_in_order(tmp_path: Path) -> None:
    pixels = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4)
    tensors = {"dense": pixels, "pruned": 255 - pixels, "labels": np.array([1, 0, 1, 0, 2, 2])}
    data = {"subjects": ["dense", "pruned"], "samples": "s.safetensors"}
    run = load_run(report_runs.write(tmp_path, data, {"s.safetensors": tensors}))
    found = images.samples(run)
    assert found is not None
    assert found.crisp
    assert found.bands[0].captions == ["0", "1", "2", "0", "1", "2"]
    (name, uris), _ = found.bands[0].rows
    assert name == "dense"
    png = Image.open(io.BytesIO(base64.b64decode(uris[0].partition(",")[2])))
    assert np.array_equal(np.asarray(png), pixels[1, 0])
    captions, strips = images.strips(run)
    assert captions == ["0", "1", "2", "0", "1", "2"]
    strip = np.asarray(Image.open(io.BytesIO(strips[0][1])))
    assert strip.shape == (48, 6 * 48 + 5 * 4, 4)
    assert np.array_equal(strip[::12, :48:12, 0], pixels[1, 0])


def test_heads_are_counted_by_label_and_marked_by_fate(digits: Path) -> None:
    heads = load_run(digits).heads
    counts = charts.head_counts(heads)
    assert sum(kept + cut for _, kept, cut in counts) == 48
    figure = charts.diagnostics(heads)
    assert figure is not None
    shown = [head for head in heads if head.fluctuation_ratio is not None]
    in_key = 1  # the legend has one mark of each
    assert figure.svg.count('class="head cut"') == sum(not head.kept for head in shown) + in_key
    assert charts.diagnostics([head for head in heads if head.fluctuation_ratio is None]) is None


def test_markdown_is_escaped_and_fenced() -> None:
    assert escape_markdown("a_b|<i>\nc") == "a\\_b\\|\\<i\\> c"
    assert fence("x ``` y") == "````"

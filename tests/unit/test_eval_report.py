"""The report: what it shows, what it says in words, what it refuses, and that it is one whole file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from eval.report import RunData, fmt, load_run, render, sections, svg
from eval.report.compare import settings
from eval.report.front import Point, on_front
from eval.report.sections import (
    candidates,
    cuts,
    denoising,
    heads,
    measured,
    power,
    recovery,
    results,
    samples,
    sinks,
    smaller_forms,
    targets,
)
from eval.report.sites import Site, read_sites
from eval.report.summary import facts as summary_facts
from eval.report.summary import headline, summary, verdict
from eval.report.warnings import warnings
from tests.fixtures import report_runs
from tests.fixtures.report_runs import build

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
        assert tag not in ("link", "iframe", "object")
        assert tag != "script" or not given  # neither a source nor a type
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace(fmt.THIN, " ")


def read(out: Path) -> Page:
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.digits_run(tmp_path_factory.mktemp("runs") / "quickstart")


def edited(path: Path, change: dict[str, Any]) -> Path:
    """Write a bare run whose data.json has the entries of `change`."""
    return report_runs.write(path, {"name": "x", "title": "x", "subjects": ["dense", "pruned"], **change})


def test_one_run_shows_every_section(digits: Path, tmp_path: Path) -> None:
    out = build([digits], tmp_path / "report.html")
    page = read(out)
    assert re.findall(r"<h2>(.*?)</h2>", out.read_text(encoding="utf-8")) == [
        "Results",
        "Samples from the same noise",
        "Where the cuts fell",
        "Recovery",
        "Denoising error by timestep",
        "What this run could tell apart",
        "Attention sinks",
        "Attention heads",
        "How it was measured",
    ]
    for said in (
        "49.8 %",
        "least squares",
        "1.22×",
        "transformer_blocks.5.attn1",
        "Small N",
        "it is not FID",
        "<trained> on scikit-learn",
    ):
        assert said in page.text


def test_a_page_is_drawn_from_values_without_a_run_directory(tmp_path: Path) -> None:
    data = {"name": "x", "title": "From values", "subjects": ["dense", "pruned"]}
    text = render([RunData({**data, "metrics": {"dense": {"macs": 1000}}}, tmp_path)])
    assert "<h1>From values</h1>" in text
    assert not list(tmp_path.iterdir())


def test_a_new_picture_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weather.py").write_text(
        "from eval.report.html import Section, template\n"
        "PLACE, WITHIN = 11, 'results'\n"
        "def section(run):\n"
        "    return Section(template('<p>It was {{ sky }}.</p>')(sky=run.data['sky'])) if 'sky' in run.data else None\n"
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    data = {"name": "x", "title": "x", "subjects": ["dense", "pruned"], "metrics": {"dense": {"macs": 1}}}
    assert "It was" not in render([RunData(data, tmp_path)])
    page = Page(render([RunData({**data, "sky": "<blue>"}, tmp_path)]))
    assert (
        page.text.index("MACs of one call")
        < page.text.index("It was <blue>.")
        < page.text.index("How it was")
    )


def test_page_loads_nothing_from_elsewhere(digits: Path, tmp_path: Path) -> None:
    out = build([digits], tmp_path / "report.html")
    page = read(out)
    assert len(page.sources) == 60  # 3 subjects x 20 samples
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    text = out.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|url\(|@import|//cdn", text)
    assert "default-src 'none'" in text


def test_the_one_script_is_the_one_that_may_run(digits: Path, tmp_path: Path) -> None:
    text = build([digits], tmp_path / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    )
    assert (
        '<div class="slider" hidden' in text
    )  # without scripts: the pictures side by side, and no dead handle
    assert re.findall(r'<option value="(.*?)">(.*?)</option>', text) == [
        ("0 1", "dense | pruned"),
        ("0 2", "dense | recovered"),
        ("1 2", "pruned | recovered"),
    ]
    of = re.findall(r'data-of="(\d)".*?\n.*?\n\s*alt="(\w+), sample (\d+), ', text)
    assert of == [
        (str(place), name, str(sample))
        for place, name in enumerate(("dense", "pruned", "recovered"))
        for sample in range(1, 11)
    ]
    several = build([digits, digits], tmp_path / "two.html").read_text(encoding="utf-8")
    assert several.count("<script>") == 1
    bare = build([report_runs.bare_run(tmp_path / "bare")], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in bare
    assert "script-src" not in bare


def test_what_was_not_measured_has_no_empty_sections(tmp_path: Path) -> None:
    page = read(build([report_runs.bare_run(tmp_path / "bare")], tmp_path / "r.html"))
    assert "The pruned model keeps 49.7 % of the MACs (asked: 50 %)." in page.text
    for title in ("Results", "Samples", "Recovery", "Attention", "Where the cuts"):
        assert title not in page.text


@pytest.mark.parametrize(
    ("created", "shown"), [("2026-05-04T10:31", "2026-05-04 10:31"), ("4 May 10:31 UTC", "4 May 10:31 UTC")]
)
def test_the_line_under_the_title_dates_the_run(tmp_path: Path, created: str, shown: str) -> None:
    run = edited(tmp_path / "x", {"created": created, "model": "m", "title": "T"})
    page = read(build([run], tmp_path / "r.html"))
    assert f"m · run x · {shown}" in page.text


def test_large_model_is_drawn_by_depth_with_removed_blocks(tmp_path: Path) -> None:
    out = build([report_runs.sd_run(tmp_path / "sd")], tmp_path / "r.html")
    page = read(out)
    assert "All 70 groups as a list" in page.text
    assert "removed with its block" in page.text
    assert "down 0" in page.text
    assert 'class="hatch"' in out.read_text(encoding="utf-8")
    assert "Target missed: 68 % of the MACs were asked, 70.1 % are left" in page.text
    assert "No recovery: the pruned figures" in page.text
    assert "Recovery Training" not in page.text
    assert "a harbour at dawn" in page.text
    assert "worse by more than chance" in page.text
    assert "10 sites" not in page.text
    assert page.text.count("sink mass, one row per head") == sinks.MAX_SITES
    assert "Not drawn (sink mass at most" in page.text
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    assert out.stat().st_size < 1_000_000


def test_no_sinks_is_said_and_maps_are_folded_away(tmp_path: Path) -> None:
    run = report_runs.digits_run(tmp_path / "n", strength=0.0)
    out = build([run], tmp_path / "r.html")
    page = read(out)
    assert "No attention sinks. At none of the 6 attention sites" in page.text
    assert "a sink needs 8×" in page.text
    assert "No head has a sink mass of 5 %" in page.text
    html = out.read_text(encoding="utf-8")
    assert html.index("Maps of the strongest site") < html.index("sink mass, one row per head")
    assert html.count("sink mass, one row per head") == 1


@pytest.mark.parametrize(
    ("detection", "said"),
    [
        ({"mode": "ratio", "rho": None}, "8×"),  # the root of 64 keys
        ({"mode": "ratio", "rho": 5.0}, "5×"),
        ({"mode": "paper", "rho": None}, ""),
        ({"mode": "hard", "rho": 5.0}, ""),
        (None, ""),  # a run of before it was written down
    ],
)
def test_the_mark_of_a_sink_is_the_one_that_the_run_used(tmp_path: Path, detection: Any, said: str) -> None:
    run = report_runs.digits_run(tmp_path / "n", strength=0.0, sink_detection=detection)
    out = build([run], tmp_path / "r.html")
    page, html = read(out), out.read_text(encoding="utf-8")
    assert "No attention sinks. At none of the 6 attention sites" in page.text
    assert (
        page.text.count(" the uniform share; a sink needs ")
        == page.text.count("The mark is where")
        == bool(said)
    )
    assert html.count('<u style="left:') == page.text.count("uniform, sink from ") == (6 if said else 0)
    if said:
        assert f"a sink needs {said}. Sink-aware" in page.text
        assert page.text.count(f"uniform, sink from {said}") == 6
        (left,) = set(re.findall(r'<u style="left:([\d.]+)%', html))
        widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%"></i>\s*<u', html)]
        peaks = [site.peak_relative for site in read_sites(load_run(run))]
        at = [width / float(left) * float(said[:-1]) for width in widths]
        assert at == pytest.approx(peaks, rel=0.01)


def test_several_runs_share_an_axis_only_if_measured_alike(tmp_path: Path) -> None:
    runs = [
        report_runs.digits_run(tmp_path / f"d{k}", name=f"d{k}", macs=m) for k, m in enumerate((0.7, 0.5))
    ]
    other = report_runs.digits_run(tmp_path / "d2", name="d2", macs=0.4)
    data = json.loads((other / "report" / "data.json").read_text())
    for values in data["metrics"].values():
        values["frechet_num_generated"] = 500
    (other / "report" / "data.json").write_text(json.dumps(data))
    like_other = report_runs.write(tmp_path / "d3", {**data, "name": "d3", "samples": None, "sinks": None})
    out = build([*runs, other, report_runs.bare_run(tmp_path / "bare"), like_other], tmp_path / "all.html")
    page = read(out)
    for said in (
        "5 runs compared",
        "measured in 2 ways",
        "each has its own plot",
        "Not plotted, since they have no Fréchet distance of a pruned model: bare.",
    ):
        assert said in page.text
    plots = re.findall(r'<figure class="wide"><svg.*?</svg>', out.read_text(encoding="utf-8"))
    plots = [plot for plot in plots if "Fréchet" in plot and "speed-up of one call (measured)" in plot]
    first, second = (plot for plot in plots if "(lower is better)" in plot)
    assert ">d0<" in first
    assert ">d1<" in first
    assert ">d2<" not in first
    assert ">d2<" in second
    assert {f"#run{k}" for k in (1, 2, 3, 4, 5)} <= set(page.links) <= {f"#{name}" for name in page.ids}


def test_a_run_that_compares_with_no_other_gets_no_plot(tmp_path: Path) -> None:
    runs = [report_runs.digits_run(tmp_path / "d0", name="d0"), report_runs.bare_run(tmp_path / "bare")]
    page = read(build(runs, tmp_path / "all.html"))
    assert "2 runs compared" in page.text
    assert "Speed and quality" not in page.text
    assert "Not plotted, since no other run was measured alike: d0." in page.text


def test_threads_of_run_and_of_latency_are_told_apart(tmp_path: Path) -> None:
    run = load_run(report_runs.digits_run(tmp_path, device="cpu (x86_64, 2 cores, 2 threads)"))
    for values in run.data["metrics"].values():
        values["call"] |= {"num_threads": 1, "runs": 3}
    text = Page(render([run])).text
    assert "Device cpu (x86_64, 2 cores, 2 threads); latency on 1 thread" in text
    assert "one process (3 rounds, 1 thread, float32, AMD EPYC 7B13)." in text


def test_intervals_that_cover_less_than_95_percent_are_explained(tmp_path: Path) -> None:
    run = load_run(report_runs.digits_run(tmp_path))
    said = "Few rounds were timed for the speed-up of sampling."
    assert said not in " ".join(measured.notes(run))
    found = run.data["metrics"][run.final]
    found |= {"speedup_sampling_ci95": [1.5, 1.7], "speedup_sampling_coverage": 0.9375}
    assert said in " ".join(measured.notes(run))
    assert run.speedup_interval(run.final, "sampling").replace(fmt.THIN, " ") == "94 % 1.50× to 1.70×"
    found["speedup_sampling_coverage"] = 0.75
    assert said in " ".join(measured.notes(run))
    assert run.speedup_interval(run.final, "sampling") == ""


@pytest.mark.parametrize("held_out", [True, False, None])
def test_images_are_called_held_out_only_if_they_are(tmp_path: Path, held_out: bool | None) -> None:
    page = read(
        build([report_runs.digits_run(tmp_path, data="digits", held_out=held_out)], tmp_path / "r.html")
    )
    assert page.text.count("held-out") == (3 if held_out else 0)
    assert f"Error on {'held-out ' if held_out else ''}images at each noise level" in page.text


def test_training_that_made_it_worse_is_warned_of(tmp_path: Path) -> None:
    run = load_run(report_runs.digits_run(tmp_path))
    assert "Training back made it worse" not in " ".join(warnings(run))
    run.data["metrics"]["recovered"]["excess_error"] = 2 * run.metric("pruned", "excess_error")
    assert "Training back made it worse: the excess error rose from" in " ".join(warnings(run))


@pytest.mark.parametrize(("steps", "strong"), [(79, False), (80, True)])
def test_a_strong_line_is_promised_only_where_there_is_one(tmp_path: Path, steps: int, strong: bool) -> None:
    curve = {"steps": list(range(steps)), "loss": [1.0 / (k + 1) for k in range(steps)]}
    page = read(build([edited(tmp_path, {"recovery": curve})], tmp_path / "one.html"))
    assert ("Strong: mean over windows." in page.text) == strong
    assert ("line s2" in recovery.curve(curve["steps"], curve["loss"])) == strong


def test_held_out_losses_are_drawn_and_the_one_taken_is_named(tmp_path: Path) -> None:
    curve = {"steps": [1, 2, 3, 4], "loss": [0.4, 0.3, 0.2, 0.1]}
    held_out = {"steps": [0, 2, 4], "loss": [0.5, 0.25, 0.3]}
    page = read(
        build([edited(tmp_path / "a", {"recovery": {**curve, "held_out": held_out}})], tmp_path / "a.html")
    )
    assert "Dots: the same loss on samples that are not trained on, with the averaged weights." in page.text
    taken = {**curve, "held_out": held_out, "best_step": 2}
    page = read(build([edited(tmp_path / "b", {"recovery": taken})], tmp_path / "b.html"))
    assert "the weights after step 2, where it is lowest, are the result." in page.text
    drawn = recovery.curve(curve["steps"], curve["loss"], [(0, 0.5), (2, 0.25), (4, 0.3)], best=2)
    assert drawn.count('class="dot s3"') == 5  # three evaluations, two marks of the legend
    assert "after step 2: 0.250 held out" in drawn
    assert "Held out from 0.500 to 0.300" in drawn
    assert "Dots" not in read(build([edited(tmp_path / "c", {"recovery": curve})], tmp_path / "c.html")).text


def test_averages_of_several_lengths_are_listed_with_the_one_taken(tmp_path: Path) -> None:
    curve = {"steps": [1, 2], "loss": [0.4, 0.3], "held_out": {"steps": [0, 2], "loss": [0.5, 0.25]}}
    page = build(
        [edited(tmp_path, {"recovery": {**curve, "lengths": {"ema_decay": 0.25, "0.1": 0.24}}})],
        tmp_path / "a.html",
    )
    assert [*TAKEN.findall(page.read_text())] == [("ema_decay", "0.250", "no"), ("σ = 0.1", "0.240", "yes")]


TAKEN = re.compile(r'<th scope="row" class="path">(ema_decay|σ[^<]*)</th><td>([^<]*)</td><td>(yes|no)</td>')


@pytest.mark.parametrize("same", [True, False])
def test_validation_images_stand_above_the_dense_models(tmp_path: Path, same: bool) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (9, 4, 1, 8, 8), np.uint8)  # (E, K, C, H, W)
    dense = rng.integers(0, 255, (4, 1, 8, 8 if same else 4), np.uint8)
    files = {
        "validation.safetensors": {"steps": np.arange(9) * 100, "pictures": pictures},
        "samples.safetensors": {"dense": dense, "pruned": dense},
    }
    entries = {"recovery": {"steps": [1], "loss": [0.5]}, "validation": "validation.safetensors"}
    entries |= {"name": "x", "title": "x", "subjects": ["dense", "pruned"], "samples": "samples.safetensors"}
    page = read(build([report_runs.write(tmp_path, entries, files)], tmp_path / "r.html"))
    assert "What the averaged weights made from the same noise, by steps taken" in page.text
    assert ("at the bottom the dense model" in page.text) == same
    for words in ("as it was cut", "step 200", "step 800"):
        assert words in page.text
    assert "step 100" not in page.text  # six of nine


def test_latencies_of_different_machines_fall_back_to_macs(tmp_path: Path) -> None:
    runs = [report_runs.digits_run(tmp_path / k, name=k, device=k) for k in ("here", "there")]
    page = read(build(runs, tmp_path / "r.html"))
    assert "The speed-up of one call (measured): no two runs were measured alike." in page.text
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ">MACs, dense / slim<" in html
    assert ">speed-up of one call (measured)<" not in html


def test_any_cost_is_drawn_against_any_quality(tmp_path: Path) -> None:
    runs = [
        report_runs.digits_run(tmp_path / name, name=name, macs=macs)
        for name, macs in (("a", 0.7), ("b", 0.5))
    ]
    html = build(runs, tmp_path / "r.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<div class="view cost-(\w+) quality-(\w+)">', html))
    assert {("call", "frechet"), ("macs", "frechet"), ("params", "excess_error")} <= shown
    assert re.findall(r'id="(\w+-\w+)" checked', html) == ["cost-call", "quality-frechet"]
    for cost, quality in shown:
        assert f'id="cost-{cost}"' in html
        assert f'id="quality-{quality}"' in html


def test_settings_that_differ_are_columns(tmp_path: Path) -> None:
    texts = {
        name: f"name: {name}\nprune:\n  target: {{macs: {macs}}}\n" for name, macs in (("a", 0.7), ("b", 0.5))
    }
    runs = [
        report_runs.digits_run(tmp_path / name, name=name, recipe_yaml=text) for name, text in texts.items()
    ]
    found = settings([load_run(run) for run in runs])
    assert {key: [cell.text for cell in cells] for key, cells in found.items()} == {
        "prune.target.macs": ["0.7", "0.5"]
    }


def test_the_front_is_what_no_other_run_beats() -> None:
    def point(x: float, y: float) -> Point:
        return Point(Mock(), x, y, [y, y], None)

    points = [
        point(1.0, 1.0),
        point(2.0, 2.0),
        point(1.5, 2.5),
        point(2.0, 3.0),
        point(3.0, 2.0),
        point(0.5, 1.0),
    ]
    assert [(found.x, found.y) for found in on_front(points)] == [(1.0, 1.0), (3.0, 2.0)]
    twins = [point(1.0, 1.0), point(1.0, 1.0)]
    assert len(on_front(twins)) == 2


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [report_runs.digits_run(tmp_path / k, name="same") for k in ("a", "b")]
    page = read(build(runs, tmp_path / "r.html"))
    assert "same (a)" in page.text
    assert "same (b)" in page.text


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'|`*"
    subjects = {
        "dense": report_runs.subject(1.0, 10.0, 1.0, dense=True),
        evil: report_runs.subject(0.5, 12.0, 1.0),
    }
    cut = {"group": evil, "module": evil, "kind": evil, "kept": 1, "total": 2, "removed": False}
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
    page = read(out)
    assert evil in page.text
    assert "<script" not in out.read_text(encoding="utf-8")
    assert page.text.count(f"{evil} 1 of 2") == 60


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone/report/data\.json: cannot be read as JSON \(.*No such file"):
        load_run(tmp_path / "gone")
    run = report_runs.bare_run(tmp_path / "bare")
    for content in (b"{", b"\xff\xfe"):
        (run / "report" / "data.json").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"data\.json: cannot be read as JSON .*; run the report stage of"
        ):
            load_run(run)
    for name in ("data.json", "gone.safetensors", "../../secret.safetensors"):
        edited(run, {"samples": name})
        file = re.escape(str(run / "report" / Path(name).name))
        with pytest.raises(
            ValueError, match=f"{file}: not a readable tensor file .* run the report stage again"
        ):
            render([load_run(run)])


@pytest.mark.parametrize(
    ("content", "found"), [("[]", "None"), ('{"subjects": ["dense"]}', "None"), ('{"format": 7}', "7")]
)
def test_data_of_another_version_is_told_apart(tmp_path: Path, content: str, found: str) -> None:
    run = report_runs.bare_run(tmp_path / "old")
    (run / "report" / "data.json").write_text(content)
    with pytest.raises(
        ValueError, match=rf"data\.json: format is {found}, this version reads 1; .* stage of that run again"
    ):
        build([run], tmp_path / "r.html")


def test_an_unknown_metric_gets_a_row(tmp_path: Path) -> None:
    run = load_run(
        edited(tmp_path, {"metrics": {"dense": {"edge_sharpness": 0.31, "frechet_width": 64}, "pruned": {}}})
    )
    assert [(title, [row[0] for row in rows]) for title, rows in results.results(run).items()] == [
        ("Other", ["edge sharpness"])
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
    assert said in " ".join(verdict(load_run(edited(tmp_path, {"metrics": metrics}))))


def test_without_a_distance_the_verdict_is_how_alike_the_samples_are(tmp_path: Path) -> None:
    metrics = {"dense": {"ssim": 1.0}, "pruned": {"ssim": 0.8, "ssim_ci95": [0.78, 0.82]}}
    run = load_run(edited(tmp_path, {"metrics": metrics}))
    said = "From the same noise its samples have an SSIM of 0.800 (95 % interval 0.780 to 0.820) to dense."
    assert [sentence.replace(fmt.THIN, " ") for sentence in verdict(run)] == [said]
    assert headline(run) == "SSIM 0.800 to dense"


def test_a_distance_of_zero_has_no_ratio_to_judge_by(tmp_path: Path) -> None:
    metrics = {name: {"frechet": 0.0, "frechet_ci95": [0.0, 0.0]} for name in ("dense", "pruned")}
    said = " ".join(verdict(load_run(edited(tmp_path, {"metrics": metrics}))))
    assert said.replace(fmt.THIN, " ").endswith("against 0 (95 % interval 0 to 0) for dense.")


def test_no_verdict_from_fewer_samples_than_features(tmp_path: Path) -> None:
    pruned = {"frechet": 9.0, "frechet_ci95": [8.0, 9.5], "frechet_ratio_ci95": [0.8, 0.9]}
    dense = {"frechet": 10.0, "frechet_ci95": [9.0, 11.0]}
    metrics = {"dense": dense, "pruned": {**pruned, "frechet_warning": "n ≤ d: the covariance is singular"}}
    said = " ".join(verdict(load_run(edited(tmp_path, {"metrics": metrics}))))
    assert "too few samples for these features to tell the two apart" in said
    assert "better" not in said


def test_a_speedup_and_its_true_coverage(tmp_path: Path) -> None:
    call = report_runs.latency(0.1, iqr_s=0.03, batch_size=8)
    pruned = {
        "call": {**call, "median_s": 0.08},
        "speedup_call": 1.25,
        "speedup_call_ci95": [1.2, 1.3],
        "speedup_call_coverage": 0.9375,
    }
    metrics = {"dense": {"call": call, "macs": 100, "speedup_call": 1.0}, "pruned": {**pruned, "macs": 50}}
    run = load_run(edited(tmp_path, {"metrics": metrics}))
    assert (run.speedup("dense"), run.speedup("pruned")) == (None, 1.25)
    assert run.speedup_interval("pruned").replace(fmt.THIN, " ") == "94 % 1.20× to 1.30×"
    said = " ".join(warnings(run)).replace(fmt.THIN, " ")
    assert "1.25× measured, 2.00× by MACs" in said  # 1.25 < 0.9 * 2
    assert "Noisy timing" in said  # 0.03 / 0.1 > 0.1
    assert "dense, one call: 30 %" in said


def test_a_target_that_the_plan_calls_missed_is_warned_of(tmp_path: Path) -> None:
    run = load_run(edited(tmp_path, {"asked": {"ratio": 0.3}, "got": {"ratio": 0.2, "hit": False}}))
    assert any(text.startswith("Target missed; this is the nearest plan") for text in warnings(run))


def target(asked: str, cost: str, **values: Any) -> dict[str, Any]:
    """A target of a plan as the stage writes it."""
    said = {
        "predicted": "0.598 of dense",
        "measured": "0.621 of dense",
        "interval": "0.61 to 0.63",
        "gap": "+3.8 %",
    }
    found = {"asked": asked, "cost": cost, "goal": 0.6, "predicted": 0.598, "measured": 0.621, "binds": True}
    return {**found, "said": said, **values}


def candidate(name: str, **changed: Any) -> dict[str, Any]:
    """Return what a run says of a candidate."""
    criterion, _, allocation = name.partition(", ")
    row = {"name": name, "criterion": criterion, "allocation": allocation, "depth": "by scores", "why": None}
    row |= {
        "blocks": 0,
        "depth_share": 0.0,
        "macs_ratio": 0.5,
        "params_ratio": 0.7,
        "hit": True,
        "targets": {},
    }
    row |= {"missed": 0.0, "predicted": None, "excess_error": 0.02, "excess_error_ci95": [0.019, 0.021]}
    return row | {
        "same_as": None,
        "meets": True,
        "ratio": 1.0,
        "ratio_ci95": None,
        "chosen": False,
        **changed,
    }


def test_candidates_are_shown_with_what_was_predicted_and_measured(tmp_path: Path) -> None:
    rows = [
        candidate("probe_obs, as in the recipe", predicted=0.015),
        candidate(
            "obs, uniform",
            chosen=True,
            excess_error=0.01,
            ratio=0.5,
            ratio_ci95=[0.4, 0.6],
            blocks=2,
            depth_share=0.25,
            depth="25 % by blocks",
            targets={"0.6 of the dense latency": "0.61 of dense"},
        ),
        candidate("probe, global", same_as=0),
        candidate("taylor, global", meets=False, missed=0.03, excess_error=0.001),
        {**candidate("magnitude, uniform"), "why": "the least reachable is more"},
    ]
    found = {"rows": rows, "chosen": 1, "samples": 64, "held_out": True, "compensation": "least_squares"}
    run = load_run(edited(tmp_path, {"candidates": found}))
    shown = candidates.section(run)
    assert shown is not None
    assert shown.heading == "Candidates"
    body = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(shown.body))).replace(fmt.THIN, " ")
    body = body.replace(fmt.MISSING, "–").replace("&#39;", "'")
    assert "5 candidates for the same target came to 3 plans" in body
    assert (
        "compensation: least squares; no training) and measured on 64 samples that calibration did not"
        in body
    )
    assert "Its error is 0.500 (0.400 to 0.600) of that of the recipe's own plan by more than chance." in body
    assert "probe_obs candidate 1, the recipe's own as in the recipe none 50 % 70 % – 0.0150 0.0200" in body
    assert "25 % of what goes (2) asked: 25 % by blocks 50 % 70 % 0.61 of dense – 0.0100" in body
    assert "probe candidate 3; the plan of candidate 1" in body
    assert "taylor candidate 4; misses the target by 3 %, or costs more than the first" in body
    assert "Not possible: magnitude, uniform (the least reachable is more)." in body
    assert "<b>obs</b>" in str(shown.body)
    rows[1]["ratio_ci95"] = [0.8, 1.2]
    again = {**found, "held_out": False}
    unclear = candidates.section(load_run(edited(tmp_path, {"candidates": again})))
    assert unclear is not None
    assert "these samples do not tell the two apart" in str(unclear.body)
    assert "that calibration saw, too, at other timesteps" in str(unclear.body)
    for nothing in (None, {}):
        assert candidates.section(load_run(edited(tmp_path, {"candidates": nothing}))) is None


def test_targets_are_shown_as_predicted_measured_and_evaluated(tmp_path: Path) -> None:
    rows = {
        "latency": target("0.6 of the dense latency", "latency"),
        "memory_gb": target(
            "2 GB in a call", "memory", goal=2e9, measured=1.9e9, binds=False, method="live tensors"
        ),
        "macs": target("0.9 of the dense MACs", "macs", measured=0.5, said={"predicted": "0.5 of dense"}),
    }
    first = {"latency": target("0.6 of the dense latency", "latency", said={"gap": "+9 %"})}
    metrics = {
        "dense": {"call": report_runs.latency(0.1), "macs": 100, "peak_memory_bytes": 3e9},
        "pruned": {
            "call": report_runs.latency(0.0615),
            "speedup_call": 1.6,
            "macs": 50,
            "peak_memory_bytes": 1.91e9,
        },
    }
    asked = {"latency": 0.6, "memory_gb": 2.0, "latency_ms": 40.0}
    run = load_run(
        edited(tmp_path, {"metrics": metrics, "asked": asked, "targets": {"targets": rows, "first": first}})
    )
    shown = targets.section(run)
    assert shown is not None
    body = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(shown.body)))
    assert "0.6 of the dense latency 0.598 of dense 0.621 of dense 0.61 to 0.63 +3.8 % 0.625 of dense" in body
    assert "2 GB in a call (does not bind)" in body
    assert "1.91 GB" in body
    assert "0.9 of the dense MACs 0.5 of dense – – 0.500 of dense" in body.replace(fmt.MISSING, "–")
    assert "prediction was wrong (0.6 of the dense latency by +9 %)" in body
    assert "Memory: of a call of one sample; live tensors." in body
    missed = [text for text in warnings(run) if text.startswith("Target missed")]
    assert missed == [
        "Target missed: 0.6 of the dense latency was asked, 0.621 of dense was measured of the plan."
    ]
    told = dict(summary_facts(run.entry("asked")))
    assert told["memory"] == "2 GB"
    assert told["latency"] == "40 ms"
    assert targets.section(load_run(edited(tmp_path, {}))) is None


def test_further_rows_of_latency_stand_among_the_speeds(tmp_path: Path) -> None:
    row = {**report_runs.latency(0.02), "mode": "compiled", "batch_size": 1, "skipped": None}
    dense = {**row, "speedup_call": 1.0, "speedup_call_ci95": [1.0, 1.0], "speedup_call_coverage": 0.97}
    slim = {**row, "median_s": 0.01, "speedup_call": 2.0, "speedup_call_ci95": [1.9, 2.1]}
    graphs = {"mode": "cuda_graphs", "batch_size": 1, "skipped": "no GPU is here"}
    metrics = {
        "dense": {"latency_rows": [dense, graphs]},
        "pruned": {"latency_rows": [{**slim, "speedup_call_coverage": 0.97}, graphs]},
    }
    found = {
        label: cells
        for label, _, cells in results.results(load_run(edited(tmp_path, {"metrics": metrics})))["Speed"]
    }
    compiled, skipped = found["One call, compiled, batch 1"], found["One call, CUDA graphs, batch 1"]
    assert [cell.text for cell in compiled] == [fmt.seconds(0.02), fmt.seconds(0.01)]
    assert compiled[1].ratio.startswith("2.00×")
    assert "1.90× to 2.10×" in compiled[1].detail[1].replace(fmt.THIN, " ")
    assert [cell.text for cell in skipped] == ["not measured"] * 2
    assert skipped[0].detail == ("no GPU is here",)


@pytest.mark.parametrize(("tolerance", "missed"), [(0.01, True), (0.05, False), (None, False)])
def test_a_target_counts_as_missed_by_the_tolerance_of_the_run(
    tmp_path: Path, tolerance: float | None, missed: bool
) -> None:
    asked = {"macs": 0.5, "tolerance": tolerance}
    run = load_run(edited(tmp_path, {"asked": asked, "got": {"macs_ratio": 0.52, "hit": True}}))
    said = [text.replace(fmt.THIN, " ") for text in warnings(run)]
    assert any("50 % of the MACs were asked, 52 % are left" in text for text in said) == missed


def errors_by_bucket(path: Path, errors: list[list[float | None]]) -> str:
    """The section on denoising errors of a run with these, the first the reference's."""
    names = [f"model{k}" for k in range(len(errors))]
    metrics = {name: {"denoising_error": row} for name, row in zip(names, errors, strict=True)}
    found = denoising.section(load_run(edited(path, {"subjects": names, "metrics": metrics})))
    assert found is not None
    return str(found.body)


def test_a_bucket_without_an_error_is_a_gap(tmp_path: Path) -> None:
    body = errors_by_bucket(tmp_path, [[0.4, 0.3, None, 0.2, 0.0], [0.8, 0.3, None, 0.3, 0.1]])
    absolute, ratio = (ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", body, re.DOTALL))
    tips = [tip.text for tip in ratio.findall(".//{*}title")]
    assert tips == [f"model1, bucket {k}: {text}" for k, text in ((0, "2.00"), (1, "1.00"), (3, "1.50"))]
    assert len(absolute.findall(".//{*}title")) == 8
    lines = [
        line.attrib["d"].count("L") for line in absolute.findall("{*}path") if "line" in line.attrib["class"]
    ]
    assert lines == [1, 1, 1, 1]  # buckets 0 to 1 and 3 to 4 of each


def test_the_excess_error_by_timestep_is_drawn_with_its_intervals(tmp_path: Path) -> None:
    slim = {
        "excess_error_by_bucket": [0.02, None, 0.01],
        "excess_error_by_bucket_ci95": [[0.015, 0.025], None, [-0.001, 0.021]],
        "denoising_images": 64,
    }
    metrics = {"dense": {"excess_error_by_bucket": [0.0, None, 0.0]}, "pruned": slim}
    found = denoising.section(load_run(edited(tmp_path / "x", {"metrics": metrics})))
    assert found is not None
    assert found.heading == "Excess error by timestep"
    assert "over 64 images" in found.body
    (drawn,) = (
        ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", str(found.body), re.DOTALL)
    )
    tips = [tip.text for tip in drawn.findall(".//{*}title")]
    assert tips == [
        "pruned, bucket 0: 0.0200 (0.0150 to 0.0250)",
        "pruned, bucket 2: 0.0100 (-0.00100 to 0.0210)",
    ]
    strokes = [line for line in drawn.findall("{*}line") if "whisker" in line.attrib["class"]]
    assert len(strokes) == 2
    assert all(50 <= float(line.attrib[end]) <= 232 for line in strokes for end in ("y1", "y2"))


def test_more_models_than_marks_are_drawn(tmp_path: Path) -> None:
    body = errors_by_bucket(tmp_path, [[0.4, 0.3 + 0.01 * k] for k in range(8)])
    assert "model7, bucket 1" in body
    assert {"s0", "s5"} <= set(re.findall(r"dot (s\d)", body)) <= {f"s{k}" for k in range(6)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "0.0123"),
        (12.34, "12.3"),
        (0.99996, "1.00"),
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
    assert plain == {"999 B", "4.84 MB", "1.00 MB", "1.72 GB"}
    times = [fmt.seconds(v).replace(fmt.THIN, " ") for v in (2e-5, 0.0123, 4.567, 125, 3720)]
    assert times == ["20.0 µs", "12.3 ms", "4.57 s", "2 min 05 s", "1 h 02 min"]


def test_ticks_and_scales() -> None:
    assert svg.linear_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert svg.log_ticks(0.01, 10) == [0.01, 0.1, 1, 10]
    assert svg.Scale(1, 100, 0, 200, log=True)(10) == 100
    assert svg.Scale(0, 4, 100, 0)(1) == 75


def test_a_column_of_the_depth_chart_is_as_high_as_its_share() -> None:
    entry = {"kind": "attention_heads", "kept": 3, "total": 4}
    entries = [{**entry, "module": f"down_blocks.{k}.attn", "removed": k == 1} for k in range(3)]
    root = ElementTree.fromstring(cuts.depth(cuts.read_cuts(entries)))
    boxes = root.findall("{*}rect")
    filled = [float(box.attrib["height"]) for box in boxes if box.attrib["class"].startswith("fill")]
    assert filled == [48.0, 48.0]  # 3/4 of the band's 64
    assert sum(box.attrib["class"] == "gone" for box in boxes) == 1
    names = [text.text for text in root.findall("{*}text")]
    assert names[-3:] == ["down 0", "down 1", "down 2"]


def test_kinds_that_are_new_to_the_report_have_colours_of_their_own() -> None:
    kinds = ["ffn_channels", "qk_channels", "modulation"]
    entry = {"module": "m", "kept": 1, "total": 2, "removed": False}
    found = cuts.read_cuts([{**entry, "kind": kind} for kind in kinds])
    assert [cut["cls"] for cut in found] == ["k1", "k5", "k4"]


def test_a_loss_curve_stands_a_single_loss() -> None:
    assert "from 0.500 to 0.500" in recovery.curve([1], [0.5])


def uniform(keys: int, grid: list[int] | None = None) -> Site:
    return Site("m", grid, np.zeros((2, 3)), np.full((2, keys), 1 / keys), np.zeros((2, keys)))


def test_uniform_attention_is_drawn_empty_and_called_sinkless() -> None:
    found = uniform(64, [8, 8])
    assert not found.has_sinks
    drawn = sinks.site_maps(found)
    classes = re.findall(r'class="(h\d|sink)"', drawn["positions"])
    assert classes == ["h0", "h0"]  # two buckets, nothing in them
    assert "No sinks: at most 1.00× the uniform share" in drawn["words"]


def test_masked_keys_have_no_part_in_the_uniform_share() -> None:
    shown = np.concatenate([np.ones((2, 9)), np.zeros((2, 7))], axis=1)  # 9 of 16 keys are visible
    found = {"sink_mass": np.zeros((2, 3)), "key_mass": shown / 9, "sink_indicator": np.zeros((2, 16))}
    tensors = {f"m/{name}": value for name, value in (found | {"relative_mass": shown}).items()}
    run: Any = SimpleNamespace(
        data={"sinks": "f", "sink_sites": [{"module": "m", "keys": 16, "visible": 9.0, "grid": None}]},
        tensors=lambda name: tensors,
        entry=lambda name: {"mode": "ratio", "rho": None},
    )
    text = sinks.overview(read_sites(run))
    assert "gets 1.00× the uniform share; a sink needs 3×." in text
    del tensors["m/relative_mass"], run.data["sink_sites"][0]["visible"]  # a run of before
    assert "gets 1.78× the uniform share; a sink needs 4×." in sinks.overview(read_sites(run))


def test_stable_and_moving_sinks_are_told_apart() -> None:
    key_mass = np.full((2, 16), 0.2 / 14)
    key_mass[:, 0] = 0.4
    key_mass[0, 5], key_mass[1, 10] = 0.4, 0.4  # r = 6.4 > sqrt(16)
    indicator = (16 * key_mass > 4).astype(float)
    found = Site("m", [4, 4], np.array([[0.1, 0.9], [0.1, 0.7]]), key_mass, indicator)
    text = sinks.describe(found)
    assert "Strongest head 1: mean sink mass 0.80." in text
    assert "Sink at every timestep: token (0, 0)." in text
    assert "Sink at some timesteps only: tokens (1, 1), (2, 2)." in text
    root = ElementTree.fromstring(sinks.site_maps(found)["positions"])
    outlined = [box for box in root.findall("{*}rect") if box.attrib["class"] == "sink"]
    assert len(outlined) == 4  # two a bucket
    assert float(outlined[0].attrib["width"]) == 21  # a panel of 84 over 4 tokens
    assert "up to 90 % of a head's attention" in sinks.overview([found, uniform(16)]).replace(fmt.THIN, " ")
    assert sinks.strongest([uniform(16), found])[0] is found


def test_large_grids_are_pooled_by_maximum() -> None:
    key_mass = np.full((1, 4096), 0.5 / 4095)
    key_mass[0, 4095] = 0.5
    site = Site("m", [64, 64], np.ones((1, 1)) * 0.5, key_mass, (key_mass > 0.1).astype(float))
    figure = sinks.site_maps(site)["positions"]
    outlined = [b for b in ElementTree.fromstring(figure).findall("{*}rect") if b.attrib["class"] == "sink"]
    assert len(outlined) == 1
    cell = sinks.PANEL / 32
    centre = float(outlined[0].attrib["x"]) + float(outlined[0].attrib["width"]) / 2
    assert centre == pytest.approx(1 + 31.5 * cell, abs=0.01)
    assert "largest of 2 × 2 tokens per cell" in figure


def test_odd_shapes_are_drawn() -> None:
    sink_mass = np.full((3, 40), 0.0)
    sink_mass[0] = 0.5
    drawn = sinks.site_maps(Site("m", None, sink_mass, np.ones((3, 1)), np.ones((3, 1))))
    assert drawn["heads"].count('"h4"') == 40
    wide = Site("m", [2, 9], np.zeros((9, 1)), np.full((9, 18), 1 / 18), np.zeros((9, 18)))
    ElementTree.fromstring(sinks.site_maps(wide)["positions"])
    empty = Site("m", None, np.zeros((1, 2)), np.zeros((1, 4)), np.zeros((1, 4)))
    assert "No sinks" in sinks.site_maps(empty)["words"]
    assert "No attention sinks" in sinks.overview([empty])


def test_small_images_are_kept_pixel_for_pixel_and_classes_come_in_order(tmp_path: Path) -> None:
    pixels = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4)
    tensors = {"dense": pixels, "pruned": 255 - pixels, "labels": np.array([1, 0, 1, 0, 2, 2])}
    data = {"subjects": ["dense", "pruned"], "samples": "s.safetensors"}
    run = load_run(report_runs.write(tmp_path, data, {"s.safetensors": tensors}))
    found = samples.section(run)
    assert found is not None
    assert re.findall(r'class="cap" title="(\d)"', found.body) == ["0", "1", "2", "0", "1", "2"]
    images = re.findall(
        r'<img class="crisp" data-of="\d" src="(\S+)".*?alt="(\w+), sample (\d), (\d)">',
        found.body,
        re.DOTALL,
    )
    assert [image[1:] for image in images[:2]] == [("dense", "1", "0"), ("dense", "2", "1")]
    png = Image.open(io.BytesIO(base64.b64decode(images[0][0].partition(",")[2])))
    assert np.array_equal(np.asarray(png), pixels[1, 0])


def test_heads_are_counted_by_label_and_marked_by_fate(digits: Path) -> None:
    found = load_run(digits).data["diagnostics"]["heads"]
    counts = heads.head_counts(found)
    assert sum(kept + cut for _, kept, cut in counts) == 48
    in_key = 1  # the legend has one mark of each
    figure = heads.diagnostics(found, high_mass=0.3, low_fluctuation=0.1)
    assert figure.count('class="head cut"') == sum(not head["kept"] for head in found) + in_key


def test_the_zone_of_constant_heads_has_the_bounds_of_the_run(digits: Path, tmp_path: Path) -> None:
    found = load_run(digits).data["diagnostics"]["heads"]

    def zone(high_mass: float, low_fluctuation: float) -> dict[str, str]:
        root = ElementTree.fromstring(heads.diagnostics(found, high_mass, low_fluctuation))
        (box,) = (box for box in root.findall("{*}rect") if box.attrib["class"] == "zone")
        return box.attrib

    wide, narrow = zone(0.2, 0.1), zone(0.3, 0.1)
    assert float(wide["x"]) < float(narrow["x"])
    assert float(zone(0.3, 0.2)["y"]) < float(narrow["y"])
    old = load_run(edited(tmp_path, {"diagnostics": {"heads": found}}))
    shown = heads.section(old)
    assert shown is not None
    assert "<svg" not in shown.body  # a run that does not say them
    assert "No head has a sink mass" not in shown.body
    assert "constant" in shown.body


@pytest.mark.parametrize(("held_out", "where"), [(True, "held out"), (False, "other draws")])
def test_losses_are_called_held_out_only_if_the_images_were(
    tmp_path: Path, held_out: bool, where: str
) -> None:
    layer = {
        "module": "a.linear",
        "params": 100,
        "full": 10,
        "rank": 2,
        "saved": 60,
        "lost": 0.1,
        "lost_fitted": 0.0,
    }
    run = load_run(edited(tmp_path, {"smaller_forms": {"held_out": held_out, "modulation": [layer]}}))
    shown = smaller_forms.section(run)
    assert shown is not None
    assert f"lost, {where}" in shown.body
    assert ("by which ranks, but not directions" in shown.body) is held_out


def test_a_pixel_measure_and_a_semantic_one_stand_side_by_side(digits: Path) -> None:
    run = load_run(digits)
    assert "<dt>pixels | features</dt><dd>21 % | 5.4 %<small>" in summary(run).replace(fmt.THIN, " ")
    text = verdict(run)[-1].replace(fmt.THIN, " ")
    assert "20.6 % (19.9 % to 21.4 %) away in pixels and 5.4 % (5.2 % to 5.7 %) in digits-classifier" in text


def test_what_the_run_could_tell_apart(digits: Path) -> None:
    shown = power.section(load_run(digits))
    assert shown is not None
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", shown.body)
    cells = {name: re.findall("<td>(.*?)</td>", row.replace(fmt.THIN, " ")) for name, row in rows}
    assert cells["Fréchet distance on digits-classifier features"] == [
        "1,000",
        "± 7.1 %",
        "+21.7 %",
        "50,410",
    ]
    assert cells["Excess error"] == ["256", "± 4.3 %", "–", "4,733"]


def test_a_run_that_tells_nothing_apart_says_what_it_could_have(tmp_path: Path) -> None:
    dense = {"frechet": 10.0, "frechet_ci95": [6.0, 14.0]}
    pruned = {"frechet": 11.0, "frechet_ci95": [7.0, 15.0], "frechet_ratio_ci95": [0.9, 1.3]}
    metrics = {"dense": dense, "pruned": pruned | {"frechet_detectable": 0.31}}
    said = verdict(load_run(edited(tmp_path, {"metrics": metrics})))[0].replace(fmt.THIN, " ")
    assert said.endswith("this run does not tell the two apart, and would have told 31 % apart.")


def test_discrepancies_show_their_paired_difference_and_no_ratio_to_what_is_below_zero(
    tmp_path: Path,
) -> None:
    dense = {"kernel": -0.01, "kernel_ci95": [-0.02, 0.0], "frechet_infinity": -1.0}
    pruned = {
        "kernel": 0.03,
        "kernel_ci95": [0.02, 0.04],
        "kernel_difference_ci95": [0.03, 0.05],
        "frechet_infinity": 2.0,
    }
    why = {"frechet_infinity_warning": "too few"}
    run = load_run(edited(tmp_path, {"metrics": {"dense": dense | why, "pruned": pruned}}))
    cells = {name: row for name, _, row in results.results(run)["Quality"]}
    lines = [line.replace(fmt.THIN, " ") for line in cells["Kernel distance"][1].detail]
    assert lines == ["95 % 0.0200 to 0.0400", "difference, 95 % 0.0300 to 0.0500"]
    assert cells["frechet_infinity"][1].ratio == ""
    assert "Fréchet distance at N = ∞: too few." in list(warnings(run))

"""The pictures that explain: drift of the sinks, a head before and after folding, where each criterion cuts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import RunData, fmt, load_run, sections
from eval.report.drift import drift, figure
from eval.report.sections import criteria, folding, layers
from eval.report.sites import Site
from tests.fixtures import report_runs
from tests.fixtures.report_runs import build


def site(sinks: list[list[int]], keys: int = 16, on_grid: bool = True) -> Site:
    """A site whose sinks, by bucket, share the mass 0.8 evenly."""
    indicator = np.zeros((len(sinks), keys))
    mass = np.full((len(sinks), keys), 0.2 / keys)
    for bucket, where in enumerate(sinks):
        indicator[bucket, where] = 1.0
        mass[bucket, where] += 0.8 / max(1, len(where))
    return Site("attn", [4, 4] if on_grid else None, np.full((len(sinks), 2), 0.8), mass, indicator)


def test_the_centroid_moves_and_the_overlap_is_taken_with_the_noisiest_sinks() -> None:
    found = drift(site([[0], [0, 3], [15, 0]]))
    assert found is not None
    assert found.first == 2
    centroids = np.array(list(found.centroids.values()))
    assert centroids == pytest.approx(np.array([(0.5, 0.5), (0.5, 2.0), (2.0, 2.0)]))
    assert found.overlap == pytest.approx({0: 1 / 2, 1: 1 / 3, 2: 1.0})


def test_the_centroid_is_weighted_by_mass() -> None:
    one = site([[0, 12]])
    one.key_mass[0, [0, 12]] = 0.6, 0.2
    found = drift(one)
    assert found is not None
    assert found.centroids[0] == pytest.approx((0.5 + 3 * 0.25, 0.5))


def test_buckets_without_sinks_are_left_out() -> None:
    found = drift(site([[5], [], []]))
    assert found is not None
    assert (found.first, found.overlap, list(found.centroids)) == (0, {0: 1.0}, [0])
    assert drift(site([[], []])) is None
    assert figure(site([[], []])) is None


def test_tokens_that_are_sinks_in_some_images_count_by_how_many() -> None:
    one = site([[], []])
    one.indicator[0, [0, 3]], one.indicator[1, 0] = 0.4, 0.6
    one.key_mass[:] = 1 / 16
    found = drift(one)
    assert found is not None
    assert np.array(list(found.centroids.values())) == pytest.approx(np.array([(0.5, 2.0), (0.5, 0.5)]))
    assert found.overlap == pytest.approx({0: 0.4 / (0.6 + 0.4), 1: 1.0})
    drawn = figure(one)
    assert drawn is not None
    assert "1.5 tokens apart at most" in drawn


def test_text_keys_have_no_path() -> None:
    drawn = figure(site([[0], [0, 70]], keys=77, on_grid=False))
    assert drawn is not None
    assert "centroid" not in drawn
    assert "at least 0.50" in drawn


def test_marks_that_would_cover_each_other_are_joined() -> None:
    drawn = figure(site([[0], [0], [15], [0]]))
    assert drawn is not None
    assert ">0–1, 3</text>" in drawn
    assert ">2</text>" in drawn


def drawn_head(before: list[list[float]], folded: float, after: list[list[float]]) -> str:
    return folding.figure("attn head 3", [2, 2], np.array(before), np.array([folded]), np.array(after))


def test_a_constant_head_is_dark_before_and_pale_after() -> None:
    before, after = np.full((2, 4), 2.0), np.zeros((2, 4))
    said = folding.describe({"kept": False, "fluctuation_ratio": 0.04}, before, after)
    assert said.startswith("Pruned. Of its output energy 4")
    assert "on this image 0" in said
    drawn = drawn_head(before.tolist(), 2.0, after.tolist())
    assert drawn.count('<path class="h8"') == 4  # before and bias at two buckets; nothing is left


def test_many_timesteps_are_thinned_out() -> None:
    drawn = drawn_head([[1.0] * 4] * 20, 0.5, [[1.0] * 4] * 20)
    buckets = re.findall(r"bucket (\d+): mean norm", drawn)
    assert len(buckets) == 3 * 8
    assert {"0", "19"} <= set(buckets)


def test_large_grids_are_drawn_as_means_over_blocks_of_tokens() -> None:
    before = np.zeros((1, 64 * 64))
    before[0, 0] = (
        4.0  # the mean of the first 2 x 2 tokens is 1, as is that of the rest of the first row below
    )
    before[0, 2:64] = 2.0
    drawn = folding.figure("attn", [64, 64], before, np.array([0.5]), np.zeros((1, 64 * 64)))
    assert len(re.findall('<path class="h8"', drawn)) == 1
    assert "the darkest colour is 1.00" in drawn


def test_nothing_to_draw_and_nothing_to_say(tmp_path: Path) -> None:
    assert folding.section(RunData({"folding": {}}, tmp_path)) is None
    said = folding.section(RunData({"folding": {"note": "No head carries output."}}, tmp_path))
    assert said is not None
    assert "No head carries output." in said.body


GROUPS = [
    {"module": "block.0.attn", "kind": "attention_heads"},
    {"module": "block.0.ff", "kind": "ffn_channels"},
    {"module": "block.1.attn", "kind": "attention_heads"},
]
ROWS = [
    {"name": "obs", "own": True, "shares": [0.0, 0.5, 1.0]},
    {"name": "random", "own": False, "shares": [0.5, 0.5, 0.5]},
]


def test_criteria_stand_side_by_side_kinds_together() -> None:
    drawn = criteria.figure(GROUPS, ROWS)
    assert drawn is not None
    tips = re.findall(r"<title>(.*?)</title>", drawn)
    shown = [tip for tip in tips if tip.startswith("obs")]
    names = [tip.split(":")[0] for tip in shown]
    assert names == ["obs, block.0.attn", "obs, block.1.attn", "obs, block.0.ff"]
    assert 'class="t ink own"' in drawn
    assert re.findall(r'class="t num" [^>]*middle">(\d+)</text>', drawn) == ["0", "1", "0"]
    assert criteria.figure(GROUPS, ROWS[:1]) is None


def test_stages_of_a_unet_are_named_where_they_begin() -> None:
    groups = [
        {"module": f"{where}.resnets.{k}", "kind": "resnet_channels"}
        for where in ("down_blocks.0", "mid_block", "up_blocks.1")
        for k in range(20)
    ]
    rows = [{"name": name, "own": name == "obs", "shares": [0.5] * 60} for name in ("obs", "random")]
    drawn = criteria.figure(groups, rows)
    assert drawn is not None
    assert re.findall(r">(down 0|mid|up 1)</text>", drawn) == ["down 0", "mid", "up 1"]
    assert ">50</text>" not in drawn  # too narrow for figures


def test_what_is_left_out_is_named_with_the_reason() -> None:
    found = [{"why": "too slow", "names": ["obs", "sink"]}]
    assert criteria.left_out(found) == "Not computed: obs, sink (too slow)."
    assert criteria.left_out([]) == ""


def pictured(path: Path, **changes: Any) -> Path:
    """A run with everything that the pictures need."""
    run = report_runs.digits_run(path)
    data = json.loads((run / "report/data.json").read_text())
    row = {"module": "transformer_blocks.0.attn1", "head": 1, "kept": False, "fluctuation_ratio": 0.05}
    data["folding"] = {"file": "heads.safetensors", "heads": [row | {"tokens": 4, "grid": [2, 2]}]}
    data["criteria"] = {
        "groups": [{"module": "a", "kind": "ffn_channels"}],
        "rows": [
            {"name": "obs", "own": True, "shares": [0.5]},
            {"name": "wanda", "own": False, "shares": [0.25]},
        ],
        "left_out": [{"why": "too slow", "names": ["sink"]}],
    }
    data |= changes
    name = "transformer_blocks.0.attn1/1"
    norms = np.ones((3, 4), np.float32)
    tensors = {
        f"{name}/before": norms,
        f"{name}/after": 0.1 * norms,
        f"{name}/folded": np.ones(1, np.float32),
    }
    return report_runs.write(run, data, {"heads.safetensors": tensors})


def test_the_page_shows_all_three(tmp_path: Path) -> None:
    html = build([pictured(tmp_path / "run")], tmp_path / "out.html").read_text()
    for said in (
        "Where each criterion would cut",
        "A head before and after folding",
        "sinks shared with bucket",
        "Share of each of 1 groups that 2 criteria would cut",
        "Output norms of transformer_blocks.0.attn1 head 1 by token",
        "Path of the sinks&#x27; centroid",
    ):
        assert said in html
    assert "Not computed: sink (too slow)." in html


def test_sets_of_blocks_stand_beside_the_sum(tmp_path: Path) -> None:
    start = {"removed": ["blocks.1", "blocks.2"], "change": 5.0, "cost": 75, "sum_alone": 0.5}
    chosen = {"removed": ["blocks.1", "blocks.4"], "change": 2.0, "cost": 74, "sum_alone": None}
    search = {"start": start, "chosen": chosen, "measured": [start, chosen], "dense": 100, "power": 10.0}
    search |= {"forwards": 96, "kept": None}
    html = build([pictured(tmp_path / "run", depth=search)], tmp_path / "out.html").read_text()
    assert "Which blocks go together" in html
    assert "2 sets of blocks measured in 96 forwards of one sample" in html
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html.partition("Which blocks go together")[2])
    words = [cell.replace(fmt.THIN, " ") for cell in cells if cell]
    assert words[:8] == [
        "blocks.1, blocks.2",
        "75 %",
        "0.0500",
        "0.500",
        "blocks.1, blocks.4",
        "74 %",
        "–",
        "0.200",
    ]
    assert "stayed as it was" not in html
    kept = build([pictured(tmp_path / "kept", depth=search | {"kept": "a reason"})], tmp_path / "kept.html")
    assert "The plan stayed as it was: a reason." in kept.read_text()


@pytest.mark.parametrize("found", [None, {"start": None, "measured": []}])
def test_without_a_search_nothing_is_said_of_sets(tmp_path: Path, found: Any) -> None:
    html = build([pictured(tmp_path / "run", depth=found)], tmp_path / "out.html").read_text()
    assert "Which blocks go together" not in html


def layered(**change: Any) -> dict[str, Any]:
    def row(module: str, kind: str, kept: int, macs: float, score: float) -> dict[str, Any]:
        freed = {
            "macs": macs,
            "params": 2 * macs,
            **({"seconds": macs / 1e6} if "seconds" in found["dense"] else {}),
        }
        place = {"group": f"{module}:{kind}", "module": module, "kind": kind}
        return {**place, "kept": kept, "total": 8, "freed": freed, "score": score}

    found = {"dense": {"macs": 1000.0, "params": 4000.0}, "plan": {"macs": 500.0, "params": 3000.0}}
    found |= {"criterion": "probe_obs", "comparable": True, "errors": True, **change}
    rows = [
        row("blocks.0.ff", "ffn_channels", 4, 100.0, 6.0),
        row("blocks.1.ff", "ffn_channels", 2, 300.0, 1.0),
        row("blocks.2.attn", "attention_heads", 0, 50.0, 2.0),
        row("blocks.3.attn", "attention_heads", 7, 50.0, 1.0),
    ]
    return {**found, "rows": change.get("rows", rows)}


def layers_of(path: Path, **change: Any) -> str:
    entries = {"name": "x", "title": "x", "subjects": ["dense", "pruned"], "layers": layered(**change)}
    found = layers.section(load_run(report_runs.write(path, entries)))
    assert found is not None
    return str(found.body).replace(fmt.THIN, " ").replace("&#39;", "'")


def test_layers_stand_by_what_they_gave_with_the_error_that_they_paid(tmp_path: Path) -> None:
    body = layers_of(tmp_path)
    assert (
        "Half of what was freed of the MACs (in all 50 % of the dense model's) came from 1 of 4 layers."
        in body
    )
    assert "Half of the predicted error came from blocks.0.ff, which gave 20 % of what was freed." in body
    lines = re.findall(r'class="path">(.*?)</th>(.*?)</tr>', body)
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in lines}
    assert list(cells) == ["blocks.1.ff", "blocks.0.ff", "blocks.2.attn", "blocks.3.attn"]
    assert cells["blocks.0.ff"] == ["4 of 8", "100 (10 %)", "200 (5 %)", "60 %", "3.0"]
    assert cells["blocks.2.attn"][0] == "gone"
    widths = [float(width) for width in re.findall(r"<i style=\"width:([\d.]+)%\">", body)]
    assert widths[::2] == [100, 33.3, 16.7, 16.7]  # MACs freed, of the most
    assert widths[1::2] == [16.7, 100, 33.3, 16.7]  # predicted error
    assert "no exact measure" not in body
    assert "<details>" not in body


def test_time_comes_first_where_it_is_known_and_scores_that_are_no_errors_are_not_shown(
    tmp_path: Path,
) -> None:
    body = layers_of(
        tmp_path, dense={"macs": 1e3, "params": 4e3, "seconds": 2e-3}, plan={"seconds": 1e-3}, errors=False
    )
    assert "Half of what was freed of the time of a call (in all 50 % of the dense model's)" in body
    assert "predicted error" not in body
    assert "Scores of the criterion probe_obs are no errors" in body
    assert "300 µs (15 %)" in body
    assert body.count("<i ") == 4


def test_many_layers_are_folded_and_a_criterion_of_layers_says_so(tmp_path: Path) -> None:
    many = [{**row, "module": f"m{k}.{row['module']}"} for k in range(10) for row in layered()["rows"]]
    body = layers_of(tmp_path, rows=many, comparable=False)
    assert "All 40 layers that gave something" in body
    assert body.count("<i ") == 2 * layers.MOST_BARS
    assert "no exact measure of what the model" in body
    assert "m0.blocks.0.ff, m1.blocks.0.ff, m2.blocks.0.ff and 6 more" in body  # 9 of 10 times 6, of 100
    assert "Drawn are the 20 that gave or paid most." in body
    assert (
        len(re.findall(r'<span class="name path".*?>m\d\.blocks\.0\.ff<', body)) == 10
    )  # the dear ones, too


def test_a_section_says_which_files_its_entries_were_gathered_from(tmp_path: Path) -> None:
    stage = {
        "result": "plan/0a1b",
        "finished": "2026-05-04T10:31:00",
        "seed": 3,
        "device": "cpu (2 cores)",
        "versions": {"torch": "2.15"},
        "settings": {
            "prune.target": {"macs": 0.5, "params": None},
            "prune.kinds": ["ffn_channels", "f" * 64],
        },
    }
    entries = {
        "name": "x",
        "title": "x",
        "subjects": ["dense", "pruned"],
        "layers": layered(),
        "cuts": [{"module": "a", "kind": "ffn_channels", "kept": 1, "total": 2, "removed": False}],
        "sources": {"layers": ["plan/plan.json", "score/scores.safetensors"], "cuts": ["prune/plan.json"]},
        "provenance": {
            "plan": stage,
            "score": {**stage, "result": "score/2c"},
            "prune": {**stage, "result": "prune/3d"},
        },
    }
    run = load_run(report_runs.write(tmp_path, entries))
    shown = sections.sections(run)
    body = str(shown["cuts"].body).replace(fmt.THIN, " ")
    assert body.count("Where this comes from") == 1
    for said in (
        "<b>plan/plan.json</b> · result plan/0a1b · seed 3 · cpu (2 cores) · 2026-05-04 10:31:00",
        "<b>score/scores.safetensors</b> · result score/2c",
        "<b>prune/plan.json</b> · result prune/3d",
        "prune.target.macs 0.5 · prune.kinds [&#34;ffn_channels&#34;, &#34;ffffffffffff…&#34;]",
        "<p>torch 2.15</p>",
    ):
        assert said in body, said
    assert "Where this comes from" not in str(
        shown["measured"].body
    )  # it reads nothing of what is known here
    bare = load_run(report_runs.bare_run(tmp_path / "bare"))
    assert "Where this comes from" not in str(sections.sections(bare)["measured"].body)

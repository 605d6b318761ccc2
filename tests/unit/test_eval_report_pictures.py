"""The pictures that explain: drift of the sinks, a head before and after folding, where each criterion cuts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import RunData, fmt
from eval.report.drift import drift, figure
from eval.report.sections import criteria, folding
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

"""Every tiny pipeline runs, and what it makes depends on what it is told and on the seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.pipelines_table import JSON
from tests.pipelines import NOT_HERE, PIPELINES, run
from tests.shared import SHARED

STUDIED = SHARED / "recorded" / "table.json"


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_made_depends_on_the_input_and_the_seed(name: str) -> None:
    tiny = PIPELINES[name]
    pipeline = tiny.build()
    made = run(tiny, pipeline)
    assert np.isfinite(made).all()
    assert not np.array_equal(made, run(tiny, pipeline, seed=1))
    if tiny.kind != "unconditional":
        assert not np.array_equal(made, run(tiny, pipeline, sample=1))


def test_a_pipeline_is_built_the_same_every_time() -> None:
    tiny = PIPELINES["flux"]
    assert np.array_equal(run(tiny, tiny.build()), run(tiny, tiny.build()))


@pytest.mark.parametrize("name", PIPELINES)
def test_an_entry_has_three_different_samples(name: str) -> None:
    tiny = PIPELINES[name]
    assert len(tiny.inputs) == 3
    assert tiny.kind == "unconditional" or len({repr(one) for one in tiny.inputs}) == 3


def test_every_pipeline_that_was_studied_is_here() -> None:
    if not STUDIED.is_file():
        pytest.skip("the study of recorded calls is not on this machine")
    studied, table = (json.loads(path.read_text(encoding="utf-8")) for path in (STUDIED, JSON))
    here = {entry["pipeline"].removesuffix("Pipeline") for entry in table.values()}
    assert {entry["pipeline"].removesuffix("Pipeline") for entry in studied} - here == {
        name.removesuffix("Pipeline") for name in NOT_HERE
    }

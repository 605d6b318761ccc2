"""Every tiny pipeline: what is recorded replays, shares calls, is noised anew, and is what docs/pipelines.md says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.errors import PruningError
from scripts.pipelines_table import JSON, PAGE, page
from tests.pipelines import PIPELINES
from tests.pipelines.checks import (
    Summary,
    joined_anew,
    noised_anew,
    recorded,
    refused,
    replayed,
    summary,
)

ROUNDED = 1e-4
"""Relative difference of float32 arithmetic in another order; most are below 1e-6, Kandinsky 5 is at 5e-5."""

REFUSED = {"anyflow-far", "flux2-klein-kv", "hunyuan-dit-pag", "sd-pag", "sd3-pag"}


def _said() -> dict[str, Summary]:
    return {name: Summary(**entry) for name, entry in json.loads(JSON.read_text(encoding="utf-8")).items()}


@pytest.mark.parametrize("name", sorted(PIPELINES.keys() - REFUSED))
def test_what_is_recorded_is_what_the_pipeline_asked(name: str, tmp_path: Path) -> None:
    tiny = PIPELINES[name]
    made = recorded(tiny, tmp_path / "calls")
    replays = list(replayed(made, 0))
    assert all(off < ROUNDED for pair in replays for off in pair)
    said = summary(tiny, made, exact=all(whole == 0 for whole, _ in replays))
    assert said == _said()[name], "run python -m scripts.pipelines_table"
    joined = list(joined_anew(made, said))
    assert bool(joined) == (said.shares not in ("none", "of one sample"))
    assert all(off < ROUNDED for off in joined)
    if said.noised:
        assert max(noised_anew(made)) < ROUNDED


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_pipeline_whose_denoiser_keeps_a_state_is_refused(name: str, tmp_path: Path) -> None:
    tiny = PIPELINES[name]
    with pytest.raises(PruningError, match="cannot be recorded: ") as error:
        recorded(tiny, tmp_path)
    assert refused(tiny, error.value) == _said()[name], "run python -m scripts.pipelines_table"


def test_the_page_of_pipelines_is_what_its_table_says() -> None:
    assert _said().keys() == PIPELINES.keys()
    assert PAGE.read_text(encoding="utf-8") == page(_said())

"""Write docs/pipelines.md: what of every pipeline of diffusers can be recorded, and why not the rest.

Usage: python -m scripts.pipelines_table [NAME ...]

Every tiny pipeline of `tests/pipelines/` is recorded with three samples; then it is checked that calls read from disk
are answered as they were in the pipeline, that rows of several samples in one call are answered as alone, and that
latents made anew of a sample's end and its own noise are those of the call. With names only these are gone over anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
import transformers

from pruning.errors import PruningError
from tests.pipelines import NOT_HERE, PIPELINES
from tests.pipelines.checks import (
    Summary,
    joined_anew,
    noised_anew,
    recorded,
    refused,
    replayed,
    summary,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pipelines.md"
JSON = PAGE.with_suffix(".json")

HEAD = """# Which pipelines can be recorded

Written by `python -m scripts.pipelines_table`; a test holds it to the code. There is a row for every pipeline that was
tried of diffusers {version}: {count} forms of {classes} classes on tiny random components (`tests/pipelines/`), {all}
of them with everything, {points} from the recorded points only, {refused} not at all. Nothing in `pruning.recording`
knows a pipeline, a denoiser or a scheduler, but for the exceptions in `pruning/recording/exceptions.py`; a pipeline
that has no row here is recorded by the same rules, and says so if it cannot be.

- **denoisers**: the components that are called between two steps of the scheduler, and their classes.
- **guidance**: how a sampling step asks for it: rows in one call, several calls, a number that the denoiser is given;
  and how many networks a step asks, where there are several.
- **rows share a call**: those of *any* prompts; those of prompts *of one length*, as the denoiser is given the text
  unpadded; those *of one sample* alone; *of one step*: the time is shared by the rows. Batches are made accordingly.
- **x0**: latents can be made anew of a sample's end and fresh noise, and what the denoiser should then answer is known:
  its raw answer stands for this, up to a factor and a share of the latents that were measured. Where it is –, use the
  recorded points: what the pipeline asked, with the answers of the dense model.

Calls that are read from disk are answered bit for bit as in the pipeline, and rows of several samples in one call as
alone.{inexact}

"""

FOOT = """
Not tried: {not_here}.
"""

COLUMNS = ("pipeline", "denoisers", "guidance", "rows share a call", "x0")


def look(name: str) -> tuple[Summary, dict[str, float]]:
    """Record a tiny pipeline; return what is said of it and how far each check was off at most."""
    tiny = PIPELINES[name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = recorded(tiny, Path(folder) / "calls")
        except PruningError as error:
            return refused(tiny, error), {}
        both = [pair for sample in range(made.calls.samples) for pair in replayed(made, sample)]
        off = {"replay": max(whole for whole, _ in both), "alone": max(alone for _, alone in both)}
        said = summary(tiny, made, exact=off["replay"] == 0)
        joined = list(joined_anew(made, said))
        off |= {"joined": max(joined)} if joined else {}
        off |= {"noised": max(noised_anew(made))} if said.noised else {}
        return said, off


def page(table: Mapping[str, Summary]) -> str:
    """Return the page."""
    rows: dict[tuple[str, ...], list[str]] = {}
    notes: list[str] = []
    for name, said in sorted(table.items(), key=lambda entry: (entry[1].pipeline, entry[0])):
        rows.setdefault(cells(said, notes), []).append(name)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    inexact = sorted({said.pipeline for said in table.values() if said.denoisers and not said.exact})
    head = HEAD.format(
        version=diffusers.__version__,
        count=len(table),
        classes=len({said.pipeline for said in table.values()}),
        all=sum(said.noised for said in table.values()),
        points=sum(bool(said.denoisers) and not said.noised for said in table.values()),
        refused=sum(not said.denoisers for said in table.values()),
        inexact=f" To 1e-6 only: {', '.join(inexact)}." if inexact else "",
    )
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return f"{head}" + "\n".join(lines) + f"\n\n## Why not\n\n{listed}\n" + FOOT.format(not_here=untried())


def cells(said: Summary, notes: list[str]) -> tuple[str, ...]:
    """Return the row of a pipeline; why not is a number of `notes`, to which new ones are added."""
    if said.why is not None and said.why not in notes:
        notes.append(said.why)
    mark = "" if said.why is None else f" ({notes.index(said.why) + 1})"
    if not said.denoisers:
        return said.pipeline, f"cannot be recorded{mark}", "–", "–", "–"
    denoisers = ", ".join(f"`{name}` {cls}" for name, cls in sorted(said.denoisers.items()))
    return said.pipeline, denoisers, said.guidance, said.shares, said.answers or f"–{mark}"


def untried() -> str:
    """Return which pipelines have no entry, and why."""
    by_reason: dict[str, list[str]] = {}
    for name, why in sorted(NOT_HERE.items()):
        by_reason.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items())


def main(names: list[str]) -> None:
    """Go over the pipelines of these names, all where none is given, and write the page and its table."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    known = json.loads(JSON.read_text(encoding="utf-8")) if names else {}
    table = {name: Summary(**entry) for name, entry in known.items() if name in PIPELINES}
    for name in names or PIPELINES:
        table[name], off = look(name)
        print(
            name,
            table[name].answers or "–",
            {check: f"{value:.1e}" for check, value in off.items()},
            flush=True,
        )
    ordered = {name: table[name].to_json() for name in PIPELINES}
    JSON.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(table), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])

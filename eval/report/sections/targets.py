"""Targets by what users pay: what was asked, what the table of layers predicted, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 12
BODY = template(
    """
<div class="scroll"><table>
<thead><tr><td></td>{% for name in names %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for asked, cells in rows %}
<tr><th scope="row">{{ asked }}</th>{% for text, small in cells %}<td>{{ text }}
{%- if small %}<span class="detail">{{ small }}</span>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% for text in notes %}<p class="soft">{{ text }}</p>{% endfor %}
"""
)
NAMES = ("predicted", "measured", "gap", "evaluated")


def section(run: RunData) -> Section | None:
    """Show the targets; None where what is counted was asked alone, which the top of the report says."""
    found = run.entry("targets")
    if not found:
        return None
    rows = [(_asked(row), list(_cells(run, row))) for row in found["targets"].values()]
    return Section(BODY(names=NAMES, rows=rows, notes=list(_notes(found))), "Targets")


def _asked(row: Mapping[str, Any]) -> str:
    return row["asked"] if row["binds"] else f"{row['asked']} (does not bind)"


def _cells(run: RunData, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    said = row["said"]
    yield said["predicted"], ""
    yield said.get("measured", fmt.MISSING), said.get("interval", "")
    yield said.get("gap", fmt.MISSING), ""
    yield _evaluated(run, row), ""


def _evaluated(run: RunData, row: Mapping[str, Any]) -> str:
    """Return what the evaluation measured of the model that the run ends with."""
    if row["cost"] == "latency" and (fast := run.speedup(run.final)):
        if "of the dense" in row["asked"]:
            return f"{1 / fast:.3f} of dense"
        return fmt.seconds(run.metric(run.final, "call")["median_s"])
    if row["cost"] == "memory" and (held := run.metric(run.final, "peak_memory_bytes")):
        return f"{held / 1e9:.4g} GB"
    if row["cost"] in ("macs", "params") and (share := run.ratio(run.final, row["cost"])):
        return f"{share:.3f} of dense"
    return fmt.MISSING


def _clock(rows: Iterable[Mapping[str, Any]]) -> str:
    """Say by which clock the plan was measured, where it was another one."""
    if not any(row.get("clock") == "thread" for row in rows):
        return ""
    return " Table and plan were measured by the processor time of the one thread, which other processes disturb less."


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    rows = found["targets"].values()
    if any(row["cost"] == "latency" for row in rows):
        yield (
            "Predicted: from a table of the layers' times at several widths, measured on this device inside calls of "
            "the model. Measured: the plan carried out on a copy of the dense model, which took turns with it in one "
            "process, before anything was refitted or trained; small figures are a 95 % interval. Gap: measured by "
            f"predicted. Evaluated: the model that the run ends with, by the clock on the wall.{_clock(rows)}"
        )
    if first := found.get("first"):
        missed = ", ".join(
            f"{row['asked']} by {row['said']['gap']}" for row in first.values() if "gap" in row["said"]
        )
        yield (
            f"The first plan's prediction was wrong ({missed}), so the constant of the table was corrected by what was "
            "measured and the plan was made anew, once."
        )
    for row in rows:
        if row["cost"] == "memory" and "method" in row:
            yield f"Memory: of a call of one sample; {row['method']}."

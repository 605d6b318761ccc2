"""Results: the table of everything that was measured, one row per measure, one column per subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.report import figures, fmt
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections import Section

PLACE = 10
OWN_ROWS = (
    *("params", "macs", "file", "weight_bytes", "peak_memory", "speedup"),
    *("frechet", "kernel", "ssim", "mse", "denoising", "excess_error"),
)
"""How the names of metrics begin that have a row, or a place in one; every other number gets a row of its own."""

CELL = template(
    '<td>{{ text }}{% if ratio %}<span class="ratio">{{ ratio }}</span>{% endif %}'
    '{% for line in detail %}<span class="detail">{{ line }}</span>{% endfor %}</td>'
)
TABLE = template(
    """
<div class="scroll"><table>
<thead><tr><td></td>
{% for subject in subjects %}
<th scope="col"><span class="swatch s{{ [loop.index0, 5] | min }}"></span>{{ subject }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for block in blocks %}
<tr class="block"><th scope="rowgroup" colspan="{{ subjects | length + 1 }}">{{ block.title }}</th></tr>
{% for row in block.rows %}
<tr><th scope="row">{{ row.label }}
{%- if row.hint %}<span class="detail">{{ row.hint }}</span>{% endif %}</th>{{ row.cells | join }}</tr>
{% endfor %}
{% endfor %}
</tbody></table></div>
<p class="detail">Grey figures beside a value: ratio to {{ subjects[0] }}.</p>
"""
)


@dataclass(frozen=True)
class Cell:
    """One value: `text`, the lines that stand small below it, and its ratio to the reference."""

    text: str = fmt.MISSING
    detail: tuple[str, ...] = ()
    ratio: str = ""

    def __html__(self) -> str:
        """Return the cell as HTML."""
        return CELL(**vars(self))


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is, which way is better, and one cell per subject."""

    label: str
    hint: str
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """Rows under one heading."""

    title: str
    rows: list[Row]


def section(run: RunData) -> Section | None:
    """Show the table; None if nothing was measured."""
    blocks = results(run)
    return Section(TABLE(subjects=run.subjects, blocks=blocks), "Results") if blocks else None


def results(run: RunData) -> list[Block]:
    """Return the table of a run: rows are measures, columns are subjects; rows nobody measured are left out."""

    def row(label: str, hint: str, cell: Callable[[str], Cell]) -> Row:
        return Row(label, hint, [cell(subject) for subject in run.subjects])

    def plain(key: str, show: Callable[[Any], str], *, ratio: bool = False) -> Callable[[str], Cell]:
        return lambda s: Cell(show(run.metric(s, key)), ratio=_ratio(run, s, key) if ratio else "")

    size = [
        row("Parameters", "", plain("params", fmt.quantity, ratio=True)),
        row("MACs of one call", "", plain("macs", fmt.quantity, ratio=True)),
        row("File size", "", plain("file_bytes", lambda v: fmt.quantity(v, "B"), ratio=True)),
        row("Peak memory", "", plain("peak_memory_bytes", lambda v: fmt.quantity(v, "B"), ratio=True)),
    ]
    speed = [
        row("One denoiser call", "median", lambda s: _latency(run, s, "call")),
        row("Whole sampling run", "median", lambda s: _latency(run, s, "sampling")),
    ]
    quality = [
        row(figures.frechet_name(run), "lower is better", lambda s: frechet(run, s)),
        row("Kernel distance", "lower is better", lambda s: kernel(run, s)),
        row(f"SSIM to {run.reference}, same noise", "higher is closer", lambda s: _apart(run, s, "ssim")),
        row(f"MSE to {run.reference}, same noise", "lower is closer", lambda s: _apart(run, s, "mse")),
        row("Denoising error", "lower is better", lambda s: _denoising(run, s)),
        row("Excess error", "lower is closer", lambda s: _apart(run, s, "excess_error")),
    ]
    other = [row(key.replace("_", " "), "", plain(key, fmt.number)) for key in _unknown(run)]
    blocks = []
    for title, rows in (("Size", size), ("Speed", speed), ("Quality", quality), ("Other", other)):
        kept = [r for r in rows if any(cell.text != fmt.MISSING for cell in r.cells)]
        if kept:
            blocks.append(Block(title, kept))
    return blocks


def _unknown(run: RunData) -> list[str]:
    """Return the names of numbers that no row is about."""
    values = {key: value for found in run.metrics.values() for key, value in found.items()}
    numbers = [key for key, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return sorted(
        key for key in numbers if not any(key == own or key.startswith(f"{own}_") for own in OWN_ROWS)
    )


def _ratio(run: RunData, subject: str, key: str) -> str:
    value = run.ratio(subject, key)
    return "" if value is None or subject == run.reference else fmt.times(value)


def _interval(run: RunData, subject: str, key: str) -> tuple[str, ...]:
    """Return the line with the 95 % interval of a metric, if it has one."""
    interval = run.metric(subject, f"{key}_ci95")
    return (f"95{fmt.THIN}% {fmt.span(interval)}",) if interval else ()


def _latency(run: RunData, subject: str, which: str) -> Cell:
    record = run.metric(subject, which)
    if not record:
        return Cell()
    detail = [f"IQR {fmt.seconds(record['iqr_s'])}"] if record["iqr_s"] is not None else []
    detail += [f"batch {record['batch_size']}"] if record.get("batch_size") else []
    lines = [" · ".join(detail)] if detail else []
    fast, interval = figures.speedup(run, subject, which), figures.speedup_interval(run, subject, which)
    if fast is not None and interval:
        lines.append(f"speed-up, {interval}")
    ratio = "" if fast is None else f"{fmt.times(fast)} speed"
    return Cell(fmt.seconds(record["median_s"]), tuple(lines), ratio)


def frechet(run: RunData, subject: str) -> Cell:
    """Return the Fréchet distance of a subject with its intervals."""
    value = run.metric(subject, "frechet")
    if value is None:
        return Cell()
    lines = list(_interval(run, subject, "frechet"))
    ratio = run.metric(subject, "frechet_ratio_ci95")
    if ratio and subject != run.reference:
        lines.append(f"ratio, 95{fmt.THIN}% {fmt.span(ratio)}")
    return Cell(fmt.number(value), tuple(lines), _ratio(run, subject, "frechet"))


def kernel(run: RunData, subject: str) -> Cell:
    """Return the kernel distance of a subject with its spread."""
    value, std = run.metric(subject, "kernel"), run.metric(subject, "kernel_std")
    if value is None:
        return Cell()
    return Cell(fmt.number(value), (f"± {fmt.number(std)}",) if std is not None else ())


def _apart(run: RunData, subject: str, key: str) -> Cell:
    """Return a measure of distance to the reference, which the reference itself does not have."""
    value = run.metric(subject, key)
    if value is None or subject == run.reference:
        return Cell()
    return Cell(fmt.number(value), _interval(run, subject, key))


def _denoising(run: RunData, subject: str) -> Cell:
    value = run.metric(subject, "denoising_error_mean")
    if value is None:
        return Cell()
    ratio = _ratio(run, subject, "denoising_error_mean")
    return Cell(fmt.number(value), _interval(run, subject, "denoising_error"), ratio)

"""Results: the table of everything that was measured, one row per measure, one column per subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from eval.report import fmt
from eval.report.data import LEVEL, RunData
from eval.report.html import Section, template

PLACE = 10
OWN_ROWS = (
    *("params", "macs", "file", "weight_bytes", "peak_memory", "speedup"),
    *("frechet", "kernel", "ssim", "mse", "waveform_error", "spectral_error", "denoising", "excess_error"),
    *("precision", "recall", "density", "coverage", "pair", "fd_dinov2", "cmmd", "clip_score", "lpips"),
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
{% for title, rows in blocks.items() %}
<tr class="block"><th scope="rowgroup" colspan="{{ subjects | length + 1 }}">{{ title }}</th></tr>
{% for label, hint, cells in rows %}
<tr><th scope="row">{{ label }}
{%- if hint %}<span class="detail">{{ hint }}</span>{% endif %}</th>{{ cells | join }}</tr>
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


Show = Callable[[RunData, str], Cell]
"""Makes the cell of one subject."""


def section(run: RunData) -> Section | None:
    """Show the table; None if nothing was measured."""
    blocks = results(run)
    return Section(TABLE(subjects=run.subjects, blocks=blocks), "Results") if blocks else None


def results(run: RunData) -> dict[str, list[tuple[str, str, list[Cell]]]]:
    """Return the measured rows under their headings: what it is, which way is better, and one cell per subject."""
    dense, small = run.reference, "lower is closer"
    unrelated = f"100{fmt.THIN}% is an unrelated sample"
    blocks: dict[str, list[tuple[str, str, Show]]] = {
        "Size": [
            ("Parameters", "", value("params", fmt.quantity, ratio=True)),
            ("MACs of one call", "", value("macs", fmt.quantity, ratio=True)),
            ("File size", "", value("file_bytes", fmt.size, ratio=True)),
            ("Peak memory", "", value("peak_memory_bytes", fmt.size, ratio=True)),
        ],
        "Speed": [
            ("One denoiser call", "median", _latency("call")),
            *((label, "median", _row(number)) for number, label in enumerate(_row_labels(run))),
            ("Whole sampling run", "median", _latency("sampling")),
        ],
        "Quality": [
            (run.frechet_name, "lower is better", frechet),
            (_named(run, "frechet_infinity"), "lower is better", partial(frechet, key="frechet_infinity")),
            (_named(run, "fd_dinov2"), "lower is better", partial(frechet, key="fd_dinov2")),
            ("Kernel distance", "lower is better", kernel),
            (_named(run, "cmmd"), "lower is better", discrepancy("cmmd")),
            ("CLIP score", "higher is better", value("clip_score", ratio=True)),
            ("Precision", "share that looks real", value("precision", ratio=True)),
            ("Recall", "share of the real that is covered", value("recall", ratio=True)),
            ("Density", "higher is better", value("density", ratio=True)),
            ("Coverage", "higher is better", value("coverage", ratio=True)),
            (
                f"Pixels' distance to {dense}, same noise",
                unrelated,
                value("pair_pixels", fmt.percent, apart=True),
            ),
            (
                f"Features' distance to {dense}, same noise",
                unrelated,
                value("pair_features", fmt.percent, apart=True),
            ),
            (f"{_named(run, 'lpips')} to {dense}, same noise", small, value("lpips", apart=True)),
            (f"SSIM to {dense}, same noise", "higher is closer", value("ssim", apart=True)),
            (f"MSE to {dense}, same noise", small, value("mse", apart=True)),
            (f"Waveform error to {dense}, same noise", small, value("waveform_error", apart=True)),
            (f"Spectral error to {dense}, same noise", small, value("spectral_error", apart=True)),
            ("Denoising error", "lower is better", denoising),
            ("Excess error", small, value("excess_error", apart=True)),
        ],
        "Other": [(key.replace("_", " "), "", value(key)) for key in _unknown(run)],
    }
    found = {}
    for title, rows in blocks.items():
        shown = [(label, hint, [cell(run, s) for s in run.subjects]) for label, hint, cell in rows]
        if kept := [row for row in shown if any(cell.text != fmt.MISSING for cell in row[2])]:
            found[title] = kept
    return found


def value(
    key: str, show: Callable[[Any], str] = fmt.number, *, ratio: bool = False, apart: bool = False
) -> Show:
    """Return what shows a metric with its interval; that of ``x_mean`` is called ``x_ci95``.

    With `ratio` its ratio to the reference stands beside it; `apart` is a distance to the reference, which has none.
    """

    def cell(run: RunData, subject: str) -> Cell:
        number = run.metric(subject, key)
        if number is None or (apart and subject == run.reference):
            return Cell()
        interval = run.metric(subject, f"{key.removesuffix('_mean')}_ci95")
        detail = (f"95{fmt.THIN}% {fmt.span(interval, show)}",) if interval else ()
        beside = run.ratio(subject, key) if ratio and subject != run.reference else None
        return Cell(show(number), detail, "" if beside is None else fmt.times(beside))

    return cell


def frechet(run: RunData, subject: str, key: str = "frechet") -> Cell:
    """Return a Fréchet distance of a subject with its intervals."""
    cell = value(key, ratio=True)(run, subject)
    ratio = run.metric(subject, f"{key}_ratio_ci95")
    if not ratio or subject == run.reference:
        return cell
    return replace(cell, detail=(*cell.detail, f"ratio, 95{fmt.THIN}% {fmt.span(ratio)}"))


def denoising(run: RunData, subject: str) -> Cell:
    """Return the denoising error of a subject with its interval and that of its ratio, paired by image."""
    cell = value("denoising_error_mean", ratio=True)(run, subject)
    ratio = run.metric(subject, "denoising_error_ratio_ci95")
    if not ratio or subject == run.reference:
        return cell
    return replace(cell, detail=(*cell.detail, f"ratio, 95{fmt.THIN}% {fmt.span(ratio)}"))


def kernel(run: RunData, subject: str) -> Cell:
    """Return the kernel distance of a subject with its intervals, or in old runs the spread of its subsets."""
    cell, std = discrepancy("kernel")(run, subject), run.metric(subject, "kernel_std")
    return cell if std is None or cell.detail else replace(cell, detail=(f"± {fmt.number(std)}",))


def discrepancy(key: str) -> Show:
    """Return what shows a discrepancy, of which differences make sense and ratios do not, with its intervals."""

    def cell(run: RunData, subject: str) -> Cell:
        found, bounds = value(key)(run, subject), run.metric(subject, f"{key}_difference_ci95")
        if not bounds or subject == run.reference:
            return found
        return replace(found, detail=(*found.detail, f"difference, 95{fmt.THIN}% {fmt.span(bounds)}"))

    return cell


def _named(run: RunData, key: str) -> str:
    """Return what a measure was called by the network that it was measured with."""
    return run.metric(run.reference, f"{key}_name") or key


def _latency(which: str) -> Show:
    def cell(run: RunData, subject: str) -> Cell:
        found = run.metric(subject, which)
        if found is None:
            return Cell()
        lines, fast = [f"IQR {fmt.seconds(found['iqr_s'])} · batch {found['batch_size']}"], ""
        if subject != run.reference:
            fast = f"{fmt.times(run.speedup(subject, which))} speed"
            if interval := run.speedup_interval(subject, which):
                lines.append(f"speed-up, {interval}")
        return Cell(fmt.seconds(found["median_s"]), tuple(lines), fast)

    return cell


def _row_labels(run: RunData) -> list[str]:
    """Return the names of the further rows of latency: how a call is made, and of how many samples."""
    rows = run.metric(run.reference, "latency_rows") or []
    names = {"cuda_graphs": "CUDA graphs"}
    return [f"One call, {names.get(row['mode'], row['mode'])}, batch {row['batch_size']}" for row in rows]


def _row(number: int) -> Show:
    def cell(run: RunData, subject: str) -> Cell:
        row = run.metric(subject, "latency_rows")[number]
        if row["skipped"] is not None:
            return Cell("not measured", (row["skipped"],) if subject == run.reference else ())
        lines, fast = [f"IQR {fmt.seconds(row['iqr_s'])}"], ""
        if subject != run.reference:
            fast = f"{fmt.times(row['speedup_call'])} speed"
            if row["speedup_call_coverage"] >= LEVEL:
                low, high = row["speedup_call_ci95"]
                lines.append(f"speed-up, 95{fmt.THIN}% {fmt.times(low)} to {fmt.times(high)}")
        return Cell(fmt.seconds(row["median_s"]), tuple(lines), fast)

    return cell


def _unknown(run: RunData) -> list[str]:
    """Return the names of numbers that no row is about."""
    found = {key: v for metrics in run.entry("metrics").values() for key, v in metrics.items()}
    numbers = [key for key, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return sorted(key for key in numbers if not any(f"{key}_".startswith(f"{own}_") for own in OWN_ROWS))

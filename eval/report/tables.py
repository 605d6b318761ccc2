"""The results table of one run and the comparison table of several, as rows of text cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.report import fmt, words
from eval.report.load import Run

OWN_ROWS = (
    *("params", "macs", "file", "weight_bytes", "peak_memory", "speedup"),
    *("frechet", "kernel", "ssim", "mse", "denoising", "excess_error"),
)


@dataclass(frozen=True)
class Cell:
    """One value: `text`, the lines that stand small below it, and its ratio to the reference."""

    text: str = fmt.MISSING
    detail: tuple[str, ...] = ()
    ratio: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is, which way is better, and a cell a subject."""

    label: str
    hint: str
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """Rows under one heading."""

    title: str
    rows: list[Row]


def results(run: Run) -> list[Block]:
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
        row(words.frechet_name(run), "lower is better", lambda s: _frechet(run, s)),
        row("Kernel distance", "lower is better", lambda s: _kernel(run, s)),
        row(f"SSIM to {run.reference}, same noise", "higher is closer", lambda s: _apart(run, s, "ssim")),
        row(f"MSE to {run.reference}, same noise", "lower is closer", lambda s: _apart(run, s, "mse")),
        row("Denoising error", "lower is better", lambda s: _denoising(run, s)),
        row("Excess error", "lower is closer", lambda s: _apart(run, s, "excess_error")),
    ]
    names = {
        key for values in run.metrics.values() for key, v in values.items() if isinstance(v, (int, float))
    }
    unknown = sorted(
        name for name in names if not any(name == o or name.startswith(f"{o}_") for o in OWN_ROWS)
    )
    other = [row(key.replace("_", " "), "", plain(key, fmt.number)) for key in unknown]
    blocks = []
    for title, rows in (("Size", size), ("Speed", speed), ("Quality", quality), ("Other", other)):
        kept = [r for r in rows if any(cell.text != fmt.MISSING for cell in r.cells)]
        if kept:
            blocks.append(Block(title, kept))
    return blocks


def _ratio(run: Run, subject: str, key: str) -> str:
    value = run.ratio(subject, key)
    return "" if value is None or subject == run.reference else fmt.times(value)


def _interval(run: Run, subject: str, key: str) -> tuple[str, ...]:
    """Return the line with the 95 % interval of a metric, if it has one."""
    interval = run.metric(subject, f"{key}_ci95")
    return (f"95{fmt.THIN}% {fmt.span(interval)}",) if interval else ()


def _latency(run: Run, subject: str, which: str) -> Cell:
    record = run.metric(subject, which)
    if not record:
        return Cell()
    detail = [f"IQR {fmt.seconds(record['iqr_s'])}"] if record["iqr_s"] is not None else []
    detail += [f"batch {record['batch_size']}"] if record.get("batch_size") else []
    detail += [f"{record['num_steps']} steps"] if record.get("num_steps") else []
    lines = [" · ".join(detail)] if detail else []
    fast, interval = words.speedup(run, subject, which), words.speedup_interval(run, subject, which)
    if fast is not None and interval:
        lines.append(f"speed-up, {interval}")
    return Cell(
        fmt.seconds(record["median_s"]), tuple(lines), "" if fast is None else f"{fmt.times(fast)} speed"
    )


def _frechet(run: Run, subject: str) -> Cell:
    value = run.metric(subject, "frechet")
    if value is None:
        return Cell()
    lines = list(_interval(run, subject, "frechet"))
    ratio = run.metric(subject, "frechet_ratio_ci95")
    if ratio and subject != run.reference:
        lines.append(f"ratio, 95{fmt.THIN}% {fmt.span(ratio)}")
    return Cell(fmt.number(value), tuple(lines), _ratio(run, subject, "frechet"))


def _kernel(run: Run, subject: str) -> Cell:
    value, std = run.metric(subject, "kernel"), run.metric(subject, "kernel_std")
    if value is None:
        return Cell()
    return Cell(fmt.number(value), (f"± {fmt.number(std)}",) if std is not None else ())


def _apart(run: Run, subject: str, key: str) -> Cell:
    """Return a measure of distance to the reference, which the reference itself does not have."""
    value = run.metric(subject, key)
    if value is None or subject == run.reference:
        return Cell()
    return Cell(fmt.number(value), _interval(run, subject, key))


def _denoising(run: Run, subject: str) -> Cell:
    value = run.metric(subject, "denoising_error_mean")
    if value is None:
        return Cell()
    ratio = _ratio(run, subject, "denoising_error_mean")
    return Cell(fmt.number(value), _interval(run, subject, "denoising_error"), ratio)


def comparison(runs: list[Run]) -> tuple[list[str], list[list[Cell]]]:
    """Return columns and one row a run; columns that no run fills are left out."""
    columns: list[tuple[str, Callable[[Run], Cell]]] = [
        ("MACs left", lambda r: Cell(fmt.percent(words.reached(r, "macs")))),
        ("Parameters left", lambda r: Cell(fmt.percent(words.reached(r, "params")))),
        ("Speed-up, call", lambda r: Cell(fmt.times(words.speedup(r, r.final)))),
        ("Speed-up, sampling", lambda r: Cell(fmt.times(words.speedup(r, r.final, "sampling")))),
        ("Fréchet, dense", lambda r: Cell(fmt.number(r.metric(r.reference, "frechet")))),
        ("Fréchet, final", lambda r: _frechet(r, r.final or "")),
        ("Kernel distance", lambda r: _kernel(r, r.final or "")),
        ("Excess error", lambda r: Cell(fmt.number(r.metric(r.final, "excess_error")))),
        ("Run time", lambda r: Cell(fmt.seconds(sum(r.seconds.values()) or None))),
    ]
    table = [(title, [cell(run) for run in runs]) for title, cell in columns]
    table = [(title, cells) for title, cells in table if any(cell.text != fmt.MISSING for cell in cells)]
    return [title for title, _ in table], [
        list(row) for row in zip(*(cells for _, cells in table), strict=True)
    ]

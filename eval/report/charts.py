"""The plots of a run: cuts by depth, recovery loss, denoising error by timestep, head diagnostics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from eval.report import fmt, svg
from eval.report.load import Curve, Cut, Head, Run
from eval.report.svg import Figure, Scale

SHAPES = ("circle", "square", "diamond", "triangle")
KIND_CLASSES = {"attention_heads": "k0", "ffn_channels": "k1", "resnet_channels": "k2", "blocks": "k3"}
LABEL_SHAPES = {"nop": "triangle", "constant": "square", "gate": "diamond", "ordinary": "circle"}
KIND_WORDS = {"ffn_channels": "FFN channels", "resnet_channels": "ResNet channels"}
CONSTANT_RATIO = 0.1  # R_h up to which a head of high sink mass is called constant (SCORES.md section 4)
HIGH_MASS = 0.3  # sink mass from which a head is called constant or gate
WINDOWS = 40  # means in the smoothed curve of the loss
LOG_FROM = 8.0  # an axis turns logarithmic when its values span more than this factor


def kind_class(kind: str, kinds: Sequence[str]) -> str:
    """Return the colour class of a kind; kinds that are new to the report take the next free colours."""
    new = sorted(k for k in set(kinds) if k not in KIND_CLASSES)
    return KIND_CLASSES.get(kind) or f"k{4 + new.index(kind) % 3}"


def kind_words(kind: str) -> str:
    """Return the name of a kind as people write it."""
    return KIND_WORDS.get(kind, kind.replace("_", " "))


def subject_class(index: int) -> str:
    """Return the colour class of the subject at `index`; the reference is 0."""
    return f"s{index}" if index < 3 else f"s{3 + (index - 3) % 3}"


def depth(cuts: Sequence[Cut]) -> Figure:
    """Draw one column a group in model order, a band a kind: how much of each is kept. For many groups."""
    kinds = sorted({cut.kind for cut in cuts}, key=lambda kind: kind_class(kind, [c.kind for c in cuts]))
    left, width, band, gap = 40, 960, 64, 30
    slot = (width - left - 8) / len(cuts)
    height = len(kinds) * (band + gap) + 34
    parts = []
    for row, kind in enumerate(kinds):
        top = row * (band + gap) + 22
        cls = kind_class(kind, kinds)
        parts.append(svg.label(left, top - 8, kind_words(kind), "t ink"))
        for value, text in ((0, "0"), (1, "all")):
            y = top + band * (1 - value)
            parts.append(svg.label(left - 7, y + 4, text, "t num", "end"))
            parts.append(svg.line(left, y, width - 8, y, "grid"))
        for index, cut in enumerate(cuts):
            if cut.kind == kind:
                parts.append(_column(cut, left + index * slot, top, max(1.0, slot - 1), band, cls))
    parts.append(_stages(cuts, left, slot, len(kinds) * (band + gap) + 4))
    alt = f"Kept share of {len(cuts)} groups in model order, by kind."
    return svg.drawing("cuts", "".join(parts), width, height, alt)


def _column(cut: Cut, x: float, top: float, width: float, height: float, cls: str) -> str:
    title = f"{cut.module} ({kind_words(cut.kind)}): {cut_words(cut)}"
    if cut.removed:
        return svg.hatched(x, top, width, height, title)
    share = cut.kept / cut.total
    return svg.rect(x, top, width, height, "track", title) + svg.rect(
        x, top + height * (1 - share), width, height * share, f"fill {cls}", title
    )


def _stages(cuts: Sequence[Cut], left: float, slot: float, y: float) -> str:
    """Return ticks and names where a new stage of the model begins, as far as names fit."""
    parts, free, before = [], 0.0, ""
    for index, cut in enumerate(cuts):
        stage = stage_name(cut.module)
        if stage == before:
            continue
        before, x = stage, left + index * slot
        parts.append(svg.line(x, y - 4, x, y + 4, "axis"))
        if x >= free and x + svg.text_width(stage) <= left + slot * len(cuts) + 8:
            parts.append(svg.label(x, y + 17, stage, "t"))
            free = x + svg.text_width(stage) + 8
    return "".join(parts)


def stage_name(module: str) -> str:
    """Return the part of the model that a module lies in: ``down_blocks.0.…`` is ``down 0``."""
    head = module.split(".")[:2]
    word = head[0].removesuffix("s").removesuffix("_block").replace("_", " ")
    return f"{word} {head[1]}" if len(head) > 1 and head[1].isdigit() else word


def cut_words(cut: Cut) -> str:
    """Say what is left of a group."""
    if cut.removed:
        return "removed with its block" if cut.kind != "blocks" else "block removed"
    return f"{cut.kept:,} of {cut.total:,}"


def recovery(curve: Curve) -> Figure:
    """Draw the loss of recovery: every step faint, and the mean of about forty windows strong if `is_smoothed`."""
    pairs = [(s, v) for s, v in zip(curve.steps, curve.loss, strict=True) if v is not None]
    values = [v for _, v in pairs]
    log = min(values) > 0 and max(values) / min(values) > LOG_FROM
    low, high = svg.padded(values, log=log)
    if not log and min(values) >= 0:
        low = max(0.0, low)
    xs = Scale(curve.steps[0], max(curve.steps[-1], curve.steps[0] + 1), 54, 730)
    ys = Scale(low, high, 232, 34, log)
    thin = max(1, len(pairs) // 600)
    window = max(1, len(pairs) // WINDOWS)
    smooth = []
    for start in range(0, len(pairs), window):
        chunk = pairs[start : start + window]
        mean = math.fsum(v for _, v in chunk) / len(chunk)
        smooth.append((xs(math.fsum(s for s, _ in chunk) / len(chunk)), ys(mean)))
    raw = [
        None if v is None else (xs(s), ys(v))
        for s, v in zip(curve.steps[::thin], curve.loss[::thin], strict=True)
    ]
    body = svg.axes(xs, ys, "optimiser step", "loss (log)" if log else "loss") + svg.path(raw, "raw")
    if is_smoothed(curve):
        body += svg.path(smooth, "line s2")
    alt = f"Recovery loss from {fmt.number(values[0])} to {fmt.number(values[-1])} over {len(curve.steps)} records."
    return svg.drawing("recovery", body, 760, 280, alt)


def is_smoothed(curve: Curve) -> bool:
    """Tell whether there are enough losses for a mean over windows of at least two."""
    return sum(value is not None for value in curve.loss) >= 2 * WINDOWS


def denoising(run: Run) -> list[Figure]:
    """Draw the denoising error by timestep bucket: as it is, and as a ratio to the reference."""
    errors = {s: run.metric(s, "denoising_error") for s in run.subjects}
    errors = {s: e for s, e in errors.items() if e and any(v is not None for v in e)}
    if not errors:
        return []
    figures = [_by_bucket(run, errors, "denoising", "mean squared error", [])]
    base = errors.get(run.reference)
    ratios = {
        s: [v / b if v is not None and b else None for v, b in zip(e, base, strict=False)]
        for s, e in errors.items()
        if base and s != run.reference
    }
    ratios = {s: e for s, e in ratios.items() if any(v is not None for v in e)}
    if ratios:
        figures.append(_by_bucket(run, ratios, "denoising-ratio", f"ratio to {run.reference}", [1.0]))
    return figures


def _by_bucket(
    run: Run, series: dict[str, list[float | None]], name: str, y_label: str, include: list[float]
) -> Figure:
    values = [v for row in series.values() for v in row if v is not None] + include
    log = min(values) > 0 and max(values) / min(values) > LOG_FROM
    low, high = svg.padded(values, log=log)
    count = max(len(row) for row in series.values())
    xs = Scale(0, max(1, count - 1), 54, 458)
    ys = Scale(low if log else max(0.0, low), high, 232, 50, log)
    every = max(1, math.ceil(count / 10))
    ticks = [(k, str(k)) for k in range(0, count, every)]
    body = svg.axes(xs, ys, "timestep bucket (0 = least noise)", y_label + (" (log)" if log else ""), ticks)
    if include:
        body += svg.line(xs.start, ys(1.0), xs.stop, ys(1.0), "ref")
    entries = []
    for subject, row in series.items():
        index = run.subjects.index(subject)
        cls, shape = subject_class(index), SHAPES[index % len(SHAPES)]
        points = [None if v is None else (xs(k), ys(v)) for k, v in enumerate(row)]
        body += svg.path(points, f"line {cls}")
        for k, point in enumerate(points):
            if point:
                tip = f"{subject}, bucket {k}: {fmt.number(row[k])}"
                body += svg.marker(*point, shape, f"dot {cls}", tip, 3.6)
        entries.append((subject, shape, f"dot {cls}"))
    body += svg.legend(entries, xs.start, 16)
    alt = f"Denoising error by timestep bucket, {y_label}, for {', '.join(series)}."
    return svg.drawing(name, body, 480, 280, alt)


def diagnostics(heads: Sequence[Head]) -> Figure | None:
    """Draw sink mass against fluctuation ratio, a mark a head; None if no head has a ratio."""
    shown = [head for head in heads if head.fluctuation_ratio is not None]
    if not shown:
        return None
    ratios = [max(head.fluctuation_ratio or 0.0, 1e-4) for head in shown]
    low = 10.0 ** math.floor(math.log10(min(min(ratios), CONSTANT_RATIO / 2)))
    high = max(1.0, max(ratios)) * 1.15
    widest = max(head.sink_mass for head in shown)
    xs = Scale(0, min(1.0, max(math.ceil(widest * 10.5) / 10, HIGH_MASS + 0.1)), 54, 560)
    ys = Scale(low, high, 332, 50, log=True)
    body = svg.rect(
        xs(HIGH_MASS), ys(CONSTANT_RATIO), xs.stop - xs(HIGH_MASS), ys(low) - ys(CONSTANT_RATIO), "zone"
    )
    body += svg.axes(xs, ys, "sink mass of the head", "fluctuation ratio R (log)")
    body += svg.line(xs(HIGH_MASS), ys.stop, xs(HIGH_MASS), ys.start, "grid")
    body += svg.label(xs.stop - 8, ys.start - 10, "constant (prune and fold)", "t", "end")
    body += svg.label(xs.stop, ys.stop - 14, "right of the line: gate (keep)", "t", "end")
    for head, ratio in sorted(zip(shown, ratios, strict=True), key=lambda pair: pair[0].kept):
        state = "kept" if head.kept else "pruned"
        tip = (
            f"{head.group} head {head.head}: sink mass {fmt.number(head.sink_mass)}, "
            f"R {fmt.number(head.fluctuation_ratio)}, {head.label}, {state}"
        )
        shape = LABEL_SHAPES.get(head.label, "circle")
        body += svg.marker(
            xs(head.sink_mass), ys(ratio), shape, "head kept" if head.kept else "head cut", tip, 4.2
        )
    labels = [name for name in LABEL_SHAPES if any(head.label == name for head in shown)]
    entries = [(name, LABEL_SHAPES[name], "head key") for name in labels]
    entries += [("kept", "circle", "head kept"), ("pruned", "circle", "head cut")]
    body += svg.legend(entries, xs.start, 16)
    alt = f"Sink mass against fluctuation ratio for {len(shown)} heads, kept and pruned."
    return svg.drawing("heads", body, 580, 384, alt)


def head_counts(heads: Sequence[Head]) -> list[tuple[str, int, int]]:
    """Return (label, kept, pruned) for every label that occurs, known labels first."""
    kept = Counter(head.label for head in heads if head.kept)
    cut = Counter(head.label for head in heads if not head.kept)
    order = [*LABEL_SHAPES, *sorted({*kept, *cut} - set(LABEL_SHAPES))]
    return [(name, kept[name], cut[name]) for name in order if kept[name] or cut[name]]

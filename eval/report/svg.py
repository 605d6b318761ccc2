"""Small drawing kit: scales, ticks, axes and marks as SVG text, sizes in user units of at most one CSS pixel.

Colours are classes (templates/chart.css), so one drawing serves light and dark pages.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eval.report import fmt

CHAR_WIDTH = 6.4  # a generous mean for 12 px sans serif text
SHAPES = ("circle", "square", "diamond", "triangle")
LOG_FROM = 8.0  # an axis turns logarithmic when its values span more than this factor


@dataclass(frozen=True)
class Scale:
    """Maps values in [`low`, `high`] to positions from `start` to `stop`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of `value`."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(value) if self.log else value
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.stop - self.start), 2)

    def ticks(self, count: int) -> list[float]:
        """Return round values inside the range."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, with 2s and 5s where the range is short."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [m * 10.0**e for e in exponents for m in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) >= 3:
            return found
    return linear_ticks(low, high, 4)


def padded(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Return a range that holds `values` with a little air."""
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** 0.06, 1.05)
        return low / factor, high * factor
    air = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - air, high + air


def value_scale(values: Sequence[float], start: float, stop: float) -> Scale:
    """Return a scale for `values`: logarithmic if they span much, and not below zero if none of them is."""
    log = min(values) > 0 and max(values) / min(values) > LOG_FROM
    low, high = padded(values, log=log)
    return Scale(max(0.0, low) if min(values) >= 0 else low, high, start, stop, log)


def text_width(text: str) -> float:
    """Estimate the width of a text."""
    return len(text) * CHAR_WIDTH


def esc(text: object) -> str:
    """Escape for SVG and HTML; control characters, which XML forbids, are dropped."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", str(text)), quote=True)


def label(x: float, y: float, text: object, cls: str = "t", anchor: str = "start") -> str:
    """Return a text; `anchor` is start, middle or end."""
    return f'<text class="{cls}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{esc(text)}</text>'


def rect(x: float, y: float, w: float, h: float, cls: str, title: str = "") -> str:
    """Return a rectangle, with a tooltip if `title` is given."""
    shape = f'<rect class="{cls}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
    return f"{shape}><title>{esc(title)}</title></rect>" if title else f"{shape}/>"


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """Return a straight line."""
    return f'<line class="{cls}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def path(points: Sequence[tuple[float, float]], cls: str) -> str:
    """Return a polyline."""
    steps = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="{cls}" d="M{steps}"/>' if points else ""


def marker(x: float, y: float, shape: str, cls: str, title: str = "", size: float = 4.5) -> str:
    """Return a point: circle, square, diamond or triangle."""
    s, d = size, 1.35 * size
    outlines = {
        "square": f"M{x - s:g} {y - s:g}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z",
        "diamond": f"M{x:g} {y - d:g}l{d:g} {d:g}l{-d:g} {d:g}l{-d:g} {-d:g}z",
        "triangle": f"M{x:g} {y - 1.2 * s:g}l{1.2 * s:g} {2.1 * s:g}h{-2.4 * s:g}z",
    }
    tip = f"<title>{esc(title)}</title>" if title else ""
    if shape in outlines:
        return f'<path class="{cls}" d="{outlines[shape]}">{tip}</path>'
    return f'<circle class="{cls}" cx="{x:g}" cy="{y:g}" r="{s:g}">{tip}</circle>'


def hatched(x: float, y: float, w: float, h: float, title: str = "", gap: float = 5) -> str:
    """Return a dashed box filled with diagonal lines: what went as a whole."""
    lines = ""
    for offset in range(1, math.ceil((w + h) / gap)):
        along = gap * offset
        x1, y1 = (x + along, y) if along <= w else (x + w, y + along - w)
        x2, y2 = (x, y + along) if along <= h else (x + along - h, y + h)
        lines += f"M{x1:g} {y1:g}L{x2:g} {y2:g}"
    return f'<path class="hatch" d="{lines}"/>' + rect(x, y, w, h, "gone", title)


def axes(xs: Scale, ys: Scale, x_label: str, y_label: str, x_ticks: Sequence[float] | None = None) -> str:
    """Return grid lines, tick labels and axis titles around the plot area that the two scales span."""
    body = ""
    for value in ys.ticks(5):
        y = ys(value)
        body += line(xs.start, y, xs.stop, y, "grid")
        body += label(xs.start - 8, y + 4, tick(value), "t num", "end")
    for value in xs.ticks(6) if x_ticks is None else x_ticks:
        body += label(xs(value), ys.start + 18, tick(value), "t num", "middle")
    body += line(xs.start, ys.start, xs.stop, ys.start, "axis")
    body += label((xs.start + xs.stop) / 2, ys.start + 38, x_label, "t", "middle")
    return body + label(2, ys.stop - 14, y_label, "t")


def tick(value: float) -> str:
    """Format a tick: as short as can be."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}"
    digits = next((n for n in (1, 2) if math.isclose(float(f"{value:.{n}g}"), value)), 3)
    return fmt.number(value, digits)


def legend(entries: Sequence[tuple[str, str, str]], x: float, y: float) -> str:
    """Return a row of marks and names; an entry is (name, marker shape, class)."""
    body = ""
    for name, shape, cls in entries:
        body += marker(x + 5, y - 4, shape, cls) + label(x + 15, y, name, "t ink")
        x += 15 + text_width(name) + 16
    return body


def drawing(body: str, width: float, height: float, alt: str) -> Markup:
    """Wrap `body` as a figure of the given size in user units; `alt` says what it shows where it cannot be seen."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{esc(alt)}">'
    return Markup(f"{head}{body}</svg>")


def heat_scale(x: float, y: float, w: float, h: float) -> str:
    """Return the nine heat colours in a row, each `w` wide and `h` high."""
    return "".join(rect(x + k * w, y, w, h, heat_class(k / 8)) for k in range(9))


def heat_class(share: float) -> str:
    """Return the colour class of a share in [0, 1], in nine steps."""
    return f"h{round(8 * min(1.0, share))}"

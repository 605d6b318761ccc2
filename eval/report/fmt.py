"""Numbers as people read them: three significant digits, SI units, thousands separators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"
THIN = "\u202f"  # narrow no-break space between number and unit


def number(value: float | None, digits: int = 3) -> str:
    """Format with `digits` significant digits: ``0.0123``, ``12.3``, ``1,234``, ``1.2 × 10⁻⁵``."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    size = abs(float(f"{value:.{digits}g}"))  # 0.9996 has the decimals of 1.00
    if size < 1e-4 or size >= 1e7:
        exponent = math.floor(math.log10(size))
        return f"{value / 10**exponent:.{digits - 1}f} × 10{str(exponent).translate(_SUPERSCRIPT)}"
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def quantity(value: float, unit: str = "") -> str:
    """Format with a decimal SI prefix: ``1.23 M``, ``4.56 GB``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{number(value / factor)}{THIN}{prefix}{unit}"
    return f"{value:,.0f}{THIN}{unit}".rstrip(THIN)


def size(value: float) -> str:
    """Format bytes: ``4.56 GB``."""
    return quantity(value, "B")


def seconds(value: float | None) -> str:
    """Format a duration: ``12.3 ms``, ``4.56 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if value is None:
        return MISSING
    if value < 1e-3:
        return f"{number(value * 1e6)}{THIN}µs"
    if value < 1:
        return f"{number(value * 1e3)}{THIN}ms"
    if value < 60:
        return f"{number(value)}{THIN}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction as a percentage, without trailing zeros: ``49.8 %``, ``50 %``."""
    if value is None:
        return MISSING
    text = f"{100 * value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{THIN}%"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 thread``, ``2 threads``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def times(value: float | None) -> str:
    """Format a ratio: ``1.83×``."""
    if value is None:
        return MISSING
    return f"{value:.2f}×" if value < 10 else f"{number(value)}×"


def span(interval: Sequence[float] | None, show: Callable[[float], str] = number) -> str:
    """Format an interval: ``11.1 to 13.6``."""
    return f"{show(interval[0])} to {show(interval[1])}" if interval else ""

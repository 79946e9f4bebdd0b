"""Numbers as people read them."""

from __future__ import annotations

import math

UNKNOWN = "-"
"""What stands where a number is not known."""


def number(value: float | None) -> str:
    """Whole numbers with their thousands, and three digits of others: 1,234,567, 12.3 and 0.0456."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def compact(value: float) -> str:
    """Two or three digits and the power of a thousand: 1.2 k, 34 M."""
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {name}"
    return f"{value:.3g}"


def share(value: float | None) -> str:
    """Of a whole, in per cent: 12 %, 1.2 %, 0.34 %."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{100 * value:.2g} %" if value < 0.0995 else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    """In the unit that fits: 350 ms, 12 s, 5 min, 3 h, 2 d."""
    if seconds is None or math.isnan(seconds):
        return UNKNOWN
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms" if seconds > 0 else "0 s"
    for limit, unit, name in ((100, 1, "s"), (6_000, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds / unit < 10 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:,.0f} d"

"""Durations: `250ms`, `30s`, `10m`, `6h`, `1d` for people, whole milliseconds for the code."""

import re

PATTERN = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)"  # a regular expression of JSON Schema as well
_FORM = re.compile(PATTERN)
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}

ALLOWED = "a number with ms, s, m, h or d (250ms, 10m)"


def parse_duration(text: str) -> int:
    """Milliseconds of a duration.

    Raises:
        ValueError: the text is no duration, or names a part of a millisecond.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is not a duration; allowed: {ALLOWED}")
    number, unit = match.groups()
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    milliseconds, rest = divmod(int(whole + fraction) * _UNIT_MS[unit], scale)
    if rest:
        raise ValueError("is not a whole number of milliseconds")
    return milliseconds


def format_duration(milliseconds: int) -> str:
    """The shortest text that `parse_duration` reads back as this many milliseconds."""
    for unit, factor in _UNIT_MS.items():
        if milliseconds and milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return "0ms"

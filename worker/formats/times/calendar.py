"""Times written as a date and a time of day: ISO 8601, syslog, klog, and what `worker.formats.times.layouts` makes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.formats.times.columns import (
    COMPLETE,
    DAY_MS,
    LACKS_DATE,
    LACKS_YEAR,
    LOCAL,
    LONGEST_TEXT,
    TextTimes,
    TimeFormat,
)
from worker.formats.times.shapes import Alike, by_shape

MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH_NUMBERS = {name[:length]: 1 + i for i, name in enumerate(MONTHS) for length in (3, len(name))}

_FIRST_YEAR = 1969
"""That a year of two digits can mean (POSIX)."""

_MINUTE_MS = 60_000
_MONTH = np.timedelta64(1, "M")
_NUMBERS = frozenset("YymdHIMS")
_RANGES = {"Y": (1, 9999), "m": (1, 12), "H": (0, 23), "I": (1, 12), "M": (0, 59), "S": (0, 59)}

ZONE = r"[+-][0-9][0-9](?::?[0-9][0-9])?|[Zz]|(?i:UTC|GMT)"
"""Of a text: an offset, or one of the names of offset 0."""


class CalendarTimes(TimeFormat):
    """Reads texts whose parts a regular expression finds.

    Args:
        name: of the format, for people.
        expression: of Python, with the groups Y, y, m, b, d, H, I, p, M, S, f (digits of a fraction), L (a number of
            milliseconds), z (an offset) and Z (a zone's abbreviation), of which any may be missing. What it matches
            must not depend on which digits a text holds.
        pattern: as `TimeFormat` says.
        zones: offsets in ms by abbreviation.
    """

    def __init__(
        self, name: str, expression: str, *, pattern: str | None, zones: Mapping[str, int], flags: int = 0
    ) -> None:
        self.name = name
        self.pattern = pattern
        self._expression = re.compile(expression, flags)
        self._zones = {zone.upper(): offset for zone, offset in zones.items()}
        groups = self._expression.groupindex
        self._lacks = (
            COMPLETE if {"Y", "y"} & groups.keys() else LACKS_YEAR if {"m", "b"} & groups.keys() else LACKS_DATE
        )

    def read(self, texts: pa.StringArray) -> TextTimes:
        """Read the texts that the expression matches as a whole."""
        found = TextTimes.none(len(texts))
        found.lacks[:] = self._lacks
        for alike in by_shape(texts, LONGEST_TEXT):
            parts = self._parts(alike.shape)
            if parts is None or isinstance(offsets := self._offsets(alike, parts), str):
                continue
            times, good = _times(alike, parts, self._lacks)
            found.times[alike.rows] = times
            found.offsets[alike.rows] = offsets
            found.read[alike.rows] = good & ((np.abs(offsets) < DAY_MS) | (offsets == LOCAL))
        return found

    def unknown_zone(self, text: str) -> str | None:
        """Return the abbreviation in a text that is not one of the zones."""
        match = self._expression.match(text)
        if match is None or match.end() != len(text) or not (zone := match.groupdict().get("Z")):
            return None
        return None if zone.upper() in self._zones else zone

    def _parts(self, shape: str) -> "dict[str, _Part] | None":
        match = self._expression.match(shape)
        if match is None or match.end() != len(shape):
            return None
        return {name: _Part(*match.span(name), text) for name, text in match.groupdict().items() if text}

    def _offsets(self, alike: Alike, parts: "Mapping[str, _Part]") -> NDArray[np.int64] | str:
        """(n,) offsets of texts of one shape, or the abbreviation that is not known."""
        n = len(alike.rows)
        if "Z" in parts:
            zone = parts["Z"].text
            return zone if zone.upper() not in self._zones else np.full(n, self._zones[zone.upper()])
        if "z" not in parts:
            return np.full(n, LOCAL)
        start, stop, text = parts["z"]
        if text[0] not in "+-":
            return np.zeros(n, np.int64)
        minutes = alike.number(start + 1, start + 3) * 60
        if len(text) > 3:
            further = alike.number(stop - 2, stop)
            minutes = np.where(further < 60, minutes + further, 24 * 60)
        return (minutes if text[0] == "+" else -minutes) * _MINUTE_MS


class _Part(NamedTuple):
    """Where a part of a time stands in its shape, and what the shape holds there."""

    start: int
    stop: int
    text: str


def _times(alike: Alike, parts: Mapping[str, _Part], lacks: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(n,) milliseconds since 1970 without regard to zones, and whether every number is in its range."""
    good = np.ones(len(alike.rows), bool)
    values = {name: alike.number(at.start, at.stop) for name, at in parts.items() if name in _NUMBERS}
    for name, (least, greatest) in _RANGES.items():
        if name in values:
            good &= (least <= values[name]) & (values[name] <= greatest)
    zero = np.int64(0)
    hours = values.get("H", zero)
    if "I" in values:
        hours = values["I"] % 12 + (12 if "p" in parts and parts["p"].text.lower() == "pm" else 0)
    times = ((hours * 60 + values.get("M", zero)) * 60 + values.get("S", zero)) * 1000 + _milliseconds(alike, parts)
    if lacks != LACKS_DATE:
        days, in_month = _days(values, parts)
        times, good = times + days * DAY_MS, good & in_month
    return np.broadcast_to(times, good.shape), good


def _milliseconds(alike: Alike, parts: Mapping[str, _Part]) -> NDArray[np.int64] | np.int64:
    if "L" in parts:
        return alike.number(parts["L"].start, parts["L"].stop)
    if "f" not in parts:
        return np.int64(0)
    start, stop, text = parts["f"]
    digits = min(len(text), 3)
    return alike.number(start, min(stop, start + 3)) * np.int64(10 ** (3 - digits))


def _days(
    values: Mapping[str, NDArray[np.int64]], parts: Mapping[str, _Part]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Days since 1970, and whether the month has the day."""
    years: NDArray[np.int64] | np.int64 = np.int64(2000)
    if "Y" in values:
        years = values["Y"]
    elif "y" in values:
        years = _FIRST_YEAR + (values["y"] - _FIRST_YEAR) % 100
    month = values.get("m", np.int64(_MONTH_NUMBERS[parts["b"].text.lower()] if "b" in parts else 1))
    months = np.asarray((years - 1970) * 12 + month - 1).astype("datetime64[M]")
    first, next_first = (each.astype("datetime64[D]").astype(np.int64) for each in (months, months + _MONTH))
    days = first + values.get("d", np.int64(1)) - 1
    return days, (first <= days) & (days < next_first)


def iso8601(name: str, zones: Mapping[str, int]) -> CalendarTimes:
    """ISO 8601 and RFC 3339: any fraction, after a point or a comma, `T` or a space, an offset with or without a colon.

    A date alone is its midnight, and parts may be left out from the end. The form without hyphens and colons is read
    too. Where there are zones, the time in a line may be followed by an abbreviation, which then has to be one of them.
    """
    named, follows = (r"|(?P<Z>[A-Za-z]{2,6})", "|[A-Z]{2,6}") if zones else ("", "")
    two = "[0-9]{2}"
    expression = (
        rf"(?P<Y>[0-9]{{4}})(?P<hyphen>-?)(?P<m>{two})(?P=hyphen)(?P<d>{two})"
        rf"(?:[Tt ](?P<H>{two})(?::?(?P<M>{two})(?::?(?P<S>{two})(?:[.,](?P<f>[0-9]+))?)?)?"
        rf"(?: ?(?:(?P<z>{ZONE}){named}))?)?\Z"
    )
    pattern = (
        rf"(?:^|[^0-9])([0-9]{{4}}-{two}-{two}[Tt ]{two}:{two}(?::{two}(?:[.,][0-9]+)?)?"
        rf"(?: ?(?:Z|UTC|GMT|[+-](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?{follows})\b)?)"
    )
    return CalendarTimes(name, expression, pattern=pattern, zones=zones)


_MONTHS = "A(?:pr|ug)|Dec|Feb|J(?:an|u[ln])|Ma[ry]|Nov|Oct|Sep"  # at each letter it is clear what goes on
_CLOCK = r"(?P<H>[0-9]{2}):(?P<M>[0-9]{2}):(?P<S>[0-9]{2})"


def syslog() -> CalendarTimes:
    """`Mmm dd hh:mm:ss` of RFC 3164, the day with a space or a 0 before it or neither; no year."""
    months = "|".join(month[:3].title() for month in MONTHS)
    return CalendarTimes(
        "syslog",
        rf"(?P<b>{months}) {{1,2}}(?P<d>[0-9]{{1,2}}) {_CLOCK}",
        pattern=rf"^(?:<[0-9]{{1,3}}>)?((?:{_MONTHS}) {{1,2}}[0-9]{{1,2}} [0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}})",
        zones={},
    )


def klog() -> CalendarTimes:
    """`Lmmdd hh:mm:ss.uuuuuu` of Kubernetes, with the letter of the severity or without it; no year."""
    return CalendarTimes(
        "klog",
        rf"[IWEF]?(?P<m>[0-9]{{2}})(?P<d>[0-9]{{2}}) {_CLOCK}\.(?P<f>[0-9]{{6}})",
        pattern=r"^([IWEF][0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6})",
        zones={},
    )

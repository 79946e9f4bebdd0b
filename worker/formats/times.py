"""Event times in milliseconds since 1970 UTC, from JSON values and from text."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_LEAST_MILLISECONDS = 10**11
"""A number below this counts seconds: as seconds it is the year 5138, as milliseconds 1973."""

_MOST_MILLISECONDS = 10**14

_REMEMBERED_TEXTS = 4_096  # lines near each other share theirs

_LONGEST_TEXT = 256
"""Characters. `strptime` backtracks over white space, and what is remembered must stay small; no time is so long."""

_DIGITS = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
"""Of the directives that are plain numbers, written in full."""

_FIRST_YEAR = 1969
"""That a year of two digits can mean (POSIX)."""


def from_json(value: object) -> int:
    """Return the time that a JSON value tells.

    Args:
        value: ISO 8601 text, UTC if it names no zone; or a number since 1970: seconds below 10^11, milliseconds
            below 10^14, either sign.

    Raises:
        ValueError: it tells none.
    """
    if isinstance(value, str):
        try:
            return _milliseconds(datetime.fromisoformat(value))
        except ValueError:
            raise ValueError(f"{value[:100]!r} is not an ISO 8601 time") from None
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_MILLISECONDS:
        return round(value * 1000) if abs(value) < _LEAST_MILLISECONDS else round(value)
    raise ValueError("it is neither text nor a number of seconds or milliseconds since 1970")


class TimeFormat:
    """Reads times written in one format, each distinct text once.

    Args:
        layout: a `strptime` format; a time without a zone is UTC.

    Raises:
        ValueError: `strptime` does not know the format.
    """

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self._times: dict[str, int | None] = {}
        try:
            datetime.strptime(_EPOCH.strftime(layout), layout)  # noqa: DTZ007  only whether it can be read
        except ValueError as error:
            raise ValueError(f"{layout!r} is not a format that strptime can read: {error}") from error
        self._parts = _parts(layout)

    def parse_all(self, texts: Sequence[str]) -> list[int | None]:
        """Return what `parse` says of each text; much faster where most are alike and their numbers written in full."""
        ((length, _),) = Counter(map(len, texts)).most_common(1) or [(0, 0)]
        if (parts := self._parts) is None or not 0 < length <= _LONGEST_TEXT:
            return [self.parse(text) for text in texts]
        alike = [text if len(text) == length and text.isascii() else " " * length for text in texts]
        characters = np.frombuffer("".join(alike).encode(), np.uint8).reshape(len(texts), length)
        found, good = _numbers(characters, parts)
        return [
            time if is_good else self.parse(text)
            for text, time, is_good in zip(texts, found.tolist(), good.tolist(), strict=True)
        ]

    def parse(self, text: str) -> int | None:
        """Return the time of a text, None if it is not written in the format or longer than 256 characters."""
        if len(text) > _LONGEST_TEXT:
            return None
        if text in self._times:
            return self._times[text]
        try:
            time = _milliseconds(datetime.strptime(text, self.layout))  # noqa: DTZ007  made UTC there
        except (ValueError, OverflowError):
            time = None
        if len(self._times) >= _REMEMBERED_TEXTS:
            self._times.clear()
        self._times[text] = time
        return time


def _parts(layout: str) -> list[str] | None:
    """The directives of a layout (with their %) and the characters between; None if it has others than plain numbers.

    A fraction of a second has to come last: before anything else `strptime` has a choice of how many digits it takes.
    """
    parts: list[str] = re.findall("%.|.", layout, re.DOTALL)
    directives = [part[1] for part in parts if len(part) == 2]
    plain = layout.isascii() and all(each in _DIGITS or each == "f" for each in directives)
    return parts if plain and "%f" not in parts[:-1] and not {"%Y", "%y"} <= set(parts) else None


def _numbers(characters: NDArray[np.uint8], parts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read texts of one length whose numbers have all their digits, as `strptime` does.

    Where every number is in its range, `strptime` finds the same: it too takes two digits before it takes one.

    Args:
        characters: (n, length) ASCII codes.
        parts: of the layout (`_parts`).

    Returns:
        (n,) milliseconds since 1970, and (n,) whether the text is such a one; of the others nothing is said.
    """
    n, length = characters.shape
    values = {
        directive: np.full(n, least) for directive, least in zip("YmdHMSf", (1900, 1, 1, 0, 0, 0, 0), strict=True)
    }
    good = np.ones(n, bool)
    at = 0
    for part in parts:
        width = 1 if len(part) == 1 else _DIGITS.get(part[1], length - at)
        found = characters[:, at : at + width]
        at += width
        if not 0 < found.shape[1] == width <= 6:
            return values["f"], np.zeros(n, bool)
        if len(part) == 1:
            good &= found[:, 0] == ord(part)
            continue
        digits = found - ord("0")  # what is no digit comes out above 9
        good &= (digits <= 9).all(axis=1)
        values[part[1]] = digits @ 10 ** np.arange(width - 1, -1, -1)
        if part == "%f":
            values["f"] *= 10 ** (6 - width)
    if at != length:
        return values["f"], np.zeros(n, bool)
    if "y" in values:
        values["Y"] = _FIRST_YEAR + (values["y"] - _FIRST_YEAR) % 100
    for directive, least, greatest in (("Y", 1, 9999), ("m", 1, 12), ("H", 0, 23), ("M", 0, 59), ("S", 0, 59)):
        good &= (least <= values[directive]) & (values[directive] <= greatest)
    months = ((values["Y"] - 1970) * 12 + values["m"] - 1).astype("datetime64[M]")
    first, next_first = (each.astype("datetime64[D]").astype(np.int64) for each in (months, months + 1))
    days = first + values["d"] - 1
    good &= (first <= days) & (days < next_first)
    seconds = ((days * 24 + values["H"]) * 60 + values["M"]) * 60 + values["S"]
    return seconds * 1000 + values["f"] // 1000, good


def _milliseconds(time: datetime) -> int:
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return (time - _EPOCH) // _MILLISECOND

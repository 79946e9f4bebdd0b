"""Times written as a format of `strptime` says, with `%L` for milliseconds and `%Z` where a table explains it."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from worker.formats.times.calendar import MONTHS, CalendarTimes
from worker.formats.times.columns import COMPLETE, DAY_MS, LACKS_DATE, LACKS_YEAR, LONGEST_TEXT, TextTimes, TimeFormat

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEAP_DAY = datetime(2000, 2, 29, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_REMEMBERED_TEXTS = 4_096  # lines near each other share theirs

# The directives whose texts are read a whole column at a time. Each takes what `strptime` takes and a little more, in
# the same order of preference, so that a time whose numbers are in their ranges is the one that `strptime` finds.
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UP_TO_TWO = "[0-9][0-9]|[0-9]"
_EXPRESSIONS = {
    "Y": "[0-9]{4}",
    "y": "[0-9]{2}",
    "m": _UP_TO_TWO,
    "d": f"{_UP_TO_TWO}| [0-9]",
    "H": _UP_TO_TWO,
    "I": _UP_TO_TWO,
    "M": _UP_TO_TWO,
    "S": _UP_TO_TWO,
    "f": "[0-9]{1,6}",
    "L": "[0-9]{1,3}",
    "b": "|".join(name[:3] for name in MONTHS),
    "B": "|".join(MONTHS),
    "a": "|".join(name[:3] for name in _DAYS),
    "A": "|".join(_DAYS),
    "p": "am|pm",
    "z": "[+-][0-9][0-9]:?[0-9][0-9]|(?-i:Z)",
    "Z": "[a-z]{1,6}",
}
_ONE_OF = ("Yy", "mbB", "aA", "HI", "fL", "zZ")  # that a format holds both of only by mistake
_OWN = ("%L", "%Z")
_SUCH_AS = "such as %Y-%m-%d %H:%M:%S"
_WITH_YEAR = {"Y", "y", "c", "x", "G"}


class Layout(TimeFormat):
    """Reads times written in one format of `strptime`.

    Beside its directives there is `%L`, milliseconds as a number of up to three digits (`7` is 7 ms, where for `%f` it
    is a fraction, 700 ms), and `%Z`, an abbreviation of `zones`. A format without a year gives days of a year that is
    to be found, one without a date times of a day that is to be found.

    Args:
        layout: such as `%Y-%m-%d %H:%M:%S`.
        zones: offsets in ms by abbreviation.

    Raises:
        ValueError: a sentence on what is wrong with the format and what is allowed.
    """

    numbers = True

    def __init__(self, layout: str, zones: Mapping[str, int]) -> None:
        self.name = layout
        self._parts: list[str] = re.findall("%.|.", layout, re.DOTALL)
        directives = [part[1:] for part in self._parts if len(part) == 2 and part != "%%"]
        self._own = any(each in self._parts for each in _OWN)
        if "Z" in directives and not zones:
            raise ValueError(
                "has %Z, but an abbreviation of a zone means nothing by itself; allowed: %Z with "
                "zones: {CET: '+01:00'} beside the format, or %z for an offset such as +0100"
            )
        self._columns = _columns(layout, self._parts, zones)
        if self._own and self._columns is None:
            raise ValueError(
                "has %L or %Z beside what they cannot stand with; allowed with them, each once: "
                + ", ".join(f"%{each}" for each in _EXPRESSIONS)
            )
        if not self._own:
            _check(layout)
        self._lacks = _lacks(directives)
        self._times: dict[str, tuple[int, int | None] | None] = {}

    def read(self, texts: pa.StringArray) -> TextTimes:
        """Read the texts that `strptime` reads in this format, and with `%L` and `%Z` those that it would."""
        found = TextTimes.none(len(texts)) if self._columns is None else self._columns.read(texts)
        found.lacks[:] = self._lacks
        if self._own:
            return found
        for row in (~found.read).nonzero()[0].tolist():
            if (time := self._strptime(texts[row])) is not None:
                found.times[row], offset = time
                found.read[row] = True
                if offset is not None:
                    found.offsets[row] = offset
        return found

    def unknown_zone(self, text: str) -> str | None:
        """Return the abbreviation in a text that is not one of the zones."""
        return None if self._columns is None else self._columns.unknown_zone(text)

    def _strptime(self, scalar: pa.StringScalar) -> tuple[int, int | None] | None:
        """The time of a text by the clock it tells of and that clock's offset, in ms; None if it is no time."""
        if scalar.as_buffer().size > 4 * LONGEST_TEXT or len(text := scalar.as_py()) > LONGEST_TEXT:
            return None
        if text not in self._times:
            if len(self._times) >= _REMEMBERED_TEXTS:
                self._times.clear()
            self._times[text] = self._strptime_anew(text)
        return self._times[text]

    def _strptime_anew(self, text: str) -> tuple[int, int | None] | None:
        year = ("2000|", "%Y|") if self._lacks == LACKS_YEAR else ("", "")
        try:
            time = datetime.strptime(year[0] + text, year[1] + self.name)  # noqa: DTZ007  made UTC below
        except (ValueError, OverflowError):
            return None
        offset = time.utcoffset()
        local = (time.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
        return (
            local % DAY_MS if self._lacks == LACKS_DATE else local,
            None if offset is None else offset // _MILLISECOND,
        )


def _check(layout: str) -> None:
    """Refuse what `strptime` cannot read."""
    try:
        datetime.strptime(_LEAP_DAY.strftime(layout), layout)  # noqa: DTZ007  only whether it can be read
    except (ValueError, re.error) as error:
        if "day is out of range" not in str(error):  # 29 February without a year
            raise ValueError(f"is not a format that strptime can read ({error}); allowed: {_SUCH_AS}") from error


def _columns(layout: str, parts: list[str], zones: Mapping[str, int]) -> CalendarTimes | None:
    """What reads whole columns of the format; None if it has directives for which that is not known."""
    directives = [part[1] for part in parts if len(part) == 2 and part != "%%"]
    if not layout.isascii() or not _EXPRESSIONS.keys() >= set(directives) or len(set(directives)) < len(directives):
        return None
    if any(len(set(each) & set(directives)) > 1 for each in _ONE_OF):
        return None
    pieces = []
    for part in parts:
        if len(part) == 2 and part != "%%":
            name = {"B": "b"}.get(part[1], part[1])
            pieces.append(f"(?P<{name}>{_EXPRESSIONS[part[1]]})")
        elif part.isspace():
            if not pieces or pieces[-1] != r"\s+":
                pieces.append(r"\s+")
        else:
            pieces.append(re.escape(part[-1]))
    return CalendarTimes(layout, "".join(pieces), pattern=None, zones=zones, flags=re.IGNORECASE)


def _lacks(directives: list[str]) -> int:
    given = set(directives)
    if given & _WITH_YEAR:
        return COMPLETE
    month, day = bool(given & {"m", "b", "B"}), "d" in given
    if month != day or given & {"j", "U", "W", "V"}:
        raise ValueError("tells a part of a date; allowed: year, month and day, the last two of them, or none")
    if month:
        return LACKS_YEAR
    if not given & {"H", "I", "X"}:
        raise ValueError(f"tells neither a date nor an hour; allowed: {_SUCH_AS}")
    return LACKS_DATE

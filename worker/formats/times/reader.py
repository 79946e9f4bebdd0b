"""Event times: from texts and numbers to milliseconds since 1970 UTC, in any of several formats.

The formats, by name: `iso8601` and `rfc3339` (the same), `epoch` and `epoch_s`, `epoch_ms`, `epoch_us`, `epoch_ns`,
`syslog`, `klog`; whatever holds a `%` is a format of `strptime` (`worker.formats.times.layouts`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.formats.times.calendar import iso8601, klog, syslog
from worker.formats.times.columns import (
    LACKS_DATE,
    LACKS_YEAR,
    LOCAL,
    LONGEST_TEXT,
    TextTimes,
    TimeFormat,
    clipped,
    in_range,
)
from worker.formats.times.epochs import EpochTimes, Unit
from worker.formats.times.layouts import Layout
from worker.formats.times.timezones import Timezone
from worker.formats.times.years import FileYears, nearest_days, nearest_years

_EPOCHS: Final[Mapping[str, Unit | None]] = {
    "epoch": None,
    "epoch_s": "s",
    "epoch_ms": "ms",
    "epoch_us": "us",
    "epoch_ns": "ns",
}
_NAMES = ("iso8601", "rfc3339", *_EPOCHS, "syslog", "klog")

ALLOWED = f"{', '.join(_NAMES)}, or a format of strptime such as '%Y-%m-%d %H:%M:%S'"


def time_format(name: object, zones: Mapping[str, int]) -> TimeFormat:
    """The format of a name.

    Args:
        name: one of the list above, or a format of `strptime`.
        zones: offsets in ms by abbreviation.

    Raises:
        ValueError: a sentence: there is no such format.
    """
    if not isinstance(name, str) or (name not in _NAMES and "%" not in name):
        raise ValueError(f"is not a format of times; allowed: {ALLOWED}")
    if name in _EPOCHS:
        return EpochTimes(_EPOCHS[name])
    if name == "syslog":
        return syslog()
    if name == "klog":
        return klog()
    return Layout(name, zones) if "%" in name else iso8601(name, zones)


class TimeReader:
    """Reads times that are written in any of some formats, tried in their order for each text by itself.

    Args:
        formats: names or `strptime` formats.
        timezone: of times that name no zone (IANA).
        zones: offsets in ms by abbreviation.

    Raises:
        ValueError: one of them cannot be used.
    """

    def __init__(self, formats: Sequence[str], timezone: str = "UTC", zones: Mapping[str, int] | None = None) -> None:
        self.formats = [time_format(name, zones or {}) for name in formats]
        self._timezone = Timezone(timezone)

    def read(self, texts: pa.StringArray, *, numbers: bool = False) -> TextTimes:
        """Read texts without nulls.

        Args:
            texts: (n,) of them.
            numbers: they are numbers of JSON documents, which only some of the formats can be meant by.
        """
        found = TextTimes.none(len(texts))
        left = np.arange(len(texts))
        for each in self.formats:
            if numbers and not each.numbers:
                continue
            times = each.read(texts if len(left) == len(texts) else texts.take(pa.array(left)))
            times.read &= in_range(times.times)
            found.put(left, times)
            left = left[~times.read]
            if len(left) == 0:
                break
        return found

    def utc(self, times: TextTimes) -> NDArray[np.int64]:
        """(n,) ms since 1970 UTC of times that lack nothing; those out of a calendar's years become unread."""
        offset = times.offsets
        local = offset == LOCAL
        if not local.any():
            utc = times.times - offset
        else:
            utc = times.times - np.where(local, 0, offset)
            utc[local] = self._timezone.utc(times.times[local])
        times.read &= in_range(utc)
        return utc

    def complete(self, times: TextTimes, references: NDArray[np.int64]) -> None:
        """Give times that lack the year or the date what brings them nearest to their references (ms since 1970)."""
        for lacking, nearest in ((LACKS_YEAR, nearest_years), (LACKS_DATE, nearest_days)):
            rows = _lacking(times, lacking)
            if len(rows):
                near, offsets = clipped(references[rows]), times.offsets[rows]
                local = offsets == LOCAL
                clocks = np.where(local, self._timezone.local(near), near + np.where(local, 0, offsets))
                times.times[rows] = nearest(times.times[rows], clocks)

    def follow(self, times: TextTimes, years: FileYears, first_year: int | None) -> None:
        """Give the times of a file's next lines what they lack, by the order of all its lines."""
        modified_ms = int(self._timezone.local(np.array([years.modified_ms]))[0])
        for lacking in (LACKS_YEAR, LACKS_DATE):
            rows = _lacking(times, lacking)
            times.times[rows] = years.follow(times.times[rows], lacking, modified_ms, first_year)

    def why_not(self, text: str) -> str:
        """Why a text is not a time."""
        for each in self.formats:
            if len(text) <= LONGEST_TEXT and (zone := each.unknown_zone(text)) is not None:
                return f"{text!r} names the zone {zone!r}, which input.timestamp.zones does not explain"
        names = [each.name for each in self.formats]
        if len(names) == 1:
            return f"{text[:100]!r} is not a time in the format {names[0]!r}"
        return f"{text[:100]!r} is not a time in any of the formats {', '.join(map(repr, names))}"


def _lacking(times: TextTimes, what: int) -> NDArray[np.int64]:
    return np.flatnonzero(times.read & (times.lacks == what))

"""What the formats of times have in common: times of texts as columns, before their zone and their year are known."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DAY_MS = 86_400_000
YEAR_2000_MS = 10_957 * DAY_MS
"""A leap year: what lacks a year can be any day of it."""

LONGEST_TEXT = 256
"""Characters: no time is so long, and what reads it may backtrack."""

COMPLETE, LACKS_YEAR, LACKS_DATE = 0, 1, 2

LOCAL = np.iinfo(np.int64).max
"""In place of an offset: the text names no zone."""

_FIRST_MS, _END_MS = -62_135_596_800_000, 253_402_300_800_000  # of the years 1 to 9999


@dataclass(slots=True)
class TextTimes:
    """Times of n texts, as columns.

    Attributes:
        times: ms since 1970 by the clock that the text tells of; on a day of 2000 where it lacks the year, on the first
            day of 1970 where it lacks the date.
        offsets: ms by which that clock is ahead of UTC; LOCAL where the text names no zone.
        lacks: COMPLETE, LACKS_YEAR or LACKS_DATE.
        read: whether the text is a time; of the others nothing is said.
    """

    times: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lacks: NDArray[np.int8]
    read: NDArray[np.bool_]

    @classmethod
    def none(cls, n: int) -> "TextTimes":
        """Of n texts that are no times."""
        return cls(np.zeros(n, np.int64), np.full(n, LOCAL), np.zeros(n, np.int8), np.zeros(n, bool))

    def take(self, rows: NDArray[np.int64]) -> "TextTimes":
        """Some of them, in any order and as often as wanted."""
        return TextTimes(self.times[rows], self.offsets[rows], self.lacks[rows], self.read[rows])

    def between(self, start: int, stop: int) -> "TextTimes":
        """Those from `start` to before `stop`; what is changed in them is changed here."""
        return TextTimes(
            self.times[start:stop], self.offsets[start:stop], self.lacks[start:stop], self.read[start:stop]
        )

    def put(self, rows: NDArray[np.int64], others: "TextTimes") -> None:
        """Take these in the place of those rows."""
        self.times[rows], self.offsets[rows] = others.times, others.offsets
        self.lacks[rows], self.read[rows] = others.lacks, others.read


class TimeFormat(ABC):
    """One way to write a time.

    Attributes:
        name: as the settings write it.
        pattern: where such a time stands in a line, in RE2; None where a line can hold it anywhere.
        numbers: whether a number of a JSON document can be such a time.
    """

    name: str
    pattern: str | None = None
    numbers: bool = False

    @abstractmethod
    def read(self, texts: pa.StringArray) -> TextTimes:
        """Read the texts that are written in this format."""

    def unknown_zone(self, text: str) -> str | None:
        """Return the abbreviation of a zone that nothing explains, for which alone the text is not read."""
        del text
        return None


def in_range(utc_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each time lies in the years 1 to 9999, the ones that a calendar knows."""
    return (utc_ms >= _FIRST_MS) & (utc_ms < _END_MS)


def clipped(utc_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same with what lies outside those years at their ends."""
    return utc_ms.clip(_FIRST_MS, _END_MS - 1)

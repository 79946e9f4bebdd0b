"""The year of times that are written without one, and the day of times of day."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.formats.times.columns import DAY_MS, LACKS_DATE, LACKS_YEAR, YEAR_2000_MS, clipped

_FEBRUARY_29 = 59  # day of a leap year, from 0
_HALF_YEAR = 183
_AHEAD_MS = 14 * 3_600_000
_NEAR = np.array([-1, 0, 1])
_NEAR_LEAP = np.arange(-8, 9)  # between 1896 and 1904 there is no leap year

Times = NDArray[np.int64]


def nearest_years(times: Times, references: Times) -> Times:
    """Put each time into the year that brings it nearest to its reference; 29 February into the nearest leap year.

    Args:
        times: (n,) ms, in the year 2000.
        references: (n,) ms since 1970, by the same clock.
    """
    days, in_day = np.divmod(times - YEAR_2000_MS, DAY_MS)
    references = clipped(references)
    years = _year(references)
    # What lies within 180 days of its reference in the reference's own year is nearer than in any other.
    found = _day_of(years, days) * DAY_MS + in_day
    leap = days == _FEBRUARY_29
    far = np.abs(found - references) > 180 * DAY_MS
    for rows, around in ((far & ~leap, _NEAR), (leap, _NEAR_LEAP)):
        if not rows.any():
            continue
        candidates = years[rows, None] + around
        written = _day_of(candidates, days[rows, None]) * DAY_MS + in_day[rows, None]
        distances = np.abs(written - references[rows, None])
        if around is _NEAR_LEAP:
            distances[~_is_leap(candidates)] = np.iinfo(np.int64).max
        found[rows] = np.take_along_axis(written, distances.argmin(axis=1)[:, None], axis=1)[:, 0]
    return found


def nearest_days(times: Times, references: Times) -> Times:
    """Put each time of day on the day that brings it nearest to its reference.

    Args:
        times: (n,) ms, on the first day of 1970.
        references: (n,) ms since 1970, by the same clock.
    """
    days: Times = (clipped(references) - times + DAY_MS // 2) // DAY_MS
    return times + days * DAY_MS


class FileYears:
    """Finds the years of a file's times from the order of its lines.

    The first line has the year it is given, or else the last in which it is not later than the file's modification (by
    more than 14 hours: a local time can be that far ahead of UTC, and nobody may have said which zone it is of). From
    each line to the next, time takes the shorter way round the year: from 31 December to 1 January, and back where such
    a line is late. So what is written within half a year of the line before is right, whatever the file spans.
    A 29 February is of the nearest leap year, and what follows goes on from there. Times of day follow each other
    through the days in the same way.

    Args:
        modified_ms: when the file was last written to, in ms since 1970 UTC.
    """

    def __init__(self, modified_ms: int) -> None:
        self.modified_ms = modified_ms
        self._last: dict[int, tuple[int, int]] = {}  # by what the times lack: the last time as written, and as found

    def follow(self, times: Times, lacks: int, modified_ms: int, first_year: int | None) -> Times:
        """Return the times in full; must be called with all lines of the file in their order.

        Args:
            times: (n,) ms, in the year 2000 or on the first day of 1970.
            lacks: LACKS_YEAR or LACKS_DATE, the same for all.
            modified_ms: of the file, by the clock of the times.
            first_year: of the file's first line; None where nobody has said.
        """
        if len(times) == 0:
            return times
        found = self._days(times, modified_ms) if lacks == LACKS_DATE else self._years(times, modified_ms, first_year)
        self._last[lacks] = int(times[-1]), int(found[-1])
        return found

    def _days(self, times: Times, modified_ms: int) -> Times:
        if LACKS_DATE in self._last:
            written, last = self._last[LACKS_DATE]
        else:
            written = int(times[0])
            last = written + (modified_ms - written) // DAY_MS * DAY_MS
        steps = np.diff(times, prepend=written)
        days: Times = np.cumsum(-((steps + DAY_MS // 2) // DAY_MS))
        return times + (last - written) + days * DAY_MS

    def _years(self, times: Times, modified_ms: int, first_year: int | None) -> Times:
        days, in_day = np.divmod(times - YEAR_2000_MS, DAY_MS)
        if LACKS_YEAR in self._last:
            written, last = self._last[LACKS_YEAR]
            before, year = (written - YEAR_2000_MS) // DAY_MS, int(_year(np.array([last]))[0])
        else:
            before, year = int(days[0]), first_year or _latest_year(times[0], modified_ms + _AHEAD_MS)
        steps = np.diff(days, prepend=before)
        years = year + np.cumsum(np.select([steps < -_HALF_YEAR, steps > _HALF_YEAR], [1, -1], 0))
        while (wrong := np.flatnonzero((days == _FEBRUARY_29) & ~_is_leap(years))).size:
            years[wrong[0] :] += _nearest_leap_year(int(years[wrong[0]])) - years[wrong[0]]
        return _day_of(years, days) * DAY_MS + in_day


def _year(times: Times) -> Times:
    years: Times = times.astype("datetime64[ms]").astype("datetime64[Y]").astype(np.int64)
    return years + 1970


def _is_leap(years: Times) -> NDArray[np.bool_]:
    leap: NDArray[np.bool_] = (years % 4 == 0) & ((years % 100 != 0) | (years % 400 == 0))
    return leap


def _latest_year(time: np.int64, latest_ms: int) -> int:
    """The last year in which a time of the year 2000 is not later than this; a leap year for 29 February."""
    around = (int(_year(np.array([latest_ms]))[0]) + _NEAR_LEAP)[:, None]
    day, in_day = np.divmod(time - YEAR_2000_MS, DAY_MS)
    fits = _day_of(around, day) * DAY_MS + in_day <= latest_ms
    if day == _FEBRUARY_29:
        fits &= _is_leap(around)
    return int(around[fits].max())


def _nearest_leap_year(year: int) -> int:
    """The later of two as near: lines go forward."""
    around = np.sort(year + _NEAR_LEAP)[::-1]
    leap = around[_is_leap(around)]
    return int(leap[np.abs(leap - year).argmin()])


def _day_of(years: Times, days: Times) -> Times:
    """Days since 1970 of days of a leap year (from 0) in other years; 29 February is 1 March where there is none."""
    first = (years - 1970).astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64)
    return first + days - ((days > _FEBRUARY_29) & ~_is_leap(years))

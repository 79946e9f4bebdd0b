"""Local times and UTC, a column at a time, by the rules of a time zone."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from worker.formats.times.columns import DAY_MS, in_range

_OFFSET = re.compile(r"([+-])([01][0-9]|2[0-3]):?([0-5][0-9])")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  a clock's time, whatever its zone
_SECONDS_OF_DAY = 86_400
_REMEMBERED_DAYS = 4_096


def parse_offset(text: object) -> int:
    """Milliseconds by which a zone is ahead of UTC.

    Raises:
        ValueError: the text is not of the form `+02:00`.
    """
    match = _OFFSET.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("is not an offset from UTC; allowed: hours and minutes in quotes, such as '+02:00'")
    minutes = int(match[2]) * 60 + int(match[3])
    return (minutes if match[1] == "+" else -minutes) * 60_000


class Timezone:
    """What a clock shows in one time zone.

    Where clocks are put back, the hour that they show twice is the first of the two; where they are put forward, a time
    in the hour that they leave out is as much later (02:30 is 03:30).

    Args:
        name: of the IANA database, such as `Europe/Berlin`, or `UTC`.

    Raises:
        ValueError: a sentence: no such zone is known here.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._zone = None
        # By day: offset at its beginning, the second at which it becomes another, that one.
        self._local_days: dict[int, tuple[int, int, int]] = {}
        self._utc_days: dict[int, tuple[int, int, int]] = {}
        if name != "UTC":
            try:
                self._zone = ZoneInfo(name)
            except (LookupError, OSError, ValueError):
                raise ValueError(
                    "is not a time zone that is known here; allowed: a name of the IANA database, such as Europe/Berlin"
                ) from None

    def utc(self, local_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """When a clock shows these times; those beyond the years 1 to 9999 are left as they are."""
        return local_ms - self._offsets(local_ms, local=True)

    def local(self, utc_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """What a clock shows at these times; those beyond the years 1 to 9999 are left as they are."""
        return utc_ms + self._offsets(utc_ms, local=False)

    def _offsets(self, times: NDArray[np.int64], *, local: bool) -> NDArray[np.int64]:
        if self._zone is None or len(times) == 0:
            return np.zeros_like(times)
        inside = in_range(times)
        days, which = np.unique(np.where(inside, times, 0) // DAY_MS, return_inverse=True)
        rows = np.array([self._day(day, local=local) for day in days.tolist()], np.int64)
        before, switch, after = rows[which].T
        seconds = times // 1000 % _SECONDS_OF_DAY
        return np.where(inside, np.where(seconds < switch, before, after), 0)

    def _day(self, day: int, *, local: bool) -> tuple[int, int, int]:
        """Of a day by the zone's own clock or by UTC."""
        known = self._local_days if local else self._utc_days
        if day not in known:
            first, last = self._offset(day, 0, local=local), self._offset(day, _SECONDS_OF_DAY - 1, local=local)
            least, switch = 0, _SECONDS_OF_DAY
            # No zone changes its offset twice in a day.
            while first != last and switch - least > 1:
                middle = (least + switch) // 2
                if self._offset(day, middle, local=local) == first:
                    least = middle
                else:
                    switch = middle
            if len(known) >= _REMEMBERED_DAYS:
                known.clear()
            known[day] = first, switch, last
        return known[day]

    def _offset(self, day: int, second: int, *, local: bool) -> int:
        time = _EPOCH + timedelta(days=day, seconds=second)
        if local:
            offset = time.replace(tzinfo=self._zone).utcoffset()
        else:
            try:
                offset = time.replace(tzinfo=UTC).astimezone(self._zone).utcoffset()
            except OverflowError:  # at the ends of the calendar
                offset = timedelta()
        return (offset or timedelta()) // timedelta(milliseconds=1)

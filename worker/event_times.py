"""Event times in milliseconds since 1970 UTC, from JSON values and from text."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_LEAST_MILLISECONDS = 10**11
"""A number below this counts seconds: as seconds it is the year 5138, as milliseconds 1973."""

_MOST_MILLISECONDS = 10**14

_REMEMBERED_TEXTS = 65_536


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

    def parse(self, text: str) -> int | None:
        """Return the time of a text, None if it is not written in the format."""
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


def _milliseconds(time: datetime) -> int:
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return (time - _EPOCH) // _MILLISECOND

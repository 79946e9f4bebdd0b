"""What tests of times share: reading texts, and Python's own word for a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from worker.formats.times.reader import TimeReader

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(time: datetime) -> int:
    """Since 1970, rounded down; UTC where the time names no zone."""
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(milliseconds=1)


def at(text: str) -> int:
    """Milliseconds of an ISO 8601 text."""
    return milliseconds(datetime.fromisoformat(text))


def read(
    formats: str | Sequence[str],
    texts: Sequence[str],
    *,
    timezone: str = "UTC",
    zones: Mapping[str, int] | None = None,
    reference: int = at("2000-01-01"),
) -> list[int | None]:
    """The time of each text, completed from one reference; None for what is no time."""
    reader = TimeReader([formats] if isinstance(formats, str) else formats, timezone, zones)
    times = reader.read(pa.array(texts, pa.string()))
    reader.complete(times, np.full(len(texts), reference))
    utc = reader.utc(times).tolist()
    return [time if good else None for time, good in zip(utc, times.read.tolist(), strict=True)]

"""Settings that are allowed and hardly ever meant."""

from __future__ import annotations

from collections.abc import Iterator

from worker.formats.durations import format_duration
from worker.settings.document import Settings


def advice(settings: Settings) -> Iterator[str]:
    """A line for each, with its path, its value and what would be better."""
    sessions = settings.sessions
    if sessions.idle_flush_ms is not None and sessions.idle_flush_ms < (sessions.gap_ms or 0):
        gap = format_duration(sessions.gap_ms or 0)
        yield (
            f"sessions.idle_flush: {format_duration(sessions.idle_flush_ms)} is below sessions.gap ({gap}): where a "
            f"partition is quiet for that long by the clock, sessions are cut that records would have kept; better: "
            f"{gap} or more, or null"
        )

"""The rules of sessions once more, as plainly as they are written in the contract.

One partition, one event after the other, every open session looked at each time. It shares nothing with
`worker.processing.sessions` but the class of the rules, so that the two can only agree by both being right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from worker.processing.session_rules import SessionRules


class Event(NamedTuple):
    key: str
    token: int
    time: int
    offset: int


class Output(NamedTuple):
    """All that a reader of the score topic could tell of a closed session."""

    key: str
    first_offset: int
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]
    first_time: int
    last_time: int
    opened_at: int
    last_at: int
    cause: int
    closed_by: str
    rank: int


@dataclass
class OpenSession:
    key: str
    opened_at: int
    last_at: int
    events: list[Event] = field(default_factory=list)


class SessionModel:
    def __init__(self, rules: SessionRules) -> None:
        self.rules = rules
        self.open: list[OpenSession] = []  # in the order of their first offsets
        self.stream_time: int | None = None
        self.late = 0
        self.skewed = 0
        self.outputs: list[Output] = []

    def take(self, event: Event) -> None:
        rules = self.rules
        # (a) stream time
        if self.stream_time is None:
            self.stream_time = event.time
        if event.time > self.stream_time + rules.max_future_skew_ms:
            self.skewed += 1
        else:
            if event.time < self.stream_time:
                self.late += 1
            self.stream_time = max(self.stream_time, event.time)
        now = self.stream_time
        # (b) gap, then max_age
        if rules.gap_ms is not None:
            for session in list(self.open):
                if now - session.last_at >= rules.gap_ms:
                    self.close(session, event.offset, "gap", 0)
        if rules.max_age_ms is not None:
            for session in list(self.open):
                if now - session.opened_at >= rules.max_age_ms:
                    self.close(session, event.offset, "max_age", 0)
        # (c) join or open
        for session in self.open:
            if session.key == event.key:
                break
        else:
            session = OpenSession(event.key, opened_at=now, last_at=now)
            self.open.append(session)
        session.events.append(event)
        session.last_at = now
        # (d) the event ends its session
        if event.token in rules.end_tokens:
            self.close(session, event.offset, "end_event", 2)
        elif len(session.events) >= rules.max_events:
            self.close(session, event.offset, "max_events", 2)
        # (e) too many sessions
        while len(self.open) > rules.max_open:
            self.close(self.open[0], event.offset, "max_open", 3)

    def flush(self, cause: int, closed_by: str) -> None:
        for session in list(self.open):
            self.close(session, cause, closed_by, 0)

    def close(self, session: OpenSession, cause: int, closed_by: str, rank: int) -> None:
        self.open.remove(session)
        events = session.events
        self.outputs.append(
            Output(
                key=session.key,
                first_offset=events[0].offset,
                tokens=tuple(event.token for event in events),
                offsets=tuple(event.offset for event in events),
                first_time=events[0].time,
                last_time=events[-1].time,
                opened_at=session.opened_at,
                last_at=session.last_at,
                cause=cause,
                closed_by=closed_by,
                rank=rank,
            )
        )

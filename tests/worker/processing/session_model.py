"""The rules of sessions once more, as plainly as they are written in the contract.

One partition, one event after the other, every open session and every waiting event looked at each time. It shares
nothing with `worker.processing` but the class of the rules, so that the two can only agree by both being right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from worker.processing.session_rules import SessionRules

NO_TIME = -(2**63)


class Event(NamedTuple):
    key: str
    token: int
    time: int  # NO_TIME for none
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
    opened_at: int  # NO_TIME before there was a stream time
    last_at: int
    events: list[Event] = field(default_factory=list)


class SessionModel:
    def __init__(self, rules: SessionRules) -> None:
        self.rules = rules
        self.open: list[OpenSession] = []  # in the order of their opening
        self.stream_time: int | None = None
        self.waiting: list[Event] = []
        self.behind: list[int] = []  # times of the latest events, as long as all are more than the skew behind
        self.late = 0
        self.skewed = 0
        self.moves: list[tuple[int, int, int]] = []  # from, to, cause
        self.outputs: list[Output] = []

    # -- the clock -----------------------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        self.come(event, event.offset)

    def come(self, event: Event, cause: int) -> None:
        skew = self.rules.max_future_skew_ms
        if event.time == NO_TIME:
            self.process(event, cause)
            return
        if self.stream_time is not None:
            for each in [each for each in self.waiting if event.time < each.time - skew]:
                self.waiting.remove(each)
                self.skewed += 1
                self.process(each, cause)
        if self.stream_time is None or event.time > self.stream_time + skew:
            self.behind = []
            self.waiting.append(event)
            agreeing = [each for at, each in enumerate(self.waiting) if not self.contradicted(at)]
            if len(agreeing) >= 3 or (self.stream_time is None and len(self.waiting) >= 1000):
                self.believe(cause)
            return
        self.behind = [*self.behind, event.time] if event.time < self.stream_time - skew else []
        if len(self.behind) == 1000:
            self.moves.append((self.stream_time, max(self.behind), cause))
            self.stream_time = max(self.behind)
            for session in self.open:
                session.opened_at = min(session.opened_at, self.stream_time)
                session.last_at = min(session.last_at, self.stream_time)
            self.behind = []
        reached, self.waiting = self.waiting, []
        self.stream_time = max(self.stream_time, event.time)
        for each in [*reached, event]:
            self.stream_time = max(self.stream_time, each.time)
            self.process(each, cause)

    def contradicted(self, at: int) -> bool:
        event, skew = self.waiting[at], self.rules.max_future_skew_ms
        return any(later.time < event.time - skew for later in self.waiting[at + 1 :])

    def believe(self, cause: int) -> None:
        places = range(len(self.waiting))
        contradicted = [self.waiting[at] for at in places if self.contradicted(at)]
        agreeing = [self.waiting[at] for at in places if not self.contradicted(at)]
        self.waiting, self.behind = [], []
        to = min(each.time for each in agreeing)
        if self.stream_time is None:
            for session in self.open:
                session.opened_at = session.last_at = to
        else:
            self.moves.append((self.stream_time, to, cause))
        self.stream_time = to
        for each in contradicted:
            self.skewed += 1
            self.process(each, cause)
        for each in agreeing:
            self.come(each, cause)

    # -- the sessions --------------------------------------------------------------------------------------------------

    def process(self, event: Event, cause: int) -> None:
        rules = self.rules
        # (a) stream time is what the clock says
        now = NO_TIME if self.stream_time is None else self.stream_time
        self.late += NO_TIME != event.time < now
        # (b) gap, then max_age
        if rules.gap_ms is not None:
            for session in self.by_first_offset():
                if now - session.last_at >= rules.gap_ms:
                    self.close(session, cause, "gap", 0)
        if rules.max_age_ms is not None:
            for session in self.by_first_offset():
                if now - session.opened_at >= rules.max_age_ms:
                    self.close(session, cause, "max_age", 0)
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
            self.close(session, cause, "end_event", 2)
        elif len(session.events) >= rules.max_events:
            self.close(session, cause, "max_events", 2)
        # (e) too many sessions
        while len(self.open) > rules.max_open:
            self.close(self.by_first_offset()[0], cause, "max_open", 3)

    def by_first_offset(self) -> list[OpenSession]:
        return sorted(self.open, key=lambda session: session.events[0].offset)

    def flush(self, cause: int, closed_by: str) -> None:
        while self.waiting:
            self.believe(cause)
        for session in self.by_first_offset():
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

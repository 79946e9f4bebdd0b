"""The open sessions of one partition, and the rules by which they close.

A session's boundaries depend only on the events of its own partition, in offset order: never on batch
sizes, other partitions or the wall clock. So the same events give the same closings with the same causes,
however they were split over polls and wherever a replay began.

Stream time never goes back, which keeps the cost of an event constant: sessions in the order of their
opening are also in the order of `first_offset` and of `opened_at`, sessions in the order of their latest
event are also in the order of `last_at`, and one number, a lower bound on the stream time at which any of
them can expire, tells when to look at the heads of the two orders.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Final, Literal, NamedTuple

NO_TIME: Final = -(2**63)  # the event time of every event of an input without timestamps
NEVER: Final = 2**63  # later than any stream time

ClosedBy = Literal["gap", "max_age", "end_event", "max_events", "max_open", "idle", "end_of_input"]

# Outputs of one event are published in the order of their ranks. Rank 1 is an early score: after the sessions
# that expired before the event joined its own, before those that the event brought to an end.
RANK_EXPIRED: Final = 0
RANK_ENDED: Final = 2
RANK_EVICTED: Final = 3

# Token, offset and time of an event lie side by side: an event then touches one array, which is where most of
# the time goes when many sessions are open.
_FIELDS: Final = 3


@dataclass(frozen=True, slots=True)
class SessionRules:
    """When the sessions of a partition close; times in milliseconds of stream time."""

    gap_ms: int | None  # since the session's latest event; None = no gap
    max_age_ms: int | None  # since the session's first event; None = none
    max_events: int
    max_open: int
    max_future_skew_ms: int  # an event further ahead of stream time leaves it alone
    end_tokens: frozenset[int]


@dataclass(slots=True, eq=False)
class Session:
    """The events of one key, from its first to its latest, and what the scorer remembers about them."""

    key: str
    events: array[int]  # int64: token, offset, time of the first event, then of the second, ...
    opened_at: int  # stream time in ms at which the first event was processed
    last_at: int  # stream time in ms at which the latest event was processed
    order: int  # grows with each opening; sessions that one record opened have the same first offset
    alerted: int = 0  # bit mask of the severities already alerted
    evaluated: int = 0  # how many events were already looked at for early scores

    @classmethod
    def from_columns(
        cls,
        key: str,
        *,
        tokens: array[int],
        offsets: array[int],
        times: array[int],
        opened_at: int,
        last_at: int,
        order: int,
    ) -> Session:
        """A session of events whose tokens, offsets and times lie in one array each.

        Raises:
            ValueError: If the three differ in length.
        """
        return cls(key, _interleave(tokens, offsets, times), opened_at, last_at, order)

    def __len__(self) -> int:
        return len(self.events) // _FIELDS

    @property
    def first_offset(self) -> int:
        """Offset of the first event; with topic and partition it identifies the session."""
        return self.events[1]

    @property
    def tokens(self) -> array[int]:
        """Token of each event; a copy."""
        return self.events[0::_FIELDS]

    @property
    def offsets(self) -> array[int]:
        """Offset of each event's record; the events of a multi-line record share theirs. A copy."""
        return self.events[1::_FIELDS]

    @property
    def times(self) -> array[int]:
        """Event time of each event in ms, or NO_TIME; a copy."""
        return self.events[2::_FIELDS]


class ClosedSession(NamedTuple):
    """A session that will get no more events, and the offset of the record that closed it."""

    session: Session
    cause_offset: int
    closed_by: ClosedBy
    rank: int  # orders the outputs of one event: RANK_EXPIRED, RANK_ENDED, RANK_EVICTED


@dataclass(frozen=True, slots=True)
class SessionsState:
    """Open sessions as columns, in the order of their opening; a copy that later events do not change.

    `tokens`, `offsets` and `times` have one item an event, session after session; the other columns have one a
    session. All but the keys are int64; event times are NO_TIME where the input has none.
    """

    stream_time: int | None
    keys: list[str]
    lengths: array[int]  # events of each session, at least 1
    opened_at: array[int]
    last_at: array[int]
    alerted: array[int]
    evaluated: array[int]
    tokens: array[int]
    offsets: array[int]
    times: array[int]

    @classmethod
    def empty(cls, stream_time: int | None = None) -> SessionsState:
        """No open session."""
        return cls(stream_time, [], *(array("q") for _ in range(8)))


class Sessions:
    """The open sessions of one partition.

    Attributes:
        stream_time: The partition's stream time in ms; None before its first event.
        late_events: Events older than stream time that `process` has seen.
        skewed_events: Events more than `max_future_skew_ms` ahead of stream time that `process` has seen.
    """

    def __init__(self, rules: SessionRules, state: SessionsState | None = None) -> None:
        self.stream_time: int | None = None
        self.late_events = 0
        self.skewed_events = 0
        self._rules = rules
        self._open: OrderedDict[str, Session] = OrderedDict()  # by opening: by first offset, by opened_at
        self._by_last_at: OrderedDict[Session, None] = OrderedDict()
        self._opened = 0  # sessions opened so far
        self._next_expiry = -NEVER  # no session expires before this stream time
        if state is not None:
            self._restore(state)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: str) -> Session | None:
        """The open session of a key."""
        return self._open.get(key)

    def process(
        self, keys: Sequence[str], tokens: Sequence[int], times: Sequence[int], offsets: Sequence[int]
    ) -> list[ClosedSession]:
        """Take in events and return the sessions they close, in the order of their causes.

        Each event in turn: stream time moves; sessions that reached the gap, then those that reached the
        greatest age, close, each group by first offset; the event joins its session or opens one; an end
        event, or one that fills the session, closes it; above `max_open` the oldest session closes.

        Args:
            keys: Session key of each event.
            tokens: Template token of each event (int64).
            times: Event time of each event in ms; NO_TIME for all of them when the input has no timestamps.
            offsets: Offset of each event's record, never falling, also from one call to the next.

        Raises:
            ValueError: If the sequences differ in length.
        """
        if not len(keys) == len(tokens) == len(times) == len(offsets):
            raise ValueError(
                f"keys, tokens, times and offsets differ in length: "
                f"{len(keys)}, {len(tokens)}, {len(times)}, {len(offsets)}"
            )
        closed: list[ClosedSession] = []
        if not keys:
            return closed
        rules = self._rules
        skew, end_tokens = rules.max_future_skew_ms, rules.end_tokens
        full, max_open = rules.max_events * _FIELDS, rules.max_open
        open_sessions, by_last_at = self._open, self._by_last_at
        find, touch = open_sessions.get, by_last_at.move_to_end
        stream_time = times[0] if self.stream_time is None else self.stream_time
        next_expiry = self._next_expiry
        late = skewed = 0
        crowded = len(open_sessions) > max_open  # a restored state may come from rules with a larger one
        for key, token, time, offset in zip(keys, tokens, times, offsets, strict=True):
            if time > stream_time:
                if time - stream_time > skew:
                    skewed += 1
                else:
                    stream_time = time
            elif time < stream_time:
                late += 1

            if stream_time >= next_expiry:
                self._expire(stream_time, offset, closed)
                next_expiry = self._next_expiry

            session = find(key)
            if session is None:
                self._opened += 1
                first = array("q", (token, offset, time))
                session = Session(key, first, stream_time, stream_time, self._opened)
                crowded = len(open_sessions) >= max_open
                open_sessions[key] = session
                by_last_at[session] = None
            else:
                session.events.fromlist([token, offset, time])
                if session.last_at != stream_time:
                    session.last_at = stream_time
                    touch(session)

            if token in end_tokens:
                self._close(session, offset, "end_event", RANK_ENDED, closed)
            elif len(session.events) >= full:
                self._close(session, offset, "max_events", RANK_ENDED, closed)
            if crowded:
                crowded = False
                while len(open_sessions) > max_open:
                    oldest = next(iter(open_sessions.values()))
                    self._close(oldest, offset, "max_open", RANK_EVICTED, closed)
        self.stream_time = stream_time
        self.late_events += late
        self.skewed_events += skewed
        return closed

    def flush(self, cause_offset: int, closed_by: Literal["idle", "end_of_input"]) -> list[ClosedSession]:
        """Close every session, by first offset; stream time stays."""
        closed = [ClosedSession(session, cause_offset, closed_by, RANK_EXPIRED) for session in self._open.values()]
        self._open.clear()
        self._by_last_at.clear()
        return closed

    def state(self) -> SessionsState:
        """What a snapshot holds: `Sessions(rules, state)` goes on exactly where this one stands."""
        sessions = list(self._open.values())
        events = array("q", b"".join([session.events for session in sessions]))
        return SessionsState(
            stream_time=self.stream_time,
            keys=[session.key for session in sessions],
            lengths=array("q", [len(session) for session in sessions]),
            opened_at=array("q", [session.opened_at for session in sessions]),
            last_at=array("q", [session.last_at for session in sessions]),
            alerted=array("q", [session.alerted for session in sessions]),
            evaluated=array("q", [session.evaluated for session in sessions]),
            tokens=events[0::_FIELDS],
            offsets=events[1::_FIELDS],
            times=events[2::_FIELDS],
        )

    def _restore(self, state: SessionsState) -> None:
        events = _interleave(state.tokens, state.offsets, state.times)
        ends = accumulate(state.lengths)
        places = [
            slice(_FIELDS * (end - length), _FIELDS * end) for end, length in zip(ends, state.lengths, strict=True)
        ]
        sessions = list(
            map(
                Session,
                state.keys,
                map(events.__getitem__, places),
                state.opened_at,
                state.last_at,
                range(1, len(places) + 1),
                state.alerted,
                state.evaluated,
            )
        )
        self.stream_time = state.stream_time
        self._open = OrderedDict(zip(state.keys, sessions, strict=True))
        self._by_last_at = OrderedDict.fromkeys(sorted(sessions, key=attrgetter("last_at")))
        self._opened = len(sessions)

    def _expire(self, stream_time: int, cause_offset: int, closed: list[ClosedSession]) -> None:
        gap, max_age = self._rules.gap_ms, self._rules.max_age_ms
        next_expiry = NEVER
        if gap is not None:
            expired = []
            oldest = stream_time  # a session not open yet is not touched before now
            for session in self._by_last_at:
                if stream_time - session.last_at < gap:
                    oldest = session.last_at
                    break
                expired.append(session)
            for session in sorted(expired, key=attrgetter("order")):
                self._close(session, cause_offset, "gap", RANK_EXPIRED, closed)
            next_expiry = oldest + gap
        if max_age is not None:
            oldest = stream_time
            while self._open:
                session = next(iter(self._open.values()))
                if stream_time - session.opened_at < max_age:
                    oldest = session.opened_at
                    break
                self._close(session, cause_offset, "max_age", RANK_EXPIRED, closed)
            next_expiry = min(next_expiry, oldest + max_age)
        self._next_expiry = next_expiry

    def _close(
        self, session: Session, cause_offset: int, closed_by: ClosedBy, rank: int, closed: list[ClosedSession]
    ) -> None:
        del self._open[session.key]
        del self._by_last_at[session]
        closed.append(ClosedSession(session, cause_offset, closed_by, rank))


def _interleave(tokens: array[int], offsets: array[int], times: array[int]) -> array[int]:
    if not len(tokens) == len(offsets) == len(times):
        raise ValueError(f"tokens, offsets and times differ in length: {len(tokens)}, {len(offsets)}, {len(times)}")
    events = array("q", bytes(_FIELDS * len(tokens) * tokens.itemsize))
    events[0::_FIELDS], events[1::_FIELDS], events[2::_FIELDS] = tokens, offsets, times
    return events

"""The open sessions of one partition, and the rules by which they close.

A session's boundaries depend only on the events of its own partition, in offset order: never on batch
sizes, other partitions or the wall clock. So the same events give the same closings with the same causes,
however they were split over polls and wherever a replay began.

Stream time never goes back, which keeps the cost of an event constant: sessions in the order of their
opening are also in the order of `first_offset` and of `opened_at`, sessions in the order of their latest
event are also in the order of `last_at`, and one number, a lower bound on the stream time at which any of
them can expire, tells when to look at the heads of the two orders.

What a restored state holds stays in its columns: a session is made of its row only when it gets an event or closes, so
that a restart does not wait for a million objects of which most are not touched for minutes.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from heapq import heappop, heappush
from itertools import chain
from operator import attrgetter
from typing import Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from worker.processing.session_rules import SessionRules

NO_TIME: Final = -(2**63)  # the event time of every event of an input without timestamps
NEVER: Final = 2**63  # later than any stream time

Column = NDArray[np.int64]
ClosedBy = Literal["gap", "max_age", "end_event", "max_events", "max_open", "idle", "end_of_input"]

# Outputs of one event are published in the order of their ranks. Rank 1 is an early score: after the sessions
# that expired before the event joined its own, before those that the event brought to an end.
RANK_EXPIRED: Final = 0
RANK_ENDED: Final = 2
RANK_EVICTED: Final = 3

SESSION_COLUMNS: Final = ("opened_at", "last_at", "alerted", "evaluated")
EVENT_COLUMNS: Final = ("tokens", "offsets", "times")

# Token, offset and time of an event lie side by side: an event then touches one array, which is where most of
# the time goes when many sessions are open.
_FIELDS: Final = 3


@final
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
        alerted: int = 0,
        evaluated: int = 0,
    ) -> Session:
        """A session of events whose tokens, offsets and times lie in one array each.

        Raises:
            ValueError: If the three differ in length.
        """
        if not len(tokens) == len(offsets) == len(times):
            raise ValueError(f"tokens, offsets and times differ in length: {len(tokens)}, {len(offsets)}, {len(times)}")
        events = array("q", bytes(_FIELDS * len(tokens) * tokens.itemsize))
        events[0::_FIELDS], events[1::_FIELDS], events[2::_FIELDS] = tokens, offsets, times
        return cls(key, events, opened_at, last_at, order, alerted, evaluated)

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


@dataclass(frozen=True, slots=True, eq=False)
class SessionsState:
    """Open sessions as columns, in the order of their opening; a copy that later events do not change.

    `tokens`, `offsets` and `times` have one item an event, session after session; the other columns have one a
    session. Event times are NO_TIME where the input has none.
    """

    stream_time: int | None
    keys: list[str]
    lengths: Column  # events of each session, at least 1
    opened_at: Column
    last_at: Column
    alerted: Column
    evaluated: Column
    tokens: Column
    offsets: Column
    times: Column

    @classmethod
    def empty(cls, stream_time: int | None = None) -> SessionsState:
        """No open session."""
        return cls(stream_time, [], *(np.empty(0, np.int64) for _ in range(8)))

    @classmethod
    def of(cls, stream_time: int | None, sessions: Sequence[Session]) -> SessionsState:
        """These sessions, which are in the order of their opening."""
        each_events = [session.events for session in sessions]
        events = np.frombuffer(b"".join(each_events), np.int64).reshape(-1, _FIELDS)
        rows = chain.from_iterable(map(attrgetter(*SESSION_COLUMNS), sessions))
        return cls(
            stream_time,
            [session.key for session in sessions],
            np.fromiter(map(len, each_events), np.int64, len(sessions)) // _FIELDS,
            *np.fromiter(rows, np.int64).reshape(-1, len(SESSION_COLUMNS)).T,
            *events.T,
        )

    @classmethod
    def of_rows(cls, stream_time: int | None, states: Sequence[SessionsState], rows: Column) -> SessionsState:
        """Some of the sessions of these states, whose rows are numbered through; it shares nothing with them."""

        def picked(names: Sequence[str], places: Column) -> dict[str, Column]:
            return {name: np.concatenate([getattr(state, name) for state in states])[places] for name in names}

        lengths = np.concatenate([state.lengths for state in states])
        begins, lengths = (np.cumsum(lengths) - lengths)[rows], lengths[rows]
        events = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        keys = list(chain.from_iterable(state.keys for state in states))
        return cls(
            stream_time=stream_time,
            keys=[keys[row] for row in rows.tolist()],
            lengths=lengths,
            **picked(SESSION_COLUMNS, rows),
            **picked(EVENT_COLUMNS, events),
        )

    def ends(self) -> Column:
        """Where the events of each session end in the columns of events; those of the first begin at 0."""
        return np.cumsum(self.lengths)

    __hash__ = None  # type: ignore[assignment]  # no more than its columns have one

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SessionsState):
            return NotImplemented
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return all(
            np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs for mine, theirs in pairs
        )


class _Rows:
    """A restored state, whose rows stand for its sessions until one is made of them.

    Attributes:
        left: by key, the rows that still stand for a session; in the order of opening.
    """

    def __init__(self, state: SessionsState) -> None:
        self._hold(state, np.arange(1, len(state.keys) + 1))

    def _hold(self, state: SessionsState, orders: Column) -> None:
        self.left = dict(zip(state.keys, range(len(state.keys)), strict=True))
        self._state = state
        self._orders = orders  # `Session.order` of each row
        self._ends = state.ends()
        self._by_last_at = np.argsort(state.last_at, kind="stable")
        self._looked_at = 0  # how many of _by_last_at are known not to be left
        self._opened_first = 0  # no row before it is left
        self._held = self._in_use = len(state.keys) + len(state.tokens)  # rows and their events; those of rows left

    def make(self, key: str) -> Session:
        """The session of a row that is left, which it stands for no longer."""
        row = self.left.pop(key)
        state, end = self._state, int(self._ends[row])
        events = slice(end - int(state.lengths[row]), end)
        self._in_use -= 1 + int(state.lengths[row])
        return Session.from_columns(
            key,
            tokens=array("q", state.tokens[events].tobytes()),
            offsets=array("q", state.offsets[events].tobytes()),
            times=array("q", state.times[events].tobytes()),
            opened_at=int(state.opened_at[row]),
            last_at=int(state.last_at[row]),
            order=int(self._orders[row]),
            alerted=int(state.alerted[row]),
            evaluated=int(state.evaluated[row]),
        )

    def let_go(self) -> None:
        """Forget the columns of rows that are no longer left, once those are most.

        What is copied then is less than what is let go, so all copies together are less than what was restored.
        """
        if 2 * self._in_use <= self._held > 0:
            rows = np.fromiter(self.left.values(), np.int64, len(self.left))
            self._hold(SessionsState.of_rows(self._state.stream_time, [self._state], rows), self._orders[rows])

    def quietest(self) -> tuple[str, int] | None:
        """Key and `last_at` of the row left whose latest event is the longest ago."""
        while self._looked_at < len(self._by_last_at):
            row = int(self._by_last_at[self._looked_at])
            key = self._state.keys[row]
            if key in self.left:
                return key, int(self._state.last_at[row])
            self._looked_at += 1
        return None

    def oldest(self) -> tuple[str, int, int] | None:
        """Key, `order` and `opened_at` of the row left that was opened first."""
        for row in range(self._opened_first, len(self._state.keys)):
            key = self._state.keys[row]
            if key in self.left:
                self._opened_first = row
                return key, int(self._orders[row]), int(self._state.opened_at[row])
        self._opened_first = len(self._state.keys)
        return None

    def merged(self, made: Sequence[Session], stream_time: int | None) -> SessionsState:
        """The state of the rows left and of sessions that were made of others or opened since."""
        old, new = self._state, SessionsState.of(stream_time, made)
        rows = np.fromiter(self.left.values(), np.int64, len(self.left))
        order = np.concatenate((self._orders[rows], np.fromiter(map(attrgetter("order"), made), np.int64, len(made))))
        places = np.concatenate((rows, len(old.keys) + np.arange(len(made))))[np.argsort(order)]
        return SessionsState.of_rows(stream_time, [old, new], places)


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
        # By opening: by first offset, by opened_at. As long as rows are left, the sessions made of others stand
        # anywhere; these have a heap of their own, in which some are already closed.
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._made: list[tuple[int, str]] = []
        # Only of those in _open; the rows left are the quieter ones, since they had no event since the restore.
        self._by_last_at: OrderedDict[Session, None] = OrderedDict()
        self._rows = _Rows(SessionsState.empty() if state is None else state)
        self._opened = len(self._rows.left)  # sessions opened so far
        self._next_expiry = -NEVER  # no session expires before this stream time
        if state is not None:
            self.stream_time = state.stream_time

    def __len__(self) -> int:
        return len(self._open) + len(self._rows.left)

    def get(self, key: str) -> Session | None:
        """The open session of a key; None also for a restored one that had no event since."""
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
        open_sessions, by_last_at, rows_left = self._open, self._by_last_at, self._rows.left
        find, touch = open_sessions.get, by_last_at.move_to_end
        stream_time = times[0] if self.stream_time is None else self.stream_time
        next_expiry = self._next_expiry
        late = skewed = 0
        crowded = len(self) > max_open  # a restored state may come from rules with a larger one
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
            if session is None and key in rows_left:
                session = open_sessions[key] = self._rows.make(key)
                by_last_at[session] = None
                heappush(self._made, (session.order, key))
            if session is None:
                self._opened += 1
                first = array("q", (token, offset, time))
                session = Session(key, first, stream_time, stream_time, self._opened)
                crowded = len(open_sessions) + len(rows_left) >= max_open
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
                while len(self) > max_open:
                    oldest, _ = self._oldest()
                    self._close(self._session(oldest), offset, "max_open", RANK_EVICTED, closed)
        self.stream_time = stream_time
        self.late_events += late
        self.skewed_events += skewed
        self._let_go()
        return closed

    def flush(self, cause_offset: int, closed_by: Literal["idle", "end_of_input"]) -> list[ClosedSession]:
        """Close every session, by first offset; stream time stays."""
        sessions = [*map(self._rows.make, list(self._rows.left)), *self._open.values()]
        sessions.sort(key=attrgetter("order"))
        self._open.clear()
        self._by_last_at.clear()
        self._let_go()
        return [ClosedSession(session, cause_offset, closed_by, RANK_EXPIRED) for session in sessions]

    def state(self) -> SessionsState:
        """What a snapshot holds: `Sessions(rules, state)` goes on exactly where this one stands."""
        sessions = list(self._open.values())
        if not self._rows.left:
            return SessionsState.of(self.stream_time, sessions)
        return self._rows.merged(sessions, self.stream_time)

    def _expire(self, stream_time: int, cause_offset: int, closed: list[ClosedSession]) -> None:
        gap, max_age = self._rules.gap_ms, self._rules.max_age_ms
        next_expiry = NEVER
        if gap is not None:
            expired = []
            oldest = stream_time  # a session not open yet is not touched before now
            while (quietest := self._rows.quietest()) is not None:
                key, last_at = quietest
                if stream_time - last_at < gap:
                    oldest = last_at
                    break
                expired.append(self._rows.make(key))
            else:
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
            while len(self):
                key, opened_at = self._oldest()
                if stream_time - opened_at < max_age:
                    oldest = opened_at
                    break
                self._close(self._session(key), cause_offset, "max_age", RANK_EXPIRED, closed)
            next_expiry = min(next_expiry, oldest + max_age)
        self._next_expiry = next_expiry

    def _oldest(self) -> tuple[str, int]:
        """Key and `opened_at` of the session that was opened first."""
        row = self._rows.oldest()
        while self._made:
            order, key = self._made[0]
            session = self._open.get(key)
            if session is not None and session.order == order:
                return (key, session.opened_at) if row is None or order < row[1] else (row[0], row[2])
            heappop(self._made)
        if row is not None:
            return row[0], row[2]
        key, session = next(iter(self._open.items()))
        return key, session.opened_at

    def _session(self, key: str) -> Session:
        return self._rows.make(key) if key in self._rows.left else self._open[key]

    def _let_go(self) -> None:
        """Hold no more of a restored state than what is open of it; once no row is left, order those made of them."""
        self._rows.let_go()
        all_made = not self._rows.left
        if not self._made or not (all_made or len(self._made) > 2 * len(self._open)):
            return
        made = sorted(
            (order, key)
            for order, key in self._made
            if (session := self._open.get(key)) is not None and session.order == order
        )
        if all_made:
            for _, key in reversed(made):
                self._open.move_to_end(key, last=False)
        self._made = [] if all_made else made

    def _close(
        self, session: Session, cause_offset: int, closed_by: ClosedBy, rank: int, closed: list[ClosedSession]
    ) -> None:
        self._open.pop(session.key, None)  # a session that was made only to be closed is in neither
        self._by_last_at.pop(session, None)
        closed.append(ClosedSession(session, cause_offset, closed_by, rank))

"""The sessions of a partition once more, as an object each: what `worker.processing.sessions` has as columns.

It was the worker's own before, and takes the same arguments and gives the same: what tests and benchmarks compare with
where the plain model (`session_model`) is too slow.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import chain
from operator import attrgetter
from typing import Final, Literal

import numpy as np

from worker.processing.clock import NO_TIME, Clock, ClockState, Step
from worker.processing.session_columns import RANK_ENDED, RANK_EVICTED, RANK_EXPIRED, ClosedBy, ClosedSession
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import EVENT_COLUMNS, FIELDS, SESSION_COLUMNS, Column, Session, SessionsState
from worker.processing.sessions import SharedCause

NEVER: Final = 2**63  # later than any stream time


class _Rows:
    """A restored state, whose rows stand for its sessions until one is made of them.

    Attributes:
        left: by key, the rows that still stand for a session; in the order of opening.
    """

    def __init__(self, state: SessionsState) -> None:
        self._hold(state, np.arange(1, len(state.keys) + 1))

    def _hold(self, state: SessionsState, orders: Column) -> None:
        self._keys = state.keys.to_pylist()
        self.left = dict(zip(self._keys, range(len(self._keys)), strict=True))
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
            self._hold(_of_rows(self._state.clock, [self._state], rows), self._orders[rows])

    def quietest(self) -> tuple[str, int] | None:
        """Key and `last_at` of the row left whose latest event is the longest ago."""
        while self._looked_at < len(self._by_last_at):
            row = int(self._by_last_at[self._looked_at])
            key = self._keys[row]
            if key in self.left:
                return key, int(self._state.last_at[row])
            self._looked_at += 1
        return None

    def oldest(self) -> tuple[str, int, int] | None:
        """Key, `order` and `opened_at` of the row left that was opened first."""
        for row in range(self._opened_first, len(self._keys)):
            key = self._keys[row]
            if key in self.left:
                self._opened_first = row
                return key, int(self._orders[row]), int(self._state.opened_at[row])
        self._opened_first = len(self._keys)
        return None

    def set_to(self, stream_time: int) -> None:
        """Bring the rows' times to one that was set or fell (`_set_to`), which leaves their orders as they are."""
        opened_at, last_at = (
            np.where(column == NO_TIME, stream_time, np.minimum(column, stream_time))
            for column in (self._state.opened_at, self._state.last_at)
        )
        self._state = replace(self._state, opened_at=opened_at, last_at=last_at)

    def merged(self, made: Sequence[Session], clock: ClockState) -> SessionsState:
        """The state of the rows left and of sessions that were made of others or opened since."""
        old, new = self._state, _of(clock, made)
        rows = np.fromiter(self.left.values(), np.int64, len(self.left))
        order = np.concatenate((self._orders[rows], np.fromiter(map(attrgetter("order"), made), np.int64, len(made))))
        places = np.concatenate((rows, len(old.keys) + np.arange(len(made))))[np.argsort(order)]
        return _of_rows(clock, [old, new], places)


class SessionsOfObjects:
    """The open sessions of one partition.

    Attributes:
        clock: says when an event is processed; what it counts and tells is of the events that came here.
        shared_causes: the events, in order, of which the latest call processed several with one record as their cause.
    """

    def __init__(self, rules: SessionRules, state: SessionsState | None = None) -> None:
        state = SessionsState.empty() if state is None else state
        self.clock = Clock(rules.max_future_skew_ms, state.clock)
        self.shared_causes: list[SharedCause] = []
        self._rules = rules
        # By opening: by opened_at. As long as rows are left, the sessions made of others stand anywhere; these have a
        # heap of their own, in which some are already closed.
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._made: list[tuple[int, str]] = []
        # Only of those in _open; the rows left are the quieter ones, since they had no event since the restore.
        self._by_last_at: OrderedDict[Session, None] = OrderedDict()
        self._rows = _Rows(state)
        self._opened = len(self._rows.left)  # sessions opened so far
        self._next_expiry = -NEVER  # no session expires before this stream time
        self._within: dict[tuple[str, int], int] = {}
        self._opened_before = NEVER
        # First offset and order, by key, of sessions that opened after one with a greater first offset.
        self._overtaken: dict[str, tuple[int, int]] = {}
        first_offsets = state.offsets[state.ends() - state.lengths]
        self._newest = int(first_offsets.max(initial=-1))  # the greatest first offset so far
        for row in np.flatnonzero(first_offsets < np.maximum.accumulate(first_offsets)).tolist():
            self._overtaken[state.keys[row].as_py()] = int(first_offsets[row]), row + 1

    def __len__(self) -> int:
        return len(self._open) + len(self._rows.left)

    def get(self, key: str) -> Session | None:
        """The open session of a key; None also for a restored one that had no event since."""
        return self._open.get(key)

    @property
    def stream_time(self) -> int | None:
        """The partition's stream time in ms; None while it is not set."""
        return self.clock.stream_time

    def process(
        self, keys: Sequence[str], tokens: Sequence[int], times: Sequence[int], offsets: Sequence[int]
    ) -> list[ClosedSession]:
        """Take in events and return the sessions they close, in the order of their causes.

        Each event in turn, at the stream time and in the order that the clock gives: sessions that reached the gap,
        then those that reached the greatest age, close, each group by first offset; the event joins its session or
        opens one; an end event, or one that fills the session, closes it; above `max_open` the session with the
        smallest first offset closes.

        Args:
            keys: Session key of each event.
            tokens: Template token of each event (int64).
            times: Event time of each event in ms; NO_TIME for one that has none.
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
        self._process(self.clock.take(keys, tokens, times, offsets), closed)
        return closed

    def flush(self, cause_offset: int, closed_by: Literal["idle", "end_of_input"]) -> list[ClosedSession]:
        """Believe what waits, then close every session, by first offset."""
        closed: list[ClosedSession] = []
        self._process(self.clock.confirm(cause_offset), closed)
        sessions = [*map(self._rows.make, list(self._rows.left)), *self._open.values()]
        for session in self._by_first_offset(sessions):
            self._close(session, cause_offset, closed_by, RANK_EXPIRED, closed)
        self._let_go()
        return closed

    def state(self) -> SessionsState:
        """What a snapshot holds: `SessionsOfObjects(rules, state)` goes on exactly where this one stands."""
        sessions, clock = list(self._open.values()), self.clock.state()
        return self._rows.merged(sessions, clock) if self._rows.left else _of(clock, sessions)

    def _process(self, steps: Sequence[Step], closed: list[ClosedSession]) -> None:
        self.shared_causes = []
        self._within, self._opened_before = {}, NEVER
        cause = None
        for step in steps:
            if step.set_to is not None:
                self._set_to(step.set_to)
            before = len(closed)
            if not step.shared:
                self._opened_before = NEVER
            elif step.causes[0] != cause:
                cause, self._opened_before = step.causes[0], self._opened
            self._take(step, closed)
            if step.shared:
                after = before + sum(each.rank == RANK_EXPIRED for each in closed[before:])
                columns = (step.keys, step.offsets, step.times, step.causes)
                key, offset, time, its_cause = (column.tolist()[0] for column in columns)
                self.shared_causes.append(SharedCause(key, offset, time, its_cause, after))
        self._let_go()

    def _set_to(self, stream_time: int) -> None:
        """Stream time is set, or falls: no session was opened or touched later, nor before there was any."""
        self._rows.set_to(stream_time)
        for session in self._open.values():
            for name in ("opened_at", "last_at"):
                at = getattr(session, name)
                setattr(session, name, stream_time if at == NO_TIME else min(at, stream_time))
        self._next_expiry = -NEVER

    def _take(self, step: Step, closed: list[ClosedSession]) -> None:
        rules = self._rules
        end_tokens = rules.end_tokens
        full, max_open = rules.max_events * FIELDS, rules.max_open
        open_sessions, by_last_at, rows_left = self._open, self._by_last_at, self._rows.left
        find, touch = open_sessions.get, by_last_at.move_to_end
        next_expiry = self._next_expiry
        crowded = len(self) > max_open  # a restored state may come from rules with a larger one
        columns = (step.keys, step.tokens, step.times, step.offsets, step.stream_times, step.causes)
        listed = (column.tolist() for column in columns)
        for key, token, time, offset, stream_time, cause in zip(*listed, strict=True):
            if stream_time >= next_expiry:
                self._expire(stream_time, cause, closed)
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
                if offset < self._newest:
                    self._overtaken[key] = offset, self._opened
                else:
                    self._newest = offset
            else:
                session.events.fromlist([token, offset, time])
                if session.last_at != stream_time:
                    session.last_at = stream_time
                    touch(session)

            if token in end_tokens:
                self._close(session, cause, "end_event", RANK_ENDED, closed)
            elif len(session.events) >= full:
                self._close(session, cause, "max_events", RANK_ENDED, closed)
            if crowded:
                crowded = False
                while len(self) > max_open:
                    self._close(self._session(self._first()), cause, "max_open", RANK_EVICTED, closed)

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
            for session in self._by_first_offset(expired):
                self._close(session, cause_offset, "gap", RANK_EXPIRED, closed)
            next_expiry = oldest + gap
        if max_age is not None:
            oldest = stream_time
            aged: list[ClosedSession] = []
            while len(self):
                key, opened_at = self._oldest()
                if stream_time - opened_at < max_age:
                    oldest = opened_at
                    break
                self._close(self._session(key), cause_offset, "max_age", RANK_EXPIRED, aged)
            if len(aged) > 1:
                aged.sort(key=lambda each: (each.session.first_offset, each.session.order))
            closed += aged
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

    def _first(self) -> str:
        """Key of the session with the smallest first offset."""
        if not self._overtaken:
            return self._oldest()[0]
        self._make_left()
        # The others are in the order of their first offsets as they are in that of their opening.
        usual = next((session for session in self._open.values() if session.key not in self._overtaken), None)
        first = {} if usual is None else {usual.key: (usual.first_offset, usual.order)}
        candidates = self._overtaken | first
        return min(candidates, key=candidates.__getitem__)

    def _make_left(self) -> None:
        """Make the sessions of all rows that are left; then all sessions stand in the order of their opening."""
        if not (self._rows.left or self._made):
            return
        for session in sorted(map(self._rows.make, list(self._rows.left)), key=attrgetter("last_at"), reverse=True):
            self._open[session.key] = session
            self._by_last_at[session] = None
            self._by_last_at.move_to_end(session, last=False)
        self._made = []
        for session in sorted(self._open.values(), key=attrgetter("order")):
            self._open.move_to_end(session.key)

    def _by_first_offset(self, sessions: list[Session]) -> list[Session]:
        # Usually the order of opening, which costs less to compare.
        return sorted(sessions, key=attrgetter("first_offset", "order") if self._overtaken else attrgetter("order"))

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
        if self._overtaken:
            self._overtaken.pop(session.key, None)
        nth = 0
        if session.first_offset == cause_offset or session.order > self._opened_before:
            place = session.key, session.first_offset
            nth = self._within[place] = self._within.get(place, 0) + 1
        closed.append(ClosedSession(session, cause_offset, closed_by, rank, nth))


def _of(clock: ClockState, sessions: Sequence[Session]) -> SessionsState:
    """These sessions, which are in the order of their opening."""
    each_events = [session.events for session in sessions]
    events = np.frombuffer(b"".join(each_events), np.int64).reshape(-1, FIELDS)
    rows = chain.from_iterable(map(attrgetter(*SESSION_COLUMNS), sessions))
    return SessionsState(
        clock,
        [session.key for session in sessions],
        np.fromiter(map(len, each_events), np.int64, len(sessions)) // FIELDS,
        *np.fromiter(rows, np.int64).reshape(-1, len(SESSION_COLUMNS)).T,
        *events.T,
    )


def _of_rows(clock: ClockState, states: Sequence[SessionsState], rows: Column) -> SessionsState:
    """Some of the sessions of these states, whose rows are numbered through; it shares nothing with them."""

    def picked(names: Sequence[str], places: Column) -> dict[str, Column]:
        return {name: np.concatenate([getattr(state, name) for state in states])[places] for name in names}

    lengths = np.concatenate([state.lengths for state in states])
    begins, lengths = (np.cumsum(lengths) - lengths)[rows], lengths[rows]
    events = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    keys = list(chain.from_iterable(state.keys.to_pylist() for state in states))
    return SessionsState(
        clock=clock,
        keys=[keys[row] for row in rows.tolist()],
        lengths=lengths,
        **picked(SESSION_COLUMNS, rows),
        **picked(EVENT_COLUMNS, events),
    )

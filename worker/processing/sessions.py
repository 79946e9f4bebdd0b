"""The open sessions of one partition, and the rules by which they close.

A session's boundaries depend only on the events of its own partition, in offset order: never on batch
sizes, other partitions or the wall clock. So the same events give the same closings with the same causes,
however they were split over polls and wherever a replay began. At which stream time each event is processed, and in
which order, `worker.processing.clock` says; `worker.processing.session_loop` has the rules, as a compiled loop over
columns. Here is what surrounds it: columns that grow and shrink, keys as bytes, and the columns of those that
closed or that somebody looks at (`worker.processing.session_columns`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detector.scoring.scores import Growth, Sequences
from detector.text.flat import Texts, flat
from worker.processing import session_loop as loop
from worker.processing.clock import NO_TIME, Clock, Column, Numbers, Step, Strings, as_column
from worker.processing.session_columns import CLOSED_BY, RANK_EXPIRED, ClosedSessions, Image, SessionColumns
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import SessionsState

_NOTES: Final = {"alerted": loop.ALERTED, "evaluated": loop.EVALUATED}  # what the scorer remembers of a session
_SEED = secrets.randbits(63) | 1  # of the keys' hashes; odd, so that no bit is lost
_SERIALS = count(1)  # of what orders are counted in
_ORDER_BITS: Final = 40
_FEW: Final = 100  # sessions, for which columns are never too large
_NONE: Final = np.empty(0, np.int64)
_NONE_CLOSED: Final = ClosedSessions.of(())


class SharedCause(NamedTuple):
    """An event whose cause is a record that ended a wait, its own or that of an event before it."""

    key: str
    offset: int  # of its own record
    time: int
    cause_offset: int
    after: int  # how many sessions the same call had closed before the event joined its own


class GrownSessions(NamedTuple):
    """Open sessions that got events, by what is new of them."""

    slots: Column  # of `Sessions`, until its next call
    alerted: Column  # as of `Session`
    growth: Growth
    started_over: int  # how many were looked at as long ones before, and yet are given from their first event on


_NONE_GROWN: Final = GrownSessions(_NONE, _NONE, Growth(_NONE, _NONE, Sequences(_NONE, _NONE)), 0)


class Sessions:
    """The open sessions of one partition.

    Attributes:
        clock: says when an event is processed; what it counts and tells is of the events that came here.
        shared_causes: the events, in order, of which the latest call processed several with one record as their cause.
    """

    def __init__(self, rules: SessionRules, state: SessionsState | None = None) -> None:
        state = SessionsState.empty() if state is None else state
        self.clock = Clock(rules.max_future_skew_ms, state.clock)
        self.shared_causes: list[SharedCause] = []
        self._limits = loop.Limits(
            gap=loop.NO_LIMIT if rules.gap_ms is None else rules.gap_ms,
            max_age=loop.NO_LIMIT if rules.max_age_ms is None else rules.max_age_ms,
            max_events=rules.max_events,
            max_open=rules.max_open,
        )
        self._end_tokens = sorted(rules.end_tokens)
        self._touched: list[Column] = []  # slots of the latest call's events
        self._arrived: list[Column] = []  # their tokens
        self._open_ones: Column | None = None  # of these slots, once somebody has asked
        # Of the latest call: how many sessions of a key one record opened and closed, by key and first offset; and how
        # many sessions there had ever been before the first event whose cause is that of the event in hand, where it is
        # not its own record.
        self._within: dict[tuple[bytes, int], int] = {}
        self._opened_before = loop.NEVER
        self._columns: loop.Columns
        self._restore(state)

    def __len__(self) -> int:
        return int(self._columns.counts[loop.OPEN])

    @property
    def stream_time(self) -> int | None:
        """The partition's stream time in ms; None while it is not set."""
        return self.clock.stream_time

    def process(self, keys: Strings, tokens: Numbers, times: Numbers, offsets: Numbers) -> ClosedSessions:
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
        return self._process(self.clock.take(keys, tokens, times, offsets))

    def flush(self, cause_offset: int, closed_by: Literal["idle", "end_of_input"]) -> ClosedSessions:
        """Believe what waits, then close every session, by first offset."""
        closed = self._process(self.clock.confirm(cause_offset))
        rows = np.empty((len(self), loop.CLOSED), np.int64)
        loop.flush(self._columns, cause_offset, rows)
        rows[:, loop.REASON] = CLOSED_BY.index(closed_by)
        return ClosedSessions.joined([closed, self._closed(rows)])

    def touched(self, most: int = loop.NEVER) -> SessionColumns:
        """The open sessions of at most so many events that got one in the latest call; `note` takes them back."""
        slots = self._touched_slots()
        return self._gathered(slots[self._columns.links[slots, loop.EVENTS] <= most])

    def grown(self, least: int, done: int, known: Callable[[Column], Column]) -> GrownSessions:
        """The open sessions of more events that got one in the latest call, by what is new of them.

        Args:
            least: events beyond which a session is one of them.
            done: bits of `Session.alerted`; those of one of these are noted as looked at, and left out.
            known: how many events of sessions are known elsewhere, by `numbers`; all events are given of one of which
                fewer are known than were looked at.
        """
        slots, links = self._touched_slots(), self._columns.links
        slots = slots[links[slots, loop.EVENTS] > least]
        if not len(slots):
            return _NONE_GROWN
        is_done = (links[slots, loop.ALERTED] & done) != 0
        self.looked_at(slots[is_done])
        slots = slots[~is_done]
        numbers = self.numbers(self._columns.rows[slots, loop.ORDER])
        events, evaluated = (links[slots, column].astype(np.int64) for column in (loop.EVENTS, loop.EVALUATED))
        arrived, counts = self._arrived_in(slots)
        new = events - evaluated
        # The latest events of a slot are those of the session that has it now.
        partly = (evaluated > 0) & (known(numbers) >= evaluated) & (new <= counts) if len(slots) else new > 0
        rows = np.flatnonzero(partly)
        ends = np.cumsum(new[rows])
        places = np.repeat(np.cumsum(counts)[rows] - ends, new[rows]) + np.arange(new[rows].sum())
        others = np.flatnonzero(~partly)
        parts = Sequences(arrived[places], ends), self._gathered(slots[others]).sequences()
        order = np.append(rows, others)
        growth = Growth(numbers[order], np.append(evaluated[rows], np.zeros_like(others)), Sequences.joined(parts))
        started_over = int(np.count_nonzero(evaluated[others] > least))
        return GrownSessions(slots[order], links[slots[order], loop.ALERTED].astype(np.int64), growth, started_over)

    def at(self, slots: Column) -> SessionColumns:
        """The open sessions of these slots, which a `GrownSessions` of the latest call gave."""
        return self._gathered(slots)

    def looked_at(self, slots: Column) -> None:
        """Note of the open sessions of these slots that the scorer has looked at all their events."""
        self._columns.links[slots, loop.EVALUATED] = self._columns.links[slots, loop.EVENTS]

    def numbers(self, order: Column) -> Column:
        """Numbers for sessions by their `order`, above 0, that no others of this process have until the next call."""
        return (self._serial << _ORDER_BITS) + order

    def begun_at(self, first_offsets: Column) -> SessionColumns:
        """The open sessions that have these first offsets; `note` takes them."""
        slots = np.empty(len(self), np.int64)
        loop.in_order(self._columns, slots)
        return self._gathered(slots[np.isin(self._columns.rows[slots, loop.FIRST_OFFSET], first_offsets)])

    def behind(self) -> SessionColumns:
        """The open sessions with events that the scorer has not looked at (`Session.evaluated`); `note` takes them."""
        slots, links = np.empty(len(self), np.int64), self._columns.links
        loop.in_order(self._columns, slots)
        return self._gathered(slots[links[slots, loop.EVALUATED] < links[slots, loop.EVENTS]])

    def note(self, sessions: SessionColumns) -> None:
        """Remember what the scorer noted of sessions that are open: `alerted` and `evaluated`.

        Raises:
            KeyError: one that is not open.
        """
        slots = np.empty(len(sessions), np.int64)
        loop.look_up(self._columns, sessions.keys, sessions.key_ends, slots)
        if not slots.all():
            raise KeyError(sessions[int(np.argmin(slots))].key)
        for name, column in _NOTES.items():
            self._columns.links[slots, column] = getattr(sessions, name)

    def state(self) -> SessionsState:
        """What a snapshot holds: `Sessions(rules, state)` goes on exactly where this one stands."""
        return Image(self._columns, self.clock.state()).state()

    def image(self) -> Image:
        """A copy that no event changes; another thread can make the state of it, which takes several times longer."""
        rows, blocks = self._columns.counts[[loop.USED_ROWS, loop.USED_BLOCKS]].tolist()
        columns = _copied(self._columns, rows, blocks)
        return Image(columns._replace(counts=columns.counts.copy()), self.clock.state())

    # -- events --------------------------------------------------------------------------------------------------------

    def _touched_slots(self) -> Column:
        """Of the open sessions that got an event in the latest call, ascending."""
        if self._open_ones is None:
            slots = np.sort(np.concatenate([*self._touched, _NONE]))
            # `np.unique` takes several times as long for the few of one partition.
            slots = slots[np.append(True, slots[1:] != slots[:-1])[: len(slots)]]
            self._open_ones = slots[self._columns.rows[slots, loop.ORDER] > 0]
        return self._open_ones

    def _arrived_in(self, slots: Column) -> tuple[Column, Column]:
        """Tokens of the latest call's events in these slots, ascending, slot after slot, and how many each has."""
        if not len(slots):
            return _NONE, _NONE
        of_events = np.concatenate(self._touched)
        at = np.minimum(np.searchsorted(slots, of_events), len(slots) - 1)
        there = np.flatnonzero(slots[at] == of_events)
        at = at[there]
        tokens = np.concatenate(self._arrived)[there[np.argsort(at, kind="stable")]]
        return tokens, np.bincount(at, minlength=len(slots))

    def _process(self, steps: Sequence[Step]) -> ClosedSessions:
        self.shared_causes, self._touched, self._arrived, self._open_ones = [], [], [], None
        self._within, self._opened_before, cause = {}, loop.NEVER, None
        # What a call closes keeps its rows until it ends, so a call of many events needs more rows than stay open.
        more, counts = sum(len(step.keys) for step in steps), self._columns.counts
        rows, blocks, free = counts[[loop.USED_ROWS, loop.USED_BLOCKS, loop.FREE_BLOCKS]].tolist()
        if 2 * (len(self) + more) + _FEW < rows or 2 * (blocks - free + more) + _FEW < blocks:
            self._restore(self.state())
        closed: list[ClosedSessions] = []
        number = 0
        for step in steps:
            if step.set_to is not None:
                self._set_to(step.set_to)
            if not step.shared:
                self._opened_before = loop.NEVER
            elif step.causes[0] != cause:
                cause, self._opened_before = step.causes[0], int(self._columns.counts[loop.OPENED])
            found = self._take(step)
            if step.shared:
                after = number + int(np.count_nonzero(found.ranks == RANK_EXPIRED))
                offset, time, cause = int(step.offsets[0]), int(step.times[0]), int(step.causes[0])
                self.shared_causes.append(SharedCause(step.keys[0].as_py(), offset, time, cause, after))
            if len(found):
                closed.append(found)
                number += len(found)
        return ClosedSessions.joined(closed) if closed else _NONE_CLOSED

    def _set_to(self, stream_time: int) -> None:
        """Stream time is set, or falls: no session was opened or touched later, nor before there was any."""
        used = self._columns.rows[: self._columns.counts[loop.USED_ROWS]]
        for column in (loop.OPENED_AT, loop.LAST_AT):
            times = used[:, column]
            times[(times == NO_TIME) | (times > stream_time)] = stream_time
        self._columns.counts[loop.NEXT_EXPIRY] = loop.LEAST

    def _take(self, step: Step) -> ClosedSessions:
        keys, key_ends = _as_bytes(step.keys)
        tokens = as_column(step.tokens)
        ends = np.zeros_like(tokens)
        for token in self._end_tokens:  # few, for which `np.isin` takes ten times as long
            ends |= tokens == token
        arrivals = loop.Arrivals(
            keys=keys,
            key_ends=key_ends,
            tokens=tokens,
            offsets=as_column(step.offsets),
            times=as_column(step.times),
            stream_times=as_column(step.stream_times),
            causes=as_column(step.causes),
            ends=ends,
        )
        self._make_room(len(tokens), len(keys))
        slots = np.empty(len(tokens), np.int64)
        closed = np.empty((len(self) + len(tokens), loop.CLOSED), np.int64)
        closed = closed[: loop.take(self._columns, self._limits, arrivals, slots, closed)]
        self._touched.append(slots)
        self._arrived.append(tokens)
        rows = self._columns.rows[closed[:, loop.SLOT]]
        by = -rows[:, loop.ORDER], rows[:, loop.FIRST_OFFSET], closed[:, loop.GROUP]
        return self._closed(closed[np.lexsort(by)])

    def _closed(self, closed: NDArray[np.int64]) -> ClosedSessions:
        """The sessions of these rows of what the loop closed, in this order; their slots are free from then on."""
        if not len(closed):
            return _NONE_CLOSED
        slots, causes, reasons = (closed[:, column].copy() for column in (loop.SLOT, loop.CAUSE, loop.REASON))
        sessions = self._gathered(slots)
        first_offsets, nth = self._columns.rows[slots, loop.FIRST_OFFSET], np.zeros(len(slots), np.int64)
        at_once = np.flatnonzero((first_offsets == causes) | (sessions.order > self._opened_before))
        if len(at_once):
            keys = sessions.keys_as_bytes()
            for row, first_offset in zip(at_once.tolist(), first_offsets[at_once].tolist(), strict=True):
                place = keys[row], first_offset
                nth[row] = self._within[place] = self._within.get(place, 0) + 1
        loop.release(self._columns, slots)
        return ClosedSessions(sessions, causes, reasons, nth)

    # -- sessions and their columns ------------------------------------------------------------------------------------

    def _gathered(self, slots: Column) -> SessionColumns:
        return SessionColumns.gathered(self._columns, slots)

    def _restore(self, state: SessionsState) -> None:
        """Hold the sessions of a state, and no others; their orders begin anew."""
        self._serial = next(_SERIALS)
        n = len(state.keys)
        keys, key_ends = _as_bytes(state.keys)
        saved = loop.Saved(
            keys=keys,
            key_ends=key_ends,
            lengths=as_column(state.lengths),
            opened_at=as_column(state.opened_at),
            last_at=as_column(state.last_at),
            tokens=as_column(state.tokens),
            offsets=as_column(state.offsets),
            times=as_column(state.times),
        )
        counts = np.zeros(loop.COUNTS, np.int64)
        counts[[loop.NEXT_EXPIRY, loop.SEED]] = loop.LEAST, _SEED
        counts[[loop.USED_ROWS, loop.USED_BLOCKS]] = 1
        rows, chains = np.zeros((1 + n, loop.ROW), np.int64), _chains(1 + _blocks(n, len(saved.tokens), len(keys)))
        columns = _joined(rows, chains, _table(n), counts)
        loop.restore(columns, saved, np.argsort(saved.last_at, kind="stable"))
        for name, column in _NOTES.items():
            columns.links[1:, column] = getattr(state, name)
        self._columns = _copied(columns, 1 + n, int(counts[loop.USED_BLOCKS]))  # what they take is known only now

    def _make_room(self, events: int, key_bytes: int) -> None:
        """For what so many events with so many bytes of keys may need."""
        columns, counts = self._columns, self._columns.counts
        rows = int(counts[loop.USED_ROWS]) + events
        blocks = int(counts[loop.USED_BLOCKS]) + _blocks(events, events, key_bytes)
        if rows > len(columns.rows) or blocks > len(columns.nexts):
            columns = _copied(columns, rows + rows // 2, blocks + blocks // 2)
        if 4 * (len(self) + events) > 3 * len(columns.table):
            columns = columns._replace(table=_table(len(self) + events))
            loop.enter_all(self._columns.table, columns.table)
        self._columns = columns


def _copied(columns: loop.Columns, rows: int, blocks: int) -> loop.Columns:
    """The same with room for so many rows and blocks; what nobody wrote takes no memory."""
    used_rows, used_blocks = columns.counts[[loop.USED_ROWS, loop.USED_BLOCKS]].tolist()
    copy, chains = np.empty((rows, loop.ROW), np.int64), _chains(blocks)
    copy[:used_rows] = columns.rows[:used_rows]
    chains[: used_blocks * loop.BLOCK] = columns.chains[: used_blocks * loop.BLOCK]
    return _joined(copy, chains, columns.table, columns.counts)


def _joined(rows: NDArray[np.int64], chains: NDArray[np.uint8], table: Column, counts: Column) -> loop.Columns:
    nexts = chains.view(np.int32).reshape(-1, loop.BLOCK // 4)
    return loop.Columns(rows, rows.view(np.int32), chains, nexts, table, counts)


def _chains(blocks: int) -> NDArray[np.uint8]:
    """So many blocks, each of which is one line of the processor's cache."""
    data = np.empty((blocks + 1) * loop.BLOCK, np.uint8)
    begin = -data.ctypes.data % loop.BLOCK
    return data[begin : begin + blocks * loop.BLOCK]


def _blocks(chains: int, events: int, key_bytes: int) -> int:
    """How many blocks so many chains at most become longer by for so many events and bytes of keys."""
    return chains + (loop.FIELDS * loop.LONGEST * events + key_bytes) // loop.ROOM


def _table(sessions: int) -> Column:
    """A table for so many sessions: half of it stays empty."""
    return np.zeros(2 * sessions + 2, np.int64)


def _as_bytes(keys: Strings | Texts) -> tuple[NDArray[np.uint8], Column]:
    """All keys in UTF-8, one after the other, and where each ends."""
    data, bounds = flat(keys if isinstance(keys, pa.Array) else pa.array(keys, pa.large_string()))
    return data, bounds[1:]

"""Sessions as columns: some as they are, and those that closed."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal, NamedTuple, Self, TypeVar, get_args, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detector.scoring.pace import Timed
from detector.scoring.scores import Sequences
from worker.processing import session_loop as loop
from worker.processing.clock import NO_TIME, ClockState
from worker.processing.origins import OriginsOfOpen
from worker.processing.session_state import FIELDS, SESSION_COLUMNS, Column, Session, SessionsState

ClosedBy = Literal["gap", "max_age", "end_event", "max_events", "max_open", "idle", "end_of_input"]
CLOSED_BY: Final[tuple[ClosedBy, ...]] = get_args(ClosedBy)

# Outputs of one event are published in the order of their ranks. Rank 1 is an early score: after the sessions
# that expired before the event joined its own, before those that the event brought to an end.
RANK_EXPIRED: Final = 0
RANK_ENDED: Final = 2
RANK_EVICTED: Final = 3
#: By number of `CLOSED_BY`.
RANKS: Final = np.array([RANK_EXPIRED] * 2 + [RANK_ENDED] * 2 + [RANK_EVICTED] + [RANK_EXPIRED] * 2, np.int64)

_NOTED: Final = ("opened_at", "last_at", "order", "alerted", "evaluated")  # of a `Session`, a column each

Item = TypeVar("Item", covariant=True)


class ClosedSession(NamedTuple):
    """A session that will get no more events, and the offset of the record that closed it.

    `nth` tells apart sessions of one key that begin in the same record: it numbers from 1 those that the record that
    opened them also closed. One that was open for longer has 0; there is only one.
    """

    session: Session
    cause_offset: int
    closed_by: ClosedBy
    rank: int  # orders the outputs of one event: RANK_EXPIRED, RANK_ENDED, RANK_EVICTED
    nth: int = 0


class Rows(Sequence[Item]):
    """Columns of which a row is made into an object where somebody asks for one."""

    __slots__ = ()

    @abstractmethod
    def select(self, rows: Column) -> Self:
        """These rows, in this order."""

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> Item | Self:
        rows = np.arange(len(self))[at]
        if isinstance(at, slice):
            return self.select(rows)
        (item,) = self.select(np.array([rows]))
        return item


@dataclass(frozen=True, slots=True, eq=False)
class SessionColumns(Rows[Session]):
    """Sessions as they were when they were asked for; no later event changes them.

    Attributes:
        keys: in UTF-8, one after the other.
        key_ends: where each ends in `keys`.
        events: token, offset and time (FIELDS, events) of their events, session after session.
        ends: where the events of each end.
        opened_at, last_at, order, alerted, evaluated: as of `Session`.
    """

    keys: NDArray[np.uint8]
    key_ends: Column
    events: NDArray[np.int64]
    ends: Column
    opened_at: Column
    last_at: Column
    order: Column
    alerted: Column
    evaluated: Column

    @classmethod
    def of(cls, sessions: Sequence[Session]) -> Self:
        """Columns of these."""
        keys = [session.key.encode() for session in sessions]
        events = np.frombuffer(b"".join(session.events.tobytes() for session in sessions), np.int64)
        noted = [[getattr(each, name) for name in _NOTED] for each in sessions]
        return cls(
            np.frombuffer(bytearray().join(keys), np.uint8),
            np.cumsum([len(key) for key in keys], dtype=np.int64),
            events.reshape(-1, FIELDS).T.copy(),
            np.cumsum([len(session) for session in sessions], dtype=np.int64),
            *np.array(noted, np.int64).reshape(-1, len(_NOTED)).T.copy(),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sessions of all parts, which is at least one."""
        if len(parts) == 1:
            return parts[0]

        noted = ([getattr(part, name) for part in parts] for name in _NOTED)
        return cls(
            np.concatenate([part.keys for part in parts]),
            _joined_ends([part.key_ends for part in parts]),
            np.concatenate([part.events for part in parts], axis=1),
            _joined_ends([part.ends for part in parts]),
            *map(np.concatenate, noted),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Session]:
        data = self.events.T.tobytes()
        ends = (self.ends * (FIELDS * self.events.itemsize)).tolist()
        keys, begin = self.key_texts.to_pylist(), 0
        # Column by column: a list of a session's own would be one more object for the garbage collector.
        for key, end, *noted in zip(keys, ends, *(getattr(self, name).tolist() for name in _NOTED), strict=True):
            yield Session(key, array("q", data[begin:end]), *noted)
            begin = end

    def select(self, rows: Column) -> Self:
        """These sessions, in this order."""
        key_bytes, key_ends = _runs(self.key_ends, rows)
        events, ends = _runs(self.ends, rows)
        noted = (getattr(self, name)[rows] for name in _NOTED)
        return type(self)(self.keys[key_bytes], key_ends, self.events.take(events, axis=1), ends, *noted)

    @classmethod
    def gathered(cls, columns: loop.Columns, slots: Column) -> Self:
        """The sessions of these slots as they are."""
        rows = columns.rows[slots]
        links = rows.view(np.int32)
        key_ends, ends = (np.cumsum(links[:, column], dtype=np.int64) for column in (loop.KEY_BYTES, loop.EVENTS))
        keys = np.empty(key_ends[-1] if len(slots) else 0, np.uint8)
        events = np.empty((FIELDS, ends[-1] if len(slots) else 0), np.int64)
        loop.gather(columns, slots, events, keys)
        noted = rows[:, loop.OPENED_AT].copy(), rows[:, loop.LAST_AT].copy(), np.abs(rows[:, loop.ORDER])
        looked_at = (links[:, column].astype(np.int64) for column in (loop.ALERTED, loop.EVALUATED))
        return cls(keys, key_ends, events, ends, *noted, *looked_at)

    @property
    def lengths(self) -> Column:
        """How many events each has."""
        return _lengths(self.ends)

    @property
    def first_offsets(self) -> Column:
        """Offset of the first event of each."""
        first: Column = self.events[1, self.ends - self.lengths]
        return first

    def sequences(self) -> Sequences:
        """The tokens of each, as a scorer takes them."""
        return Sequences(self.events[0], self.ends)

    def timed(self) -> Timed:
        """The tokens of each with their times, as a scorer takes them."""
        spans = np.where(self.opened_at == NO_TIME, 0, self.last_at - np.maximum(self.opened_at, -(2**62)))
        return Timed(self.sequences(), self.events[2], spans)

    def keys_as_bytes(self) -> list[bytes]:
        """The key of each in UTF-8."""
        return _pieces(self.keys.tobytes(), self.key_ends)

    @property
    def key_texts(self) -> pa.LargeStringArray:
        """The key of each."""
        ends = pa.py_buffer(np.append(0, self.key_ends))
        return pa.LargeStringArray.from_buffers(len(self), ends, pa.py_buffer(self.keys))


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The open sessions of a partition, its clock, and origins of the events: what `SessionsState` is made of."""

    columns: loop.Columns
    clock: ClockState
    origins: OriginsOfOpen | None = None

    def state(self) -> SessionsState:
        """What a snapshot holds; the columns must not change meanwhile."""
        slots = np.empty(self.columns.counts[loop.OPEN], np.int64)
        loop.in_order(self.columns, slots)
        sessions = SessionColumns.gathered(self.columns, slots)
        tokens, offsets, times = sessions.events
        state = SessionsState(
            self.clock,
            keys=sessions.key_texts,
            lengths=sessions.lengths,
            **{name: getattr(sessions, name) for name in SESSION_COLUMNS},
            tokens=tokens,
            offsets=offsets,
            times=times,
        )
        return state.with_origins(self.origins)


@dataclass(frozen=True, slots=True, eq=False)
class ClosedSessions(Rows[ClosedSession]):
    """Sessions that closed, in the order in which they did.

    Attributes:
        sessions: as they were at their ends.
        causes: offset of the record that closed each.
        closed_by: by number of `CLOSED_BY`.
        nth: as of `ClosedSession`.
    """

    sessions: SessionColumns
    causes: Column
    closed_by: Column
    nth: Column

    @classmethod
    def of(cls, closed: Sequence[ClosedSession]) -> Self:
        """Columns of these."""
        told = [(each.cause_offset, CLOSED_BY.index(each.closed_by), each.nth) for each in closed]
        columns = np.array(told, np.int64).reshape(-1, 3).T.copy()
        return cls(SessionColumns.of([each.session for each in closed]), *columns)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sessions of all parts, which is at least one."""
        if len(parts) == 1:
            return parts[0]
        told = zip(*((part.causes, part.closed_by, part.nth) for part in parts), strict=True)
        return cls(SessionColumns.joined([part.sessions for part in parts]), *map(np.concatenate, told))

    def __len__(self) -> int:
        return len(self.causes)

    def __iter__(self) -> Iterator[ClosedSession]:
        causes, closed_by, nth = (
            self.causes.tolist(),
            map(CLOSED_BY.__getitem__, self.closed_by.tolist()),
            self.nth.tolist(),
        )
        return map(ClosedSession, self.sessions, causes, closed_by, self.ranks.tolist(), nth)

    def select(self, rows: Column) -> Self:
        """These sessions, in this order."""
        told = (column[rows] for column in (self.causes, self.closed_by, self.nth))
        return type(self)(self.sessions.select(rows), *told)

    def reasons(self) -> dict[str, int]:
        """How many closed by each reason that there was."""
        return {CLOSED_BY[number]: count for number, count in enumerate(np.bincount(self.closed_by).tolist()) if count}

    @property
    def ranks(self) -> Column:
        """As of `ClosedSession`."""
        ranks: Column = RANKS[self.closed_by]
        return ranks


def _pieces(data: bytes, ends: Column) -> list[bytes]:
    begins = [0, *ends.tolist()]
    return [data[begin:end] for begin, end in pairwise(begins)]


def _runs(ends: Column, rows: Column) -> tuple[Column, Column]:
    """Where the items of these rows are, of rows whose items end at `ends`; and where they end among them."""
    lengths = _lengths(ends)[rows]
    new_ends = np.cumsum(lengths)
    return np.repeat(ends[rows] - new_ends, lengths) + np.arange(lengths.sum()), new_ends


def _lengths(ends: Column) -> Column:
    """Of items by where each ends; `np.diff` takes five times as long for the few of one partition."""
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    return lengths


def _joined_ends(parts: Sequence[Column]) -> Column:
    """Where the items of all parts end, one part after the other."""
    begins = accumulate((int(ends[-1]) if len(ends) else 0 for ends in parts), initial=0)
    return np.concatenate([ends + begin for ends, begin in zip(parts, begins, strict=False)])

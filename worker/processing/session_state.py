"""What an open session is made of, and the open sessions of a partition as columns: what a snapshot holds."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields, replace
from typing import Final, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.processing.clock import ClockState
from worker.processing.origins import NumberedOrigins, OriginsOfOpen

Column = NDArray[np.int64]

SESSION_COLUMNS: Final = ("opened_at", "last_at", "alerted", "evaluated")
EVENT_COLUMNS: Final = ("tokens", "offsets", "times")

# Token, offset and time of an event lie side by side: an event then touches one array, which is where most of
# the time goes when many sessions are open.
FIELDS: Final = 3


@final
@dataclass(slots=True, eq=False)
class Session:
    """The events of one key, from its first to its latest, and what the scorer remembers about them."""

    key: str
    events: array[int]  # int64: token, offset, time of the first event, then of the second, ...
    opened_at: int  # stream time in ms at which the first event was processed; NO_TIME while there was none
    last_at: int  # stream time in ms at which the latest event was processed; NO_TIME while there was none
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
        events = array("q", bytes(FIELDS * len(tokens) * tokens.itemsize))
        events[0::FIELDS], events[1::FIELDS], events[2::FIELDS] = tokens, offsets, times
        return cls(key, events, opened_at, last_at, order, alerted, evaluated)

    def __len__(self) -> int:
        return len(self.events) // FIELDS

    @property
    def first_offset(self) -> int:
        """Offset of the event that was processed first; with topic and partition it identifies the session."""
        return self.events[1]

    @property
    def tokens(self) -> array[int]:
        """Token of each event; a copy."""
        return self.events[0::FIELDS]

    @property
    def offsets(self) -> array[int]:
        """Offset of each event's record; the events of a multi-line record share theirs. A copy."""
        return self.events[1::FIELDS]

    @property
    def times(self) -> array[int]:
        """Event time of each event in ms, or NO_TIME; a copy."""
        return self.events[2::FIELDS]


@dataclass(frozen=True, slots=True, eq=False)
class SessionsState:
    """A clock, and open sessions as columns in the order of their opening; a copy that later events do not change.

    `tokens`, `offsets` and `times` have one item an event, session after session; the other columns have one a
    session. `keys` become an Arrow array, whatever they are given as. Event times are NO_TIME where the input has none.
    `origins` are those of all events, of waiting ones too, where they come from token records.
    """

    clock: ClockState
    keys: pa.LargeStringArray
    lengths: Column  # events of each session, at least 1
    opened_at: Column
    last_at: Column
    alerted: Column
    evaluated: Column
    tokens: Column
    offsets: Column
    times: Column
    origins: NumberedOrigins | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", pa.array(self.keys, pa.large_string()))

    @classmethod
    def empty(cls, stream_time: int | None = None) -> SessionsState:
        """No open session, and nothing that waits."""
        columns = {name: np.empty(0, np.int64) for name in ("lengths", *SESSION_COLUMNS, *EVENT_COLUMNS)}
        return cls(ClockState(stream_time), [], **columns, origins=None)

    @property
    def stream_time(self) -> int | None:
        """The partition's stream time in ms; None while it is not set."""
        return self.clock.stream_time

    def event_offsets(self) -> Column:
        """The offset of each event, of those that wait, too."""
        waiting = np.array([event.offset for event in self.clock.waiting], np.int64)
        return np.concatenate([self.offsets, waiting])

    def with_origins(self, known: OriginsOfOpen | None) -> SessionsState:
        """The same with the origins of its events, which are among those that are known; None: it has none."""
        return self if known is None else replace(self, origins=known.of(self.event_offsets(), ordered=True))

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

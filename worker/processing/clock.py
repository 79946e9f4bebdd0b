"""The stream time of one partition: it follows a night, a weekend or an outage, and does not follow one wrong clock.

Columns in, columns out: events in the order of their offsets go in; out come those that are processed now, in the
order in which they are, each with the stream time at which it is and the record that causes what it closes.
J is `max_future_skew`, T the stream time:

- An event at most J ahead of T is processed at once, at T = max(T, its time); so every late one, which moves nothing.
- An event more than J ahead waits; while T is not set, every event does.
- An event contradicts those waiting that lie more than J after it. They are processed at T as it was, in order, before
  anything else happens, and counted as skewed. While T is not set they wait until it is, and do not count among those
  that set it; then they are the first that are processed.
- When three wait that nobody contradicts, time has jumped: T becomes the least of their times, and they come once more,
  in order, as if for the first time. One that is still more than J ahead waits again.
- An event at most J ahead of T brings those waiting that it does not contradict within reach: T becomes its time if
  that is later, and they are processed before it, each at T = max(T, its time).
- After 1,000 events in a row that are more than J behind T, a wrong clock had been believed: T falls to the greatest of
  their times before the last of them is processed. An event that waits ends such a row.
- What waits when a file ends or an idle partition is flushed is believed as it is: T becomes the least of the times
  that nobody contradicts, as in a jump, until nothing waits. So it is with the 1,000th event that waits while T is not
  set (times that only fall could otherwise fill the memory).
- The cause of an event that waited is the record that ended its wait; of all others, their own record.
- An event without a time is processed at once at T as it is, and is in nobody's way: it ends no row, contradicts
  nothing, and waits for nothing. While T is not set its stream time is NO_TIME.

So an event may be processed before another one with a smaller offset, but only where it has no time or where it is
contradicted while the other is not. At most two events wait once T is set, and 1,000 before.

What is processed depends on the events and their order alone: not on how they were cut into batches, nor on whether
the clock was saved and restored between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.processing import clock_loop as loop

Column = NDArray[np.int64]
Numbers = Sequence[int] | Column
Strings: TypeAlias = Sequence[str] | pa.StringArray

NO_TIME: Final = loop.NO_TIME
MOST_WAITING: Final = 1_000  # events; only while stream time is not set
BEHIND_IN_A_ROW: Final = loop.BEHIND_IN_A_ROW
_AGREEING: Final = 3  # events that wait, after which stream time jumps


class Event(NamedTuple):
    """An event that waits."""

    key: str
    token: int
    time: int  # in ms
    offset: int  # of its record


class Move(NamedTuple):
    """A jump or a fall of stream time; times in ms."""

    before: int
    after: int
    cause_offset: int

    @property
    def jumped(self) -> bool:
        """Whether it was a jump, not a fall."""
        return self.after > self.before


class Step(NamedTuple):
    """Events in the order in which they are processed, as columns of equal length."""

    keys: pa.StringArray
    tokens: Column
    times: Column
    offsets: Column
    stream_times: Column  # at which each is processed; NO_TIME while there is none
    causes: Column  # offset of the record that causes what the event closes
    shared: bool  # it is of one event, whose cause, a record that ended a wait, is that of other events too
    set_to: int | None  # first, stream time is set or falls to this: no open session is from later or from NO_TIME


@final
@dataclass(frozen=True, slots=True)
class ClockState:
    """What a snapshot holds of a clock.

    Attributes:
        stream_time: in ms; None while it is not set.
        waiting: in the order of their offsets.
        behind: how many events in a row were more than `max_future_skew` behind stream time.
        behind_time: the greatest of their times; NO_TIME for none.
    """

    stream_time: int | None = None
    waiting: tuple[Event, ...] = ()
    behind: int = 0
    behind_time: int = NO_TIME


@final
class Clock:
    """The stream time of one partition.

    Args:
        max_future_skew_ms: how far ahead of stream time an event may be without waiting.
        state: to go on from.

    Attributes:
        stream_time: in ms; None while it is not set.
        late_events: events processed at a later stream time than their own.
        skewed_events: events that waited and were contradicted.
        moves: jumps and falls during the latest call.
    """

    def __init__(self, max_future_skew_ms: int, state: ClockState | None = None) -> None:
        state = state or ClockState()
        # Format 2 of snapshots had NO_TIME where nothing had set stream time.
        self.stream_time = None if state.stream_time == NO_TIME else state.stream_time
        self.late_events = 0
        self.skewed_events = 0
        self.moves: list[Move] = []
        self._skew = max_future_skew_ms
        self._waiting = list(state.waiting)
        self._behind = state.behind
        self._behind_time = state.behind_time
        self._rows: list[tuple[str, int, int, int, int, int]] = []  # of the step that is being made
        self._set_to: int | None = None
        self._ended_wait: int | None = None  # the latest record that ended a wait
        self._steps: list[Step] = []

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return len(self._waiting)

    def state(self) -> ClockState:
        """What a snapshot holds: `Clock(max_future_skew_ms, state)` goes on exactly where this one stands."""
        return ClockState(self.stream_time, tuple(self._waiting), self._behind, self._behind_time)

    def take(self, keys: Strings, tokens: Numbers, times: Numbers, offsets: Numbers) -> list[Step]:
        """Let events come.

        Args:
            keys: of the events.
            tokens: theirs.
            times: their times in ms, or NO_TIME.
            offsets: of their records, never falling, also from one call to the next.

        Returns:
            What is processed now.
        """
        self.moves = []
        keys = keys if isinstance(keys, pa.StringArray) else pa.array(keys, pa.string())
        tokens, times, offsets = (np.asarray(column, dtype=np.int64) for column in (tokens, times, offsets))
        begin, patience = 0, 1
        while begin < len(keys):
            # Events of a record that ended a wait share its cause with those that waited.
            alone = not self._waiting and offsets[begin] != self._ended_wait
            if alone and (stream_times := self._unhindered(times[begin:])) is not None:
                self._end_step()
                keys, tokens, times, offsets = keys[begin:], tokens[begin:], times[begin:], offsets[begin:]
                rest = Step(keys, tokens, times, offsets, stream_times, offsets, shared=False, set_to=self._set_to)
                self._steps.append(rest)
                self._set_to = None
                break
            # Twice as many each time, so that looking at the rest again and again costs no more than they do.
            some = slice(begin, begin + patience)
            columns = (column[some].tolist() for column in (keys, tokens, times, offsets))
            for event in map(Event, *columns):
                self._come(event, event.offset)
            begin, patience = begin + patience, 2 * patience
        return self._made()

    def confirm(self, cause_offset: int) -> list[Step]:
        """Believe what waits, since nothing more comes that could; returns what is processed now: all of it."""
        self.moves = []
        while self._waiting:
            self._believe(cause_offset)
        return self._made()

    # -- events that neither wait nor make time fall: nearly all batches hold nothing else -------------------------

    def _unhindered(self, times: Column) -> Column | None:
        """The stream times of events of which none waits and none makes time fall; None, and no change, for others."""
        stream_times = np.full(len(times), NO_TIME)
        if self.stream_time is None:
            return None if (times != NO_TIME).any() else stream_times
        known = np.array([self.stream_time, self._behind, self._behind_time, self.late_events], np.int64)
        if not loop.follow(known, self._skew, as_column(times), stream_times):
            return None
        self.stream_time, self._behind, self._behind_time, self.late_events = known.tolist()
        return stream_times

    # -- one event after the other ---------------------------------------------------------------------------------

    def _come(self, event: Event, cause_offset: int) -> None:
        now = self.stream_time
        if event.time == NO_TIME:
            self._process(event, cause_offset)
        elif now is None:
            self._waiting.append(event)
            _, agreeing = self._contradicted()
            if len(agreeing) == _AGREEING or len(self._waiting) == MOST_WAITING:
                self._believe(cause_offset)
        else:
            self._contradict(event.time, cause_offset)
            if event.time > now + self._skew:
                self._behind, self._behind_time = 0, NO_TIME
                self._waiting.append(event)
                if len(self._waiting) == _AGREEING:
                    self._believe(cause_offset)
            else:
                self._fall_if_behind(event.time, cause_offset)
                reached, self._waiting = self._waiting, []
                self._move_to(event.time)
                for each in (*reached, event):
                    self._move_to(each.time)
                    self._process(each, cause_offset)

    def _contradict(self, time: int, cause_offset: int) -> None:
        """Process those waiting that an event of this time contradicts."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if each.time > time + self._skew:
                self.skewed_events += 1
                self._process(each, cause_offset)
            else:
                self._waiting.append(each)

    def _contradicted(self) -> tuple[list[Event], list[Event]]:
        """Those waiting that a later one contradicts, as happens while stream time is not set; and the others."""
        contradicted, others = [], []
        least = None
        for each in reversed(self._waiting):
            if least is not None and each.time > least + self._skew:
                contradicted.append(each)
            else:
                others.append(each)
            least = each.time if least is None else min(least, each.time)
        return contradicted[::-1], others[::-1]

    def _believe(self, cause_offset: int) -> None:
        """Time is where those waiting say that it is; they come once more."""
        contradicted, agreeing = self._contradicted()
        before, after = self.stream_time, min(each.time for each in agreeing)
        self._waiting = []
        if before is None:
            self._begin_step(after)
        else:
            self.moves.append(Move(before, after, cause_offset))
        self.stream_time = after
        self._behind, self._behind_time = 0, NO_TIME
        self.skewed_events += len(contradicted)
        for each in contradicted:
            self._process(each, cause_offset)
        for each in agreeing:
            self._come(each, cause_offset)

    def _fall_if_behind(self, time: int, cause_offset: int) -> None:
        now = self.stream_time
        if now is None or time >= now - self._skew:
            self._behind, self._behind_time = 0, NO_TIME
            return
        self._behind += 1
        self._behind_time = max(self._behind_time, time)
        if self._behind == BEHIND_IN_A_ROW:
            self.moves.append(Move(now, self._behind_time, cause_offset))
            self._begin_step(self._behind_time)
            self.stream_time = self._behind_time
            self._behind, self._behind_time = 0, NO_TIME

    def _move_to(self, time: int) -> None:
        self.stream_time = time if self.stream_time is None else max(self.stream_time, time)

    def _process(self, event: Event, cause_offset: int) -> None:
        now = NO_TIME if self.stream_time is None else self.stream_time
        if NO_TIME != event.time < now:
            self.late_events += 1
        if cause_offset != event.offset:
            self._ended_wait = cause_offset
        shared = cause_offset == self._ended_wait
        if shared:
            self._end_step()
        self._rows.append((*event, now, cause_offset))
        if shared:
            self._end_step(shared=True)

    def _begin_step(self, set_to: int) -> None:
        self._end_step()
        self._set_to = set_to

    def _end_step(self, *, shared: bool = False) -> None:
        if self._rows:
            keys, *numbers = zip(*self._rows, strict=True)
            tokens, times, offsets, stream_times, causes = (np.array(column, np.int64) for column in numbers)
            texts = pa.array(keys, pa.string())
            self._steps.append(Step(texts, tokens, times, offsets, stream_times, causes, shared, self._set_to))
            self._rows, self._set_to = [], None

    def _made(self) -> list[Step]:
        self._end_step()
        steps, self._steps = self._steps, []
        return steps


def as_column(values: Numbers) -> Column:
    """As the compiled loops take it."""
    column = np.ascontiguousarray(values, np.int64)
    return column if column.flags.writeable else column.copy()

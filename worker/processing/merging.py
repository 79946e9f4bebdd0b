"""The events of several partitions in the order of their times, however far one of them is read ahead of another.

After an outage partitions are read a piece of one and then a piece of another, minutes of log time each. Handed on like
that, the lines of a session would be torn apart. So an event is held until every other partition has come as far, or
has nothing left to read. Nothing that is held is lost: the position of its partition is before it.

Events of one partition stay in their order: each counts with the greatest time so far, and the events of a record are
handed on together. A clock that is ahead holds up no more than what was read together with its event.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from worker.processing.clock import Column
from worker.processing.decoder import Events
from worker.processing.origins import Origins
from worker.processing.outputs import Output
from worker.processing.records import Partition

MOST_HELD: Final = 1_000_000  # events; beyond them the older half goes on as it is
PATIENCE_S: Final = 30.0  # with a partition that neither delivers nor is at its end
_MOST_STEP_S: Final = 1.0  # of it between two calls: while the machine stood still nobody could deliver


@dataclass(frozen=True, slots=True)
class _Piece:
    """Events that were read together; columns of equal length."""

    keys: pa.StringArray
    tokens: Column
    times: Column
    offsets: Column
    reached: Column  # the time that each counts with, never falling

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, rows: slice) -> _Piece:
        begin, stop, _ = rows.indices(len(self))
        columns = (getattr(self, name)[rows] for name in ("tokens", "times", "offsets", "reached"))
        return _Piece(self.keys.slice(begin, stop - begin), *columns)


@dataclass(slots=True)
class _Held:
    """What is held of a partition."""

    read_to: int  # offset after the last record
    pieces: deque[_Piece] = field(default_factory=deque)
    letters: deque[tuple[int, Output]] = field(default_factory=deque)
    reached: float = -math.inf  # by the newest event
    ended: bool = False
    silent_s: float = 0.0

    @property
    def position(self) -> int:
        """Offset of the first record that is held, or after the last one."""
        return int(self.pieces[0].offsets[0]) if self.pieces else self.read_to

    def put(self, piece: _Piece) -> None:
        # Time there has not come farther than what followed.
        first = piece.reached[0]
        for at in range(len(self.pieces) - 1, -1, -1):
            if self.pieces[at].reached[-1] <= first:
                break
            self.pieces[at] = replace(self.pieces[at], reached=np.minimum(self.pieces[at].reached, first))
        self.pieces.append(piece)
        self.reached = float(piece.reached[-1])

    def take(self, until: float) -> list[_Piece]:
        """What counts with a time up to this one."""
        taken = []
        while self.pieces and self.pieces[0].reached[0] <= until:
            piece = self.pieces.popleft()
            stop = int(np.searchsorted(piece.reached, until, side="right"))
            taken.append(piece.part(slice(stop)))
            if stop < len(piece):
                self.pieces.appendleft(piece.part(slice(stop, None)))
        return taken

    def take_letters(self) -> list[Output]:
        """The dead letters from before the position."""
        taken = []
        while self.letters and self.letters[0][0] < self.position:
            taken.append(self.letters.popleft()[1])
        return taken


class Merged(NamedTuple):
    """Events of all partitions in one order, as columns of equal length; and dead letters."""

    keys: pa.StringArray
    tokens: Column
    times: Column
    origins: Origins
    letters: list[Output]


class Merging:
    """Brings the events of partitions into one order.

    Args:
        most_held: most events that are held.
        clock: monotonic seconds.
    """

    def __init__(self, most_held: int = MOST_HELD, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_held = most_held
        self._clock = clock
        self._looked_at = clock()
        self._held: dict[Partition, _Held] = {}

    def open(self, partition: Partition, position: int) -> None:
        """Begin, or begin again, with a partition."""
        self._held[partition] = _Held(position)

    def drop(self, partition: Partition) -> None:
        """Forget a partition and what is held of it."""
        self._held.pop(partition, None)

    def position(self, partition: Partition) -> int:
        """Offset after the last record of which everything was handed on."""
        return self._held[partition].position

    def read_to(self, partition: Partition) -> int:
        """Offset after the last record that came."""
        return self._held[partition].read_to

    def pass_over(self, partition: Partition, position: int) -> None:
        """What lies before this offset is not wanted."""
        self._held[partition].read_to = position

    @property
    def holds(self) -> bool:
        """Whether anything is held."""
        return any(held.pieces or held.letters for held in self._held.values())

    def ended(self, partition: Partition) -> None:
        """Nothing is left to read of a partition, until more is put."""
        held = self._held[partition]
        held.ended, held.silent_s = True, 0.0

    def put(self, partition: Partition, events: Events, letters: Sequence[tuple[int, Output]], read_to: int) -> None:
        """Let events come.

        Args:
            partition: that they are of.
            events: in the order of their offsets.
            letters: dead letters, and the offsets of their records.
            read_to: offset after the last record.
        """
        held = self._held[partition]
        held.read_to, held.ended = read_to, False
        held.letters.extend(letters)
        if len(events):
            held.silent_s = 0.0
            # The events of a record go together.
            last = np.searchsorted(events.offsets, events.offsets, side="right") - 1
            reached = np.maximum.accumulate(events.times)[last]
            held.put(_Piece(events.keys, events.tokens, events.times, events.offsets, reached))

    def take(self) -> Merged:
        """What need not be held any longer."""
        now = self._clock()
        step, self._looked_at = min(now - self._looked_at, _MOST_STEP_S), now
        until = math.inf
        for held in self._held.values():
            if not held.ended:
                held.silent_s += step
                if held.silent_s < PATIENCE_S:
                    until = min(until, held.reached)
        waiting = [piece.reached for held in self._held.values() for piece in held.pieces]
        if sum(map(len, waiting)) > self._most_held:
            until = max(until, float(np.median(np.concatenate(waiting))))
        sources, pieces, counts = [], [], []
        letters: list[Output] = []
        for partition, held in sorted(self._held.items()):
            taken = held.take(until)
            pieces += taken
            sources.append(partition)
            counts.append(sum(map(len, taken)))
            letters += held.take_letters()
        return _merged(sources, counts, pieces, letters)


def _merged(sources: list[Partition], counts: list[int], pieces: list[_Piece], letters: list[Output]) -> Merged:
    numbers = np.repeat(np.arange(len(sources)), counts)

    def column(name: str) -> Column:
        return np.concatenate([np.empty(0, np.int64), *(getattr(piece, name) for piece in pieces)])

    keys: Any = pa.concat_arrays([piece.keys for piece in pieces]) if pieces else pa.array([], pa.string())
    tokens, times, origins = column("tokens"), column("times"), Origins.of(sources, numbers, column("offsets"))
    if np.count_nonzero(counts) > 1:
        order = np.argsort(column("reached"), kind="stable")
        keys, tokens, times, origins = keys.take(pa.array(order)), tokens[order], times[order], origins.select(order)
    return Merged(keys, tokens, times, origins, letters)

"""Where events came from before they were keyed: the raw topic, partition and offset of each.

An event of a token record has a number: the offset of its record times `EVENTS_OF_A_RECORD`, and its place there. To
sessions these numbers are what offsets are to them otherwise. The origin of an event is looked up by its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from worker.processing import record_loop as loop
from worker.processing.clock import Column
from worker.processing.records import Partition

EVENT_BITS: Final = 16
EVENTS_OF_A_RECORD: Final = 1 << EVENT_BITS

# A place is the number of a partition and an offset there, in one integer: no topic has 2^47 records.
_OFFSET_BITS: Final = 47
_OFFSETS: Final = (1 << _OFFSET_BITS) - 1
MOST_PARTITIONS: Final = 1 << (63 - _OFFSET_BITS)
MOST_OFFSET: Final = _OFFSETS

_OFFSET_BYTES: Final = 20  # with the comma before it

_FEW: Final = 100_000  # events, whose origins may stay for longer than they are needed


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """Of events, as columns of equal length.

    Attributes:
        partitions: that they came from, each once.
        places: (n,) number of the partition among these, and offset there, in one integer.
    """

    partitions: Sequence[Partition]
    places: Column

    @classmethod
    def of(cls, partitions: Sequence[Partition], numbers: NDArray[Any], offsets: Column) -> Self:
        """Origins of events of which each has the number of its partition, and an offset."""
        return cls(partitions, (numbers.astype(np.int64) << _OFFSET_BITS) | offsets)

    def __len__(self) -> int:
        return len(self.places)

    def select(self, rows: slice | Column) -> Origins:
        """Those of these events."""
        return Origins(self.partitions, self.places[rows])

    def numbers(self) -> Column:
        """(n,) the number of the partition of each."""
        found: Column = self.places >> _OFFSET_BITS
        return found

    def offsets(self) -> Column:
        """(n,) the offset of each."""
        found: Column = self.places & _OFFSETS
        return found

    def each(self) -> list[tuple[Partition, int]]:
        """Partition and offset of each."""
        numbers, offsets = self.numbers().tolist(), self.offsets().tolist()
        return [(self.partitions[number], offset) for number, offset in zip(numbers, offsets, strict=True)]

    def grouped(self) -> list[dict[str, Any]]:
        """As a score record has them: the offsets of each partition in the order of the events."""
        told = self._told(np.zeros(1, np.int64), np.array([len(self)]))
        return orjson.loads(told.data[: told.ends[0]].tobytes())  # type: ignore[no-any-return]

    def _told(self, begins: Column, ends: Column, before: bytes = b"", behind: bytes = b"") -> loop.Texts:
        """The same of the events in each of these spans, none of which is empty, as JSON with something around it."""
        lengths = ends - begins
        spans = np.repeat(np.arange(len(lengths)), lengths)
        places = self.places[np.arange(len(spans)) + np.repeat(begins - np.cumsum(lengths) + lengths, lengths)]
        by_name = sorted(range(len(self.partitions)), key=self.partitions.__getitem__)
        ranks = np.empty(len(by_name), np.int64)
        ranks[by_name] = np.arange(len(by_name))
        groups = spans * len(by_name) + ranks[places >> _OFFSET_BITS]
        # Numbers of 16 bits are sorted many times as fast.
        few = len(lengths) * len(by_name) <= 1 << 16
        order = np.argsort(groups.astype(np.uint16) if few else groups, kind="stable")
        groups, offsets = groups[order], np.ascontiguousarray((places & _OFFSETS)[order])
        names = [
            b'{"topic":%b,"partition":%d,"offsets":['
            % (orjson.dumps(self.partitions[number].topic), self.partitions[number].partition)
            for number in by_name
        ]
        last = b"]}]" + behind
        heads = loop.texts_of([*(head + name for name in names for head in (before + b"[", b"]},")), last])
        arrays = 1 + np.count_nonzero(np.diff(groups))
        room = arrays * heads.longest + len(lengths) * len(last) + len(offsets) * _OFFSET_BYTES + loop.BEHIND
        out, told_ends = np.empty(room, np.uint8), np.empty(len(lengths), np.int64)
        loop.write_origins(heads, groups % len(by_name), offsets, np.cumsum(lengths), out, told_ends)
        return loop.Texts(out, told_ends)

    def tell(self, events: Sequence[dict[str, Any]]) -> None:
        """Say of each of these events of a score record where it came from."""
        for event, (partition, offset) in zip(events, self.each(), strict=True):
            event["origin"] = {**partition._asdict(), "offset": offset}

    def endings(self, begins: Column, ends: Column, wanted: NDArray[np.bool_]) -> loop.Texts:
        """What score records have behind all else: where the events of each came from, and its end.

        Args:
            begins: where the events of each record begin among all.
            ends: where they end; none is empty.
            wanted: the others get nothing.
        """
        sizes = np.zeros(len(wanted), np.int64)
        if not wanted.any():
            return loop.texts_in([], sizes)
        told = self._told(begins[wanted], ends[wanted], b',"origins":', b"}")
        sizes[wanted] = np.diff(told.ends, prepend=0)
        return told._replace(ends=np.cumsum(sizes))

    @classmethod
    def joined(cls, parts: Sequence[Origins]) -> Self:
        """Those of all parts."""
        known: dict[Partition, int] = {}
        columns = [part.renumbered(known) for part in parts]
        return cls([*known], np.concatenate([np.empty(0, np.int64), *columns]))

    def renumbered(self, known: dict[Partition, int]) -> Column:
        """The places by the numbers of partitions that are known, to which new ones are added."""
        ours = np.array([known.setdefault(each, len(known)) for each in self.partitions], np.int64)
        if not len(ours):
            return self.places
        return (ours[self.numbers()] << _OFFSET_BITS) | self.offsets()


@dataclass(frozen=True, slots=True, eq=False)
class NumberedOrigins:
    """Origins by the numbers of their events, which ascend: what a snapshot holds."""

    events: Column
    origins: Origins

    __hash__ = None  # type: ignore[assignment]  # no more than its columns have one

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NumberedOrigins):
            return NotImplemented
        return np.array_equal(self.events, other.events) and self.origins.each() == other.origins.each()


@dataclass(slots=True, eq=False)
class OriginsOfOpen:
    """The origins of a partition's events that are in open sessions, or wait, and of some that were not long ago.

    Args:
        saved: what a snapshot had.
    """

    saved: NumberedOrigins | None = None
    _known: dict[Partition, int] = field(default_factory=dict)
    _events: Column = field(default_factory=lambda: np.empty(0, np.int64))
    _places: Column = field(default_factory=lambda: np.empty(0, np.int64))
    _used: int = 0
    _needed: int = 0  # after the latest `keep`

    def __post_init__(self) -> None:
        if self.saved is not None:
            self.add(self.saved.events, self.saved.origins)
            self._needed, self.saved = self._used, None

    def add(self, events: Column, origins: Origins) -> None:
        """Those of events that follow all others."""
        used = self._used + len(events)
        if used > len(self._events):
            for name in ("_events", "_places"):
                grown = np.empty(2 * used, np.int64)
                grown[: self._used] = getattr(self, name)[: self._used]
                setattr(self, name, grown)
        self._events[self._used : used] = events
        self._places[self._used : used] = origins.renumbered(self._known)
        self._used = used

    @property
    def many(self) -> bool:
        """Whether there are twice as many as were needed when `keep` was called."""
        return self._used > 2 * self._needed + _FEW

    def image(self) -> OriginsOfOpen:
        """These as they are now, for another thread; to be read alone. What was written is never written over."""
        return replace(self, _known=dict(self._known))

    def keep(self, events: Column) -> None:
        """Forget all but those of these events."""
        kept = self.of(events, ordered=True)
        self._events, self._places = kept.events.copy(), kept.origins.places.copy()
        self._used = self._needed = len(self._events)

    def of(self, events: Column, *, ordered: bool = False) -> NumberedOrigins:
        """The origins of some events, in their order or in that of their numbers.

        Raises:
            KeyError: of one nothing is known.
        """
        events = np.sort(events) if ordered else events
        known = self._events[: self._used]
        at = np.minimum(np.searchsorted(known, events), self._used - 1)
        if len(events) and (not self._used or not np.array_equal(known[at], events)):
            raise KeyError(f"of {len(events)} events the origins of some are not known")
        return NumberedOrigins(events, Origins([*self._known], self._places[at]))

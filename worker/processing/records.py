"""Raw records as columns, and the partition that they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from worker.formats.times.years import FileYears

if TYPE_CHECKING:  # it is compiled, which whoever only reads records need not wait for
    from worker.processing.clock import Numbers


class Partition(NamedTuple):
    """A partition of an input topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


@dataclass(frozen=True, slots=True)
class Records:
    """Raw records of one partition in offset order, as columns of equal length.

    Attributes:
        topic: name of the topic, or of a file.
        partition: its number.
        offsets: increasing.
        values: None for a tombstone.
        keys: None where no record has one.
        timestamps: Kafka's, in ms; None where there are none. They may be looked up only where somebody asks.
        headers: None where no record has one, or no setting reads them.
        line_counts: how many lines of a file each record is made of; None: one each.
        headers_of: of a row, where `headers` is None since no setting reads them.
        years: of a file's lines, which are then decoded in their order: finds the years that their times lack.
    """

    topic: str
    partition: int
    offsets: Numbers
    values: list[bytes | None]
    keys: list[bytes | None] | None
    timestamps: Numbers | None
    headers: list[list[tuple[str, bytes | None]] | None] | None
    years: FileYears | None = None
    line_counts: list[int] | None = None
    headers_of: Callable[[int], list[tuple[str, bytes | None]] | None] | None = None

    @property
    def first_offset(self) -> int:
        """Offset of the first record; there has to be one."""
        return int(self.offsets[0])

    @property
    def last_offset(self) -> int:
        """Offset of the last record; there has to be one."""
        return int(self.offsets[-1])

    def headers_at(self, row: int) -> list[tuple[str, bytes | None]]:
        """The headers of a record, as they came."""
        if self.headers is not None:
            return self.headers[row] or []
        return [] if self.headers_of is None else self.headers_of(row) or []

    @property
    def first_ms(self) -> int | None:
        """Kafka's timestamp of the first record, in ms; None where it has none."""
        first = 0 if self.timestamps is None else int(self.timestamps[0])
        return first if first > 0 else None

    @property
    def last_ms(self) -> int | None:
        """Kafka's timestamp of the last record, in ms; None where it has none."""
        last = 0 if self.timestamps is None else int(self.timestamps[-1])
        return last if last > 0 else None

    @property
    def lines(self) -> int:
        """How many lines of a file these are."""
        return len(self.offsets) if self.line_counts is None else sum(self.line_counts)

    def timestamps_at(self, offsets: Numbers) -> list[int | None]:
        """Kafka's timestamps of the records at some offsets, in ms; None where there is no such record or time."""
        if self.timestamps is None or not len(self.offsets):
            return [None] * len(offsets)
        own, asked = np.asarray(self.offsets, np.int64), np.asarray(offsets, np.int64)
        rows = np.minimum(np.searchsorted(own, asked), len(own) - 1)
        times = np.fromiter(map(self.timestamps.__getitem__, rows.tolist()), np.int64, len(rows))
        found: list[int | None] = times.tolist()
        for at in np.flatnonzero((own[rows] != asked) | (times <= 0)).tolist():
            found[at] = None
        return found

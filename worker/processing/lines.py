"""Lines on their way to events, and what became of their records: the columns that the decoder's parts work on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.processing.clock import Numbers
from worker.processing.records import Records

if TYPE_CHECKING:
    from worker.processing.documents import Documents

Reason = Literal[
    "not_utf8",
    "empty",
    "null",
    "no_key",
    "bad_key",
    "long_key",
    "bad_json",
    "no_message",
    "bad_timestamp",
    "bad_tokens",
]

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record, or an item of one, that gives no event, and why.

    Attributes:
        index: the record's row in `Records`.
        reason: for headers and counters.
        message: for people.
        item: the record with nothing in it but this item; None for a record of one item, which stands for itself.
    """

    index: int
    reason: Reason
    message: str
    item: bytes | None = None


class Place(Protocol):
    """Where in its record an item stands."""

    def __str__(self) -> str: ...

    def alone(self) -> bytes:
        """The record's value with nothing in it but the item."""


class Batch:
    """The records of all parts as one column, and what became of them.

    A record has one item or, where it holds several events, one for each. What becomes of an item is its own affair.

    Attributes:
        parts: the records of each partition.
        starts: row of each part's first record; at last, the number of rows.
        item_rows: (items,) the row of each item, ascending.
        places: of the items of records that have several.
        faults: reason and message of the items that are dead letters.
        ignored: how many lines of an item are ignored.
        skipped: items that are another application's.
    """

    def __init__(self, parts: Sequence[Records]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(len(part.offsets) for part in parts)]
        self.item_rows: Rows = np.arange(self.starts[-1])
        self.places: dict[int, Place] = {}
        self.faults: dict[int, tuple[Reason, str]] = {}
        self.ignored: Counter[int] = Counter()
        self.skipped: set[int] = set()

    def column(self, values: Iterable[Numbers]) -> Rows:
        """Join a column of each part."""
        return np.concatenate([np.empty(0, np.int64), *(np.asarray(column, np.int64) for column in values)])

    def values(self) -> list[bytes | None]:
        """Return the values of all records."""
        return [value for part in self.parts for value in part.values]

    def fault(self, item: int, reason: Reason, message: str) -> None:
        """Make an item a dead letter, unless it is one already."""
        self.faults.setdefault(item, (reason, message))

    def dead_letters(self) -> list[list[DeadLetter]]:
        """Return the dead letters of each part, in the order of the items."""
        letters: list[list[DeadLetter]] = [[] for _ in self.parts]
        items = sorted(self.faults)
        parts, rows = self._places_of(items)
        for item, part, row in zip(items, parts.tolist(), rows.tolist(), strict=True):
            reason, message = self.faults[item]
            place = self.places.get(item)
            letters[part].append(
                DeadLetter(row, reason, message)
                if place is None
                else DeadLetter(row, reason, f"{place}: {message}", place.alone())
            )
        return letters

    def ignored_lines(self) -> list[int]:
        """Return the number of ignored lines of each part."""
        return self._of_parts(list(self.ignored), list(self.ignored.values()))

    def skipped_items(self) -> list[int]:
        """Return the number of skipped items of each part."""
        return self._of_parts(list(self.skipped), [1] * len(self.skipped))

    def _of_parts(self, items: Sequence[int], counts: Sequence[int]) -> list[int]:
        sums = np.zeros(len(self.parts), np.int64)
        np.add.at(sums, self._places_of(items)[0], counts)
        return sums.tolist()

    def _places_of(self, items: Sequence[int]) -> tuple[Rows, Rows]:
        """The part of each item, and the row in it."""
        starts, rows = np.array(self.starts), self.item_rows[np.array(items, np.int64)]
        parts = np.searchsorted(starts, rows, side="right") - 1
        return parts, rows - starts[parts]


@dataclass(frozen=True)
class Lines:
    """Lines that may become events.

    Attributes:
        texts: (n,) the lines.
        messages: (n,) what of each line makes its template.
        items: (n,) the item that each line is of, ascending.
        rows: (n,) the row of each line's record, ascending.
        cut: (n,) whether the line was longer.
        documents: one an item, for JSON.
    """

    texts: pa.StringArray
    messages: pa.StringArray
    items: Rows
    rows: Rows
    cut: Flags
    documents: "Documents | None"

    def where(self, kept: Flags) -> "Lines":
        """Return some of the lines."""
        mask = pa.array(kept)
        texts = self.texts.filter(mask)
        return replace(
            self,
            texts=texts,
            messages=texts if self.messages is self.texts else self.messages.filter(mask),
            items=self.items[kept],
            rows=self.rows[kept],
            cut=self.cut[kept],
        )


def nearest_line(has: Flags, items: Rows) -> Rows:
    """Return, for each line, the line of the same item that gives it what it lacks, or -1.

    That is the line itself, the nearest before it that has it, or the first of its item that has it.
    """
    index = np.arange(len(items))
    before = np.maximum.accumulate(np.where(has, index, -1))
    after = np.minimum.accumulate(np.where(has, index, len(items))[::-1])[::-1]
    own_before = (before >= 0) & (items[before] == items)
    own_after = (after < len(items)) & (items[np.minimum(after, len(items) - 1)] == items)
    return np.where(own_before, before, np.where(own_after, after, -1))

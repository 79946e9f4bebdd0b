"""Lines on their way to events, and what became of their records: the columns that the decoder's parts work on."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.processing.records import Records

Reason = Literal["not_utf8", "empty", "null", "no_key", "long_key", "bad_json", "no_message", "bad_timestamp"]

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record without events, and why.

    Attributes:
        index: its row in `Records`.
        reason: for headers and counters.
        message: for people.
    """

    index: int
    reason: Reason
    message: str


class Batch:
    """The records of all parts as one column, and what became of them.

    Attributes:
        parts: the records of each partition.
        starts: row of each part's first record; at last, the number of rows.
        faults: reason and message of the rows that are dead letters.
        ignored: how many lines of a row are ignored.
    """

    def __init__(self, parts: Sequence[Records]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(len(part.offsets) for part in parts)]
        self.faults: dict[int, tuple[Reason, str]] = {}
        self.ignored: Counter[int] = Counter()

    def column(self, values: Iterable[Iterable[int]]) -> Rows:
        """Join a column of each part."""
        return np.fromiter(chain.from_iterable(values), np.int64, self.starts[-1])

    def fault(self, row: int, reason: Reason, message: str) -> None:
        """Make a row a dead letter, unless it is one already."""
        self.faults.setdefault(row, (reason, message))

    def dead_letters(self) -> list[list[DeadLetter]]:
        """Return the dead letters of each part, by row."""
        letters: list[list[DeadLetter]] = [[] for _ in self.parts]
        for row in sorted(self.faults):
            part = bisect_right(self.starts, row) - 1
            letters[part].append(DeadLetter(row - self.starts[part], *self.faults[row]))
        return letters

    def ignored_lines(self) -> list[int]:
        """Return the number of ignored lines of each part."""
        lines = [0 for _ in self.parts]
        for row, count in self.ignored.items():
            lines[bisect_right(self.starts, row) - 1] += count
        return lines


@dataclass(frozen=True)
class Lines:
    """Lines that may become events.

    Attributes:
        texts: (n,) the lines.
        rows: (n,) the row of each line's record, ascending.
        cut: (n,) whether the line was longer.
        documents: the parsed value of each row, for JSON.
    """

    texts: pa.StringArray
    rows: Rows
    cut: Flags
    documents: dict[int, object]

    def where(self, kept: Flags) -> "Lines":
        """Return some of the lines."""
        return replace(self, texts=self.texts.filter(pa.array(kept)), rows=self.rows[kept], cut=self.cut[kept])


def nearest_line(has: Sequence[bool], rows: Rows) -> Rows:
    """Return, for each line, the line of the same row that gives it what it lacks, or -1.

    That is the line itself, the nearest before it that has it, or the first of its row that has it.
    """
    index = np.arange(len(rows))
    before = np.maximum.accumulate(np.where(has, index, -1))
    after = np.minimum.accumulate(np.where(has, index, len(rows))[::-1])[::-1]
    own_before = (before >= 0) & (rows[before] == rows)
    own_after = (after < len(rows)) & (rows[np.minimum(after, len(rows) - 1)] == rows)
    return np.where(own_before, before, np.where(own_after, after, -1))

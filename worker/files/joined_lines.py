"""Lines of a log file that are one event, joined before they are decoded: stack traces, and parts of long lines.

A joined line is what a Kafka record with these lines would hold, so the same decoder makes the same event of both. What
the settings say of lines is said in `worker.processing.line_events` and `worker.processing.partial_lines`; here it goes
over batches of any size in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.encodings import Encoding, in_utf8
from worker.formats.line_texts import without_codes
from worker.processing.line_events import begin_events, without_cr
from worker.processing.partial_lines import cri_parts
from worker.settings.sections import InputSettings
from worker.settings.shapes import EventStart


class JoinedLines(NamedTuple):
    """Some lines of a file.

    Attributes:
        numbers: of each, or of the first of those that it was joined from, in the file, from 0; ascending.
        values: their bytes.
        counts: how many lines each was joined from.
    """

    numbers: list[int]
    values: list[bytes]
    counts: list[int]

    def followed_by(self, more: JoinedLines) -> JoinedLines:
        """These and, after them, others."""
        return JoinedLines(self.numbers + more.numbers, self.values + more.values, self.counts + more.counts)

    def take(self, rows: list[int]) -> JoinedLines:
        """Some of them."""
        numbers, values, counts = self
        return JoinedLines([numbers[row] for row in rows], [values[row] for row in rows], [counts[row] for row in rows])


_NONE = JoinedLines([], [], [])


def joined_lines(batches: Iterable[list[bytes]], settings: InputSettings | None) -> Iterator[JoinedLines]:
    """Join the lines of one file that are one event, as far as the settings say that some are.

    Parts of a line become that line, without what stands before the text of the second and further parts. An event
    goes to the line before the next one that begins an event, or to the end of the file; the lines before the first
    that does are one event. Past `max_line_bytes`, where the decoder cuts it, lines of an event are not kept.

    Args:
        batches: the lines, without their ends.
        settings: how a record is read; None: every line is an event. A line that is a JSON document is one, too: what
            the settings say of lines is then said of its message.
    """
    joined = _numbered(batches)
    if settings is None or settings.documents:
        return joined
    if settings.partial_lines is not None:
        joined = _whole_lines(joined)
    if isinstance(settings.multiline, EventStart):
        joined = _events(joined, settings.multiline.pattern, settings.encoding, settings.max_line_bytes)
    return joined


def _numbered(batches: Iterable[list[bytes]]) -> Iterator[JoinedLines]:
    first = 0
    for lines in batches:
        yield JoinedLines(list(range(first, first + len(lines))), lines, [1] * len(lines))
        first += len(lines)


def _whole_lines(batches: Iterable[JoinedLines]) -> Iterator[JoinedLines]:
    kept = _NONE
    for batch in batches:
        whole, kept = _whole(kept.followed_by(batch))
        if whole.values:
            yield whole
    if kept.values:
        whole, _ = _whole(kept, ended=True)
        yield whole


def _whole(rows: JoinedLines, *, ended: bool = False) -> tuple[JoinedLines, JoinedLines]:
    """The whole lines, and the rows to go on with: those of a line whose end has not come, and of those after it."""
    # One character a byte, so that a head has as many of them as bytes.
    texts = [value.decode("latin-1") for value in rows.values]
    parts = cri_parts(pa.array(texts, pa.string()), rows.numbers, [None] * len(texts))
    if parts is None:
        return rows, _NONE
    first = len(rows.values) if ended else min(parts.waiting, default=len(rows.values))
    done = [group for group in parts.groups if group[0] < first]
    later = sorted(row for group in parts.groups if group[0] >= first for row in group)
    whole = JoinedLines(
        [rows.numbers[group[0]] for group in done],
        [parts.line(texts, group).encode("latin-1") for group in done],
        [len(group) for group in done],
    )
    return whole, rows.take(later)


@dataclass(slots=True)
class _Event:
    """The lines of an event that may go on."""

    number: int
    values: list[bytes]
    size: int  # in bytes of the text
    count: int


def _events(batches: Iterable[JoinedLines], start: str, encoding: Encoding, most: int) -> Iterator[JoinedLines]:
    event: _Event | None = None
    for numbers, values, counts in batches:
        texts = without_cr(without_codes(_texts(values, encoding)))
        begins = begin_events(texts, start)
        sizes = pc.binary_length(texts).to_pylist()
        done: list[_Event] = []
        bounds = [0, *(np.flatnonzero(begins[1:]) + 1).tolist(), len(values)]
        for first, stop in pairwise(bounds):
            row = first
            if event is None or begins[first]:
                if event is not None:
                    done.append(event)
                event = _Event(numbers[row], [values[row]], sizes[row], counts[row])
                row += 1
            for each in range(row, stop):
                event.count += counts[each]
                if event.size <= most:
                    event.values.append(values[each])
                    event.size += 1 + sizes[each]
        if done:
            yield _of_events(done)
    if event is not None:
        yield _of_events([event])


def _of_events(events: list[_Event]) -> JoinedLines:
    return JoinedLines(
        [event.number for event in events],
        [b"\n".join(event.values) for event in events],
        [event.count for event in events],
    )


def _texts(values: list[bytes], encoding: Encoding) -> pa.StringArray:
    """Lines as text; what is none is told by the decoder, of the whole event."""
    if encoding != "utf-8":
        values = [in_utf8(value, encoding) for value in values]
    try:
        return pa.array(values, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([value.decode(errors="replace") for value in values], pa.string())

"""When events happened: the setting `input.timestamp` over a batch of lines.

A time depends on its record alone, its Kafka timestamp included, except that in a file a time without a year follows
the lines before it.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.line_patterns import LinePattern
from worker.formats.pointers import MISSING, FirstPointer
from worker.formats.times.columns import COMPLETE, TextTimes
from worker.formats.times.reader import TimeReader
from worker.formats.times.shapes import text_ends
from worker.processing.clock import NO_TIME
from worker.processing.lines import Batch, Flags, Lines, Rows, nearest_line
from worker.settings.timestamps import TimestampRule

# OpenTelemetry's word for a time that is not known is 0.
_NO_TIMES = (None, "", 0, "0")


class EventTimes:
    """Finds the time of each line; records without one, or with one that cannot be read, become dead letters.

    A line without a time of its own has that of the line before it in its record or, at the beginning, that of the
    first that has one. Without a rule a line's time is its record's Kafka timestamp, NO_TIME where that is none.

    Args:
        rule: as the settings say it.

    Raises:
        ValueError: a part of the rule that cannot be used.
    """

    def __init__(self, rule: TimestampRule | None) -> None:
        if rule is None:
            self._rule = None
            return
        self._rule = rule
        zones = rule.zone_offsets()
        self._reader = TimeReader(rule.formats, rule.timezone, zones)
        self._pointer = FirstPointer(rule.pointers) if rule.pointers else None
        self._searches = [(LinePattern(rule.pattern), self._reader)] if rule.pattern is not None else []
        if not rule.pointers and rule.pattern is None:
            # Each format looks for its own shape.
            self._searches = [
                (LinePattern(each.pattern), TimeReader([each.name], rule.timezone, zones))
                for each in self._reader.formats
                if each.pattern is not None
            ]

    def of(self, batch: Batch, lines: Lines) -> Rows:
        """Return (n,) ms since 1970 UTC of the lines."""
        if self._rule is None:
            times = batch.column(
                np.full(len(part.offsets), NO_TIME) if part.timestamps is None else part.timestamps
                for part in batch.parts
            )[lines.rows]
            times[~_is_timestamp(times)] = NO_TIME
            return times
        if self._pointer is not None:
            return self._in_documents(self._pointer, batch, lines)
        return self._in_lines(self._rule, batch, lines)

    def _in_lines(self, rule: TimestampRule, batch: Batch, lines: Lines) -> Rows:
        times = TextTimes.none(len(lines.rows))
        present = np.zeros(len(lines.rows), bool)
        left = np.arange(len(lines.rows))
        searched = []
        for pattern, reader in self._searches:
            texts = lines.texts if len(left) == len(lines.rows) else lines.texts.take(pa.array(left))
            # Neighbouring lines share their second: each distinct text is looked at once.
            found = pattern.extract(texts).dictionary_encode()
            which = found.indices.to_numpy()
            times.put(left, reader.read(found.dictionary).take(which))
            has_text = (np.diff(text_ends(found.dictionary)) > 0)[which]
            searched.append((left[has_text], which[has_text], found.dictionary))
            present[left] |= has_text
            left = left[~times.read[left]]
            if len(left) == 0:
                break
        utc, yearless = self._utc(batch, lines.rows, times)
        for line in np.flatnonzero(present & ~times.read).tolist():
            text = _first_text(line, searched)
            _fault(batch, int(lines.items[line]), _no_year(text) if yearless[line] else self._reader.why_not(text))
        if present.all():
            return utc
        source = nearest_line(present, lines.items)
        where = f"format {', '.join(rule.formats)}" if rule.pattern is None else f"pattern {rule.pattern}"
        for item in lines.items[source < 0].tolist():
            _fault(batch, item, f"the record has no timestamp ({where})")
        return utc[source]

    def _in_documents(self, pointer: FirstPointer, batch: Batch, lines: Lines) -> Rows:
        items = lines.items if (np.diff(lines.items) > 0).all() else np.unique(lines.items)
        told = f"the timestamp at {pointer.pointer}"
        assert lines.documents is not None
        values = lines.documents.at(pointer, _NO_TIMES).take(items)
        column, numbers, texts = values.texts, values.whole.copy(), {}
        for index, value in values.others.items():
            item = int(items[index])
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[index] = True
                texts[index] = str(value) if isinstance(value, int) else np.format_float_positional(value, trim="-")
            elif value is MISSING:
                _fault(batch, item, f"{told} is missing")
            else:
                _fault(batch, item, f"{told} cannot be read: it is neither text nor a number")
        if texts:
            mask = np.zeros(len(items), bool)
            mask[list(texts)] = True
            column = pc.replace_with_mask(column, pa.array(mask), pa.array(texts.values(), pa.string()))
        times = TextTimes.none(len(items))
        for kind in (False, True):
            of_kind = np.flatnonzero(numbers == kind)
            if len(of_kind) == len(items):
                times = self._reader.read(column, numbers=kind)
            elif len(of_kind):
                times.put(of_kind, self._reader.read(column.take(pa.array(of_kind)), numbers=kind))
        utc, yearless = self._utc(batch, batch.item_rows[items], times)
        for index in np.flatnonzero(~times.read).tolist():
            text = column[index].as_py()
            why = _no_year(text) if yearless[index] else self._reader.why_not(text)
            _fault(batch, int(items[index]), f"{told} cannot be read: {why}")
        return utc if items is lines.items else utc[np.searchsorted(items, lines.items)]

    def _utc(self, batch: Batch, rows: Rows, times: TextTimes) -> tuple[Rows, Flags]:
        """Milliseconds since 1970 UTC, and which times lack a year that nothing tells; `rows` ascend."""
        lacking = times.read & (times.lacks != COMPLETE)
        yearless = np.zeros(len(rows), bool)
        if lacking.any():
            bounds = pairwise(np.searchsorted(rows, batch.starts).tolist())
            for part, first, (start, stop) in zip(batch.parts, batch.starts, bounds, strict=False):
                those = times.between(start, stop)
                if part.timestamps is not None:
                    timestamps = np.asarray(part.timestamps, np.int64)[rows[start:stop] - first]
                    yearless[start:stop] = ~_is_timestamp(timestamps)
                    self._reader.complete(those, timestamps)
                elif part.years is not None and self._rule is not None:
                    self._reader.follow(those, part.years, self._rule.year)
                else:
                    yearless[start:stop] = True
            yearless &= lacking
            times.read &= ~yearless
        return self._reader.utc(times), yearless


def _is_timestamp(timestamps: Rows) -> Flags:
    """-1 is Kafka's word for none, and 0 that of producers which leave the field as it was."""
    given: Flags = timestamps > 0
    return given


def _fault(batch: Batch, item: int, message: str) -> None:
    if item not in batch.ignored:  # what is ignored is not read
        batch.fault(item, "bad_timestamp", message)


def _first_text(line: int, searched: Sequence[tuple[Rows, Rows, pa.StringArray]]) -> str:
    """What the first pattern that found any text in a line found in it.

    Args:
        line: in which one of them found some.
        searched: of each pattern the lines in which it found a text, ascending, and which text of which it was.
    """
    for lines, which, texts in searched:
        at = int(np.searchsorted(lines, line))
        if at < len(lines) and lines[at] == line:
            return str(texts[which[at]].as_py())
    raise LookupError(f"no pattern found a text in line {line}")


def _no_year(text: str) -> str:
    return f"{text[:100]!r} lacks a year or a date, and the record has no Kafka timestamp that tells it"

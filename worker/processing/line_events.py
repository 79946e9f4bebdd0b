"""Texts to events: which lines make one, and what of them makes its template."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.line_patterns import LinePattern
from worker.processing.lines import Flags, Rows
from worker.processing.partial_lines import cri_parts
from worker.settings.sections import InputSettings
from worker.settings.shapes import EventStart, LinePart

# A line that names an exception, as Java, Python, .NET, JavaScript, Ruby and Go write it.
_EXCEPTION = (
    r'^\s*(?:Caused by: |Suppressed: |Exception in thread "[^"]*" |Unhandled exception\. |-+> )?'
    r"((?:[A-Za-z_$][\w$]*(?:\.|::))*[A-Za-z_$][\w$]*(?:Exception|Error|Throwable|Failure|Fault|Interrupt|Exit)"
    r"|panic|fatal error)(?::|\s|$)"
)


class LineEvents:
    """Divides texts into events.

    Args:
        input: the section of the settings: `multiline` says whether a text holds several lines, and whether each is an
            event or only those that begin one, `partial_lines` whether some are parts of one, and `message` which part
            of a line makes its template.

    Raises:
        ValueError: a pattern that cannot be used.
    """

    def __init__(self, input: InputSettings) -> None:  # noqa: A002  named like the section
        self._start = input.multiline.pattern if isinstance(input.multiline, EventStart) else None
        self._one_line = input.multiline is False
        self._parts = input.partial_lines is not None
        self._exception = LinePattern(_EXCEPTION)
        self._message = LinePattern(input.message.pattern) if isinstance(input.message, LinePart) else None

    def divide(self, texts: pa.StringArray, items: Rows) -> tuple[pa.StringArray, Rows]:
        """Return the texts of the events, and the item of each; CR before a line's end is no part of it."""
        if self._one_line:
            return texts, items
        split = pc.split_pattern(texts, "\n")
        items = items[pc.list_parent_indices(split).to_numpy()]
        lines = without_cr(split.flatten())
        if self._parts:
            lines, items = _whole_lines(lines, items)
        if self._start is None or len(lines) == len(texts):
            return lines, items
        # What stands before the first beginning is an event of its own.
        begins = begin_events(lines, self._start)
        begins |= np.diff(items, prepend=-1) > 0
        first = np.flatnonzero(begins)
        bounds = pa.array(np.append(first, len(lines)), pa.int32())
        joined = pc.binary_join(pa.ListArray.from_arrays(bounds, lines), "\n")
        return pc.utf8_rtrim(joined, "\n"), items[first]

    def messages(self, texts: pa.StringArray) -> pa.StringArray:
        """Return what makes the template of each event.

        Of a line that is the part that `message` finds, all of it where that finds none. Of an event of several lines
        it is that of the first line, and the last exception that the part of another one names.
        """
        found = self._parts_of(texts)
        if self._start is None:
            return found
        several = np.flatnonzero(pc.match_substring(texts, "\n").to_numpy(zero_copy_only=False))
        if len(several) == 0:
            return found
        mask = np.zeros(len(texts), bool)
        mask[several] = True
        heads = pa.array(self._heads(texts.take(pa.array(several))), pa.string())
        return pc.replace_with_mask(found, pa.array(mask), heads)

    def _parts_of(self, lines: pa.StringArray) -> pa.StringArray:
        if self._message is None:
            return lines
        parts = self._message.extract(lines)
        has = pc.binary_length(parts).to_numpy() > 0
        return parts if has.all() else pc.if_else(pa.array(has), parts, lines)

    def _heads(self, texts: pa.StringArray) -> list[str]:
        split = pc.split_pattern(texts, "\n")
        lines = self._parts_of(split.flatten())
        starts = split.offsets.to_numpy() - split.offsets[0].as_py()
        named = self._exception.extract(lines)
        # The last line of each event that names an exception, its first line aside.
        is_named = pc.binary_length(named).to_numpy() > 0
        is_named[starts[:-1]] = False
        last = np.maximum.accumulate(np.where(is_named, np.arange(len(lines)), -1))[starts[1:] - 1]
        heads = lines.take(pa.array(starts[:-1])).to_pylist()
        names = named.to_pylist()
        return [
            f"{head} {names[index]}" if index > first else head
            for head, index, first in zip(heads, last.tolist(), starts.tolist(), strict=False)
        ]


def without_cr(lines: pa.StringArray) -> pa.StringArray:
    """Return lines without the CR before their ends."""
    return pc.utf8_rtrim(lines, "\r")


def begin_events(lines: pa.StringArray, start: str) -> Flags:
    """Return (n,) whether each line, without CR and terminal codes, begins an event: whether this pattern is in it."""
    begins: Flags = pc.match_substring_regex(lines, start).to_numpy(zero_copy_only=False)
    return begins


def _whole_lines(lines: pa.StringArray, items: Rows) -> tuple[pa.StringArray, Rows]:
    parts = cri_parts(lines, range(len(lines)), items.tolist())
    if parts is None:
        return lines, items
    texts = lines.to_pylist()
    whole = [parts.line(texts, group) for group in parts.groups]
    return pa.array(whole, pa.string()), items[[group[0] for group in parts.groups]]

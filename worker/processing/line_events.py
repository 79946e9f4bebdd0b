"""Texts to events: which lines make one, and what of them makes its template."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.patterns import LinePattern
from worker.processing.lines import Rows
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
        multiline: whether a text holds several lines, and whether each is an event or only those that begin one.
        message: of a line of text, the part that makes its template; None: all of it.

    Raises:
        ValueError: a pattern that cannot be used.
    """

    def __init__(self, multiline: bool | EventStart, message: LinePart | None) -> None:
        self._each_line = multiline is True
        self._start = multiline.pattern if isinstance(multiline, EventStart) else None
        self._exception = LinePattern(_EXCEPTION)
        self._message = None if message is None else LinePattern(message.pattern)

    def divide(self, texts: pa.StringArray, items: Rows) -> tuple[pa.StringArray, Rows]:
        """Return the texts of the events, and the item of each; CR before a line's end is no part of it."""
        if not self._each_line and self._start is None:
            return texts, items
        split = pc.split_pattern(texts, "\n")
        items = items[pc.list_parent_indices(split).to_numpy()]
        lines = pc.utf8_rtrim(split.flatten(), "\r")
        if self._start is None or len(lines) == len(texts):
            return lines, items
        # What stands before the first beginning is an event of its own. Blank lines begin none.
        begins = pc.match_substring_regex(lines, self._start).to_numpy(zero_copy_only=False)
        begins |= np.diff(items, prepend=-1) > 0
        first = np.flatnonzero(begins)
        bounds = pa.array(np.append(first, len(lines)), pa.int32())
        joined = pc.binary_join(pa.ListArray.from_arrays(bounds, lines), "\n")
        return pc.utf8_rtrim(joined, "\n"), items[first]

    def messages(self, texts: pa.StringArray) -> pa.StringArray:
        """Return what makes the template of each event.

        Of a line that is the part that `message` finds, all of it where that finds none. Of an event of several lines
        it is the first line and the last exception that another one names.
        """
        found = texts if self._start is None else self._heads(texts)
        if self._message is None:
            return found
        parts = self._message.extract(found)
        has = pc.binary_length(parts).to_numpy() > 0
        return parts if has.all() else pc.if_else(pa.array(has), parts, found)

    def _heads(self, texts: pa.StringArray) -> pa.StringArray:
        several = np.flatnonzero(pc.match_substring(texts, "\n").to_numpy(zero_copy_only=False))
        if len(several) == 0:
            return texts
        split = pc.split_pattern(texts.take(pa.array(several)), "\n")
        lines = split.flatten()
        starts = split.offsets.to_numpy()
        named = self._exception.extract(lines)
        # The last line of each event that names an exception, its first line aside.
        is_named = pc.binary_length(named).to_numpy() > 0
        is_named[starts[:-1] - starts[0]] = False
        last = np.maximum.accumulate(np.where(is_named, np.arange(len(lines)), -1))[starts[1:] - starts[0] - 1]
        heads = lines.take(pa.array(starts[:-1] - starts[0])).to_pylist()
        names = named.to_pylist()
        firsts = (starts[:-1] - starts[0]).tolist()
        short = [
            f"{head} {names[index]}" if index > first else head
            for head, index, first in zip(heads, last.tolist(), firsts, strict=True)
        ]
        mask = np.zeros(len(texts), bool)
        mask[several] = True
        return pc.replace_with_mask(texts, pa.array(mask), pa.array(short, pa.string()))

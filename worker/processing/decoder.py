"""Raw records to events: key, token, time and offset of each log line, a whole batch of all partitions at a time.

A record that cannot be read becomes a dead letter and leaves the others as they are. A record's events depend on
the record alone (in a file, its year also on the lines before it), so how records fall into batches never shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from worker.formats.line_texts import tidied
from worker.processing.clock import Column
from worker.processing.documents import DocumentReader
from worker.processing.event_times import EventTimes
from worker.processing.keys import SessionKeys, key_pointers
from worker.processing.line_events import LineEvents
from worker.processing.lines import Batch, DeadLetter, Lines, Rows, nearest_line
from worker.processing.messages import Messages
from worker.processing.origins import Origins
from worker.processing.owners import Owners
from worker.processing.records import Records
from worker.processing.values import valid_texts
from worker.settings.sections import InputSettings, SessionsSettings
from worker.settings.shapes import LinePart


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Events of one partition in offset order, as columns of equal length.

    Attributes:
        keys: session keys, texts that are not empty.
        tokens: of the vocabulary; negative ones carry the text of an unknown line.
        times: event times in ms; NO_TIME for events that have none.
        offsets: of the record; all events of a record share theirs.
        dead_letters: records, and events within one, that could not be read, in order.
        cut: lines that were longer than `input.max_line_bytes`.
        ignored: lines without a session key, where `sessions.no_key` is `ignore`.
        skipped: records, and events within one, that are another application's (`input.only`).
        origins: of events from token records, whose offsets are numbers of events (`worker.processing.origins`).
    """

    keys: pa.StringArray
    tokens: Column
    times: Column
    offsets: Column
    dead_letters: list[DeadLetter]
    cut: int
    ignored: int
    skipped: int = 0
    origins: Origins | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self) -> Iterator[tuple[str, int, int, int]]:
        """Key, token, time and offset of each event, for whoever looks at one."""
        columns = self.keys, self.tokens, self.times, self.offsets
        return zip(*(column.tolist() for column in columns), strict=True)


class LineEncoder(Protocol):
    """What makes tokens of lines (`detector.text.tokenizer.Tokenizer`)."""

    def encode(self, lines: pa.Array) -> NDArray[np.int64]:
        """(n,) tokens of (n,) strings."""


class Decoder:
    """Reads events from records as `input` and `sessions` of the settings say.

    A line is cut at `input.max_line_bytes`, and nothing past the cut counts. In a text of several lines
    (`input.multiline`) blank lines are no events, and a line without a key or a time of its own takes that of the
    line before it or, at the beginning, of the first line that has one.

    Raises:
        ValueError: a pattern, a pointer or a format that cannot be used.
    """

    def __init__(
        self,
        input: InputSettings,  # noqa: A002  named like the section
        sessions: SessionsSettings,
        tokenizer: LineEncoder,
    ) -> None:
        self._input = input
        self._owners = Owners(input.only)
        pointers = () if isinstance(input.message, LinePart) else input.message
        self._documents = None
        if input.documents:
            times = () if input.timestamp is None else input.timestamp.pointers or ()
            asked = *pointers, *(input.severity or ()), *self._owners.pointers, *key_pointers(sessions.key), *times
            self._documents = DocumentReader(input.split, input.encoding, asked)
        self._messages = Messages(pointers, input.severity or ())
        self._line_events = LineEvents(input)
        self._key = sessions.key
        self._keys_of = SessionKeys(sessions.key)
        self._ignore = sessions.no_key == "ignore"
        self._tokenizer = tokenizer
        self._times = EventTimes(input.timestamp)

    def decode(self, batch: Sequence[Records]) -> list[Events]:
        """Return the events of each part of a batch, in the order of the parts."""
        state = Batch(batch)
        lines = self._lines(state)
        keys = self._keys(state, lines)
        times = self._times.of(state, lines)
        gone = state.faults.keys() | state.ignored.keys()
        if gone:
            kept = ~np.isin(lines.items, list(gone))
            lines, times, keys = lines.where(kept), times[kept], keys.filter(pa.array(kept))
        tokens = self._tokenizer.encode(lines.messages)
        offsets = state.column(part.offsets for part in batch)[lines.rows]
        bounds = pairwise(np.searchsorted(lines.rows, state.starts).tolist())
        return [
            Events(
                keys=keys.slice(start, stop - start),
                tokens=tokens[start:stop],
                times=times[start:stop],
                offsets=offsets[start:stop],
                dead_letters=letters,
                cut=int(np.count_nonzero(lines.cut[start:stop])),
                ignored=ignored,
                skipped=skipped,
            )
            for (start, stop), letters, ignored, skipped in zip(
                bounds, state.dead_letters(), state.ignored_lines(), state.skipped_items(), strict=True
            )
        ]

    def _lines(self, state: Batch) -> Lines:
        others = self._owners.others_records(state)
        documents = None
        if self._documents is not None:
            documents = self._documents.read(state, others)
            self._owners.skip_items(state, documents)
            texts, items = self._messages.of(documents, state)
        else:
            state.skipped = others
            texts, items = valid_texts(state, self._input.encoding, others)
        texts, items = self._line_events.divide(tidied(texts), items)
        texts, items = _without_blank(texts, items, state)

        # Compared in NumPy: Arrow looks for pandas every time it turns a Python number into one of its own.
        long = pc.binary_length(texts).to_numpy() > self._input.max_line_bytes
        if long.any():
            whole = texts.filter(pa.array(long)).to_pylist()
            # The text is valid, so the only error can be the character that the cut divides.
            short = [text.encode()[: self._input.max_line_bytes].decode(errors="ignore") for text in whole]
            texts = pc.replace_with_mask(texts, pa.array(long), pa.array(short, pa.string()))
        messages = self._line_events.messages(texts)
        rows = items if self._documents is None else state.item_rows[items]
        return Lines(texts, messages, items, rows, long, documents)

    def _keys(self, state: Batch, lines: Lines) -> pa.StringArray:
        """Return the key of each line; items without any become dead letters or are ignored."""
        keys = self._keys_of.of(state, lines)
        has = pc.binary_length(keys).to_numpy() > 0
        if has.all():
            return keys

        source = nearest_line(has, lines.items)
        for item in lines.items[source < 0].tolist():
            if self._ignore and item not in state.faults:
                state.ignored[item] += 1
            else:
                state.fault(item, "no_key", f"the record has no session key ({self._key})")
        return keys.take(pa.array(np.maximum(source, 0)))  # what of them has no key is no event


def _without_blank(texts: pa.StringArray, items: Rows, state: Batch) -> tuple[pa.StringArray, Rows]:
    """Leave out lines of white space; items of nothing else become dead letters."""
    kept = ~pc.utf8_is_space(texts).to_numpy(zero_copy_only=False) & (pc.binary_length(texts).to_numpy() > 0)
    if kept.all():
        return texts, items
    for item in np.setdiff1d(items, items[kept]).tolist():
        state.fault(item, "empty", "there is no text")
    return texts.filter(pa.array(kept)), items[kept]

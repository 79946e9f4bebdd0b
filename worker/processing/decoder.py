"""Raw records to events: key, token, time and offset of each log line, a whole batch of all partitions at a time.

A record that cannot be read becomes a dead letter and leaves the others as they are. A record's events depend on
the record alone, so how records fall into batches never shows.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, compress, pairwise, repeat
from typing import Literal, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from worker.formats import times as event_times
from worker.formats.patterns import LinePattern
from worker.formats.pointers import MISSING, JsonPointer
from worker.formats.times import TimeFormat
from worker.processing.records import Records
from worker.processing.sessions import NO_TIME
from worker.settings.sections import InputSettings, SessionsSettings

Reason = Literal["not_utf8", "empty", "null", "no_key", "long_key", "bad_json", "no_message", "bad_timestamp"]


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


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one partition in offset order, as columns of equal length.

    Attributes:
        keys: session keys.
        tokens: of the vocabulary; negative ones carry the text of an unknown line.
        times: event times in ms; all NO_TIME where the input has none.
        offsets: of the record; the lines of a multi-line record share theirs.
        dead_letters: records that could not be read, by row.
        cut: lines that were longer than `input.max_line_bytes`.
        ignored: lines without a session key, where `sessions.no_key` is `ignore`.
    """

    keys: list[str]
    tokens: list[int]
    times: list[int]
    offsets: list[int]
    dead_letters: list[DeadLetter]
    cut: int
    ignored: int


class LineEncoder(Protocol):
    """What makes tokens of lines (`detector.text.tokenizer.Tokenizer`)."""

    def encode(self, lines: pa.Array) -> NDArray[np.int64]:
        """(n,) tokens of (n,) strings."""


MAX_KEY_CHARACTERS = 1024
"""Of a session key: it stands twice in a score record, which must fit into a message however it is escaped."""

_Rows = NDArray[np.int64]
_Flags = NDArray[np.bool_]


class _Batch:
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

    def column(self, values: Iterable[Iterable[int]]) -> _Rows:
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
class _Lines:
    """Lines that may become events.

    Attributes:
        texts: (n,) the lines.
        rows: (n,) the row of each line's record, ascending.
        cut: (n,) whether the line was longer.
        documents: the parsed value of each row, for JSON.
    """

    texts: pa.StringArray
    rows: _Rows
    cut: _Flags
    documents: dict[int, object]

    def where(self, kept: _Flags) -> "_Lines":
        """Return some of the lines."""
        return replace(self, texts=self.texts.filter(pa.array(kept)), rows=self.rows[kept], cut=self.cut[kept])


class Decoder:
    """Reads events from records as `input` and `sessions` of the settings say.

    A line is cut at `input.max_line_bytes`, and nothing past the cut counts. In a record of several lines
    (`input.multiline`) blank lines are no events, and a line without a key or a time of its own takes that of the
    line before it or, at the beginning, of the first line that has one.

    Raises:
        ValueError: a pattern or a format that cannot be used, or a JSON pointer where the input is text.
    """

    def __init__(
        self,
        input: InputSettings,  # noqa: A002  named like the section
        sessions: SessionsSettings,
        tokenizer: LineEncoder,
    ) -> None:
        self._input = input
        self._key = sessions.key
        self._ignore = sessions.no_key == "ignore"
        self._tokenizer = tokenizer
        self._message = JsonPointer(input.message)
        pattern, pointer = (
            sessions.key.value if sessions.key.source == source else None for source in ("regex", "pointer")
        )
        self._key_pattern = None if pattern is None else _pattern("sessions.key.regex", pattern)
        self._key_pointer = None if pointer is None else self._pointer("sessions.key.pointer", pointer)
        self._time_pointer: JsonPointer | None = None
        self._time_pattern: LinePattern | None = None
        if isinstance(input.timestamp, str):
            self._time_pointer = self._pointer("input.timestamp", input.timestamp)
        elif input.timestamp is not None:
            self._time_pattern = _pattern("input.timestamp.pattern", input.timestamp.pattern)
            try:
                self._time_format = TimeFormat(input.timestamp.format)
            except ValueError as error:
                raise ValueError(f"input.timestamp.format: {error}") from error

    def decode(self, batch: Sequence[Records]) -> list[Events]:
        """Return the events of each part of a batch, in the order of the parts."""
        state = _Batch(batch)
        lines = self._lines(state)
        keys = self._keys(state, lines)
        times = self._times(state, lines)
        gone = state.faults.keys() | state.ignored.keys()
        if gone:
            kept = ~np.isin(lines.rows, list(gone))
            lines, times, keys = lines.where(kept), times[kept], list(compress(keys, kept))
        tokens = self._tokenizer.encode(lines.texts).tolist()
        offsets = state.column(part.offsets for part in batch)[lines.rows]
        bounds = pairwise(np.searchsorted(lines.rows, state.starts).tolist())
        return [
            Events(
                keys=keys[start:stop],
                tokens=tokens[start:stop],
                times=times[start:stop].tolist(),
                offsets=offsets[start:stop].tolist(),
                dead_letters=letters,
                cut=int(np.count_nonzero(lines.cut[start:stop])),
                ignored=ignored,
            )
            for (start, stop), letters, ignored in zip(bounds, state.dead_letters(), state.ignored_lines(), strict=True)
        ]

    def _pointer(self, place: str, pointer: str) -> JsonPointer:
        if self._input.format == "text":
            raise ValueError(f"{place}: {pointer!r} is a JSON pointer, but input.format is text")
        return JsonPointer(pointer)

    def _lines(self, state: _Batch) -> _Lines:
        values = [value for part in state.parts for value in part.values]
        texts, rows = _valid_texts(values, state)
        documents: dict[int, object] = {}
        if self._input.format == "json":
            _, rows = _without_blank(texts, rows, state)
            texts, rows, documents = self._messages(values, rows, state)
        if self._input.multiline:
            split = pc.split_pattern(texts, "\n")
            rows = rows[pc.list_parent_indices(split).to_numpy()]
            texts = pc.utf8_rtrim(split.flatten(), "\r")
        texts, rows = _without_blank(texts, rows, state)

        # Compared in NumPy: Arrow looks for pandas every time it turns a Python number into one of its own.
        long = pc.binary_length(texts).to_numpy() > self._input.max_line_bytes
        if long.any():
            whole = texts.filter(pa.array(long)).to_pylist()
            # The text is valid, so the only error can be the character that the cut divides.
            short = [text.encode()[: self._input.max_line_bytes].decode(errors="ignore") for text in whole]
            texts = pc.replace_with_mask(texts, pa.array(long), pa.array(short, pa.string()))
        return _Lines(texts, rows, long, documents)

    def _messages(
        self, values: Sequence[bytes | None], rows: _Rows, state: _Batch
    ) -> tuple[pa.StringArray, _Rows, dict[int, object]]:
        """Return the messages of JSON values, their rows, and the parsed values by row."""
        documents: dict[int, object] = {}
        messages: dict[int, str] = {}
        for row in rows.tolist():
            try:
                document = orjson.loads(values[row] or b"")
            except orjson.JSONDecodeError as error:
                state.fault(row, "bad_json", f"the value is not JSON: {error}")
                continue
            message = self._message.resolve(document)
            if isinstance(message, str):
                documents[row], messages[row] = document, message
            else:
                what = "is missing" if message is MISSING else "is not text"
                state.fault(row, "no_message", f"the message at {self._input.message} {what}")
        texts = pa.array(list(messages.values()), pa.string())
        return texts, np.array(list(messages), np.int64), documents

    def _keys(self, state: _Batch, lines: _Lines) -> list[str]:
        """Return the key of each line; rows without any become dead letters or are ignored."""
        if self._key_pattern is not None:
            keys: list[str] = self._key_pattern.extract(lines.texts).to_pylist()
        elif self._key_pointer is not None:
            keys = [_key_text(self._key_pointer.resolve(lines.documents[row])) for row in lines.rows.tolist()]
        else:
            row_keys = self._row_keys(state)
            keys = [row_keys[row] for row in lines.rows.tolist()]
        if max(map(len, keys), default=0) > MAX_KEY_CHARACTERS:
            for key, row in zip(keys, lines.rows.tolist(), strict=True):
                if len(key) > MAX_KEY_CHARACTERS:
                    told = f"the session key has {len(key)} characters; allowed: {MAX_KEY_CHARACTERS}"
                    state.fault(row, "long_key", told)
        if "" not in keys:
            return keys

        source = _nearest([key != "" for key in keys], lines.rows)
        for row in lines.rows[source < 0].tolist():
            if self._ignore and row not in state.faults:
                state.ignored[row] += 1
            else:
                wanted = f"{self._key.source} {self._key.value}".rstrip()
                state.fault(row, "no_key", f"the record has no session key ({wanted})")
        return [keys[index] for index in source.tolist()]

    def _row_keys(self, state: _Batch) -> list[str]:
        """Return the key of each row, where it does not come from the value."""
        if self._key.source == "partition":
            return [f"{part.topic}[{part.partition}]" for part in state.parts for _ in part.offsets]
        keys = []
        for row, key in enumerate(self._row_key_bytes(state)):
            try:
                keys.append((key or b"").decode())
            except UnicodeDecodeError as error:
                state.fault(row, "not_utf8", f"the session key is not UTF-8: {error.reason} at byte {error.start}")
                keys.append("")
        return keys

    def _row_key_bytes(self, state: _Batch) -> Iterator[bytes | None]:
        for part in state.parts:
            if self._key.source == "record_key":
                yield from part.keys or repeat(None, len(part.offsets))
            else:
                for headers in part.headers or repeat(None, len(part.offsets)):
                    yield dict(headers or ()).get(self._key.value)  # of several, the last

    def _times(self, state: _Batch, lines: _Lines) -> _Rows:
        """Return the time of each line; rows without any, or with one that cannot be read, become dead letters."""
        if self._time_pattern is not None:
            return self._pattern_times(self._time_pattern, state, lines)
        if self._time_pointer is not None:
            return self._pointer_times(self._time_pointer, state, lines)
        times = (part.timestamps or repeat(NO_TIME, len(part.offsets)) for part in state.parts)
        return state.column(times)[lines.rows]

    def _pattern_times(self, pattern: LinePattern, state: _Batch, lines: _Lines) -> _Rows:
        # Neighbouring lines share their second: each distinct text is looked at once.
        found = pattern.extract(lines.texts).dictionary_encode()
        texts: list[str] = found.dictionary.to_pylist()
        which = found.indices.to_numpy()
        read = [time if text else NO_TIME for text, time in zip(texts, self._time_format.parse_all(texts), strict=True)]
        values = np.array([NO_TIME if time is None else time for time in read], np.int64)
        times: _Rows = values[which]
        if None in read:
            for line in np.flatnonzero(np.array([time is None for time in read])[which]).tolist():
                told = f"{texts[which[line]][:100]!r} is not a time in the format {self._time_format.layout!r}"
                self._fault_time(state, int(lines.rows[line]), told)
        if "" not in texts:
            return times
        source = _nearest((which != texts.index("")).tolist(), lines.rows)
        for row in lines.rows[source < 0].tolist():
            self._fault_time(state, row, f"the record has no timestamp (pattern {pattern.pattern})")
        return times[source]

    def _pointer_times(self, pointer: JsonPointer, state: _Batch, lines: _Lines) -> _Rows:
        times = dict.fromkeys(lines.rows.tolist(), NO_TIME)
        for row in times:
            value = pointer.resolve(lines.documents[row])
            if value is MISSING:
                self._fault_time(state, row, f"the timestamp at {self._input.timestamp} is missing")
                continue
            try:
                times[row] = event_times.from_json(value)
            except ValueError as error:
                self._fault_time(state, row, f"the timestamp at {self._input.timestamp} cannot be read: {error}")
        return np.array([times[row] for row in lines.rows.tolist()], np.int64)

    @staticmethod
    def _fault_time(state: _Batch, row: int, message: str) -> None:
        if row not in state.ignored:  # what is ignored is not read
            state.fault(row, "bad_timestamp", message)


def _pattern(place: str, pattern: str) -> LinePattern:
    try:
        return LinePattern(pattern)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _key_text(value: object) -> str:
    """Return text and whole numbers as a key; nothing else is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _valid_texts(values: Sequence[bytes | None], state: _Batch) -> tuple[pa.StringArray, _Rows]:
    """Return the values that are UTF-8 and not null, and their rows."""
    rows = np.arange(len(values), dtype=np.int64)
    array = pa.array(values, pa.binary())
    if not array.null_count:
        try:
            return array.cast(pa.string()), rows  # checks each value by itself
        except pa.ArrowInvalid:
            pass
    for row, value in enumerate(values):
        if value is None:
            state.fault(row, "null", "the value is null")
            continue
        try:
            value.decode()
        except UnicodeDecodeError as error:
            state.fault(row, "not_utf8", f"the value is not UTF-8: {error.reason} at byte {error.start}")
    kept = ~np.isin(rows, list(state.faults))
    return array.filter(pa.array(kept)).cast(pa.string()), rows[kept]


def _without_blank(texts: pa.StringArray, rows: _Rows, state: _Batch) -> tuple[pa.StringArray, _Rows]:
    """Leave out lines of white space; rows of nothing else become dead letters."""
    kept = ~pc.utf8_is_space(texts).to_numpy(zero_copy_only=False) & (pc.binary_length(texts).to_numpy() > 0)
    if kept.all():
        return texts, rows
    for row in np.setdiff1d(rows, rows[kept]).tolist():
        state.fault(row, "empty", "there is no text")
    return texts.filter(pa.array(kept)), rows[kept]


def _nearest(has: Sequence[bool], rows: _Rows) -> _Rows:
    """Return, for each line, the line of the same row that gives it what it lacks, or -1.

    That is the line itself, the nearest before it that has it, or the first of its row that has it.
    """
    index = np.arange(len(rows))
    before = np.maximum.accumulate(np.where(has, index, -1))
    after = np.minimum.accumulate(np.where(has, index, len(rows))[::-1])[::-1]
    own_before = (before >= 0) & (rows[before] == rows)
    own_after = (after < len(rows)) & (rows[np.minimum(after, len(rows) - 1)] == rows)
    return np.where(own_before, before, np.where(own_after, after, -1))

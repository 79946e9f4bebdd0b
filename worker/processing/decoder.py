"""Raw records to events: key, token, time and offset of each log line, a whole batch of all partitions at a time.

A record that cannot be read becomes a dead letter and leaves the others as they are. A record's events depend on
the record alone (in a file, its year also on the lines before it), so how records fall into batches never shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise, repeat
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from worker.formats.patterns import LinePattern
from worker.formats.pointers import MISSING, JsonPointer
from worker.processing.event_times import EventTimes
from worker.processing.lines import Batch, DeadLetter, Lines, Rows, nearest_line
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one partition in offset order, as columns of equal length.

    Attributes:
        keys: session keys.
        tokens: of the vocabulary; negative ones carry the text of an unknown line.
        times: event times in ms; NO_TIME for events that have none.
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


class Decoder:
    """Reads events from records as `input` and `sessions` of the settings say.

    A line is cut at `input.max_line_bytes`, and nothing past the cut counts. In a record of several lines
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
        self._key = sessions.key
        self._ignore = sessions.no_key == "ignore"
        self._tokenizer = tokenizer
        self._message = JsonPointer(input.message)
        pattern, pointer = (
            sessions.key.value if sessions.key.source == source else None for source in ("regex", "pointer")
        )
        self._key_pattern = None if pattern is None else LinePattern(pattern)
        self._key_pointer = None if pointer is None else JsonPointer(pointer)
        self._times = EventTimes(input.timestamp)

    def decode(self, batch: Sequence[Records]) -> list[Events]:
        """Return the events of each part of a batch, in the order of the parts."""
        state = Batch(batch)
        lines = self._lines(state)
        keys = self._keys(state, lines)
        times = self._times.of(state, lines)
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

    def _lines(self, state: Batch) -> Lines:
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
        return Lines(texts, rows, long, documents)

    def _messages(
        self, values: Sequence[bytes | None], rows: Rows, state: Batch
    ) -> tuple[pa.StringArray, Rows, dict[int, object]]:
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

    def _keys(self, state: Batch, lines: Lines) -> list[str]:
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

        source = nearest_line([key != "" for key in keys], lines.rows)
        for row in lines.rows[source < 0].tolist():
            if self._ignore and row not in state.faults:
                state.ignored[row] += 1
            else:
                wanted = f"{self._key.source} {self._key.value}".rstrip()
                state.fault(row, "no_key", f"the record has no session key ({wanted})")
        return [keys[index] for index in source.tolist()]

    def _row_keys(self, state: Batch) -> list[str]:
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

    def _row_key_bytes(self, state: Batch) -> Iterator[bytes | None]:
        for part in state.parts:
            if self._key.source == "record_key":
                yield from part.keys or repeat(None, len(part.offsets))
            else:
                for headers in part.headers or repeat(None, len(part.offsets)):
                    yield dict(headers or ()).get(self._key.value)  # of several, the last


def _key_text(value: object) -> str:
    """Return text and whole numbers as a key; nothing else is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _valid_texts(values: Sequence[bytes | None], state: Batch) -> tuple[pa.StringArray, Rows]:
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


def _without_blank(texts: pa.StringArray, rows: Rows, state: Batch) -> tuple[pa.StringArray, Rows]:
    """Leave out lines of white space; rows of nothing else become dead letters."""
    kept = ~pc.utf8_is_space(texts).to_numpy(zero_copy_only=False) & (pc.binary_length(texts).to_numpy() > 0)
    if kept.all():
        return texts, rows
    for row in np.setdiff1d(rows, rows[kept]).tolist():
        state.fault(row, "empty", "there is no text")
    return texts.filter(pa.array(kept)), rows[kept]

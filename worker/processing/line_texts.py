"""The texts of lines whose sessions are open, for records that have them (`output.line_text`).

They lie beside the sessions, not in them: who writes no texts pays nothing. The text of an event is found by the
session's key and by offset and time of the event. Events that have all three in common are processed in the order in
which they came (`worker.processing.clock`), and sessions of one key follow each other, so the first text that is left
is that of the next event. What a text is depends on its own line alone, and where it goes on the order of events alone.

A session has its texts as one piece of bytes; for each event offset and time (int64) and the length of the text
(uint32), little-endian, then the text in UTF-8.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detector.text.canonical import CANONICAL_CHARACTERS, Mask
from worker.processing.decoder import Events, LineEncoder
from worker.processing.session_columns import ClosedSessions
from worker.processing.session_state import Session

#: Session keys, and the texts that lie there.
SCHEMA: Final = pa.schema(
    [pa.field("key", pa.large_string(), nullable=False), pa.field("texts", pa.large_binary(), nullable=False)]
)

_HEAD: Final = struct.Struct("<qqI")

_Place = tuple[int, int]  # of an event in such bytes: where it begins, and where its text ends


class TextKeeper:
    """Stands before what makes tokens, so that an event's line is known beside its token.

    Attributes:
        lines: that tokens were made of last.
    """

    def __init__(self, encoder: LineEncoder) -> None:
        self._encoder = encoder
        self.lines = pa.array([], pa.string())

    def encode(self, lines: pa.Array) -> NDArray[np.int64]:
        """(n,) tokens of (n,) strings."""
        self.lines = lines
        return self._encoder.encode(lines)


def shown_texts(lines: pa.StringArray, masks: Sequence[Mask], most: int) -> pa.StringArray:
    """What records show of lines: the first `most` characters, with the names of masks in place of what they match.

    Where there are masks, a line longer than what they look at (`CANONICAL_CHARACTERS`) ends before the word that this
    would divide: half of what is to be masked may not look like it.
    """
    for mask in masks:
        lines = pc.replace_substring_regex(_whole_words(lines), pattern=mask.pattern, replacement=f"<{mask.name}>")
    return pc.utf8_slice_codeunits(lines, 0, most)


def _whole_words(lines: pa.StringArray) -> pa.StringArray:
    long = pc.utf8_length(lines).to_numpy() > CANONICAL_CHARACTERS
    if not long.any():
        return lines
    texts = [text[:CANONICAL_CHARACTERS].rsplit(maxsplit=1) for text in lines.filter(pa.array(long)).to_pylist()]
    heads = [words[0] if len(words) > 1 else "" for words in texts]
    return pc.replace_with_mask(lines, pa.array(long), pa.array(heads, pa.string()))


class LineTexts:
    """The texts of one partition's open sessions and waiting events.

    An event has none that came while texts were not kept.

    Args:
        state: to go on from; None: nothing.
    """

    def __init__(self, state: pa.RecordBatch | None = None) -> None:
        self._held: defaultdict[str, bytearray] = defaultdict(bytearray)
        self._closed: dict[int, bytes] = {}  # by `Session.order`
        if state is not None:
            self._held.update(zip(state["key"].to_pylist(), map(bytearray, state["texts"].to_pylist()), strict=True))

    def state(self) -> pa.RecordBatch:
        """What a snapshot holds, a row a session key: `LineTexts(state)` goes on from it."""
        texts = pa.array(list(map(bytes, self._held.values())), pa.large_binary())
        return pa.record_batch([pa.array(list(self._held), pa.large_string()), texts], schema=SCHEMA)

    def add(self, events: Events, texts: pa.StringArray) -> None:
        """Keep the texts of events, which come in the order of their offsets."""
        columns = events.keys, events.offsets, events.times, texts.cast(pa.binary())
        held, pack = self._held, _HEAD.pack
        for key, offset, time, text in zip(*(column.tolist() for column in columns), strict=True):
            held[key] += pack(offset, time, len(text)) + text

    def take(self, closed: ClosedSessions) -> None:
        """Let go of the texts of sessions that closed, in their order; `of` gives them until the next call."""
        sessions = closed.sessions
        _, offsets, times = sessions.events.tolist()
        keys, ends, orders = sessions.key_texts.to_pylist(), sessions.ends.tolist(), sessions.order.tolist()
        self._closed, begin = dict.fromkeys(orders, b""), 0
        for key, end, order in zip(keys, ends, orders, strict=True):
            if held := self._held.pop(key, None):
                own, others, at = _divided(held, offsets[begin:end], times[begin:end])
                self._closed[order] = _joined(held, filter(None, own)) if others else bytes(held[:at])
                held[:at] = _joined(held, others)
                if held:
                    self._held[key] = held
            begin = end

    def of(self, session: Session) -> list[bytes | None]:
        """The text of each event of a session that is open, or that the latest call of `take` was told of, in UTF-8.

        None for an event that has none.
        """
        held = self._closed.get(session.order)
        if held is None:
            held = bytes(self._held.get(session.key, b""))
        own, _, _ = _divided(held, session.offsets, session.times)
        return [place and held[place[0] + _HEAD.size : place[1]] for place in own]


def _joined(held: bytearray, places: Iterable[_Place]) -> bytes:
    return b"".join(held[begin:end] for begin, end in places)


def _divided(
    held: bytes | bytearray, offsets: Sequence[int], times: Sequence[int]
) -> tuple[list[_Place | None], list[_Place], int]:
    """Where the texts of events with these offsets and times lie, those of others before them, and where these all end.

    Texts lie in the order of their offsets, so what is looked at is little more than what is found.
    """
    own: list[_Place | None] = []
    at, end = 0, len(held)
    passed: dict[tuple[int, int], deque[_Place]] = {}
    for event in zip(offsets, times, strict=True):
        if before := passed.get(event):
            own.append(before.popleft())
            continue
        place = None
        while at < end and place is None:
            offset, time, length = _HEAD.unpack_from(held, at)
            if offset > event[0]:
                break
            it = at, at + _HEAD.size + length
            if (offset, time) == event:
                place = it
            else:
                passed.setdefault((offset, time), deque()).append(it)
            at = it[1]
        own.append(place)
    return own, sorted(place for places in passed.values() for place in places), at

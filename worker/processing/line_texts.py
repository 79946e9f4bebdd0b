"""The texts of lines whose sessions are open, for records that have them (`output.line_text`).

They lie beside the sessions, not in them: who writes no texts pays nothing. The text of an event is found by the
session's key and by offset and time of the event. Events that have all three in common are processed in the order in
which they came (`worker.processing.clock`), and sessions of one key follow each other, so the first text that is left
is that of the next event. What a text is depends on its own line alone, and where it goes on the order of events alone.

The events of a session key lie together: offset and time of each (int64, little-endian) as one piece of bytes, and the
texts in UTF-8, each with an end that no UTF-8 has, as another.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detector.text.canonical import CANONICAL_CHARACTERS, Mask
from detector.text.flat import flat
from worker.processing.decoder import Events, LineEncoder
from worker.processing.session_columns import ClosedSessions
from worker.processing.session_state import Column, Session

#: Session keys, and what lies there.
SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("places", pa.large_binary(), nullable=False),
        pa.field("texts", pa.large_binary(), nullable=False),
    ]
)

_PLACE: Final = struct.Struct("<qq")  # offset and time of an event
_END: Final = b"\xff"


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


@dataclass(slots=True)
class _Held:
    """Events of one session key: their places, and their texts."""

    places: bytearray = field(default_factory=bytearray)
    texts: bytearray = field(default_factory=bytearray)


class LineTexts:
    """The texts of one partition's open sessions and waiting events.

    An event has none that came while texts were not kept.

    Args:
        state: to go on from; None: nothing.
    """

    def __init__(self, state: pa.RecordBatch | None = None) -> None:
        self._held: dict[str, _Held] = {}
        self._closed: dict[int, _Held] = {}  # by `Session.order`
        if state is not None:
            for key, places, texts in zip(*(column.to_pylist() for column in state.columns), strict=True):
                self._held[key] = _Held(bytearray(places), bytearray(texts))

    def state(self) -> pa.RecordBatch:
        """What a snapshot holds, a row a session key: `LineTexts(state)` goes on from it."""
        held = self._held.values()
        pieces = {"places": [bytes(each.places) for each in held], "texts": [bytes(each.texts) for each in held]}
        return pa.RecordBatch.from_pydict({"key": list(self._held), **pieces}, SCHEMA)

    def add(self, events: Events, texts: pa.StringArray) -> None:
        """Keep the texts of events, which come in the order of their offsets."""
        keys = events.keys.dictionary_encode()
        by_key = np.argsort(keys.indices.to_numpy(), kind="stable")
        ended = pc.binary_join_element_wise(texts.cast(pa.binary()), pa.scalar(b""), pa.scalar(_END))
        data, bounds = flat(ended.take(pa.array(by_key)).cast(pa.large_binary()))
        places, all_texts = _places(events.offsets[by_key], events.times[by_key]), data.tobytes()
        stops = np.cumsum(np.bincount(keys.indices))
        ends = zip((_PLACE.size * stops).tolist(), bounds[stops].tolist(), strict=True)
        begin, texts_begin = 0, 0
        for key, (end, texts_end) in zip(keys.dictionary.to_pylist(), ends, strict=True):
            if (held := self._held.get(key)) is None:
                held = self._held[key] = _Held()
            held.places += places[begin:end]
            held.texts += all_texts[texts_begin:texts_end]
            begin, texts_begin = end, texts_end

    def take(self, closed: ClosedSessions) -> None:
        """Let go of the texts of sessions that closed, in their order; `of` gives them until the next call."""
        sessions = closed.sessions
        _, offsets, times = sessions.events
        places, begin = _places(offsets, times), 0
        keys, ends = sessions.key_texts.to_pylist(), (_PLACE.size * sessions.ends).tolist()
        self._closed = {}
        for key, end, order in zip(keys, ends, sessions.order.tolist(), strict=True):
            held, wanted = self._held.pop(key, None) or _Held(), places[begin:end]
            if held.places != wanted:
                rest, held = held, _cut(held, wanted)
                if rest.places:
                    self._held[key] = rest
            self._closed[order] = held
            begin = end

    def of(self, session: Session) -> list[bytes | None]:
        """The text of each event of a session that is open, or that the latest call of `take` was told of, in UTF-8.

        None for an event that has none.
        """
        held = self._closed.get(session.order) or self._held.get(session.key) or _Held()
        offsets, times = (np.array(column, np.int64) for column in (session.offsets, session.times))
        return [event and event[1] for event in _found(held, _places(offsets, times)).own]


def _cut(held: _Held, wanted: bytes) -> _Held:
    """Take the events that have these places out of what is held; most often they are the first."""
    if held.places.startswith(wanted):
        places_end, texts_end = len(wanted), _texts_end(held, len(wanted) // _PLACE.size)
        own, others = _Held(held.places[:places_end], held.texts[:texts_end]), _Held()
    else:
        found = _found(held, wanted)
        own, others = _of(filter(None, found.own)), _of(found.others)
        places_end, texts_end = found.places_end, found.texts_end
    held.places[:places_end], held.texts[:texts_end] = others.places, others.texts
    return own


_Event = tuple[bytes, bytes]  # place and text


class _Found(NamedTuple):
    """What a look for events found.

    Attributes:
        own: the events; None for one that is not there.
        others: those that lie where it looked.
        places_end, texts_end: how far that was.
    """

    own: list[_Event | None]
    others: list[_Event]
    places_end: int
    texts_end: int


def _found(held: _Held, wanted: bytes) -> _Found:
    """Look for the events that have these places.

    What is held lies in the order of offsets, so little more is looked at than what is found.
    """
    own: list[int | None] = []
    passed: dict[bytes, deque[int]] = {}
    seen, count, size = 0, len(held.places) // _PLACE.size, _PLACE.size
    for begin in range(0, len(wanted), size):
        place = wanted[begin : begin + size]
        if before := passed.get(place):
            own.append(before.popleft())
            continue
        number = None
        while seen < count and number is None:
            its = bytes(held.places[size * seen : size * (seen + 1)])
            if its == place:
                number = seen
            elif _PLACE.unpack(its)[0] > _PLACE.unpack(place)[0]:
                break
            else:
                passed.setdefault(its, deque()).append(seen)
            seen += 1
        own.append(number)
    texts_end = _texts_end(held, seen)
    texts = bytes(held.texts[:texts_end]).split(_END)

    def event(number: int) -> _Event:
        return bytes(held.places[size * number : size * (number + 1)]), texts[number]

    others = sorted(number for numbers in passed.values() for number in numbers)
    return _Found(
        [None if number is None else event(number) for number in own],
        [event(number) for number in others],
        size * seen,
        texts_end,
    )


def _texts_end(held: _Held, events: int) -> int:
    """Where the texts of so many events end."""
    end = 0
    for _ in range(events):
        end = held.texts.index(_END, end) + 1
    return end


def _of(events: Iterable[_Event]) -> _Held:
    held = _Held()
    for place, text in events:
        held.places += place
        held.texts += text + _END
    return held


def _places(offsets: Column, times: Column) -> bytes:
    """Of events, one after the other."""
    return np.stack([offsets, times], axis=1).astype("<i8", copy=False).tobytes()

"""Events of records as the settings read them, for tests with other people's logs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from worker.processing.decoder import Decoder
from worker.processing.lines import DeadLetter
from worker.processing.records import Records
from worker.settings.document import load_settings


class Read(NamedTuple):
    """What became of some records."""

    messages: list[str]
    keys: list[str]
    times: list[int]
    offsets: list[int]
    dead_letters: list[DeadLetter]
    skipped: int

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Row and reason of each dead letter."""
        return [(letter.index, letter.reason) for letter in self.dead_letters]


class KeptLines:
    """Takes the tokenizer's place: an event's token is the number of its message."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def encode(self, lines: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
        first = len(self.messages)
        self.messages += lines.to_pylist()
        return np.arange(first, len(self.messages))


def read(
    values: Sequence[bytes | None],
    *settings: str,
    keys: list[bytes | None] | None = None,
    headers: list[list[tuple[str, bytes | None]] | None] | None = None,
    cuts: Sequence[int] = (),
) -> Read:
    """Read records of one partition, from offset 100 on.

    Args:
        values: of the records.
        settings: as `section.name=value`.
        keys, headers: of the records.
        cuts: rows before which a new batch begins.
    """
    loaded = load_settings(None, settings)
    kept = KeptLines()
    decoder = Decoder(loaded.input, loaded.sessions, kept)
    found = Read([], [], [], [], [], 0)
    skipped = 0
    bounds = [0, *cuts, len(values)]
    for start, stop in pairwise(bounds):
        part = slice(start, stop)
        records = Records(
            topic="raw",
            partition=0,
            offsets=list(range(100 + start, 100 + stop)),
            values=list(values[part]),
            keys=None if keys is None else keys[part],
            timestamps=[1_700_000_000_000 + row for row in range(start, stop)],
            headers=None if headers is None else headers[part],
        )
        [events] = decoder.decode([records])
        for key, token, time, offset in events.rows():
            found.messages.append(kept.messages[token])
            found.keys.append(key)
            found.times.append(time)
            found.offsets.append(offset)
        found.dead_letters.extend(letter_at(letter, start) for letter in events.dead_letters)
        skipped += events.skipped
    return found._replace(skipped=skipped)


def letter_at(letter: DeadLetter, start: int) -> DeadLetter:
    return DeadLetter(letter.index + start, letter.reason, letter.message, letter.item)

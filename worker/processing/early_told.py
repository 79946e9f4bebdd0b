"""What early records told of open sessions since their partition's snapshot, as the committed offset says it.

A snapshot has it of what came before. What came after, a restart could only find out by scoring again what it reads
again, and another checkpoint, or other thresholds, would find something else: a final record would then not take back
what was told, or take back what never was.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Final

import numpy as np

from worker.processing.session_columns import SessionColumns
from worker.processing.session_state import Column

# Of the 4,096 bytes that a broker takes with an offset unless told otherwise; the rest of the metadata is below 1,000.
_MOST_CHARACTERS: Final = 3_000
_MOST_SESSIONS: Final = _MOST_CHARACTERS // 4  # no session takes fewer than three bytes
_BITS: Final = 2  # of `Session.alerted`


class EarlyTold:
    """Of one partition's open sessions, what early records told since its snapshot (bits of `Session.alerted`).

    A session goes by its first offset and 16 bits of a checksum of its key: those that one record opened share the
    first, and one that meets the other of them in the second as well (one in 65,536) takes its word for its own.

    Args:
        text: what `text` gave; None where it is not known, "" for nothing.
        since: offset from which it is.

    Attributes:
        since: the snapshots from this position on, together with this, know all that was told; None while none does.
    """

    def __init__(self, text: str | None, since: int) -> None:
        self.since = None if text is None else since
        self._known_to = since  # position of the latest snapshot
        self._told: dict[tuple[int, int], tuple[int, int]] = {}  # offset of the latest cause, and bits
        if text:
            self._told = {session: (since, bits) for session, bits in _decoded(text)}

    def tell(self, first_offset: int, key: bytes, cause: int, bits: int) -> None:
        """All that has been told of an open session by the record of this offset."""
        self._told[first_offset, _checksum(key)] = cause, bits

    def closed(self, first_offset: int, key: bytes) -> None:
        """Nothing more need be known of this one."""
        self._told.pop((first_offset, _checksum(key)), None)

    @property
    def first_offsets(self) -> Column:
        """Of the sessions that something was told of."""
        return np.fromiter((first_offset for first_offset, _ in self._told), np.int64)

    def add_to(self, sessions: SessionColumns) -> None:
        """Add what was told to `alerted` of these."""
        rows = np.flatnonzero(np.isin(sessions.first_offsets, self.first_offsets))
        for row, (first_offset, key) in zip(rows.tolist(), names(sessions, rows), strict=True):
            _, bits = self._told.get((first_offset, _checksum(key)), (0, 0))
            sessions.alerted[row] |= bits

    def text(self, position: int) -> str | None:
        """What a snapshot of this position does not know; None where that is not known here, or too long to say."""
        if self.since is None or position < self.since:
            return None
        if position > self._known_to:
            # What the snapshot knows is known for good: positions of snapshots only grow.
            self._told = {session: told for session, told in self._told.items() if told[0] >= position}
            self._known_to = position
        if len(self._told) > _MOST_SESSIONS:
            return None
        text = _encoded({session: bits for session, (_, bits) in self._told.items()})
        return text if len(text) <= _MOST_CHARACTERS else None


def names(sessions: SessionColumns, rows: Column) -> Iterator[tuple[int, bytes]]:
    """First offset and key of some of these sessions."""
    keys, ends = sessions.keys.tobytes(), sessions.key_ends
    begins = np.where(rows > 0, ends[rows - 1], 0).tolist()
    found = map(keys.__getitem__, map(slice, begins, ends[rows].tolist()))
    return zip(sessions.first_offsets[rows].tolist(), found, strict=True)


def _checksum(key: bytes) -> int:
    return zlib.crc32(key) & 0xFFFF


def _encoded(told: dict[tuple[int, int], int]) -> str:
    """By first offset: the distance from the one before and the bits as a variable-length integer, and the checksum."""
    data, before = bytearray(), 0
    for first_offset, checksum in sorted(told):
        number, before = (first_offset - before) << _BITS | told[first_offset, checksum], first_offset
        while number > 0x7F:
            data.append(number & 0x7F | 0x80)
            number >>= 7
        data.append(number)
        data += checksum.to_bytes(2)
    return b64encode(data).decode()


def _decoded(text: str) -> list[tuple[tuple[int, int], int]]:
    """What `_encoded` wrote.

    Raises:
        ValueError: it did not.
    """
    try:
        data = b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    found, at, first_offset = [], 0, 0
    while at < len(data):
        end = next((end for end in range(at, len(data)) if data[end] <= 0x7F), len(data))
        if end + 3 > len(data):
            raise ValueError("it breaks off")
        number = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[at : end + 1]))
        first_offset += number >> _BITS
        found.append(((first_offset, int.from_bytes(data[end + 1 : end + 3])), number & (1 << _BITS) - 1))
        at = end + 3
    return found


def checked(text: str) -> str:
    """The same.

    Raises:
        ValueError: it is none that `EarlyTold.text` gave.
    """
    _decoded(text)
    return text

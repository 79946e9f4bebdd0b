"""Token records: many events of one partition of a keyed topic in the value of one Kafka record.

`logmamba rekey` writes them, `input.format: tokens` reads them.

Integers are little-endian. A column of integers has as many bytes a value as its greatest one needs: 1, 2, 4 or 8.

    magic             8 bytes, `lmtokens`
    checksum          uint32, CRC-32 of all that follows
    version           uint16
    vocabulary        32 bytes, the SHA-256 of the vocabulary that the tokens are of
    templates         uint32, how many it has
    events, keys, unknown, sources    uint32 each, how many there are
    least time        int64
    bytes a value     6 uint8: of key lengths, key numbers, tokens, times, source numbers, offsets
    sources           of each the length of its topic's name, uint16; partition, uint32; least offset, int64; the name
    keys              lengths of all, then the keys in UTF-8
    key numbers       of each event, among the keys
    tokens            of each event: its token, or, from `templates + 3` on, the number of an unknown event
    unknown events    int64 each, their tokens, which are negative
    times             of each event in ms since 1970 less the least time, modulo 2^64: an event without one has -2^63
    source numbers    of each event, among the sources
    offsets           of each event's raw record less the least offset of its source

The checksum is of what every version has, so a record of another version is told from one that is damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detector.text.flat import flat, strings_of
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary
from worker.processing.clock import Column
from worker.processing.origins import EVENTS_OF_A_RECORD, MOST_OFFSET, MOST_PARTITIONS, Origins
from worker.processing.records import Partition

VERSION: Final = 1

_MAGIC: Final = b"lmtokens"
_FRAME: Final = struct.Struct("<8sI")
_VERSION: Final = struct.Struct("<H")
_HEAD: Final = struct.Struct("<H32s5Iq6B")
_SOURCE: Final = struct.Struct("<HIq")
_WIDTHS: Final[Mapping[int, np.dtype[Any]]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
_LEAST_UNKNOWN: Final = -(1 << 60)
_CONTINUATION: Final = 0b10 << 6  # of a character in UTF-8
_MOST_TOPIC_BYTES: Final = 249


class TokenRecordError(ValueError):
    """A value that is no token record, or a damaged one."""


class OtherVersionError(ValueError):
    """A token record that is whole, and of another version than the one that is read here."""

    def __init__(self, version: int) -> None:
        super().__init__(f"a token record of version {version}")
        self.version = version


class VocabularyId(NamedTuple):
    """Names a vocabulary."""

    sha256: str  # "sha256:…"
    templates: int

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> VocabularyId:
        """Of this one."""
        return cls(vocabulary.sha256, len(vocabulary.templates))


@dataclass(frozen=True, slots=True, eq=False)
class TokenRecord:
    """Events, in order.

    Attributes:
        vocabulary: that the tokens are of.
        keys: (k,) session keys, each once.
        key_numbers: (n,) number of each event's key.
        tokens: (n,) as of `worker.processing.decoder.Events`.
        times: (n,) likewise.
        origins: (n,) where each came from.
    """

    vocabulary: VocabularyId
    keys: pa.StringArray
    key_numbers: Column
    tokens: Column
    times: Column
    origins: Origins

    def __len__(self) -> int:
        return len(self.tokens)


def encode(record: TokenRecord) -> bytes:
    """The value of a record of 1 to `EVENTS_OF_A_RECORD` events.

    Raises:
        ValueError: more of them, or none.
    """
    if not 0 < len(record) <= EVENTS_OF_A_RECORD:
        raise ValueError(f"a token record has 1 to {EVENTS_OF_A_RECORD} events, not {len(record)}")
    size = N_SPECIAL + record.vocabulary.templates
    unknown = np.flatnonzero(record.tokens < 0)
    tokens = record.tokens.copy()
    tokens[unknown] = size + np.arange(len(unknown))
    least_time = int(record.times.min())
    numbers, offsets = record.origins.numbers(), record.origins.offsets()
    used, numbers = np.unique(numbers, return_inverse=True)
    least_offsets = np.full(len(used), MOST_OFFSET)
    np.minimum.at(least_offsets, numbers, offsets)
    sources = [record.origins.partitions[number] for number in used.tolist()]
    key_bytes, key_bounds = flat(record.keys)
    columns = [
        _narrowed(np.diff(key_bounds)),
        _narrowed(record.key_numbers),
        _narrowed(tokens),
        _narrowed(record.times.view(np.uint64) - np.int64(least_time).view(np.uint64)),
        _narrowed(numbers),
        _narrowed(offsets - least_offsets[numbers]),
    ]
    key_lengths, key_numbers, tokens_, times, source_numbers, offsets_ = (column.tobytes() for column in columns)
    body = [
        _HEAD.pack(
            VERSION,
            bytes.fromhex(record.vocabulary.sha256.removeprefix("sha256:")),
            record.vocabulary.templates,
            *(len(record), len(record.keys), len(unknown), len(sources)),
            least_time,
            *(column.itemsize for column in columns),
        )
    ]
    for source, least in zip(sources, least_offsets.tolist(), strict=True):
        topic = source.topic.encode()
        body += [_SOURCE.pack(len(topic), source.partition, least), topic]
    body += [key_lengths, key_bytes.tobytes(), key_numbers, tokens_, record.tokens[unknown].astype("<i8").tobytes()]
    body += [times, source_numbers, offsets_]
    rest = b"".join(body)
    return _FRAME.pack(_MAGIC, zlib.crc32(rest)) + rest


def decode(value: bytes) -> TokenRecord:
    """What `encode` made.

    Raises:
        TokenRecordError: it is no token record, or is damaged.
        OtherVersionError: it is one of another version.
    """
    if len(value) < _FRAME.size + _VERSION.size or not value.startswith(_MAGIC):
        raise TokenRecordError("is no token record, as logmamba rekey writes them")
    rest = memoryview(value)[_FRAME.size :]
    if zlib.crc32(rest) != _FRAME.unpack_from(value)[1]:
        raise TokenRecordError("is a damaged token record: its checksum is of something else")
    (version,) = _VERSION.unpack_from(rest)
    if version != VERSION:
        raise OtherVersionError(version)
    try:
        return _read(rest)
    except (struct.error, UnicodeDecodeError) as error:
        raise TokenRecordError(f"is no token record that rekey has written: {error}") from None


def _read(rest: memoryview) -> TokenRecord:
    head = _HEAD.unpack_from(rest)
    _, digest, templates, events, keys, unknown, n_sources, least_time, *widths = head
    _check(0 < events <= EVENTS_OF_A_RECORD, f"it has {events} events")
    _check(0 < keys <= events, f"it has {keys} keys of {events} events")
    _check(unknown <= events, f"{unknown} of its {events} events are unknown")
    _check(0 < n_sources <= min(events, MOST_PARTITIONS), f"it has {n_sources} sources of {events} events")
    _check(set(widths) <= _WIDTHS.keys(), f"its columns have {widths} bytes a value")
    at = _HEAD.size
    sources, least_offsets = [], []
    for _ in range(n_sources):
        length, partition, least = _SOURCE.unpack_from(rest, at)
        at += _SOURCE.size
        topic = bytes(rest[at : at + length]).decode()
        _check(0 < length <= _MOST_TOPIC_BYTES and 0 <= least <= MOST_OFFSET, "a source of it is none")
        sources.append(Partition(topic, partition))
        least_offsets.append(least)
        at += length
    _check(len(set(sources)) == n_sources, "it has a source twice")

    def column(dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        nonlocal at
        _check(at + count * dtype.itemsize <= len(rest), f"its {len(rest)} bytes are too few")
        begin, at = at, at + count * dtype.itemsize
        return np.frombuffer(rest[begin:at], dtype)

    of_key, of_number, of_token, of_time, of_source, of_offset = (_WIDTHS[width] for width in widths)
    key_lengths = column(of_key, keys)
    _check(key_lengths.min() > 0 and key_lengths.max() <= len(rest), "a key of it is empty or longer than all of it")
    key_ends = np.cumsum(key_lengths, dtype=np.int64)
    key_bytes = column(_WIDTHS[1], int(key_ends[-1]))
    key_numbers = column(of_number, events)
    codes = column(of_token, events)
    unknown_tokens = column(np.dtype("<i8"), unknown)
    times = column(of_time, events)
    source_numbers = column(of_source, events)
    distances = column(of_offset, events)
    _check(at == len(rest), f"{len(rest) - at} bytes come after it")

    size = N_SPECIAL + templates
    _check(key_numbers.max() < keys, "a number of a key is too great")
    _check(codes.min() >= UNK and codes.max() < size + unknown, "a token is none")
    if unknown:
        _check(unknown_tokens.min() >= _LEAST_UNKNOWN and unknown_tokens.max() < 0, "an unknown event's token is none")
    _check(source_numbers.max() < n_sources and distances.max() <= MOST_OFFSET, "an origin is none")
    numbers = source_numbers.astype(np.int64)
    offsets = np.array(least_offsets, np.int64)[numbers] + distances.astype(np.int64)
    _check(offsets.max() <= MOST_OFFSET, "an offset is too great")
    tokens = codes.astype(np.int64)
    places = np.flatnonzero(tokens >= size)
    tokens[places] = unknown_tokens[tokens[places] - size]
    return TokenRecord(
        vocabulary=VocabularyId(f"sha256:{digest.hex()}", templates),
        keys=_texts(key_bytes, key_ends),
        key_numbers=key_numbers.astype(np.int64),
        tokens=tokens,
        times=(times.astype(np.uint64) + np.int64(least_time).view(np.uint64)).view(np.int64),
        origins=Origins.of(sources, numbers, offsets),
    )


def _texts(data: NDArray[np.uint8], ends: Column) -> pa.StringArray:
    begins = np.append(0, ends)
    bytes(data).decode()  # in UTF-8 as a whole, so each is whose first byte begins a character
    _check(not np.any((data[begins[:-1]] & 0b11 << 6) == _CONTINUATION), "a key is cut within a character")
    return strings_of(data, begins)


def _narrowed(values: NDArray[Any]) -> NDArray[Any]:
    """Values from 0 on in as few bytes as the greatest needs."""
    greatest = int(values.max())
    width = next(width for width in _WIDTHS if greatest < 1 << (8 * width))
    return values.astype(_WIDTHS[width])


def _check(right: bool | np.bool_, otherwise: str) -> None:
    if not right:
        raise TokenRecordError(f"is no token record that rekey has written: {otherwise}")


def joined_keys(records: Sequence[TokenRecord]) -> pa.StringArray:
    """The key of each event of some records, in their order."""
    if not records:
        return pa.array([], pa.string())
    begins = [0]
    for record in records:
        begins.append(begins[-1] + len(record.keys))
    numbers = [record.key_numbers + begin for record, (begin, _) in zip(records, pairwise(begins), strict=True)]
    return pa.concat_arrays([record.keys for record in records]).take(pa.array(np.concatenate(numbers)))

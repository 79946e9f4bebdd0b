"""Token records: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.processing.clock import NO_TIME
from worker.processing.origins import MOST_OFFSET, Origins
from worker.processing.records import Partition
from worker.processing.token_records import (
    OtherVersionError,
    TokenRecord,
    TokenRecordError,
    VocabularyId,
    decode,
    encode,
    joined_keys,
)

TEMPLATES = 300
VOCABULARY = VocabularyId("sha256:" + "5e" * 32, TEMPLATES)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
sources = st.builds(Partition, texts.filter(lambda text: len(text.encode()) < 250), st.integers(0, 2**32 - 1))
tokens = st.integers(2, TEMPLATES + 2) | st.integers(-(2**60), -1)
times = st.integers(-(2**63), 2**63 - 1) | st.integers(1_700_000_000_000, 1_700_000_100_000) | st.just(NO_TIME)
offsets = st.integers(0, MOST_OFFSET) | st.integers(10**12, 10**12 + 70_000)


@st.composite
def records(draw: st.DrawFn) -> TokenRecord:
    partitions = draw(st.lists(sources, min_size=1, max_size=4, unique=True))
    keys = draw(st.lists(texts, min_size=1, max_size=6, unique=True))
    numbers = st.integers(0, len(keys) - 1), st.integers(0, len(partitions) - 1)
    events = draw(st.lists(st.tuples(*numbers, tokens, times, offsets), min_size=len(keys), max_size=40))
    of_key, of_source, of_token, of_time, of_offset = np.array(events, np.int64).T.copy()
    return TokenRecord(
        VOCABULARY, pa.array(keys), of_key, of_token, of_time, Origins.of(partitions, of_source, of_offset)
    )


def a_record() -> TokenRecord:
    numbers = np.arange(4)
    return TokenRecord(
        vocabulary=VOCABULARY,
        keys=pa.array(["blk_1", "blk_å"]),
        key_numbers=numbers % 2,
        tokens=np.array([3, -77, 5, 2]),
        times=1_700_000_000_000 + numbers,
        origins=Origins.of([Partition("raw", 0), Partition("raw", 7)], numbers // 2, 100 + numbers),
    )


def content(record: TokenRecord) -> object:
    columns = (record.tokens.tolist(), record.times.tolist(), record.origins.each())
    return record.vocabulary, joined_keys([record]).to_pylist(), *columns


def sealed(value: bytes) -> bytes:
    """The bytes behind the checksum, with a checksum that is theirs."""
    return b"lmtokens" + struct.pack("<I", zlib.crc32(value)) + value


@given(records())
def test_what_is_read_is_what_was_written(record: TokenRecord) -> None:
    assert content(decode(encode(record))) == content(record)


@given(records(), st.data())
def test_a_changed_bit_or_a_missing_end_is_seen(record: TokenRecord, data: st.DataObject) -> None:
    value = bytearray(encode(record))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, 8 * len(value) - 1))
        value[at // 8] ^= 1 << at % 8
    else:
        del value[data.draw(st.integers(0, len(value) - 1)) :]
    with pytest.raises(TokenRecordError):
        decode(bytes(value))


@given(st.binary(max_size=400))
def test_other_bytes_are_no_token_record(value: bytes) -> None:
    with pytest.raises(TokenRecordError, match="is no token record"):
        decode(value)


@given(records(), st.data())
def test_bytes_that_somebody_has_sealed_are_refused_or_hold_events_that_can_be(
    record: TokenRecord, data: st.DataObject
) -> None:
    """A checksum is no seal: whatever is read is in range, whoever wrote it."""
    value = bytearray(encode(record)[12:])
    for _ in range(data.draw(st.integers(1, 6))):
        value[data.draw(st.integers(2, len(value) - 1))] = data.draw(st.integers(0, 255))
    value += data.draw(st.binary(max_size=3))
    try:
        found = decode(sealed(bytes(value)))
    except TokenRecordError:
        return
    assert len({len(found), len(found.key_numbers), len(found.times), len(found.origins)}) == 1
    assert all(key for key in joined_keys([found]).to_pylist())
    found.keys.validate(full=True)
    size = found.vocabulary.templates + 3
    assert all(2 <= token < size or -(2**60) <= token < 0 for token in found.tokens.tolist())
    assert all(0 <= offset <= MOST_OFFSET for _, offset in found.origins.each())


def test_a_later_version_is_told_from_damage() -> None:
    value = bytearray(encode(a_record())[12:])
    value[0] = 2
    with pytest.raises(OtherVersionError, match="of version 2"):
        decode(sealed(bytes(value)))


def test_an_event_takes_a_fraction_of_its_line() -> None:
    """600 events of 200 blocks, as a second of HDFS logs has them; a line of these has about 140 bytes."""
    numbers = np.arange(600)
    record = replace(
        a_record(),
        keys=pa.array([f"blk_{-(3**38) - number}" for number in range(200)]),
        key_numbers=numbers % 200,
        tokens=numbers % 40 + 3,
        times=1_700_000_000_000 + numbers,
        origins=Origins.of([Partition("raw", 0), Partition("raw", 7)], numbers % 2, 10**9 + 3 * numbers),
    )
    assert len(encode(record)) < 16 * 600


@pytest.mark.parametrize("events", [0, 65_537])
def test_more_events_than_can_be_numbered_are_refused(events: int) -> None:
    numbers = np.zeros(events, np.int64)
    record = TokenRecord(
        VOCABULARY, pa.array(["a"]), numbers, numbers + 3, numbers, Origins.of([Partition("raw", 0)], numbers, numbers)
    )
    with pytest.raises(ValueError, match=f"1 to 65536 events, not {events}"):
        encode(record)

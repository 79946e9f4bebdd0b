"""A dead letter is read back as the record that it was, or says that it is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.processing.dead_letters import RecordHeaders, dead_letter, read_dead_letter
from worker.processing.lines import DeadLetter
from worker.processing.records import Partition, Records

BYTES = st.none() | st.binary(max_size=30)
HEADERS = st.lists(st.tuples(st.sampled_from(["trace", "id", "logmamba-error-reason"]), BYTES), max_size=3)
TIME_MS = 1_226_263_535_123


def record(key: bytes | None, value: bytes | None, headers: RecordHeaders, *, read: bool = True) -> Records:
    """A record; its headers are read where a setting needs them, else they are there to be asked for."""
    every = [headers] if read else None
    return Records("raw", 3, [120], [value], [key], [TIME_MS], every, headers_of=lambda _row: headers)


def as_stored(key: bytes | None, value: bytes | None, headers: RecordHeaders) -> Records:
    return Records("dead", 0, [7], [value], [key], [TIME_MS + 1], [headers])


@given(BYTES, BYTES, HEADERS, st.booleans())
def test_key_value_headers_and_place_are_those_of_the_record(
    key: bytes | None, value: bytes | None, headers: RecordHeaders, read: bool
) -> None:
    letter = DeadLetter(0, "no_key", "there is no key (blk_1)")
    found = read_dead_letter(as_stored(*dead_letter(record(key, value, headers, read=read), letter, 100_000)), 0)
    own = [each for each in headers if each[0] != "logmamba-error-reason"]
    assert found is not None
    assert (found.key, found.value, found.headers, found.timestamp_ms) == (key, value, own, TIME_MS)
    assert (found.origin, found.offset) == (Partition("raw", 3), 120)
    assert (found.reason, found.message, found.cut) == ("no_key", letter.message, False)


@pytest.mark.parametrize("headers", [[], [("trace", b"t" * 50)], [("trace", b"t" * 2_000)]], ids=len)
@pytest.mark.parametrize("value", [b"v" * 3_000, b"v"], ids=len)
def test_one_that_is_not_all_there_says_so(headers: RecordHeaders, value: bytes) -> None:
    key, kept, written = dead_letter(record(b"k", value, headers), DeadLetter(0, "no_key", "none"), 2_000)
    found = read_dead_letter(as_stored(key, kept, written), 0)
    assert found is not None
    assert found.cut is ((found.value, found.headers) != (value, headers))
    assert found.message.startswith("none")


@pytest.mark.parametrize("headers", [[], [("logmamba-error-reason", b"no_key")], [("trace", None)]], ids=str)
def test_a_record_that_no_worker_wrote_is_none(headers: RecordHeaders) -> None:
    assert read_dead_letter(as_stored(b"k", b"v", headers), 0) is None

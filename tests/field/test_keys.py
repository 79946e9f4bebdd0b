"""Session keys of several parts, binary ones, ones cut out of others; topics that several applications share."""

from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.field.reading import read

TEXT = ("input.format=text",)
LONGS = [1, 7, 127, 128, 255, 300, 2**40, -1, 2**63 - 1]


def longs() -> list[bytes | None]:
    return [struct.pack(">q", number) for number in LONGS]


def test_binary_keys_are_refused_all_alike_where_nothing_says_what_they_are() -> None:
    found = read([b"x"] * len(LONGS), "sessions.key=record_key", keys=longs())
    assert found.reasons == [(row, "bad_key") for row in range(len(LONGS))]
    assert all("the session key (record_key) is not text: " in letter.message for letter in found.dead_letters)


@pytest.mark.parametrize(
    ("how", "keys"),
    [("int64", [str(number) for number in LONGS]), ("hex", [struct.pack(">q", number).hex() for number in LONGS])],
)
def test_binary_keys_are_read_as_the_settings_say(how: str, keys: list[str]) -> None:
    found = read([b"x"] * len(LONGS), f"sessions.key={{record_key: {how}}}", keys=longs())
    assert (found.keys, found.dead_letters) == (keys, [])


def test_a_uuid_of_sixteen_bytes_is_shown_as_one_and_another_length_is_refused() -> None:
    one = uuid.UUID(int=7)
    headers: list[list[tuple[str, bytes | None]] | None] = [[("id", one.bytes)], [("id", b"short")], None]
    found = read([b"x"] * 3, "sessions.key={header: id, as: uuid}", headers=headers)
    assert (found.keys, found.reasons) == ([str(one)], [(1, "bad_key"), (2, "no_key")])
    assert found.dead_letters[0].message == "the session key (header id) has 5 bytes; allowed for uuid: 16"


def test_a_pattern_cuts_a_key_out_of_a_header() -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers: list[list[tuple[str, bytes | None]] | None] = [[("traceparent", trace)], [("traceparent", b"odd")]]
    found = read([b"x"] * 2, "sessions.key={header: traceparent, pattern: '^..-([0-9a-f]{32})-'}", headers=headers)
    assert (found.keys, found.reasons) == (["0af7651916cd43dd8448eb211c80319c"], [(1, "no_key")])


def test_the_first_key_that_is_there_is_taken() -> None:
    values = [b'{"message":"m","trace":"t","host":"h"}', b'{"message":"m","host":"h"}', b'{"message":"m"}']
    key = "sessions.key={any_of: [{pointer: /trace}, {pointer: /host}]}"
    found = read(values, "input.format=json", key)
    assert (found.keys, found.reasons) == (["t", "h"], [(2, "no_key")])
    assert "(pointer /trace or pointer /host)" in found.dead_letters[0].message


def test_a_composed_key_needs_all_its_parts() -> None:
    values = [b'{"message":"m","request":7,"host":"h"}', b'{"message":"m","host":"h"}']
    found = read(values, "input.format=json", "sessions.key=[{pointer: /host}, {pointer: /request}]")
    assert (found.keys, found.reasons) == (["h|7"], [(1, "no_key")])


@given(
    st.tuples(*[st.text("a|\\", min_size=1, max_size=4)] * 2), st.tuples(*[st.text("a|\\", min_size=1, max_size=4)] * 2)
)
def test_different_parts_never_make_the_same_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    headers: list[list[tuple[str, bytes | None]] | None] = [
        [("a", a.encode()), ("b", b.encode())] for a, b in (one, other)
    ]
    found = read([b"x"] * 2, "sessions.key=[{header: a}, {header: b}]", headers=headers)
    assert (found.keys[0] == found.keys[1]) == (one == other)


def test_records_of_other_applications_are_skipped_and_counted_and_are_no_dead_letters() -> None:
    values = [
        b'{"message":"a","app":"shop"}',
        b'{"message":"b","app":"mail"}',
        b'{"message":"c"}',
        b"{",
        None,
        b'[{"message":"d","app":"shop"},{"message":"e","app":"mail"},{"app":"shop"}]',
    ]
    settings = ("input.format=json", "sessions.key=partition", "input.only={pointer: /app, equals: shop}")
    found = read(values, *settings)
    assert (found.messages, found.offsets, found.skipped) == (["a", "d"], [100, 105], 5)
    assert found.reasons == [(5, "no_message")]
    assert found.dead_letters[0].message.startswith("at /2: ")
    assert read(values, *settings, cuts=[1, 4]) == found


@pytest.mark.parametrize("shape", ["text", "json"])
def test_a_header_tells_whose_a_record_is_before_anything_of_it_is_read(shape: str) -> None:
    headers: list[list[tuple[str, bytes | None]] | None] = [
        [("app", b"shop-1")],
        [("app", b"mail")],
        None,
        [("app", b"x shop-")],
    ]
    good = b'{"message":"good"}' if shape == "json" else b"good"
    values: list[bytes | None] = [good, b"\xff", None, b"\xff"]
    found = read(
        values,
        *(f"input.format={shape}", "sessions.key=partition", "input.only={header: app, matches: '^shop-'}"),
        headers=headers,
    )
    assert (found.messages, found.offsets, found.skipped, found.dead_letters) == (["good"], [100], 3, [])

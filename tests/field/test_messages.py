"""Messages of every kind, and what stands around them and is no part of them."""

from __future__ import annotations

import pytest

from tests.field.reading import read

JSON = ("input.format=json", "sessions.key=partition")


def test_a_message_that_is_no_text_is_rendered_in_one_way() -> None:
    values = [
        b'{"log": {"msg": "disk full", "level": "error"}}',
        b'{"log": "plain"}',
        b'{"log": ["two", "parts"]}',
        b'{"log": 12}',
        b'{"log": true}',
        b'{"log": [104, 105, 255]}',
        b'{"log": 123456789012345678901234567890}',
    ]
    found = read(values, *JSON, "input.message=/log")
    assert found.messages[:6] == [
        '{"level":"error","msg":"disk full"}',
        "plain",
        '["two","parts"]',
        "12",
        "true",
        "hi\ufffd",
    ]
    assert len(found.messages) == 7
    assert found.dead_letters == []


def test_the_first_message_that_is_there_is_taken() -> None:
    values = [b'{"a": null, "b": "second"}', b'{"a": "first", "b": "x"}', b'{"c": 1}']
    found = read(values, *JSON, "input.message=[/a, /b]")
    assert (found.messages, found.reasons) == (["second", "first"], [(2, "no_message")])
    assert found.dead_letters[0].message == "the message at /a or /b is missing"


@pytest.mark.parametrize(
    "value",
    [
        b'\xef\xbb\xbf{"message":"read"}',
        b'{"message":"read","took":NaN}',
        b'{"message":"read","took":-Infinity}',
        b'{"message":"read","note":"\\ud83d"}',
        b'\0\0\0\0\x07{"message":"read"}',
        b'\0\0\0\0{{"message":"read"}',
        b'{"message":"read"}\0\0\0',
        b'\0\0{"message":"read\\r\\n"}\r\n',
        b'{"message":"\\u001b[31mread\\u001b[0m"}',
        b'{"message":"\\u0000read\\u0000"}',
    ],
)
def test_odd_json_is_read(value: bytes) -> None:
    found = read([b'{"message":"before"}', value], *JSON)
    assert (found.messages, found.dead_letters) == (["before", "read"], [])


@pytest.mark.parametrize("value", [b"\0\0\0\0\xc8\x02\x0eread it", b"\0\0\0\0\x07\x0eread it"])
def test_avro_and_protobuf_are_refused_with_the_schemas_number(value: bytes) -> None:
    [letter] = read([value], *JSON).dead_letters
    assert letter.reason == "bad_json"
    assert f"schema {value[4]}: Avro or Protobuf" in letter.message


def test_half_an_emoji_in_a_message_is_one_replacement_character() -> None:
    found = read([b'{"message":"a \\ud83d b \\ud83d\\ude00"}'], *JSON)
    assert found.messages == ["a \ufffd b \U0001f600"]


def test_text_lines_lose_what_is_no_part_of_them() -> None:
    values = [b"\xef\xbb\xbfone", b"two\r\n", b"\0\0three\0", b"\x1b[1;31mERROR\x1b[0m four \x1b]0;title\x07\r\n"]
    found = read(values, r"sessions.key={regex: '^(\w+)'}")
    assert found.messages == ["one", "two", "three", "ERROR four "]
    assert found.keys == ["one", "two", "three", "ERROR"]


def test_other_encodings_are_read_where_the_settings_say_so() -> None:
    value = "caf\xe9".encode("latin-1")
    key = "sessions.key=partition"
    assert read([value], key).reasons == [(0, "not_utf8")]
    assert read([value], key, "input.encoding=latin-1").messages == ["caf\xe9"]
    assert read([value], key, "input.encoding=utf-8-replace").messages == ["caf\ufffd"]
    document = '{"message": "caf\xe9"}'.encode("latin-1")
    assert read([document], *JSON).reasons == [(0, "not_utf8")]
    assert read([document], *JSON, "input.encoding=latin-1").messages == ["caf\xe9"]


TRACE = """2024-01-15 10:00:00 ERROR req-1 order failed
java.lang.IllegalStateException: no stock
\tat shop.Cart.buy(Cart.java:17)
Caused by: java.sql.SQLTimeoutException: after 30 s
\tat shop.Stock.read(Stock.java:99)
\t... 23 more"""


def test_a_stack_trace_is_one_event_of_its_first_line_and_last_exception() -> None:
    value = f"{TRACE}\n2024-01-15 10:00:01 INFO req-2 order placed\n".encode()
    settings = (
        r"input.multiline={start: '^\d{4}-'}",
        r"sessions.key={regex: 'req-\d'}",
        "input.timestamp={format: iso8601}",
    )
    found = read([value, TRACE.encode()], *settings)
    head = "2024-01-15 10:00:00 ERROR req-1 order failed java.sql.SQLTimeoutException"
    assert found.messages == [head, "2024-01-15 10:00:01 INFO req-2 order placed", head]
    assert found.keys == ["req-1", "req-2", "req-1"]
    assert found.offsets == [100, 100, 101]
    assert found.times[1] - found.times[0] == 1000


def test_a_python_traceback_ends_with_its_exception_and_what_precedes_a_beginning_is_an_event() -> None:
    trace = b'Traceback (most recent call last):\n  File "a.py"\nshop.errors.StockError: none\n'
    value = b"  left over\nINFO start\nERROR job failed\n" + trace
    found = read([value], "input.multiline={start: '^(INFO|ERROR)'}", "sessions.key=partition")
    assert found.messages == ["  left over", "INFO start", "ERROR job failed shop.errors.StockError"]


def test_a_trace_within_a_json_message_is_one_event() -> None:
    import orjson

    found = read([orjson.dumps({"message": TRACE})], *JSON, r"input.multiline={start: '^\d{4}-'}")
    assert found.messages == ["2024-01-15 10:00:00 ERROR req-1 order failed java.sql.SQLTimeoutException"]

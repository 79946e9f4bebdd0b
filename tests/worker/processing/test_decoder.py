"""Records to events: what each kind of record becomes, whatever stands beside it in the batch."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK, Vocabulary
from tests.worker.processing.listed_events import ListedEvents, listed
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.processing.lines import DeadLetter
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings

VOCABULARY = Vocabulary(("open <*>", "read <*>", "close <*>"))
OPEN, READ, CLOSE = 3, 4, 5


def decoder(key: Any = None, no_key: str = "dead_letter", **input_settings: Any) -> Decoder:
    sessions = {"key": key or {"regex": r"blk_-?\d+"}, "no_key": no_key}
    return Decoder(
        InputSettings.model_validate(input_settings),
        SessionsSettings.model_validate(sessions),
        Tokenizer(VOCABULARY, unknown="unk"),
    )


def records(values: Sequence[bytes | None], **columns: Any) -> Records:
    everything: dict[str, Any] = {
        "topic": "raw",
        "partition": 3,
        "offsets": list(range(100, 100 + len(values))),
        "values": list(values),
        "keys": None,
        "timestamps": list(range(1000, 1000 + len(values))),
        "headers": None,
    }
    return Records(**(everything | columns))


def decode_one(decoder: Decoder, values: Sequence[bytes | None], **columns: Any) -> ListedEvents:
    (events,) = decoder.decode([records(values, **columns)])
    return listed(events)


def reasons(events: ListedEvents) -> list[tuple[int, str]]:
    return [(letter.index, letter.reason) for letter in events.dead_letters]


def test_lines_become_events_with_key_token_time_and_offset() -> None:
    events = decode_one(decoder(), [b"open blk_1", b"read blk_-2", b"odd blk_1 blk_7"])
    assert events == ListedEvents(
        keys=["blk_1", "blk_-2", "blk_1"],
        tokens=[OPEN, READ, UNK],
        times=[1000, 1001, 1002],
        offsets=[100, 101, 102],
        dead_letters=[],
        cut=0,
        ignored=0,
    )


def test_records_without_timestamps_have_no_times() -> None:
    assert decode_one(decoder(), [b"open blk_1"], timestamps=None).times == [NO_TIME]


def test_an_empty_batch_and_an_empty_part_have_no_events() -> None:
    nothing = ListedEvents([], [], [], [], [], 0, 0)
    assert decoder().decode([]) == []
    assert decode_one(decoder(), []) == nothing
    for several in ({"multiline": True}, {"format": "json"}):
        both = map(listed, decoder(**several).decode([records([]), records([None])]))
        assert [*both] == [nothing, ListedEvents([], [], [], [], [DeadLetter(0, "null", "the value is null")], 0, 0)]


BAD_TEXT = {
    "null": [None],
    "empty": [b"", b" \t\n", "\u2003".encode(), b"\0\0", b"\x1b[31m\x1b[0m\n", b"\xef\xbb\xbf"],
    "not_utf8": [b"blk_1 \xff", b"blk_1 \xc3", b"\xa9 blk_1", b"blk_1 \xed\xa0\x80", b"blk_1 \xc0\x80"],
    "no_key": [b"no block", b"blk_", b"BLK_1"],
    "long_key": [b"open blk_" + b"1" * 2000],
}
BAD_JSON = {
    "null": [None],
    "not_utf8": [b'{"message": "blk_1 \xff"}'],
    "bad_json": [b"{", b"[" * 5000, b"{NaN", b'{"message": 1} {', b"\0\0\0\0\x07\x02avro", b"blk_1"],
    "no_message": [b"{}", b"null", b'"blk_1"', b'{"message": null}', b"\xef\xbb\xbf{}", b"[1]"],
    "empty": [b"", b"\0\0", b"[]", b'{"message": ""}', b'{"message": " \\n"}', b'{"message": "\\u0000"}'],
    "no_key": [b'{"message": "open"}', b'{"message": 5}', b'{"message": NaN}', b'{"message": ["open"]}'],
}


@pytest.mark.parametrize(("reason", "value"), [(reason, v) for reason, values in BAD_TEXT.items() for v in values])
def test_a_bad_record_is_a_dead_letter_and_leaves_its_neighbours_as_they_are(reason: str, value: bytes | None) -> None:
    events = decode_one(decoder(), [b"open blk_1", value, "read blk_2 é".encode(), b"blk_3"])
    assert reasons(events) == [(1, reason)]
    assert (events.keys, events.offsets, events.times) == (
        ["blk_1", "blk_2", "blk_3"],
        [100, 102, 103],
        [1000, 1002, 1003],
    )


@pytest.mark.parametrize(("reason", "value"), [(reason, v) for reason, values in BAD_JSON.items() for v in values])
def test_a_bad_json_record_is_a_dead_letter_and_leaves_its_neighbours_as_they_are(
    reason: str, value: bytes | None
) -> None:
    good = orjson.dumps({"message": "open blk_1"})
    events = decode_one(decoder(format="json"), [good, value, good])
    assert reasons(events) == [(1, reason)]
    assert (events.keys, events.tokens, events.offsets) == (["blk_1"] * 2, [OPEN] * 2, [100, 102])


def test_two_halves_of_a_character_in_neighbouring_records_are_two_dead_letters() -> None:
    events = decode_one(decoder(), [b"blk_1 \xc3", b"\xa9 blk_1", "blk_1 é".encode()])
    assert reasons(events) == [(0, "not_utf8"), (1, "not_utf8")]
    assert events.dead_letters[0].message == "the value is not UTF-8: unexpected end of data at byte 6"
    assert events.offsets == [102]


@given(st.binary(max_size=12))
def test_utf8_is_what_python_says_it_is(value: bytes) -> None:
    events = decode_one(decoder(key="partition"), [b"x", value])
    try:
        text = value.decode()
    except UnicodeDecodeError:
        assert reasons(events) == [(1, "not_utf8")]
    else:
        text = text.strip("\0").lstrip("\ufeff") if "\x1b" not in text else "an escape sequence"
        assert reasons(events) == ([] if text.strip("\x1c\x1d\x1e\x1f \t\n\v\f\r\x85") else [(1, "empty")])


VALUE = st.one_of(
    st.none(),
    st.sampled_from([b"", b"\xff", b"open blk_1", b"close blk_22", b"nothing", b"read blk_1\n\n x\r\nopen blk_3"]),
    st.lists(st.sampled_from(["open", "é", "blk_7", "\n", "x" * 300]), max_size=6).map(" ".join).map(str.encode),
)


@given(st.lists(VALUE, max_size=15), st.booleans(), st.sampled_from(["dead_letter", "ignore"]), st.data())
def test_how_records_fall_into_batches_does_not_change_their_events(
    values: list[bytes | None], multiline: bool, no_key: str, data: st.DataObject
) -> None:
    rows = [records([value], offsets=[5 * i], timestamps=[i]) for i, value in enumerate(values)]
    one = decoder(no_key=no_key, multiline=multiline, max_line_bytes=256)
    alone = [*map(listed, one.decode(rows))]
    cut = data.draw(st.integers(0, len(values)))
    parts = [
        records(values[a:b], offsets=[5 * i for i in range(a, b)], timestamps=list(range(a, b)))
        for a, b in ((0, cut), (cut, len(values)))
    ]
    for part, row_events in zip(map(listed, one.decode(parts)), (alone[:cut], alone[cut:]), strict=True):
        for column in ("keys", "tokens", "times", "offsets"):
            assert getattr(part, column) == [x for events in row_events for x in getattr(events, column)]
        assert part.cut == sum(events.cut for events in row_events)
        assert part.ignored == sum(events.ignored for events in row_events)
        assert [(row, letter.reason) for row, e in enumerate(row_events) for letter in e.dead_letters] == reasons(part)


@given(st.integers(256, 300), st.integers(0, 3))
def test_a_long_line_is_cut_between_characters_and_counted(limit: int, shift: int) -> None:
    line = "a" * shift + "blk_5 " + "😀é한" * 100
    expected = line.encode()[:limit].decode(errors="ignore")
    events = decode_one(decoder(key={"regex": "(?s)(.*)"}, max_line_bytes=limit), [line.encode(), b"short"])
    assert events.keys == [expected, "short"]
    assert limit - 4 < len(expected.encode()) <= limit
    assert events.cut == 1


def test_a_key_past_the_cut_does_not_count_and_a_dead_letter_is_not_counted_as_cut() -> None:
    events = decode_one(decoder(max_line_bytes=256), [b"none", b"blk_2 " * 100, b"x" * 256 + b" blk_1"])
    assert reasons(events) == [(0, "no_key"), (2, "no_key")]
    assert (events.keys, events.cut) == (["blk_2"], 1)


def test_the_lines_of_a_record_are_events_of_one_offset() -> None:
    value = b"\r\nstarting\nopen blk_1\r\n  at x\n\nread blk_2\n \t\nthe end\n"
    events = decode_one(decoder(multiline=True), [b"open blk_9", value])
    assert events.keys == ["blk_9", "blk_1", "blk_1", "blk_1", "blk_2", "blk_2"]
    assert events.tokens == [OPEN, UNK, OPEN, UNK, READ, UNK]
    assert events.offsets == [100, 101, 101, 101, 101, 101]
    assert events.times == [1000, 1001, 1001, 1001, 1001, 1001]


def test_keys_do_not_pass_from_one_record_of_lines_to_the_next() -> None:
    values = [b"open blk_1", b"one\ntwo", b"three\nopen blk_2", b"\n\r\n"]
    events = decode_one(decoder(multiline=True), values)
    assert reasons(events) == [(1, "no_key"), (3, "empty")]
    assert events.keys == ["blk_1", "blk_2", "blk_2"]


def test_without_multiline_a_record_is_one_event() -> None:
    events = decode_one(decoder(), [b"open blk_1\nread blk_2\n"])
    assert (events.keys, events.offsets) == (["blk_1"], [100])


def test_lines_without_a_key_are_ignored_and_counted_if_asked_for() -> None:
    values = [b"a\nb", b"open blk_1", None, b"c"]
    events = decode_one(decoder(no_key="ignore", multiline=True), values)
    assert events.ignored == 3
    assert (events.keys, reasons(events)) == (["blk_1"], [(2, "null")])
    timed = decoder(no_key="ignore", timestamp={"pattern": r"^\d+", "format": "%Y"})
    events = decode_one(timed, [b"no key and no time", b"blk_1 but no time"])
    assert (events.ignored, reasons(events)) == (1, [(1, "bad_timestamp")])


def test_the_record_key_is_the_session() -> None:
    events = decode_one(decoder(key="record_key"), [b"a", b"b", b"c", b"d"], keys=[b"s1", None, b"", b"\xff"])
    assert events.keys == ["s1"]
    assert reasons(events) == [(1, "no_key"), (2, "no_key"), (3, "bad_key")]
    assert reasons(decode_one(decoder(key="record_key"), [b"a"])) == [(0, "no_key")]
    ignoring = decode_one(decoder(key="record_key", no_key="ignore"), [b"a", b"b"], keys=[b"\xff", None])
    assert (reasons(ignoring), ignoring.ignored) == ([(0, "bad_key")], 1)


def test_the_last_header_of_the_name_is_the_session() -> None:
    headers = [
        [("id", b"1"), ("other", b"x"), ("id", b"2")],
        [("other", b"x")],
        None,
        [("id", None)],
        [("id", b"\xff")],
    ]
    events = decode_one(decoder(key={"header": "id"}), [b"a"] * 5, headers=headers)
    assert events.keys == ["2"]
    assert reasons(events) == [(1, "no_key"), (2, "no_key"), (3, "no_key"), (4, "bad_key")]
    assert reasons(decode_one(decoder(key={"header": "id"}), [b"a"])) == [(0, "no_key")]


def test_a_partition_can_be_one_session() -> None:
    parts = [records([b"a", None, b"b"]), records([b"c"], topic="other", partition=0)]
    first, second = map(listed, decoder(key="partition").decode(parts))
    assert (first.keys, second.keys) == (["raw[3]"] * 2, ["other[0]"])


def test_json_pointers_name_message_key_and_time() -> None:
    one = decoder(
        key={"pointer": "/meta/ids/1"}, format="json", message="/log~1line/~0text", timestamp="/at", multiline=True
    )
    values = [
        {"log/line": {"~text": "open 1\nread 2"}, "meta": {"ids": ["no", "yes"]}, "at": 12},
        {"log/line": {"~text": "open 1"}, "meta": {"ids": ["no", 17]}, "at": "2008-11-09T20:36:15.123Z"},
        {"log/line": {"~text": "open 1"}, "meta": {"ids": ["no", True]}, "at": 1},
        {"log/line": {"~text": "open 1"}, "meta": {"ids": ["no"]}, "at": 1},
        {"log/line": {"~text": "open 1"}, "meta": {"ids": ["no", ""]}, "at": 1},
        {"log/line": {"~text": "open 1"}, "meta": {"ids": ["no", "a"]}},
        {"log/line": {"~text": "open 1"}, "meta": {"ids": ["no", "a"]}, "at": "yesterday"},
    ]
    events = decode_one(one, [orjson.dumps(value) for value in values])
    assert events.keys == ["yes", "yes", "17"]
    assert events.tokens == [OPEN, READ, OPEN]
    assert events.times == [12_000, 12_000, 1_226_262_975_123]
    assert reasons(events) == [(2, "no_key"), (3, "no_key"), (4, "no_key"), (5, "bad_timestamp"), (6, "bad_timestamp")]
    assert events.dead_letters[-1].message == (
        "the timestamp at /at cannot be read: 'yesterday' is not a time in any of the formats 'iso8601', 'epoch'"
    )

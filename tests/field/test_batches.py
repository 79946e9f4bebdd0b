"""One Kafka record that holds several events: OpenTelemetry batches, Azure's records, JSON lists, NDJSON."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.field.reading import read

JSON = ("input.format=json", "sessions.key=partition")


def log_record(number: int, body: object, **more: object) -> dict[str, object]:
    return {
        "timeUnixNano": str(1_700_000_000_000_000_000 + number * 1_000_000_000),
        "severityText": "WARN",
        "body": body,
        "traceId": f"t{number % 2}",
        **more,
    }


def otlp(*services: tuple[str, list[dict[str, object]]]) -> bytes:
    return orjson.dumps(
        {
            "resourceLogs": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]},
                    "scopeLogs": [{"scope": {"name": "checkout"}, "logRecords": records}, {"scope": {"name": "none"}}],
                }
                for name, records in services
            ]
        }
    )


def test_each_log_record_of_an_opentelemetry_batch_is_an_event() -> None:
    value = otlp(
        ("cart", [log_record(1, {"stringValue": "basket opened"}), log_record(2, {"stringValue": "price missing"})]),
        ("mail", [log_record(3, {"intValue": "7"})]),
    )
    found = read([value], "input.format=otlp_json")
    assert found.messages == ["WARN basket opened", "WARN price missing", "WARN 7"]
    assert found.keys == ["t1", "t0", "t1"]
    assert found.times == [1_700_000_001_000, 1_700_000_002_000, 1_700_000_003_000]
    assert found.offsets == [100, 100, 100]
    assert found.dead_letters == []


def test_a_body_may_be_any_value_and_a_record_may_lack_its_own_time() -> None:
    pairs = [
        {"key": "b", "value": {"intValue": "5"}},
        {"key": "a", "value": {"arrayValue": {"values": [{"boolValue": True}]}}},
    ]
    record = {"observedTimeUnixNano": "1700000009000000000", "body": {"kvlistValue": {"values": pairs}}}
    found = read([otlp(("cart", [record]))], "input.format=otlp_json")
    assert (found.messages, found.times) == (['{"a":[true],"b":"5"}'], [1_700_000_009_000])
    assert found.keys == ["cart"]  # the attribute of the resource, found by its name
    inside = read([otlp(("cart", [record]))], "input.format=otlp_json", "input.message=/body/b")
    assert inside.messages == ["5"]


def test_attributes_of_resource_and_scope_are_there_for_each_event() -> None:
    value = otlp(("cart", [log_record(1, {"stringValue": "a"})]), ("mail", [log_record(2, {"stringValue": "b"})]))
    key = "sessions.key=[{pointer: /resource/attributes/service.name}, {pointer: /scope/name}]"
    assert read([value], "input.format=otlp_json", key).keys == ["cart|checkout", "mail|checkout"]


def test_azures_records_are_events() -> None:
    value = orjson.dumps(
        {
            "records": [
                {"time": "2024-01-15T10:00:00.1Z", "operationName": "Start", "correlationId": "x"},
                {"time": "2024-01-15T10:00:01.1Z", "operationName": "Stop", "correlationId": "y"},
            ]
        }
    )
    found = read([value], "input.format=azure")
    assert (found.messages, found.keys) == (["Start", "Stop"], ["x", "y"])
    assert [time % 100_000 for time in found.times] == [100, 1100]


def test_lists_and_json_lines_are_events_in_their_order() -> None:
    values = [
        b'[{"message": "a"}, {"message": "b"}]',
        b'{"message":"c"}\r\n\n{"message":"d"}\n',
        b'[{"message":"e"}]\n{"message":"f"}',
        b'{\n "message": "g"\n}',
    ]
    found = read(values, *JSON)
    assert found.messages == list("abcdefg")
    assert found.offsets == [100, 100, 101, 101, 102, 102, 103]
    assert found.dead_letters == []


def test_what_cannot_be_read_of_a_record_is_a_dead_letter_by_itself_with_its_place() -> None:
    records = [{"message": f"event {number}"} for number in range(10)]
    records[9] = {"massage": "poison"}
    found = read([orjson.dumps({"meta": 1, "records": records})], *JSON, "input.split=/records/*")
    assert found.messages == [f"event {number}" for number in range(9)]
    [letter] = found.dead_letters
    assert (letter.index, letter.reason) == (0, "no_message")
    assert letter.message == "at /records/9: the message at /message is missing"
    assert letter.item == b'{"meta":1,"records":[{"massage":"poison"}]}'


def test_a_dead_letter_of_an_event_is_read_alone_as_it_was_in_its_record() -> None:
    value = otlp(("cart", [log_record(1, {"stringValue": "good"}), log_record(2, {})]), ("mail", [log_record(3, None)]))
    found = read([value], "input.format=otlp_json")
    assert found.messages == ["WARN good", "WARN {}"]
    [letter] = found.dead_letters
    assert letter.message.startswith("at /resourceLogs/1/scopeLogs/0/logRecords/0: ")
    [again] = read([letter.item], "input.format=otlp_json").dead_letters
    assert (again.reason, again.item) == (letter.reason, None)
    assert letter.message.endswith(again.message)


def test_a_broken_line_among_json_lines_names_its_number() -> None:
    found = read([b'{"message":"a"}\n{"mess\n{"message":"c"}'], *JSON)
    assert found.messages == ["a", "c"]
    [letter] = found.dead_letters
    assert (letter.reason, letter.item) == ("bad_json", b'{"mess')
    assert letter.message.startswith("line 2: the value is not JSON: ")


def test_several_broken_lines_that_begin_with_none_are_one_dead_letter() -> None:
    found = read([b'{"message":\n{"message":"c"}\n'], *JSON)
    assert found.reasons == [(0, "bad_json")]
    assert found.dead_letters[0].item is None


def test_a_record_without_events_is_a_dead_letter() -> None:
    values = [b'{"records": []}', b'{"other": 1}', b"[]", b'{"records": 5}']
    found = read(values, *JSON, "input.split=/records/*")
    assert found.reasons == [(0, "empty"), (1, "empty"), (2, "empty"), (3, "no_message")]


EVENT = st.fixed_dictionaries(
    {}, optional={"message": st.sampled_from(["a", "", "b\nc", 5, None]), "id": st.sampled_from(["x", ""])}
)
VALUE = st.one_of(
    st.none(),
    st.sampled_from([b"", b"{", b"\xff", b"null"]),
    EVENT.map(orjson.dumps),
    st.lists(EVENT, max_size=4).map(orjson.dumps),
    st.lists(EVENT, max_size=4).map(lambda events: b"\n".join(map(orjson.dumps, events))),
)


@given(st.lists(VALUE, max_size=8), st.data())
def test_how_batch_records_fall_into_batches_does_not_change_their_events(
    values: list[bytes | None], data: st.DataObject
) -> None:
    settings: tuple[Any, ...] = ("input.format=json", "input.multiline=true", "sessions.key={pointer: /id}")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(values)), max_size=3)))
    assert read(values, *settings, cuts=cuts) == read(values, *settings)

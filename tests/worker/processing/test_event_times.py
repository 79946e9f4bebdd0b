"""The setting `input.timestamp` over records: which time each event has, and why another record has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.formats.times.reading import at
from tests.worker.processing.listed_events import ListedEvents, listed
from worker.formats.times.years import FileYears
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings


class OneToken:
    """A tokenizer to which all lines are alike."""

    def encode(self, lines: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.zeros(len(lines), np.int64)


def decoder(timestamp: object, **input_settings: Any) -> Decoder:
    section = InputSettings.model_validate({"timestamp": timestamp, **input_settings})
    return Decoder(section, SessionsSettings.model_validate({"key": "partition"}), OneToken())


def decode(
    decoder: Decoder,
    values: Sequence[str | bytes],
    timestamps: list[int] | None = None,
    years: FileYears | None = None,
    first: int = 0,
) -> ListedEvents:
    raw: list[bytes | None] = [value.encode() if isinstance(value, str) else value for value in values]
    offsets = list(range(first, first + len(values)))
    [events] = decoder.decode([Records("raw", 0, offsets, raw, None, timestamps, None, years)])
    return listed(events)


def reasons(events: ListedEvents) -> list[tuple[int, str]]:
    return [(letter.index, letter.message) for letter in events.dead_letters]


def test_without_a_rule_the_kafka_timestamp_is_the_time_and_none_is_none() -> None:
    events = decode(decoder(None), ["a"] * 4, [1_700_000_000_000, -1, 0, 1])
    assert events.times == [1_700_000_000_000, NO_TIME, NO_TIME, 1]
    assert decode(decoder(None), ["a"]).times == [NO_TIME]


def test_times_are_read_from_lines_in_a_format() -> None:
    one = decoder({"pattern": r"^(\d{6} \d{6}) ", "format": "%y%m%d %H%M%S"}, multiline=True)
    values = ["081109 203615 x", "open x", "081109 203661 x", "x\n081109 203616 x\nx\n081109 203617 x"]
    events = decode(one, values)
    start = at("2008-11-09T20:36:15")
    assert events.times == [start, start + 1000, start + 1000, start + 1000, start + 2000]
    assert reasons(events) == [
        (1, r"the record has no timestamp (pattern ^(\d{6} \d{6}) )"),
        (2, "'081109 203661' is not a time in the format '%y%m%d %H%M%S'"),
    ]


def test_a_format_with_a_shape_of_its_own_needs_no_pattern() -> None:
    lines = ["2024-03-04T10:00:00.5Z a", "b 2024-03-04 10:00:00,250 c", "no time"]
    events = decode(decoder({"format": "iso8601"}), lines)
    assert events.times == [at("2024-03-04T10:00:00.500"), at("2024-03-04T10:00:00.250")]
    assert reasons(events) == [(2, "the record has no timestamp (format iso8601)")]


def test_several_formats_are_tried_in_order_for_each_line_by_itself() -> None:
    formats = ["iso8601", "syslog", "epoch"]
    lines = ["Dec 31 23:59:59 gate x", "1704067200.25 x", "2024-01-01 00:00:01 x", "Dec 32 00:00:00 x", "none"]
    events = decode(decoder({"format": formats}), lines, [at("2024-01-01")] * 5)
    assert events.times == [at("2023-12-31T23:59:59"), at("2024-01-01T00:00:00.250"), at("2024-01-01T00:00:01")]
    assert reasons(events) == [
        (3, "'Dec 32 00:00:00' is not a time in any of the formats 'iso8601', 'syslog', 'epoch'"),
        (4, "the record has no timestamp (format iso8601, syslog, epoch)"),
    ]
    one = decoder({"pattern": r"\[([^]]+)\]", "format": ["iso8601", "%d/%b/%Y:%H:%M:%S %z"]})
    assert decode(one, ["[04/Mar/2024:10:00:00 +0100] x", "[2024-03-04T10:00:00Z] x"]).times == [
        at("2024-03-04T09:00:00"),
        at("2024-03-04T10:00:00"),
    ]


@given(
    st.lists(
        st.sampled_from(
            ["Dec 31 23:59:59 x", "Jan  1 00:00:00 x", "1704067200 x", "2024-01-01 00:00:01 x", "Feb 30 00:00:00 x",
             "x", "x\nFeb 29 10:00:00 y", "2023-02-29 00:00:00 x"]
        ),
        max_size=8,
    ),
    st.lists(st.sampled_from([at("2024-01-01"), at("2023-06-30"), at("2020-02-29"), -1, 0]), min_size=8, max_size=8),
)  # fmt: skip
def test_a_time_depends_on_its_record_alone(lines: list[str], timestamps: list[int]) -> None:
    one = decoder({"format": ["syslog", "iso8601", "epoch"], "timezone": "Europe/Berlin"}, multiline=True)
    together = decode(one, lines, timestamps[: len(lines)])
    alone = [decode(one, [line], [timestamp]) for line, timestamp in zip(lines, timestamps, strict=False)]
    assert together.times == [time for events in alone for time in events.times]
    assert reasons(together) == [(row, why) for row, events in enumerate(alone) for _, why in reasons(events)]


JSON_TIMES = [
    (0, "1970-01-01"),
    (1_226_262_975, "2008-11-09T20:36:15"),
    ("1226262975", "2008-11-09T20:36:15"),
    (1_226_262_975.123, "2008-11-09T20:36:15.123"),
    ("1226262975.123", "2008-11-09T20:36:15.123"),
    (1_226_262_975_123, "2008-11-09T20:36:15.123"),
    (1_226_262_975_123.9, "2008-11-09T20:36:15.123"),
    ("1226262975123", "2008-11-09T20:36:15.123"),
    ("1712031512304", "2024-04-02T04:18:32.304"),
    (1_226_262_975_123_456, "2008-11-09T20:36:15.123"),
    (1_226_262_975_123_456_789, "2008-11-09T20:36:15.123"),
    ("1226262975123456789", "2008-11-09T20:36:15.123"),
    (1.7e18, "2023-11-14T22:13:20"),
    (99_999_999_999, "5138-11-16T09:46:39"),
    (100_000_000_000, "1973-03-03T09:46:40"),
    (20_240_402, "1970-08-23T06:20:02"),
    (-1.5, "1969-12-31T23:59:58.500"),
    (0.00001, "1970-01-01"),
    ("2008-11-09 20:36:15", "2008-11-09T20:36:15"),
    ("2008-11-09T20:36:15.1239Z", "2008-11-09T20:36:15.123"),
    ("2008-11-09T21:36:15+01:00", "2008-11-09T20:36:15"),
    ("1969-12-31T23:59:59.9995Z", "1969-12-31T23:59:59.999"),
    ("20081109", "2008-11-09"),
]


@pytest.mark.parametrize(("value", "expected"), JSON_TIMES)
def test_times_in_json_are_iso_8601_or_a_number_since_1970(value: object, expected: str) -> None:
    events = decode(decoder("/t", format="json"), [orjson.dumps({"message": "x", "t": value})])
    assert (events.times, events.dead_letters) == ([at(expected)], [])


def test_times_of_all_kinds_can_stand_in_one_batch() -> None:
    values = [orjson.dumps({"message": "x\ny", "t": value}) for value, _ in JSON_TIMES]
    events = decode(decoder("/t", format="json", multiline=True), values)
    assert events.times == [at(expected) for _, expected in JSON_TIMES for _ in "xy"]


@pytest.mark.parametrize("value", [None, True, [], {}, "", "soon", 1e19, -1e19, 10**30, "2008-13-01", "1e9"])
def test_other_values_are_no_times(value: object) -> None:
    document = f'{{"message": "x", "t": {value}}}' if isinstance(value, int | float) and value is not True else None
    [(row, told)] = reasons(
        decode(decoder("/t", format="json"), [document or orjson.dumps({"message": "x", "t": value})])
    )
    assert row == 0
    assert told.startswith("the timestamp at /t cannot be read: ")


def test_a_time_in_json_has_the_format_that_the_settings_say() -> None:
    rule = {"pointer": "/t", "format": ["%d.%m.%Y %H:%M", "epoch_ms"], "timezone": "Europe/Berlin"}
    values = [orjson.dumps({"message": "x", "t": t}) for t in ("01.07.2024 10:00", 1_719_820_800, "1719820800")]
    assert decode(decoder(rule, format="json"), values).times == [at("2024-07-01T08:00"), 1_719_820_800, 1_719_820_800]
    compact = decoder({"pointer": "/t", "format": "%Y%m%d"}, format="json")
    assert decode(compact, [orjson.dumps({"message": "x", "t": 20_240_402})]).times == [at("2024-04-02")]


def test_a_time_that_names_no_zone_is_of_the_zone_of_the_settings() -> None:
    rule = {"format": "iso8601", "timezone": "America/New_York"}
    lines = ["2024-07-01 10:00:00 x", "2024-01-01 10:00:00 x", "2024-07-01 10:00:00Z x", "2024-07-01 10:00:00+02:00 x"]
    hours = ["2024-07-01T14:00", "2024-01-01T15:00", "2024-07-01T10:00", "2024-07-01T08:00"]
    assert decode(decoder(rule), lines).times == [at(hour) for hour in hours]


def test_an_abbreviation_that_the_table_lacks_is_named_in_the_dead_letter() -> None:
    rule = {"pattern": r"^(\S+ \S+ \S+)", "format": "%Y-%m-%d %H:%M:%S.%f %Z", "zones": {"CET": "+01:00"}}
    events = decode(decoder(rule), ["2024-01-15 10:00:00.123 CET [1] x", "2024-01-15 10:00:00.123 PST [1] x"])
    assert events.times == [at("2024-01-15T09:00:00.123")]
    told = "'2024-01-15 10:00:00.123 PST' names the zone 'PST', which input.timestamp.zones does not explain"
    assert reasons(events) == [(1, told)]


def test_a_time_without_a_year_has_the_year_of_its_records_timestamp_and_without_that_none() -> None:
    lines = ["Dec 31 23:59:59 x"] * 4 + ["Feb 29 12:00:00 x"]
    timestamps = [at("2024-01-01T00:00:05"), at("2023-12-31T23:59:59"), -1, 0, at("2023-03-01")]
    events = decode(decoder({"format": "syslog"}), lines, timestamps)
    assert events.times == [at("2023-12-31T23:59:59")] * 2 + [at("2024-02-29T12:00:00")]
    told = "'Dec 31 23:59:59' lacks a year or a date, and the record has no Kafka timestamp that tells it"
    assert reasons(events) == [(2, told), (3, told)]
    assert reasons(decode(decoder({"format": "syslog"}), lines[:1])) == [(0, told)]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("14:00:00 x", {"pattern": r"^\S+", "format": "%H:%M:%S", "timezone": "Pacific/Honolulu"}),
        ("14:00:00 -1000 x", {"pattern": r"^\S+ \S+", "format": "%H:%M:%S %z"}),
        ("Jan  1 14:00:00 x", {"format": "syslog", "timezone": "Pacific/Honolulu"}),
    ],
)
def test_what_is_nearest_is_told_by_the_clock_of_the_time(line: str, rule: dict[str, str]) -> None:
    # Three hours after the line was written, when the clock there shows 17:00 and UTC is at 03:00 of the next day.
    assert decode(decoder(rule), [line], [at("2024-01-02T03:00")]).times == [at("2024-01-02")]


def test_when_a_file_was_modified_is_told_by_the_clock_of_its_times() -> None:
    rule = {"pattern": r"^\S+", "format": "%H:%M:%S", "timezone": "Asia/Tokyo"}
    found = decode(decoder(rule), ["08:00:00 x"], years=FileYears(at("2024-03-04T23:30"))).times
    assert found == [at("2024-03-04T23:00")]


def test_in_a_file_years_follow_the_lines_whatever_batches_they_are_read_in() -> None:
    lines = ["Dec 31 23:59:58 x", "no time", "Jan  1 00:00:01 x", "Dec 31 23:59:59 late x", "Mar  1 00:00:00 x"]
    expected = [at("2022-12-31T23:59:58"), at("2023-01-01T00:00:01"), at("2022-12-31T23:59:59"), at("2023-03-01")]
    for cut in range(len(lines) + 1):
        one, years = decoder({"format": "syslog"}), FileYears(at("2023-04-01"))
        first = decode(one, lines[:cut], years=years)
        assert first.times + decode(one, lines[cut:], years=years, first=cut).times == expected


def test_the_year_of_the_settings_is_that_of_a_files_first_line_and_none_of_kafkas() -> None:
    one = decoder({"format": "syslog", "year": 2005})
    lines = ["Dec 31 23:59:58 x", "Jan  1 00:00:01 x"]
    in_file = decode(one, lines, years=FileYears(at("2024-06-01")))
    assert in_file.times == [at("2005-12-31T23:59:58"), at("2006-01-01T00:00:01")]
    assert decode(one, lines[:1], [at("2024-01-01")]).times == [at("2023-12-31T23:59:58")]


def test_lines_that_are_ignored_for_want_of_a_key_need_no_time() -> None:
    section = InputSettings.model_validate({"timestamp": {"pattern": r"^\d+", "format": "%Y"}})
    sessions = SessionsSettings.model_validate({"key": {"regex": "k="}, "no_key": "ignore"})
    events = decode(Decoder(section, sessions, OneToken()), ["neither", "k= without a time"])
    assert (events.ignored, [row for row, _ in reasons(events)]) == (1, [1])


def test_why_a_time_cannot_be_read_depends_on_the_record_alone() -> None:
    one = decoder({"pattern": r"^\S+", "format": "%Y"}, multiline=True)
    values = ["first x", "second x\nfirst x"]
    told = [message for _, message in reasons(decode(one, values))]
    assert told == [reasons(decode(one, [value]))[0][1] for value in values]
    assert told[1] == "'second' is not a time in the format '%Y'"

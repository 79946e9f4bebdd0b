"""ISO 8601, syslog and klog: every way to write them, against Python's own datetime."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.formats.times.reading import at, milliseconds, read
from worker.formats.line_patterns import LinePattern
from worker.formats.times.calendar import MONTHS
from worker.formats.times.reader import time_format

moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))  # noqa: DTZ001
offsets = st.one_of(st.none(), st.integers(-23 * 60 - 59, 23 * 60 + 59))


@st.composite
def iso_texts(draw: st.DrawFn) -> tuple[str, int]:
    """A moment in one of the ways to write it, and its milliseconds."""
    time = draw(moments)
    basic = draw(st.booleans())
    hyphen, colon = ("", "") if basic else ("-", ":")
    text = f"{time.year:04}{hyphen}{time.month:02}{hyphen}{time.day:02}{draw(st.sampled_from('T t'))}{time.hour:02}"
    parts = draw(st.integers(0, 3))  # minutes, seconds, a fraction
    time = time.replace(microsecond=0)
    if parts < 2:
        time = time.replace(second=0)
    if parts < 1:
        time = time.replace(minute=0)
    text += f"{colon}{time.minute:02}" if parts > 0 else ""
    text += f"{colon}{time.second:02}" if parts > 1 else ""
    if parts > 2:
        fraction = draw(st.text("0123456789", min_size=1, max_size=12))
        text += draw(st.sampled_from(".,")) + fraction
        time += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
    offset = draw(offsets)
    if offset is not None:
        hours, minutes = divmod(abs(offset), 60)
        sign = "-" if offset < 0 else "+"
        forms = [f"{sign}{hours:02}:{minutes:02}", f"{sign}{hours:02}{minutes:02}"]
        forms += [f"{sign}{hours:02}"] * (minutes == 0) + ["Z", "z", "UTC", "GMT"] * (offset == 0)
        text += draw(st.sampled_from(["", " "])) + draw(st.sampled_from(forms))
        time = time.replace(tzinfo=timezone(timedelta(minutes=offset)))
    return text, milliseconds(time)


@given(st.lists(iso_texts(), max_size=12), st.sampled_from(["iso8601", "rfc3339"]))
def test_every_way_to_write_iso_8601_is_the_moment_it_names(texts: list[tuple[str, int]], name: str) -> None:
    assert read(name, [text for text, _ in texts]) == [time for _, time in texts]


@given(
    st.lists(st.one_of(iso_texts().map(lambda each: each[0]), st.text("0123456789-:T .+Z", max_size=26)), max_size=8)
)
def test_texts_with_other_digits_are_times_where_python_says_so(texts: list[str]) -> None:
    bent = [text.replace("1", "3").replace("0", "9", 1) for text in texts]
    for text, time in zip(bent, read("iso8601", bent), strict=True):
        if time is not None:
            shown = text.upper().replace("UTC", "Z").replace("GMT", "Z").replace(" Z", "Z").replace(" +", "+")
            shown = shown[:11] + shown[11:].replace(" -", "-")
            assert milliseconds(datetime.fromisoformat(shown)) == time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-04", "2024-03-04"),
        ("20240304", "2024-03-04"),
        ("2024-02-29T23:59:59.999999999Z", "2024-02-29T23:59:59.999"),
        ("2023-02-29T00:00:00", None),
        ("2024-03-04T24:00:00", None),
        ("2024-03-04T10:60:00", None),
        ("2024-03-04T10:00:60Z", None),
        ("2024-03-04T10:00:00+24:00", None),
        ("2024-03-04T10:00:00+01:60", None),
        ("2024-03-04T10:00:00 CET", None),
        ("2024-3-4T10:00:00", None),
        ("2024-03-04T10:00:00 ", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("1712031512304", None),
        ("2024030412", None),
        ("٢٠٢٤-03-04", None),
        ("", None),
    ],
)
def test_iso_examples(text: str, expected: str | None) -> None:
    assert read("iso8601", [text]) == [None if expected is None else at(expected)]


def test_a_zone_after_an_iso_time_counts_where_a_table_explains_it() -> None:
    texts = ["2024-07-01 10:00:00 CEST", "2024-07-01 10:00:00.5CEST", "2024-07-01 10:00:00", "2024-07-01 10:00:00 PDT"]
    assert read("iso8601", texts, zones={"CEST": 7_200_000}) == [
        at("2024-07-01T08:00:00"),
        at("2024-07-01T08:00:00.500"),
        at("2024-07-01T10:00:00"),
        None,
    ]


in_2000 = st.datetimes(datetime(2000, 1, 1), datetime(2000, 12, 31, 23, 59, 59))  # noqa: DTZ001


@given(st.lists(st.tuples(in_2000, st.sampled_from(["{:2}", "{:02}", "{}"])), max_size=10))
def test_every_day_and_second_of_a_year_is_read_from_syslog(written: list[tuple[datetime, str]]) -> None:
    texts = [f"{MONTHS[t.month - 1][:3].title()} {day.format(t.day)} {t:%H:%M:%S}" for t, day in written]
    # The reference lies in the middle of the year, so that the year is its own.
    times = [milliseconds(t.replace(microsecond=0)) for t, _ in written]
    assert read("syslog", texts, reference=at("2000-07-02")) == times


@given(st.lists(st.tuples(in_2000, st.sampled_from(["", "I", "W", "E", "F"])), max_size=10))
def test_every_moment_of_a_year_is_read_from_klog(written: list[tuple[datetime, str]]) -> None:
    texts = [f"{letter}{t:%m%d %H:%M:%S.%f}" for t, letter in written]
    assert read("klog", texts, reference=at("2000-07-02")) == [milliseconds(t) for t, _ in written]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("syslog", "Dec 32 10:00:00"),
        ("syslog", "Dez  1 10:00:00"),
        ("syslog", "dec  1 10:00:00"),
        ("syslog", "Dec  1 10:00"),
        ("syslog", "Dec  1 10:00:00.1"),
        ("syslog", "Dec 1 24:00:00"),
        ("klog", "X0115 10:00:00.000000"),
        ("klog", "I1315 10:00:00.000000"),
        ("klog", "I0115 10:00:00.000"),
    ],
)
def test_other_texts_are_none_of_these(name: str, text: str) -> None:
    assert read(name, [text]) == [None]


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("iso8601", "at 2024-03-04 10:00:00,5 INFO x", "2024-03-04 10:00:00,5"),
        ("iso8601", "[2024-03-04T10:00:00.123456789Z] x", "2024-03-04T10:00:00.123456789Z"),
        ("iso8601", "2024-03-04 10:00:00 +0100 x", "2024-03-04 10:00:00 +0100"),
        ("iso8601", "2024-03-04 10:00:00-05 x", "2024-03-04 10:00:00-05"),
        ("iso8601", "2024-03-04 10:00:00 -99 dB", "2024-03-04 10:00:00"),
        ("iso8601", "2024-03-04 10:00:00, Info", "2024-03-04 10:00:00"),
        ("iso8601", "2024-03-04 10:00 UTC x", "2024-03-04 10:00 UTC"),
        ("iso8601", "api.log.2017-05-16_13:53:08 2017-05-16 00:00:00.008 1", "2017-05-16 00:00:00.008"),
        ("iso8601", "id 92024-03-04 10:00:00", ""),
        ("iso8601", "2024-03-04 then 10:00", ""),
        ("syslog", "Dec  1 10:00:00 gate app[1]: x", "Dec  1 10:00:00"),
        ("syslog", "<134>Dec  1 10:00:00 gate app[1]: x", "Dec  1 10:00:00"),
        ("syslog", "gate Dec  1 10:00:00 x", ""),
        ("klog", "E0115 10:00:00.000000       1 main.go:1] x", "E0115 10:00:00.000000"),
        ("klog", "x E0115 10:00:00.000000", ""),
        ("epoch", "1700000000.123 x", "1700000000.123"),
        ("epoch", "[1700000000123] x", "1700000000123"),
        ("epoch", "17 x", ""),
        ("epoch", "1700000000abc", ""),
    ],
)
def test_a_format_finds_its_own_shape_in_a_line(name: str, line: str, found: str) -> None:
    pattern = time_format(name, {}).pattern
    assert pattern is not None
    assert LinePattern(pattern).extract(pa.array([line])).to_pylist() == [found]


def test_with_a_table_of_zones_an_abbreviation_after_an_iso_time_is_found_too() -> None:
    pattern = time_format("iso8601", {"CET": 3_600_000}).pattern
    assert pattern is not None
    lines = pa.array(["2024-03-04 10:00:00.5 CET [1] x", "2024-03-04 10:00:00 done"])
    assert LinePattern(pattern).extract(lines).to_pylist() == ["2024-03-04 10:00:00.5 CET", "2024-03-04 10:00:00"]


def test_utc_is_the_zone_of_times_that_name_none() -> None:
    assert read("iso8601", ["2024-03-04T10:00:00"]) == [milliseconds(datetime(2024, 3, 4, 10, tzinfo=UTC))]

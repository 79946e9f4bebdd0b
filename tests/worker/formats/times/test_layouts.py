"""Times in text mean what `strptime` says they mean, however they are read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.formats.times.reading import at, milliseconds, read
from worker.formats.times.columns import COMPLETE, LACKS_DATE, LACKS_YEAR, LOCAL
from worker.formats.times.layouts import Layout

DAY = timedelta(days=1)

directives = st.sampled_from(
    ["%Y", "%y", "%m", "%d", "%H", "%I", "%M", "%S", "%f", "%j", "%p", "%b", "%B", "%a", "%A", "%z", "%c", "%x", "%X"]
)
literals = st.sampled_from(["", " ", "  ", "-", ":", ".", "T", "(", "%%", "1", "é", "\n"])


@st.composite
def layouts(draw: st.DrawFn) -> str:
    chosen = draw(st.lists(directives, min_size=1, max_size=7, unique_by=str.lower if draw(st.booleans()) else None))
    layout = "".join(each + draw(literals) for each in dict.fromkeys(chosen))
    # Digits directly after an offset may be its seconds as well, which strptime takes them for.
    return re.sub("%z(?=[%1])(?!%%)", "%z ", layout)


@settings(max_examples=600)
@given(st.data(), layouts())
def test_a_text_has_the_time_that_strptime_reads_in_it(data: st.DataObject, layout: str) -> None:
    try:
        times = Layout(layout, {})
    except ValueError:
        return  # strptime refuses the format, as the two forms of a year together, or it tells part of a date
    written = data.draw(st.datetimes(timezones=st.just(UTC))).strftime(layout)
    texts = [
        written,
        written.replace("0", "", 1),
        written.replace("0", " ", 1),
        written.replace("1", "9", 1),
        written.upper(),
        written + data.draw(st.sampled_from(["", "0", " ", "\n", "٣"])),
        data.draw(st.text("0123456789 -:.T٣", max_size=16)),
        *(data.draw(st.datetimes()).strftime(layout) for _ in range(3)),
        "".join(data.draw(st.sampled_from("0123456789")) if each.isdigit() else each for each in written),
    ]
    texts = data.draw(st.permutations(texts))
    found = times.read(pa.array(texts))
    rows = zip(found.read.tolist(), found.times.tolist(), found.offsets.tolist(), found.lacks.tolist(), strict=True)
    for text, (good, time, offset, lacks) in zip(texts, rows, strict=True):
        expected = read_by_strptime(text, layout, lacks)
        assert ((time, None if offset == LOCAL else offset) if good else None) == expected, text


def read_by_strptime(text: str, layout: str, lacks: int) -> tuple[int, int | None] | None:
    """The time without regard to its zone, and the zone's offset; a time of day on the first day of 1970."""
    year = ("2000/", "%Y/") if lacks == LACKS_YEAR else ("", "")
    try:
        time = datetime.strptime(year[0] + text, year[1] + layout)  # noqa: DTZ007  judged without its zone
    except (ValueError, OverflowError):
        return None
    offset = time.utcoffset()
    local = milliseconds(time.replace(tzinfo=UTC))
    if lacks == LACKS_DATE:
        local %= DAY // timedelta(milliseconds=1)
    return local, None if offset is None else offset // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("layout", "text", "expected"),
    [
        ("%y%m%d %H%M%S", "081109 203615", "2008-11-09T20:36:15"),
        ("%y", "69", "1969-01-01"),
        ("%y", "68", "2068-01-01"),
        ("%Y-%m-%d %H:%M:%S,%f", "2020-02-29 23:59:59,1234", "2020-02-29T23:59:59.123400"),
        ("%Y-%m-%d", "2019-02-29", None),
        ("%Y %H:%M:%S", "2019 23:59:60", None),
        ("%d/%b/%Y:%H:%M:%S %z", "04/Mar/2024:10:00:00 +0530", "2024-03-04T04:30:00"),
        ("%d/%b/%Y:%H:%M:%S %z", "04/Mar/2024:10:00:00 -05:00", "2024-03-04T15:00:00"),
        ("%a %b %d %H:%M:%S %Y", "Sun Dec  4 04:47:44 2005", "2005-12-04T04:47:44"),
        ("%Y-%m-%d %I:%M:%S %p", "2024-03-04 12:00:01 AM", "2024-03-04T00:00:01"),
        ("%Y-%m-%d %I:%M:%S %p", "2024-03-04 12:00:01 pm", "2024-03-04T12:00:01"),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2008-11-09T21:36:15.000999+01:00", "2008-11-09T20:36:15.000999"),
        ("%Y%f", "20087", "2008-01-01T00:00:00.700"),
    ],
)
def test_examples(layout: str, text: str, expected: str | None) -> None:
    assert read(layout, [text]) == [None if expected is None else at(expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20171223-22:15:29:606", "2017-12-23T22:15:29.606"),
        ("20171223-22:15:30:6", "2017-12-23T22:15:30.006"),
        ("20171223-23:8:9:33", "2017-12-23T23:08:09.033"),
        ("20171223-23:8:9:0", "2017-12-23T23:08:09"),
        ("20171223-23:8:9:1000", None),
        ("20171223-23:8:9:", None),
    ],
)
def test_milliseconds_as_a_number_need_no_zeros_before_them(text: str, expected: str | None) -> None:
    assert read("%Y%m%d-%H:%M:%S:%L", [text]) == [None if expected is None else at(expected)]


def test_as_a_fraction_the_same_digits_are_tenths() -> None:
    assert read(["%Y %H:%M:%S,%f", "%Y %H:%M:%S;%L"], ["2000 12:00:00,7", "2000 12:00:00;7"]) == [
        at("2000-01-01T12:00:00.700"),
        at("2000-01-01T12:00:00.007"),
    ]


@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 999)), max_size=20), st.booleans())
def test_numbers_may_lack_their_zeros(clocks: list[tuple[int, int, int]], written_in_full: bool) -> None:
    texts = [f"2024/{h:02}:{m:02}.{ms:03}" if written_in_full else f"2024/{h}:{m}.{ms}" for h, m, ms in clocks]
    expected = [at("2024-01-01") + (h * 60 + m) * 60_000 + ms for h, m, ms in clocks]
    assert read("%Y/%H:%M.%L", texts) == expected


ZONES = {"CET": 3_600_000, "CEST": 7_200_000, "EST": -18_000_000}


def test_an_abbreviation_means_what_the_table_says_and_nothing_else() -> None:
    texts = ["10:00 CET 2024", "10:00 cest 2024", "10:00 EST 2024", "10:00 PST 2024", "10:00  2024", "10:00 2024"]
    day = at("2024-01-01")
    assert read("%H:%M %Z %Y", texts, zones=ZONES) == [day + h * 3_600_000 for h in (9, 8, 15)] + [None] * 3


def test_what_lacks_a_year_or_a_date_says_so() -> None:
    texts = pa.array(["Feb 29", "12:30"])
    assert Layout("%Y", {}).read(pa.array(["2008"])).lacks.tolist() == [COMPLETE]
    assert Layout("%b %d", {}).read(texts).lacks.tolist() == [LACKS_YEAR] * 2
    assert Layout("%b %d", {}).read(texts).times.tolist()[0] == at("2000-02-29")
    assert Layout("%H:%M", {}).read(texts).lacks.tolist() == [LACKS_DATE] * 2
    assert Layout("%H:%M", {}).read(texts).times.tolist()[1] == at("1970-01-01T12:30")


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ("%Q", "is not a format that strptime can read"),
        ("%", "is not a format that strptime can read"),
        ("%Y %Z", "has %Z, but an abbreviation of a zone means nothing by itself"),
        ("%d %H:%M", "tells a part of a date"),
        ("%m %H:%M", "tells a part of a date"),
        ("%j %H:%M", "tells a part of a date"),
        ("%M:%S", "tells neither a date nor an hour"),
        ("%z", "tells neither a date nor an hour"),
        ("%c %L", "has %L or %Z beside what they cannot stand with"),
        ("%Y %L %f", "has %L or %Z beside what they cannot stand with"),
    ],
)
def test_a_format_that_tells_no_time_is_refused(layout: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Layout(layout, {})


def test_no_texts_have_no_times() -> None:
    assert read("%Y", []) == []


def test_a_text_longer_than_any_time_is_none() -> None:
    assert read("%Y %m", ["2008" + " " * 200 + "11", "2008" + " " * 400 + "11"]) == [at("2008-11-01"), None]


def test_what_is_remembered_of_texts_is_bounded() -> None:
    layout = Layout("%Y %j", {})
    texts = [f"{year} {day}" for year in range(1990, 2010) for day in range(1, 366)]
    first = layout.read(pa.array(texts)).times.tolist()
    assert layout.read(pa.array(texts)).times.tolist() == first
    assert first[31] == at("1990-02-01")
    assert len(layout._times) <= 4_096 < len(texts)

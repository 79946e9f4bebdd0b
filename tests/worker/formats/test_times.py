"""Times in text mean what `strptime` says they mean, however they are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.formats.times import TimeFormat

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

directives = st.sampled_from(["%Y", "%y", "%m", "%d", "%H", "%M", "%S", "%f", "%j", "%p", "%b", "%z"])
literals = st.sampled_from(["", " ", "  ", "-", ":", ".", "T", "(", "%%", "1", "é"])


@st.composite
def layouts(draw: st.DrawFn) -> str:
    chosen = draw(st.lists(directives, min_size=1, max_size=7, unique_by=str.lower if draw(st.booleans()) else None))
    return "".join(each + draw(literals) for each in dict.fromkeys(chosen))


@settings(max_examples=1500, deadline=None)
@given(st.data(), layouts())
def test_a_text_has_the_time_that_strptime_reads_in_it(data: st.DataObject, layout: str) -> None:
    try:
        times = TimeFormat(layout)
    except ValueError:
        return  # strptime refuses the format, as the two forms of a year together
    written = data.draw(st.datetimes(timezones=st.just(UTC))).strftime(layout)
    texts = [
        written,
        written.replace("0", "", 1),
        written.replace("1", "9", 1),
        written.upper(),
        written + data.draw(st.sampled_from(["", "0", " ", "\n", "٣"])),
        data.draw(st.text("0123456789 -:.T٣", max_size=16)),
        *(data.draw(st.datetimes()).strftime(layout) for _ in range(3)),
        "".join(data.draw(st.sampled_from("0123456789")) if each.isdigit() else each for each in written),
    ]
    texts = data.draw(st.permutations(texts))
    assert times.parse_all(texts) == [read_by_strptime(text, layout) for text in texts]
    assert [times.parse(text) for text in texts] == times.parse_all(texts)


def read_by_strptime(text: str, layout: str) -> int | None:
    try:
        time = datetime.strptime(text, layout)  # noqa: DTZ007  a time without a zone is UTC
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return None


@pytest.mark.parametrize(
    ("layout", "text", "expected"),
    [
        ("%y%m%d %H%M%S", "081109 203615", "2008-11-09T20:36:15"),
        ("%y", "69", "1969-01-01"),
        ("%y", "68", "2068-01-01"),
        ("%Y-%m-%d %H:%M:%S,%f", "2020-02-29 23:59:59,1234", "2020-02-29T23:59:59.123400"),
        ("%Y-%m-%d", "2019-02-29", None),
        ("%H:%M:%S", "23:59:60", None),
        ("%S%f", "751", "1900-01-01T00:00:07.510000"),
    ],
)
def test_examples(layout: str, text: str, expected: str | None) -> None:
    at = None if expected is None else datetime.fromisoformat(expected).replace(tzinfo=UTC)
    expected_ms = None if at is None else (at - EPOCH) // timedelta(milliseconds=1)
    assert TimeFormat(layout).parse_all([text]) == [expected_ms]


def test_no_texts_have_no_times() -> None:
    assert TimeFormat("%Y").parse_all([]) == []

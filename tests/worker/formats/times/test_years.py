"""What lacks a year has the one nearest to its reference, or, in a file, the one that the order of lines gives it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.formats.times.reading import at, milliseconds
from worker.formats.times.columns import LACKS_DATE, LACKS_YEAR
from worker.formats.times.years import FileYears, nearest_days, nearest_years

MS = timedelta(milliseconds=1)
moments = st.datetimes(datetime(1890, 1, 1), datetime(2110, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def without_year(time: datetime) -> int:
    return milliseconds(time.replace(year=2000))


def in_year(time: datetime, year: int) -> list[int]:
    """The time in a year that has its day."""
    try:
        return [milliseconds(time.replace(year=year))]
    except ValueError:
        return []


@given(st.lists(st.tuples(moments, moments), min_size=1, max_size=10))
def test_the_year_is_the_one_that_brings_a_time_nearest_to_its_reference(
    pairs: list[tuple[datetime, datetime]],
) -> None:
    found = nearest_years(
        np.array([without_year(time) for time, _ in pairs]), np.array([milliseconds(ref) for _, ref in pairs])
    )
    for (time, reference), this in zip(pairs, found.tolist(), strict=True):
        candidates = [each for year in range(reference.year - 9, reference.year + 10) for each in in_year(time, year)]
        assert this in candidates
        assert abs(this - milliseconds(reference)) == min(abs(each - milliseconds(reference)) for each in candidates)


@given(st.lists(st.tuples(moments, st.integers(-180 * 86_400_000, 180 * 86_400_000)), min_size=1, max_size=10))
def test_a_time_within_half_a_year_of_its_reference_is_itself(pairs: list[tuple[datetime, int]]) -> None:
    expected = [milliseconds(time) for time, _ in pairs]
    references = np.array([milliseconds(time) + away for time, away in pairs])
    assert nearest_years(np.array([without_year(time) for time, _ in pairs]), references).tolist() == expected


@pytest.mark.parametrize(
    ("time", "reference", "expected"),
    [
        ("2000-12-31T23:59:59", "2024-01-01T00:00:05", "2023-12-31T23:59:59"),
        ("2000-01-01T00:00:05", "2023-12-31T23:59:59", "2024-01-01T00:00:05"),
        ("2000-02-29", "2024-03-01", "2024-02-29"),
        ("2000-02-29", "2023-03-01", "2024-02-29"),
        ("2000-02-29", "2021-03-01", "2020-02-29"),
        ("2000-02-29", "1899-01-01", "1896-02-29"),
        ("2000-03-01", "2023-03-01", "2023-03-01"),
        ("2000-12-31", "2023-12-31", "2023-12-31"),
    ],
)
def test_new_year_and_leap_days(time: str, reference: str, expected: str) -> None:
    assert nearest_years(np.array([at(time)]), np.array([at(reference)])).tolist() == [at(expected)]


@given(st.lists(st.tuples(st.integers(0, 86_399_999), moments), min_size=1, max_size=10))
def test_the_day_of_a_time_of_day_is_the_nearest(pairs: list[tuple[int, datetime]]) -> None:
    references = np.array([milliseconds(reference) for _, reference in pairs])
    times = np.array([time for time, _ in pairs])
    found = nearest_days(times, references)
    assert ((found - times) % 86_400_000 == 0).all()
    assert (np.abs(found - references) <= 43_200_000).all()


@pytest.mark.parametrize("reference", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_a_reference_out_of_all_calendars_gives_a_year_of_one(reference: int) -> None:
    # At the ends the nearest year may be just outside; whoever asked refuses it then.
    [found] = nearest_years(np.array([at("2000-06-01")]), np.array([reference])).tolist()
    assert abs(found) < 2**49


def followed(years: FileYears, times: list[datetime], first_year: int | None = None) -> list[int]:
    written = np.array([without_year(time) for time in times], np.int64)
    return years.follow(written, LACKS_YEAR, years.modified_ms, first_year).tolist()


steps = st.lists(st.integers(-3 * 86_400_000, 170 * 86_400_000), min_size=1, max_size=40)


@given(st.datetimes(datetime(1970, 2, 1), datetime(2060, 1, 1), timezones=st.just(UTC)), steps, st.data())  # noqa: DTZ001
def test_in_a_file_years_follow_the_order_of_lines_however_it_is_read(
    first: datetime, steps: list[int], data: st.DataObject
) -> None:
    times = [first.replace(microsecond=0)]
    for step in steps:
        times.append(times[-1] + step * MS)
    years = FileYears(0)
    cut = data.draw(st.integers(0, len(times)))
    assert followed(years, times[:cut], first.year) + followed(years, times[cut:], first.year) == [
        milliseconds(time) for time in times
    ]


def test_a_late_line_over_new_year_and_one_wrong_clock_are_steps_back_and_forth() -> None:
    times = [datetime(*each, tzinfo=UTC) for each in
             ((2023, 12, 31), (2024, 1, 1), (2023, 12, 31), (2024, 1, 1), (2024, 6, 1), (2024, 1, 2))]  # fmt: skip
    assert followed(FileYears(0), times, 2023) == [milliseconds(time) for time in times]


@pytest.mark.parametrize(
    ("first", "modified", "expected"),
    [
        ("2000-03-01", "2024-02-10", "2023-03-01"),
        ("2000-01-01", "2024-02-10", "2024-01-01"),
        ("2000-02-11T01:00", "2024-02-10T11:00", "2024-02-11T01:00"),
        ("2000-02-11T01:00", "2024-02-10T00:00", "2023-02-11T01:00"),
        ("2000-12-31", "2024-12-31", "2024-12-31"),
        ("2000-01-01T01:00", "2024-12-31T10:00", "2024-01-01T01:00"),
        ("2000-02-29", "2023-06-01", "2020-02-29"),
    ],
)
def test_the_first_line_is_of_the_last_year_before_the_file_was_modified(
    first: str, modified: str, expected: str
) -> None:
    years = FileYears(at(modified))
    assert years.follow(np.array([at(first)]), LACKS_YEAR, years.modified_ms, None).tolist() == [at(expected)]


def test_after_a_leap_day_that_the_year_does_not_have_the_file_goes_on_in_one_that_has_it() -> None:
    times = [datetime(2000, *each, tzinfo=UTC) for each in ((2, 28), (2, 29), (3, 1))]
    assert followed(FileYears(0), times, 2023) == [at("2023-02-28"), at("2024-02-29"), at("2024-03-01")]


def test_times_of_day_follow_each_other_through_the_days() -> None:
    day, hour = 86_400_000, 3_600_000
    years = FileYears(at("2024-03-04T23:30"))
    clocks = np.array([22, 23, 1, 0, 11, 10]) * hour
    first = years.follow(clocks[:3], LACKS_DATE, years.modified_ms, None).tolist()
    rest = years.follow(clocks[3:], LACKS_DATE, years.modified_ms, None).tolist()
    start = at("2024-03-04")
    assert first + rest == [start + each for each in
                            (22 * hour, 23 * hour, day + hour, day, day + 11 * hour, day + 10 * hour)]  # fmt: skip

"""Local times are UTC as `zoneinfo` says, in every hour of every zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.formats.times.reading import at, milliseconds
from worker.formats.times.timezones import Timezone, parse_offset

names = st.sampled_from(sorted(available_timezones() - {"localtime"}))
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))  # noqa: DTZ001
# Transitions lie in these years, and near them every hour counts.
recent = st.datetimes(datetime(1880, 1, 1), datetime(2040, 1, 1))  # noqa: DTZ001


@given(names, st.lists(st.one_of(moments, recent), min_size=1, max_size=20))
def test_a_local_time_is_the_moment_that_zoneinfo_says(name: str, times: list[datetime]) -> None:
    expected = [milliseconds(time.replace(tzinfo=ZoneInfo(name))) for time in times]
    assert Timezone(name).utc(np.array([milliseconds(time) for time in times])).tolist() == expected


@given(names, st.lists(st.one_of(moments, recent), min_size=1, max_size=20))
def test_a_moment_is_shown_by_clocks_as_zoneinfo_says(name: str, times: list[datetime]) -> None:
    shown = [time.replace(tzinfo=UTC).astimezone(ZoneInfo(name)).replace(tzinfo=UTC) for time in times]
    found = Timezone(name).local(np.array([milliseconds(time) for time in times])).tolist()
    assert found == [milliseconds(time) for time in shown]


@pytest.mark.parametrize(
    "name", ["Europe/Berlin", "Australia/Lord_Howe", "Africa/Casablanca", "America/Havana", "Pacific/Apia"]
)
def test_every_half_hour_of_years_with_changes_of_every_kind_is_as_zoneinfo_says(name: str) -> None:
    times = [datetime(2011, 1, 1) + timedelta(minutes=30 * n) for n in range(2 * 365 * 48)]  # noqa: DTZ001
    zone = ZoneInfo(name)
    local = at("2011-01-01") + np.arange(len(times)) * 1_800_000
    found = (local - Timezone(name).utc(local)) // 1000
    assert found.tolist() == [(time.replace(tzinfo=zone).utcoffset() or timedelta()).total_seconds() for time in times]


def test_an_hour_shown_twice_is_the_first_and_an_hour_left_out_is_later() -> None:
    def utc(name: str, text: str) -> int:
        return int(Timezone(name).utc(np.array([at(text)]))[0])

    assert utc("Europe/Berlin", "2024-10-27T02:30") == at("2024-10-27T00:30")
    assert utc("Europe/Berlin", "2024-03-31T02:30") == at("2024-03-31T01:30")  # what a clock shows as 03:30
    assert utc("UTC", "2024-03-31T02:30") == at("2024-03-31T02:30")


@pytest.mark.parametrize("name", ["", "Berlin", "Europe/Atlantis", "../etc/passwd", "Europe", "+01:00", "\0"])
def test_a_zone_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone that is known here; allowed: a name of the IANA"):
        Timezone(name)


@pytest.mark.parametrize(("text", "minutes"), [("+02:00", 120), ("-0330", -210), ("+00:00", 0), ("+23:59", 1439)])
def test_an_offset_is_hours_and_minutes(text: str, minutes: int) -> None:
    assert parse_offset(text) == minutes * 60_000


@pytest.mark.parametrize("text", ["2", "+2:00", "02:00", "+24:00", "+01:60", 600, None, "CET"])
def test_what_is_no_offset_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not an offset from UTC"):
        parse_offset(text)


def test_what_is_remembered_of_days_is_bounded() -> None:
    zone = Timezone("Europe/Berlin")
    zone.utc(np.arange(20_000) * 86_400_000)
    assert len(zone._local_days) <= 4_096

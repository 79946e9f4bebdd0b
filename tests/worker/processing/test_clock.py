"""The clock's rules one by one (ARCHITECTURE section 3a): what is processed when, at which stream time, and why."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from worker.processing.clock import BEHIND_IN_A_ROW, MOST_WAITING, NO_TIME, Clock, ClockState, Move, Step

HOUR = 3_600_000
DAY = 24 * HOUR
NIGHT = 14 * HOUR

Told = list[tuple[int, int, int]]  # offset, stream time, cause


def clock(stream_time: int | None = 0) -> Clock:
    return Clock(HOUR, ClockState(stream_time))


def told(steps: Sequence[Step]) -> Told:
    return [row for step in steps for row in zip(step.offsets, step.stream_times, step.causes, strict=True)]


def take(of: Clock, *times: int, first: int = 0) -> Told:
    """Let events of these times come, each a record of its own."""
    n = len(times)
    return told(of.take(["key"] * n, [5] * n, list(times), list(range(first, first + n))))


# -- while nothing is unusual ------------------------------------------------------------------------------------------


def test_stream_time_is_the_latest_event_time_and_each_event_its_own_cause() -> None:
    some = clock()
    assert take(some, 100, 300, 200, 300) == [(0, 100, 0), (1, 300, 1), (2, 300, 2), (3, 300, 3)]
    assert (some.stream_time, some.late_events, some.skewed_events, some.moves) == (300, 1, 0, [])


def test_an_event_exactly_at_the_greatest_skew_is_processed_and_one_beyond_it_waits() -> None:
    some = clock()
    assert take(some, HOUR) == [(0, HOUR, 0)]
    assert take(some, 2 * HOUR + 1, first=1) == []
    assert (some.stream_time, some.waiting) == (HOUR, 1)


def test_late_events_never_move_time_back() -> None:
    some = clock(10 * DAY)
    assert take(some, 10 * DAY - 5, 3, DAY) == [(at, 10 * DAY, at) for at in range(3)]
    assert (some.stream_time, some.late_events) == (10 * DAY, 3)


def test_what_follows_a_wait_in_the_same_batch_is_processed_in_one_step_again() -> None:
    some, n = Clock(HOUR), 1_000
    steps = some.take(["key"] * n, [5] * n, range(n), range(n))
    assert told(steps) == [(at, at, max(at, 2)) for at in range(n)]
    assert [len(step.keys) for step in steps] == [1, 1, 1, n - 3]
    steps = some.take(["key"] * n, [5] * n, range(n + NIGHT, 2 * n + NIGHT), range(n, 2 * n))
    assert told(steps) == [(n + at, n + at + NIGHT, n + max(at, 2)) for at in range(n)]
    assert len(steps) == 4


# -- a pause -----------------------------------------------------------------------------------------------------------


def test_the_third_event_after_a_night_ends_it_and_is_the_cause_of_all_three() -> None:
    some = clock()
    assert take(some, NIGHT + 7, NIGHT + 2) == []
    assert take(some, NIGHT + 9, first=2) == [(0, NIGHT + 7, 2), (1, NIGHT + 7, 2), (2, NIGHT + 9, 2)]
    assert some.moves == [Move(0, NIGHT + 2, 2)]
    assert some.moves[0].jumped
    assert (some.waiting, some.skewed_events, some.late_events) == (0, 0, 1)


def test_an_event_far_ahead_of_a_jump_waits_again() -> None:
    some = clock()
    assert take(some, NIGHT, NIGHT + 5 * HOUR, NIGHT + 5 * HOUR) == [(0, NIGHT, 2)]
    assert (some.stream_time, some.waiting) == (NIGHT, 2)
    assert take(some, NIGHT + 5 * HOUR + 1, first=3) == [
        (1, NIGHT + 5 * HOUR, 3), (2, NIGHT + 5 * HOUR, 3), (3, NIGHT + 5 * HOUR + 1, 3)
    ]  # fmt: skip
    assert some.moves == [Move(NIGHT, NIGHT + 5 * HOUR, 3)]


def test_an_event_within_reach_that_does_not_contradict_a_waiting_one_ends_its_wait_before_itself() -> None:
    some = clock()
    assert take(some, HOUR + 5, 59 * 60_000) == [(0, HOUR + 5, 1), (1, HOUR + 5, 1)]
    assert (some.moves, some.skewed_events, some.late_events) == ([], 0, 1)


def test_events_that_share_a_cause_come_one_by_one_and_the_others_together() -> None:
    some = clock()
    steps = some.take(["key"] * 7, [5] * 7, [1, 2, NIGHT, NIGHT, NIGHT, NIGHT, NIGHT], range(7))
    assert [([*step.offsets], step.shared) for step in steps] == [
        ([0, 1], False), ([2], True), ([3], True), ([4], True), ([5, 6], False)
    ]  # fmt: skip


# -- a wrong clock -----------------------------------------------------------------------------------------------------


def test_one_wrong_clock_is_processed_at_stream_time_as_it_was_and_counted() -> None:
    some = clock()
    assert take(some, 50, 2 * DAY, 60) == [(0, 50, 0), (1, 50, 2), (2, 60, 2)]
    assert (some.stream_time, some.skewed_events, some.moves) == (60, 1, [])


def test_a_wrong_clock_amid_a_jump_is_processed_before_it_and_the_others_jump() -> None:
    some = clock()
    assert take(some, NIGHT, 30_000 * DAY, NIGHT + 1) == [(1, 0, 2)]
    assert take(some, NIGHT + 2, first=3) == [(0, NIGHT, 3), (2, NIGHT + 1, 3), (3, NIGHT + 2, 3)]
    assert (some.skewed_events, some.moves) == (1, [Move(0, NIGHT, 3)])


def test_two_wrong_clocks_in_a_row_are_not_believed() -> None:
    some = clock()
    assert take(some, 2 * DAY, 2 * DAY, 5) == [(0, 0, 2), (1, 0, 2), (2, 5, 2)]
    assert (some.stream_time, some.skewed_events) == (5, 2)


@pytest.mark.parametrize("cut", [1, 500, BEHIND_IN_A_ROW - 1, BEHIND_IN_A_ROW])
def test_after_a_thousand_events_behind_it_stream_time_falls_to_the_latest_of_them(cut: int) -> None:
    some = clock(100 * DAY)
    times = [DAY + at % 7 for at in range(BEHIND_IN_A_ROW)]
    found = take(some, *times[:cut]) + take(some, *times[cut:], first=cut)
    assert [stream_time for _, stream_time, _ in found] == [100 * DAY] * (BEHIND_IN_A_ROW - 1) + [DAY + 6]
    assert some.stream_time == DAY + 6
    if cut < BEHIND_IN_A_ROW:
        assert some.moves == [Move(100 * DAY, DAY + 6, BEHIND_IN_A_ROW - 1)]
        assert not some.moves[0].jumped


@pytest.mark.parametrize("other", [100 * DAY, 100 * DAY - HOUR, 200 * DAY])
def test_only_events_in_a_row_make_stream_time_fall(other: int) -> None:
    """Neither those with one between them that is not late, or waits; an event without a time is in nobody's way."""
    some = clock(100 * DAY)
    take(some, *[DAY] * (BEHIND_IN_A_ROW - 1), other, DAY)
    assert some.stream_time == 100 * DAY
    take(some, *[DAY] * (BEHIND_IN_A_ROW - 3), NO_TIME, DAY, first=BEHIND_IN_A_ROW + 1)
    assert some.stream_time == 100 * DAY
    take(some, DAY, first=2 * BEHIND_IN_A_ROW)
    assert some.stream_time == DAY


def test_the_step_from_a_fall_on_says_to_what_the_times_of_open_sessions_are_cut_down() -> None:
    some = clock(100 * DAY)
    n = BEHIND_IN_A_ROW + 5
    steps = some.take(["key"] * n, [5] * n, [DAY] * n, range(n))
    assert [(len(step.keys), step.set_to) for step in steps] == [(BEHIND_IN_A_ROW - 1, None), (6, DAY)]


# -- the beginning -----------------------------------------------------------------------------------------------------


def test_three_events_that_agree_set_stream_time() -> None:
    some = clock(None)
    assert take(some, DAY + 4, DAY) == []
    steps = some.take(["key"], [5], [DAY + 5], [2])
    assert told(steps) == [(0, DAY + 4, 2), (1, DAY + 4, 2), (2, DAY + 5, 2)]
    assert [step.set_to for step in steps] == [DAY, None, None]
    assert some.moves == [], "nothing was there to jump from"


def test_a_first_record_from_1970_is_left_behind_by_the_fourth() -> None:
    some, day = clock(None), 20_000 * DAY
    assert take(some, 3_000, day, day + 1, day + 2) == [
        (0, 3_000, 2), (1, day, 3), (2, day + 1, 3), (3, day + 2, 3)
    ]  # fmt: skip
    assert some.skewed_events == 0


def test_a_first_record_from_2099_is_contradicted_and_waits_until_stream_time_is_set() -> None:
    some, day = clock(None), 20_000 * DAY
    assert take(some, 47_000 * DAY, day, day + 1) == []
    assert take(some, day + 2, first=3) == [(0, day, 3), (1, day, 3), (2, day + 1, 3), (3, day + 2, 3)]
    assert some.skewed_events == 1


def test_no_more_than_a_thousand_events_wait_for_stream_time_to_be_set() -> None:
    some = clock(None)
    times = [(5_000 - at) * DAY for at in range(MOST_WAITING)]
    assert take(some, *times[:-1]) == []
    found = take(some, times[-1], first=MOST_WAITING - 1)
    assert found == [(at, times[-1], MOST_WAITING - 1) for at in range(MOST_WAITING)]
    assert (some.stream_time, some.waiting, some.skewed_events) == (times[-1], 0, MOST_WAITING - 1)


# -- events without a time ---------------------------------------------------------------------------------------------


def test_an_event_without_a_time_never_waits_and_moves_nothing() -> None:
    some = clock(None)
    assert take(some, NO_TIME, NO_TIME) == [(0, NO_TIME, 0), (1, NO_TIME, 1)]
    assert take(some, DAY, NO_TIME, DAY, first=2) == [(3, NO_TIME, 3)]
    assert take(some, NO_TIME, DAY, first=5) == [(5, NO_TIME, 5), (2, DAY, 6), (4, DAY, 6), (6, DAY, 6)]
    assert take(some, DAY + 5, NO_TIME, 3, first=7) == [(7, DAY + 5, 7), (8, DAY + 5, 8), (9, DAY + 5, 9)]
    assert (some.late_events, some.skewed_events) == (1, 0)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_what_waits_at_the_end_is_believed_from_the_least_time_on() -> None:
    some = clock()
    take(some, NIGHT + DAY, NIGHT + DAY - 9)
    assert told(some.confirm(2)) == [(0, NIGHT + DAY, 2), (1, NIGHT + DAY, 2)]
    assert (some.stream_time, some.waiting) == (NIGHT + DAY, 0)
    assert some.moves == [Move(0, NIGHT + DAY - 9, 2)]


def test_the_end_of_two_events_a_day_apart_processes_each_at_its_own_time() -> None:
    some = clock(None)
    assert take(some, DAY, 3 * DAY) == []
    assert told(some.confirm(2)) == [(0, DAY, 2), (1, 3 * DAY, 2)]


def test_the_end_of_two_events_of_which_the_first_was_wrong_begins_with_the_second() -> None:
    some = clock(None)
    assert take(some, 3 * DAY, DAY) == []
    assert told(some.confirm(2)) == [(0, DAY, 2), (1, DAY, 2)]
    assert (some.stream_time, some.skewed_events) == (DAY, 1)


def test_an_end_where_nothing_waits_changes_nothing() -> None:
    some = clock(DAY)
    before = some.state()
    assert some.confirm(2) == []
    assert some.state() == before


# -- a year ------------------------------------------------------------------------------------------------------------


def test_state_does_not_grow_over_a_year_of_nights_weekends_and_a_wrong_clock_a_day() -> None:
    some, offset, most = clock(None), 0, 0
    for day in range(365):
        if day % 7 >= 5:
            continue
        times = [day * DAY + at * 60_000 for at in range(8 * 60)]
        times[17 * day % len(times)] += (400 if day % 2 else -400) * DAY
        found = take(some, *times, first=offset)
        offset += len(times)
        most = max(most, some.waiting, len(some.state().waiting))
        assert len(found) >= len(times) - 2
        assert some.stream_time == max(time for time in times if time < (day + 1) * DAY)
    assert most <= 2
    assert some.state().behind == 0

"""The rules by which sessions close, one by one (ARCHITECTURE section 3, point 4)."""

from __future__ import annotations

import gc
import sys
import weakref
from array import array
from collections.abc import Iterable
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from worker.processing.clock import NO_TIME
from worker.processing.session_columns import ClosedSession, SessionColumns
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import Session, SessionsState
from worker.processing.sessions import Sessions

END = 99
UNBOUNDED = SessionRules(
    gap_ms=None,
    max_age_ms=None,
    max_events=1000,
    max_open=1000,
    max_future_skew_ms=10_000,
    end_tokens=frozenset({END}),
)


def rules(**changes: Any) -> SessionRules:
    return replace(UNBOUNDED, **changes)


def begun(rules: SessionRules, stream_time: int = 0) -> Sessions:
    """Sessions of a partition whose stream time is set."""
    return Sessions(rules, SessionsState.empty(stream_time))


def feed(sessions: Sessions, *events: tuple[str, int, int] | tuple[str, int, int, int]) -> list[ClosedSession]:
    """Process events (key, time, offset, token = 5) in one call."""
    keys, times, offsets, tokens = zip(*((*event, 5)[:4] for event in events), strict=True)
    return list(sessions.process(list(keys), list(tokens), list(times), list(offsets)))


def held(sessions: Sessions, key: str) -> Session | None:
    """The open session of a key that got an event in the latest call."""
    return next((each for each in sessions.touched() if each.key == key), None)


def told(closed: Iterable[ClosedSession]) -> list[tuple[str, str, int]]:
    return [(each.session.key, each.closed_by, each.cause_offset) for each in closed]


# (a) stream time: see test_clock.py; here, what it does to sessions


def test_what_a_waiting_event_closes_is_caused_by_the_record_that_ends_its_wait() -> None:
    sessions = begun(rules(gap_ms=100, max_events=2))
    assert feed(sessions, ("a", 0, 0), ("b", 20_000, 1), ("b", 20_001, 2)) == []
    assert told(feed(sessions, ("c", 20_002, 3))) == [("a", "gap", 3), ("b", "max_events", 3)]
    waited = sessions.flush(4, "idle")
    assert told(waited) == [("c", "idle", 4)]
    assert waited[0].session.offsets == array("q", [3])


def test_a_contradicted_event_joins_its_session_at_stream_time_as_it_was() -> None:
    two_days = 2 * 86_400_000
    sessions = begun(rules(gap_ms=100))
    assert feed(sessions, ("a", 0, 0), ("b", two_days, 1), ("a", 50, 2)) == []
    skewed = held(sessions, "b")
    assert skewed is not None
    assert (skewed.opened_at, skewed.last_at, skewed.times[0]) == (0, 0, two_days)


def test_a_fall_of_stream_time_cuts_down_the_times_of_open_sessions_and_closes_none() -> None:
    for restored in (False, True):
        sessions = begun(rules(gap_ms=1_000, max_age_ms=1_000, max_events=10_000), 50_000)
        feed(sessions, ("a", 50_000, 0), ("b", 50_900, 1))
        if restored:
            sessions = Sessions(rules(gap_ms=1_000, max_age_ms=1_000, max_events=10_000), sessions.state())
        assert feed(sessions, *[("a", 7, 2 + at) for at in range(999)], ("b", 8, 1_001)) == []
        assert sessions.stream_time == 8
        state = sessions.state()
        assert (state.opened_at.tolist(), state.last_at.tolist()) == ([8, 8], [8, 8])
        assert told(feed(sessions, ("c", 1_007, 1_002))) == []
        assert told(feed(sessions, ("c", 1_008, 1_003))) == [("a", "gap", 1_003), ("b", "gap", 1_003)]


def test_a_session_from_before_stream_time_was_set_counts_from_then() -> None:
    for restored in (False, True):
        sessions = Sessions(rules(gap_ms=100))
        feed(sessions, ("a", NO_TIME, 0))
        if restored:
            sessions = Sessions(rules(gap_ms=100), sessions.state())
        assert feed(sessions, *[("b", 1_000, at) for at in (1, 2, 3)], ("b", 1_099, 4)) == []
        assert told(feed(sessions, ("c", 1_100, 5))) == [("a", "gap", 5)]


def overtaken(**changes: Any) -> Sessions:
    """Sessions of which that of the smaller offset opened later: a, of offset 1, waited while b was contradicted."""
    sessions = begun(rules(**changes))
    feed(sessions, ("a", 20_000, 1), ("b", 90_000, 2), ("c", 20_000, 3), ("c", 20_001, 4))
    assert sessions.state().keys.to_pylist() == ["b", "a", "c"]
    return sessions


def test_max_open_closes_the_smallest_first_offset_though_it_opened_later() -> None:
    live, restored = overtaken(max_open=3), Sessions(rules(max_open=3), overtaken().state())
    for sessions in (live, restored):
        assert told(feed(sessions, ("d", 20_002, 5))) == [("a", "max_open", 5)]
        assert told(feed(sessions, ("e", 20_002, 6))) == [("b", "max_open", 6)]
        assert told(feed(sessions, ("f", 20_002, 7))) == [("c", "max_open", 7)]


def test_sessions_that_close_together_come_by_first_offset_though_they_opened_otherwise() -> None:
    sessions = overtaken()
    assert [each.session.key for each in sessions.flush(5, "idle")] == ["a", "b", "c"]
    for limit in ({"gap_ms": 100_000}, {"max_age_ms": 100_000}):
        sessions = overtaken(**limit)
        feed(sessions, *[("d", 120_100, 5 + at) for at in range(2)])
        assert [key for key, _, _ in told(feed(sessions, ("d", 120_100, 7)))] == ["a", "b", "c"]


def test_a_file_of_two_events_has_both_in_their_sessions_and_a_pause_between_them_counts() -> None:
    sessions = Sessions(rules(gap_ms=100))
    assert feed(sessions, ("a", 50, 0), ("a", 50_000, 1)) == []
    closed = sessions.flush(2, "end_of_input")
    assert told(closed) == [("a", "gap", 2), ("a", "end_of_input", 2)]
    assert [each.session.offsets.tolist() for each in closed] == [[0], [1]]


# (b) gap and max_age


def test_a_session_closes_when_stream_time_reaches_its_gap_and_not_before() -> None:
    sessions = begun(rules(gap_ms=100))
    assert feed(sessions, ("a", 0, 0), ("b", 99, 1)) == []
    assert told(feed(sessions, ("c", 100, 2))) == [("a", "gap", 2)]
    assert told(feed(sessions, ("c", 199, 3))) == [("b", "gap", 3)]


def test_a_session_closes_when_it_reaches_the_greatest_age_however_lively_it_is() -> None:
    sessions = begun(rules(gap_ms=100, max_age_ms=150))
    closed = feed(sessions, ("a", 0, 0), ("a", 70, 1), ("a", 140, 2), ("b", 149, 3), ("b", 150, 4))
    assert told(closed) == [("a", "max_age", 4)]
    assert closed[0].session.offsets == array("q", [0, 1, 2])


def test_expired_sessions_close_before_the_record_joins_so_its_key_begins_a_new_session() -> None:
    for limit in ({"gap_ms": 100}, {"max_age_ms": 100}):
        sessions = begun(rules(**limit))
        closed = feed(sessions, ("a", 0, 0), ("a", 100, 1))
        assert [each.session.offsets.tolist() for each in closed] == [[0]]
        reopened = held(sessions, "a")
        assert reopened is not None
        assert reopened.offsets == array("q", [1])
        assert reopened.opened_at == 100


def test_one_record_closes_idle_sessions_first_then_old_ones_each_group_by_first_offset() -> None:
    sessions = begun(rules(gap_ms=100, max_age_ms=150))
    opening = [("old1", 0, 0), ("idle1", 1, 1), ("old2", 2, 2), ("idle2", 3, 3)]
    # The idle ones are touched in the other order: it is the first offset that counts.
    touching = [("idle2", 50, 4), ("idle1", 51, 5), ("old2", 95, 6), ("old1", 96, 7)]
    assert feed(sessions, *opening, *touching) == []
    assert told(feed(sessions, ("new", 160, 8))) == [
        ("idle1", "gap", 8), ("idle2", "gap", 8), ("old1", "max_age", 8), ("old2", "max_age", 8)
    ]  # fmt: skip


def test_a_session_that_reached_both_limits_closes_by_its_gap() -> None:
    sessions = begun(rules(gap_ms=100, max_age_ms=100))
    assert told(feed(sessions, ("a", 0, 0), ("b", 100, 1))) == [("a", "gap", 1)]


def test_an_age_that_is_reached_before_any_gap_closes_on_time() -> None:
    sessions = begun(rules(gap_ms=1000, max_age_ms=10))
    assert told(feed(sessions, ("a", 0, 0), ("b", 9, 1), ("b", 10, 2), ("b", 19, 3))) == [
        ("a", "max_age", 2),
        ("b", "max_age", 3),
    ]


def test_without_gap_and_max_age_time_closes_nothing() -> None:
    sessions = begun(rules(max_future_skew_ms=10**12))
    assert feed(sessions, ("a", 0, 0), ("b", 10**12, 1)) == []
    assert len(sessions) == 2


# (c) the record joins its session


def test_a_late_record_keeps_its_session_alive() -> None:
    sessions = begun(rules(gap_ms=100))
    assert feed(sessions, ("a", 1000, 0), ("b", 1090, 1), ("a", 900, 2), ("b", 1150, 3)) == []
    late = held(sessions, "a")
    assert late is not None
    assert (late.opened_at, late.last_at) == (1000, 1090)
    assert late.times.tolist() == [1000, 900]
    assert told(feed(sessions, ("b", 1190, 4))) == [("a", "gap", 4)]


def test_a_session_opened_by_a_late_record_does_not_expire_at_once() -> None:
    sessions = begun(rules(gap_ms=100, max_age_ms=100))
    assert feed(sessions, ("a", 1000, 0), ("b", 0, 1), ("a", 1001, 2)) == []
    assert told(feed(sessions, ("a", 1100, 3))) == [("b", "gap", 3), ("a", "max_age", 3)]


def test_a_session_keeps_every_token_and_offset_in_order() -> None:
    sessions = begun(UNBOUNDED)
    feed(sessions, ("a", 0, 10, 7), ("b", 0, 11, 8), ("a", 0, 12, -(2**62)), ("a", 0, 12, 9))
    session = held(sessions, "a")
    assert session is not None
    assert session.tokens == array("q", [7, -(2**62), 9])
    assert session.offsets == array("q", [10, 12, 12])
    assert session.first_offset == 10
    assert (session.alerted, session.evaluated) == (0, 0)
    assert held(sessions, "c") is None


# (d) the record ends its session


def test_an_end_event_closes_its_session_and_belongs_to_it() -> None:
    sessions = begun(UNBOUNDED)
    closed = feed(sessions, ("a", 0, 0), ("b", 0, 1), ("a", 1, 2, END), ("a", 2, 3))
    assert told(closed) == [("a", "end_event", 2)]
    assert closed[0].session.tokens == array("q", [5, END])
    reopened = held(sessions, "a")
    assert reopened is not None
    assert reopened.first_offset == 3


def test_an_end_event_alone_is_a_session() -> None:
    closed = feed(begun(UNBOUNDED), ("a", 0, 0, END))
    assert told(closed) == [("a", "end_event", 0)]


def test_a_session_closes_with_its_last_allowed_event() -> None:
    sessions = begun(rules(max_events=3))
    closed = feed(sessions, *[("a", 0, offset) for offset in range(7)])
    assert told(closed) == [("a", "max_events", 2), ("a", "max_events", 5)]
    assert len(closed[0].session.tokens) == 3


def test_a_session_of_one_event_closes_at_once_when_no_more_are_allowed() -> None:
    sessions = begun(rules(max_events=1))
    assert told(feed(sessions, ("a", 0, 0), ("a", 0, 1))) == [("a", "max_events", 0), ("a", "max_events", 1)]
    assert len(sessions) == 0


def test_an_end_event_that_fills_its_session_counts_as_end_event() -> None:
    closed = feed(begun(rules(max_events=2)), ("a", 0, 0), ("a", 0, 1, END))
    assert told(closed) == [("a", "end_event", 1)]


# (e) max_open


def test_above_max_open_the_session_with_the_smallest_first_offset_closes() -> None:
    sessions = begun(rules(max_open=2))
    assert told(feed(sessions, ("a", 0, 0), ("b", 0, 1), ("a", 5, 2), ("c", 5, 3))) == [("a", "max_open", 3)]
    assert len(sessions) == 2


def test_a_session_that_ends_with_its_first_event_evicts_no_other() -> None:
    sessions = begun(rules(max_open=1))
    assert told(feed(sessions, ("a", 0, 0), ("b", 0, 1, END))) == [("b", "end_event", 1)]
    assert held(sessions, "a") is not None


def test_an_expiry_makes_room_before_max_open_is_looked_at() -> None:
    sessions = begun(rules(max_open=1, gap_ms=10))
    assert told(feed(sessions, ("a", 0, 0), ("b", 10, 1))) == [("a", "gap", 1)]


def test_a_smaller_max_open_after_a_restart_closes_the_surplus_with_the_next_record() -> None:
    before = begun(UNBOUNDED)
    feed(before, ("a", 0, 0), ("b", 0, 1), ("c", 0, 2))
    after = Sessions(rules(max_open=1), before.state())
    closed = feed(after, ("a", 0, 3))
    assert told(closed) == [("a", "max_open", 3), ("b", "max_open", 3)]
    assert closed[0].session.offsets == array("q", [0, 3])


# Order, causes and ranks


def test_the_closings_of_one_record_come_in_the_order_of_the_rules() -> None:
    before = begun(UNBOUNDED)
    feed(before, ("aged", 0, 0), ("idle", 10, 1), ("young", 90, 2), ("aged", 90, 3), ("full", 95, 4))
    sessions = Sessions(rules(gap_ms=100, max_age_ms=150, max_events=2, max_open=1), before.state())
    closed = feed(sessions, ("full", 150, 5), ("new", 150, 6))
    assert [(*told([each])[0], each.rank) for each in closed] == [
        ("idle", "gap", 5, 0),
        ("aged", "max_age", 5, 0),
        ("full", "max_events", 5, 2),
        ("young", "max_open", 6, 3),
    ]


def test_sessions_that_one_record_opened_close_in_the_order_of_their_opening() -> None:
    sessions = begun(rules(gap_ms=100))
    feed(sessions, ("b", 0, 7), ("a", 0, 7), ("b", 1, 8))
    assert told(feed(sessions, ("z", 200, 9))) == [("b", "gap", 9), ("a", "gap", 9)]


def test_flush_closes_every_session_by_first_offset_and_keeps_stream_time() -> None:
    sessions = begun(rules(gap_ms=100))
    feed(sessions, ("b", 50, 3), ("a", 60, 4), ("b", 70, 5))
    closed = sessions.flush(6, "idle")
    assert told(closed) == [("b", "idle", 6), ("a", "idle", 6)]
    assert {each.rank for each in closed} == {0}
    assert len(sessions) == 0
    assert list(sessions.flush(6, "end_of_input")) == []
    assert sessions.stream_time == 70
    assert feed(sessions, ("b", 60, 6)) == []
    assert sessions.clock.late_events == 1
    assert told(feed(sessions, ("a", 170, 7))) == [("b", "gap", 7)]


def test_a_file_without_timestamps_closes_nothing_by_time() -> None:
    sessions = Sessions(rules(gap_ms=1, max_age_ms=1))
    assert feed(sessions, ("a", NO_TIME, 0), ("b", NO_TIME, 1), ("a", NO_TIME, 2)) == []
    restored = Sessions(rules(gap_ms=1, max_age_ms=1), sessions.state())
    assert feed(restored, ("b", NO_TIME, 3)) == []
    closed = restored.flush(4, "end_of_input")
    assert told(closed) == [("a", "end_of_input", 4), ("b", "end_of_input", 4)]
    assert all(set(each.session.times) == {NO_TIME} for each in closed)


# State


def test_no_events_change_nothing() -> None:
    sessions = Sessions(UNBOUNDED)
    assert list(sessions.process([], [], [], [])) == []
    assert sessions.stream_time is None
    assert sessions.state() == SessionsState.empty()


def test_a_state_is_a_copy_that_later_events_do_not_change() -> None:
    sessions = begun(UNBOUNDED)
    feed(sessions, ("a", 0, 0))
    state, again = sessions.state(), sessions.state()
    feed(sessions, ("a", 1, 1), ("b", 2, 2))
    assert state == again
    restored = Sessions(UNBOUNDED, state)
    feed(restored, ("a", 1, 1), ("b", 2, 2))
    assert state == again
    assert restored.state() == sessions.state()


def test_an_image_is_the_state_of_the_moment_though_more_comes_before_somebody_looks() -> None:
    sessions = begun(UNBOUNDED)
    feed(sessions, ("a", 0, 0), ("b", 1, 1), ("a", 2, 2))
    state, image = sessions.state(), sessions.image()
    feed(sessions, ("a", 3, 3, END), ("c", 4, 4), ("b", 5, 5, -(2**62)))
    assert image.state() == state
    assert sessions.state() != state


def test_keys_of_any_length_and_numbers_of_any_size_come_back_as_they_were() -> None:
    """A key may end where a block of its session's chain does; numbers differ from those before by up to 64 bits."""
    greatest = 2**63 - 1
    keys = [
        "é" * (length // 2) + "x" * (length % 2) for length in (0, 1, 7, 8, 9, *range(57, 64), *range(117, 124), 9_000)
    ]
    numbers = [0, -1, 63, 64, -64, -65, 2**13, -(2**34), 2**62, -(2**63), greatest, 5]
    offsets = sorted(number for number in (*numbers, *numbers) if number >= 0)
    times = [NO_TIME, 5, greatest, -(2**62), NO_TIME, 0, 2**41]
    sessions = Sessions(rules(max_events=10**6, max_open=10**6))
    events = [
        (keys[at % len(keys)], numbers[at % len(numbers)], times[at % len(times)], offsets[at * len(offsets) // 2_000])
        for at in range(2_000)
    ]
    # As a state, since the clock would order events of such times anew.
    lists = {key: [event[1:] for event in events if event[0] == key] for key in keys}
    columns = [array("q", (event[field] for key in keys for event in lists[key])) for field in range(3)]
    lengths = np.array([len(lists[key]) for key in keys])
    begun_at = np.arange(len(keys))
    tokens, at, offset = map(np.array, columns)
    noted = (np.zeros(len(keys), np.int64), np.array([len(lists[key]) for key in keys]))
    state = SessionsState(sessions.clock.state(), keys, lengths, begun_at, begun_at, *noted, tokens, offset, at)
    restored = Sessions(rules(max_events=10**6, max_open=10**6), state)
    assert restored.state() == state
    assert Sessions(UNBOUNDED, restored.state()).state() == state
    for key in keys:  # found by its key
        restored.process([key], [7], [NO_TIME], [greatest])
    assert len(restored) == len(keys)
    closed = restored.flush(greatest, "end_of_input")
    assert {each.session.key: list(each.session.tokens) for each in closed} == {
        key: [*(event[0] for event in lists[key]), 7] for key in keys
    }


def test_a_restored_session_keeps_what_the_scorer_noted() -> None:
    sessions = begun(UNBOUNDED)
    feed(sessions, ("a", 0, 0), ("b", 0, 1))
    noted = held(sessions, "b")
    assert noted is not None
    noted.alerted, noted.evaluated = 3, 1
    sessions.note(SessionColumns.of([noted]))
    for touched in ((), ("a", "b")):
        restored = Sessions(UNBOUNDED, sessions.state())
        feed(restored, *((key, 1, 2) for key in (*touched, "c")))
        noted_of = {
            each.session.key: (each.session.alerted, each.session.evaluated) for each in restored.flush(3, "idle")
        }
        assert noted_of == {"a": (0, 0), "b": (3, 1), "c": (0, 0)}


def test_what_was_restored_is_let_go_at_once() -> None:
    before = begun(UNBOUNDED)
    feed(before, ("a", 0, 0), ("b", 0, 1))
    state = before.state()
    columns = [weakref.ref(column) for column in (state.tokens, state.offsets, state.times)]
    sessions = Sessions(UNBOUNDED, state)
    del state, before
    gc.collect()
    assert [column() for column in columns] == [None, None, None]
    assert len(sessions) == 2


def held_bytes(root: object) -> int:
    """Of everything that an object keeps alive, but for modules, classes and functions."""
    seen: dict[int, object] = {}
    queue = [root]
    while queue:
        each = queue.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType):
            continue
        seen[id(each)] = each
        queue += gc.get_referents(each)
        if isinstance(each, np.ndarray) and each.base is not None:
            queue.append(each.base)
    return sum(map(sys.getsizeof, seen.values()))


@pytest.mark.parametrize("ending", ["ended", "expired"])
def test_what_is_held_of_a_restored_state_falls_with_the_sessions_left_of_it(ending: str) -> None:
    n, rule = 2_000, rules(gap_ms=10**6, max_open=10**6, max_future_skew_ms=10**7)
    before = Sessions(rule)
    feed(before, *((str(number), number, number) for number in range(n) for _ in range(5)))
    sessions = Sessions(rule, before.state())
    del before
    at_first = held_bytes(sessions)
    for number in range(n - 100):
        closing = (str(number), n, n + number, END) if ending == "ended" else ("z", 10**6 + number, n + number, END)
        assert str(number) in [each.session.key for each in feed(sessions, closing)]
        if number % 100 == 0:
            # Twice what is needed, and as much for columns that have just grown.
            assert held_bytes(sessions) < 4 * at_first * (len(sessions) + 100) / n
    assert len(sessions) == 100


def test_a_smaller_gap_after_a_restart_holds_from_the_next_record_on() -> None:
    before = begun(rules(gap_ms=1000))
    feed(before, ("a", 0, 0), ("b", 500, 1))
    assert told(feed(Sessions(rules(gap_ms=100), before.state()), ("b", 500, 2))) == [("a", "gap", 2)]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length: 2, 1, 2, 2"):
        Sessions(UNBOUNDED).process(["a", "b"], [1], [0, 0], [0, 1])


def test_closed_sessions_leave_nothing_behind() -> None:
    # Time stands still, so nothing expires: what is closed in other ways must go as well.
    sessions = begun(rules(gap_ms=100, max_age_ms=100, max_open=3))
    held = []
    for offset in range(400):
        feed(sessions, (f"ended {offset}", 0, offset, END), (f"evicted {offset}", 0, offset))
        held.append(held_bytes(sessions))
    assert len(sessions) == 3
    assert max(held[200:]) <= max(held[:200])


def test_a_session_can_be_made_of_columns() -> None:
    columns = {"tokens": array("q", [7, 8]), "offsets": array("q", [3, 4]), "times": array("q", [NO_TIME, 5])}
    session = Session.from_columns("a", **columns, opened_at=1, last_at=2, order=9)
    assert {name: getattr(session, name) for name in columns} == columns
    assert (len(session), session.first_offset) == (2, 3)
    assert (session.opened_at, session.last_at, session.order) == (1, 2, 9)
    with pytest.raises(ValueError, match="differ in length: 2, 2, 0"):
        Session.from_columns("a", **columns | {"times": array("q")}, opened_at=1, last_at=2, order=9)

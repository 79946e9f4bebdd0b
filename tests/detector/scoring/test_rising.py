"""What has become more frequent: from the traffic of adaptations to how much of it a session has."""

from __future__ import annotations

import numpy as np
import pytest

from detector.scoring.count_vectors import CountVectors
from detector.scoring.rising import LATELY, MOST_RISING, Rising, Stretch

READ, WRITTEN, FAILED, NEW = 3, 4, 5, 6


def vectors(*events: list[int]) -> CountVectors:
    return CountVectors.of_sequences([np.array(each, np.int64) for each in events])


def distinct(n: int, *tokens: int) -> list[list[int]]:
    """As many distinct sessions, all with these tokens."""
    return [[*tokens, *[WRITTEN] * (k + 1)] for k in range(n)]


def traffic(rising: Rising, *events: list[int]) -> Rising:
    return rising.then(of(*events))


def first(*events: list[int]) -> Rising:
    return Rising(of(*events))


def of(*events: list[int]) -> Stretch:
    return Stretch.of(vectors(*events), np.ones(len(events), np.int64))


def test_what_comes_ten_times_as_often_is_a_level_higher() -> None:
    rising = traffic(first(*distinct(1_000), *distinct(20, FAILED)), *distinct(900), *distinct(200, FAILED))
    [failed, usual] = rising.of_sessions(vectors([FAILED], [WRITTEN]))
    assert failed == pytest.approx(1, abs=0.1)
    assert usual == pytest.approx(0, abs=0.05)


def test_copies_of_a_session_make_it_no_more_frequent_than_their_root() -> None:
    day = Stretch.of(vectors([FAILED], *distinct(99)), np.array([10_000, *[1] * 99]))
    assert day.sessions == 100 + 99
    assert dict(day.templates)[FAILED] == 100


def test_a_burst_is_not_compared_with_itself_while_it_is_lately() -> None:
    rising = first(*distinct(500))
    found = []
    for _ in range(LATELY + 1):
        rising = traffic(rising, *distinct(50), *distinct(50, FAILED))
        found.append(rising.of_sessions(vectors([FAILED]))[0])
    assert min(found[:LATELY]) > 1.9
    assert found[LATELY] < 1, "the first day of it is what was before"
    assert sum(each.sessions for each in (rising.before, *rising.lately)) == pytest.approx(500 + 100 * (LATELY + 1))


def test_what_was_lately_becomes_what_was_before() -> None:
    rising = traffic(first(*distinct(500)), *distinct(100, FAILED))
    was = rising.of_sessions(vectors([FAILED]))[0]
    for _ in range(20):
        rising = traffic(rising, *distinct(100))
    assert rising.of_sessions(vectors([FAILED]))[0] < 0 < was
    assert len(rising.lately) == LATELY


def test_of_a_template_never_seen_little_is_said() -> None:
    rising = traffic(first(*distinct(900)), *distinct(99))
    assert rising.of_sessions(vectors([NEW]))[0] == pytest.approx(np.log10(901 / 100))
    assert abs(rising.of_sessions(vectors([], [NEW] * 9))).max() <= MOST_RISING

"""What has become more frequent: from the traffic of adaptations to how much of it a session has."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from detector.scoring.count_vectors import CountVectors
from detector.scoring.judge import ANOMALOUS, SUSPECT, USUAL, Judge, scores
from detector.scoring.rising import LATELY, MOST_RISING, Rising, Stretch
from detector.training.data import TrainingSessions
from detector.training.set_aside import set_aside
from tests.detector.scoring.stream import VOCABULARY, stream

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


def test_a_checkpoint_keeps_it_and_one_of_an_older_version_begins_anew() -> None:
    sessions, _ = stream(200)
    found = set_aside(VOCABULARY, TrainingSessions.of(sessions)).judge
    rising = traffic(first(*distinct(500)), *distinct(100, FAILED))
    written = Judge(found.tolerances, found.families, rising).to_json()
    assert Judge.from_json(written).rising == rising
    older = orjson.loads(written) | {"rising": {"templates": [[READ, 1.0, 20.0]], "lately": 5.0, "before": 30.0}}
    assert Judge.from_json(orjson.dumps(older)).rising is None


def test_what_has_become_more_frequent_ranks_first_among_what_stands_out() -> None:
    levels, broken = np.array([9.0, 2.0, 9.0, 1.0]), np.array([1, 3, 1, 1])
    standings = np.array([SUSPECT, SUSPECT, USUAL, ANOMALOUS], np.int8)
    found = scores(levels, standings, broken, np.array([0.0, 2.0, 6.0, -6.0]))
    assert found[2] < 0.7 <= found[0] < found[1] < 0.95 <= found[3]
    assert (scores(levels, standings, broken, np.full(4, MOST_RISING)) <= 1).all()

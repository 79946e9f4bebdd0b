"""Tolerances: what nearly all sessions have in common is found among anomalies, and what breaks it stands out."""

from __future__ import annotations

import numpy as np
import pytest

from detector.scoring.count_vectors import CountVectors
from detector.scoring.learning import learn
from detector.scoring.tolerances import Broken, Tolerances
from detector.text.vocabulary import UNK
from tests.detector.scoring.stream import AUDIT, CLOSED, COPIED, FAILED, OPENED, READ, SLOW, WRITTEN, stream

SESSIONS, WRONG = stream(2_000)
ONE = np.ones(len(SESSIONS), np.int64)


@pytest.fixture(scope="module")
def learnt() -> Tolerances:
    return learn(SESSIONS, ONE)


def broken(tolerances: Tolerances, events: list[int]) -> list[tuple[str, int, int]]:
    [found] = tolerances.broken(CountVectors.of_sequences([np.array(events, np.int64)]))
    return [(each.kind, each.token, each.other) for each in found]


def usual(*middle: int, pairs: int = 2, copies: int = 3) -> list[int]:
    return [OPENED, *[READ, WRITTEN] * pairs, *middle, *[COPIED] * copies, CLOSED]


def test_what_went_wrong_stands_out_and_nothing_else_does(learnt: Tolerances) -> None:
    evidence = learnt.judge(CountVectors.of_sequences(SESSIONS)).evidence
    assert WRONG.sum() > 40
    np.testing.assert_array_equal(evidence > 0, WRONG)


def test_sessions_to_come_are_judged_like_those_learnt_from(learnt: Tolerances) -> None:
    fresh, wrong = stream(2_000, seed=1)
    np.testing.assert_array_equal(learnt.judge(CountVectors.of_sequences(fresh)).evidence > 0, wrong)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (usual(), []),
        (usual(copies=2), [("fewer", COPIED, 0)]),
        (usual(copies=4), [("more", COPIED, 0)]),
        (usual(READ), [("above", READ, WRITTEN)]),
        (usual(WRITTEN), [("below", READ, WRITTEN)]),
        (usual(FAILED), [("rare", FAILED, 0)]),
        (usual(UNK), [("rare", UNK, 0)]),
        (usual(-7_000), [("rare", UNK, 0)]),
        (usual(999), [("rare", UNK, 0)]),
        ([OPENED, COPIED, COPIED, COPIED, CLOSED], [("missing", READ, 0), ("missing", WRITTEN, 0)]),
        (usual(pairs=14), []),  # counts that vary are tolerated up to twice as far
        (usual(pairs=40), [("more", READ, 0), ("more", WRITTEN, 0)]),
    ],
)
def test_each_tolerance_is_broken_by_what_breaks_it_alone(
    learnt: Tolerances, events: list[int], expected: list[tuple[str, int, int]]
) -> None:
    assert sorted(broken(learnt, events)) == sorted(expected)


def test_a_rare_template_is_excused_by_one_that_makes_it_likely() -> None:
    sessions = [
        usual(*([AUDIT] if row % 10 == 0 else []), *([SLOW] if row % 50 == 0 else []), pairs=1 + row % 7)
        for row in range(1_000)
    ]
    tolerances = learn([np.array(each, np.int64) for each in sessions], np.ones(1_000, np.int64))
    assert broken(tolerances, usual(AUDIT, SLOW)) == []  # a fifth of the audits find one
    assert broken(tolerances, usual(SLOW)) == [("rare", SLOW, 0)]


def test_a_session_that_was_cut_lacks_nothing(learnt: Tolerances) -> None:
    assert broken(learnt, usual()[:-1]) == []  # its end has not come yet
    assert broken(learnt, usual()[:-4]) == []
    assert broken(learnt, usual()[1:]) == []  # its beginning was before the log's
    assert ("missing", CLOSED, 0) not in broken(learnt, usual()[:-2])
    without_the_middle = [OPENED, COPIED, COPIED, COPIED, CLOSED]
    assert ("missing", READ, 0) in broken(learnt, without_the_middle)


def test_copies_of_an_anomaly_do_not_excuse_each_other() -> None:
    # Two in a hundred sessions are one and the same anomaly: a share that alone no tolerance would survive.
    sessions = [
        np.array(usual(copies=2 if row % 50 == 0 else 4 if row % 80 == 1 else 3), np.int64) for row in range(2_000)
    ]
    tolerances = learn(sessions, np.ones(2_000, np.int64))
    assert broken(tolerances, usual(copies=2)) == [("fewer", COPIED, 0)]
    assert broken(tolerances, usual(copies=4)) == [("more", COPIED, 0)]


def test_what_more_than_three_in_a_hundred_do_is_nothing_odd() -> None:
    sessions = [np.array(usual(copies=2 if row % 25 == 0 else 3), np.int64) for row in range(2_000)]
    tolerances = learn(sessions, np.ones(2_000, np.int64))
    assert broken(tolerances, usual(copies=2)) == []


def test_evidence_is_minus_the_log_of_the_share_of_the_other_violators() -> None:
    sessions = [np.array(usual(*([FAILED] if row < 8 else []), pairs=1 + row % 2), np.int64) for row in range(1_000)]
    sessions += [np.array(usual(pairs=3), np.int64)] * 100
    sessions += [np.array(usual(FAILED, pairs=3), np.int64)] * 4
    tolerances = learn(sessions, np.ones(1_104, np.int64))
    ((found,),) = tolerances.broken(CountVectors.of_sequences([np.array(usual(FAILED, pairs=3), np.int64)]))
    assert found == Broken("rare", FAILED, 0, pytest.approx(-np.log((8 + 1) / (1_100 + 1))))


def test_nothing_is_learnt_from_a_handful_of_sessions() -> None:
    sessions = [np.array(usual(), np.int64)] * 30
    tolerances = learn(sessions, np.ones(30, np.int64))
    assert broken(tolerances, [FAILED, UNK]) == []


def test_counts_are_as_good_as_copies_and_order_is_no_matter(learnt: Tolerances) -> None:
    merged: dict[bytes, int] = {}
    for events in SESSIONS:
        merged[events.tobytes()] = merged.get(events.tobytes(), 0) + 1
    order = np.random.default_rng(0).permutation(len(merged))
    keys = [list(merged)[row] for row in order]
    again = learn([np.frombuffer(key, np.int64) for key in keys], np.array([merged[key] for key in keys], np.int64))
    fresh = CountVectors.of_sequences(stream(500, share=0.5, seed=2)[0])
    for one, other in zip(learnt.judge(fresh), again.judge(fresh), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_session_is_judged_the_same_whatever_is_beside_it(learnt: Tolerances) -> None:
    fresh = stream(300, share=0.3, seed=4)[0]
    together = learnt.judge(CountVectors.of_sequences(fresh))
    alone = [learnt.judge(CountVectors.of_sequences([each])) for each in fresh]
    np.testing.assert_array_equal(together.evidence, np.concatenate([each.evidence for each in alone]))
    np.testing.assert_array_equal(together.families, np.concatenate([each.families for each in alone]))

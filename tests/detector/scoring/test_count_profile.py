"""A session's counts are usual when normal sessions had them, or had their parts; else it says how unusual they are."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.scoring import count_profile
from detector.scoring.count_profile import CountProfile, Integers
from detector.scoring.count_profile_loop import RARE
from detector.text.vocabulary import UNK
from tests.detector.scoring.count_profile_of_tables import CountProfile as ProfileOfTables

OPEN, WRITE, CLOSE, READ, RETRY, SLOW = range(3, 9)
BASE = [OPEN, WRITE, WRITE, CLOSE]


def profile(*sessions: tuple[Sequence[int], int]) -> CountProfile:
    sequences = [np.array(events, np.int64) for events, _ in sessions]
    return CountProfile.fit(sequences, np.array([count for _, count in sessions]))


def unusual(known: CountProfile, *events: int) -> float:
    return float(known.judge(np.array(events, np.int64), np.array([0, len(events)])).final[0])


# One session in 500 is never closed, one in 1,000 is written three times; 30 are slow, and those always retry.
NORMALS = profile(
    (BASE, 19_000),
    ([*BASE, READ], 3_000),
    ([*BASE, READ, READ], 500),
    (BASE[:-1], 45),
    ([*BASE, WRITE], 25),
    ([*BASE, SLOW, RETRY], 30),
)


def test_a_session_like_a_normal_one_is_usual_in_any_order_and_however_rare() -> None:
    rare = profile((BASE, 100_000), ([*BASE, SLOW], 1))
    assert unusual(rare, SLOW, WRITE, CLOSE, OPEN, WRITE) == 0
    assert unusual(rare, SLOW, SLOW, WRITE, CLOSE, OPEN, WRITE) > 0


def test_rare_but_known_behaviours_together_are_usual() -> None:
    assert unusual(NORMALS, *BASE[:-1], READ, READ) == 0
    assert unusual(NORMALS, *BASE, WRITE, READ) == 0
    assert unusual(NORMALS, *BASE, SLOW, RETRY, READ) == 0


def test_an_event_or_a_number_of_events_that_no_normal_session_had_is_unusual() -> None:
    n = NORMALS.weights.sum()
    never = np.log((n + 1) * RARE)
    assert unusual(NORMALS, *BASE, 9) == pytest.approx(never)
    assert unusual(NORMALS, *BASE, UNK) == pytest.approx(never)
    assert unusual(NORMALS, *BASE, -12345) == pytest.approx(never), "an unknown line with its text"
    assert unusual(NORMALS, *BASE, *[WRITE] * 7) == pytest.approx(never)
    assert unusual(NORMALS, WRITE, WRITE, CLOSE) == pytest.approx(never), "an event that all of them had"


def test_a_known_behaviour_without_what_always_goes_with_it_is_unusual() -> None:
    assert unusual(NORMALS, *BASE, SLOW) > 0
    assert unusual(NORMALS, *BASE, RETRY) > 0
    assert NORMALS.unusual_counts(np.array([*BASE, SLOW])).keys() <= {SLOW, RETRY}


def test_what_is_rare_among_few_sessions_is_not_held_against_one_of_them() -> None:
    """Sessions without the close have never been retried, but there are too few of them to tell."""
    known = profile((BASE, 20_000), (BASE[:-1], 40), ([*BASE, RETRY, WRITE], 6), ([OPEN, WRITE, RETRY], 6))
    assert unusual(known, *BASE, RETRY) > 0
    assert unusual(known, OPEN, WRITE, WRITE, RETRY) < unusual(known, *BASE, RETRY)


def test_unusual_counts_that_do_not_explain_each_other_add_up() -> None:
    n = NORMALS.weights.sum()
    never = np.log((n + 1) * RARE)
    assert unusual(NORMALS, *BASE, -5, -6, 9) == pytest.approx(3 * never), "two unknown lines and an unseen template"
    assert unusual(NORMALS, *BASE, -5, -5, -5) == pytest.approx(never)
    assert list(NORMALS.unusual_counts(np.array([*BASE, -5, 9])).values()) == pytest.approx([never, never])
    companions = profile((BASE, 20_000), ([*BASE, SLOW, RETRY], 400))
    again = [SLOW, RETRY] * 7
    assert unusual(companions, *BASE, *again) == pytest.approx(np.log(20_401 * RARE)), "they always come together"


def test_a_new_number_of_events_says_the_less_the_more_numbers_normal_sessions_had_but_not_beyond_them() -> None:
    steady = profile((BASE, 20_000), ([*BASE, *[READ] * 7], 1_000))
    varied = profile((BASE, 20_000), *(([*BASE, *[READ] * n], 250) for n in (1, 2, 4, 7)))
    assert unusual(steady, *BASE, *[READ] * 5) == pytest.approx(np.log((21_000 + 2) / 2 * RARE))
    assert unusual(varied, *BASE, *[READ] * 5) == pytest.approx(np.log((21_000 + 5) / 5 * RARE))
    beyond = np.array([*BASE, *[READ] * 8])
    assert varied.unusual_counts(beyond) == {READ: pytest.approx(np.log(21_001 * RARE))}
    assert unusual(varied, *BASE[1:]) == pytest.approx(np.log(21_001 * RARE)), "all of them had one"


def test_the_fewer_sessions_are_known_the_less_anything_is_unusual() -> None:
    amounts = [unusual(profile((BASE, n)), *BASE, SLOW) for n in (10, 1_000, 10_000, 100_000)]
    assert amounts == sorted(amounts)
    assert 0 < amounts[0] < 1 < amounts[-1]


def test_equal_sessions_may_come_one_by_one_or_counted() -> None:
    one_by_one = profile(*[(BASE, 1)] * 30, *[([*BASE, READ], 1)] * 5)
    counted = profile((BASE, 30), ([*BASE, READ], 5))
    assert np.array_equal(one_by_one.vectors, counted.vectors)
    assert np.array_equal(one_by_one.weights, counted.weights)


EVENTS = st.lists(st.sampled_from([OPEN, WRITE, CLOSE, READ, RETRY, SLOW, 11, UNK, -7]), max_size=14)


@settings(max_examples=60)
@given(st.lists(EVENTS, min_size=1, max_size=6))
def test_a_session_is_judged_alike_alone_and_among_others(sessions: list[list[int]]) -> None:
    together = NORMALS.judge(*packed(sessions))
    bounds = packed(sessions)[1]
    for index, events in enumerate(sessions):
        alone = NORMALS.judge(*packed([events]))
        assert (alone.final[0], alone.seen[0]) == (together.final[index], together.seen[index])
        assert np.array_equal(alone.running, together.running[bounds[index] : bounds[index + 1]])


@settings(max_examples=60)
@given(EVENTS)
def test_the_order_of_events_changes_nothing_of_the_complete_session(events: list[int]) -> None:
    shuffled = np.random.default_rng(len(events)).permutation(np.array(events, np.int64))
    assert NORMALS.judge(*packed([events])).final == NORMALS.judge(*packed([shuffled.tolist()])).final


@settings(max_examples=60)
@given(EVENTS)
def test_what_is_unusual_before_the_end_stays_so_and_does_not_depend_on_what_follows(events: list[int]) -> None:
    judged = NORMALS.judge(*packed([events]))
    assert (np.diff(judged.running) >= 0).all()
    assert judged.running.max(initial=0.0) <= judged.final[0]
    for n in range(len(events)):
        assert np.array_equal(NORMALS.judge(*packed([events[:n]])).running, judged.running[:n])


def test_an_event_too_many_is_unusual_at_once_and_a_missing_one_only_at_the_end() -> None:
    judged = NORMALS.judge(*packed([[OPEN, SLOW, SLOW, WRITE, WRITE, CLOSE], [WRITE, WRITE, CLOSE]]))
    assert (judged.running[:6] > 0).tolist() == [False, False, True, True, True, True]
    assert (judged.running[6:] == 0).all()
    assert (judged.final > 0).all()


def test_lines_that_no_template_matches_leave_nothing_behind() -> None:
    """They are without end, and each would leave a column of the table."""
    sessions = [
        np.array([token for bit in range(14) if number >> bit & 1 for token in [3 + bit]])
        for number in range(1, 10_001)
    ]
    known = CountProfile.fit(sessions, np.ones(len(sessions), np.int64))
    known.judge(*packed([[3, 4, -1], [3, 4, -1, -2]]))
    tracemalloc.start()
    try:
        for line in range(3, 403):
            known.judge(*packed([[3, 4, -line, -line - 1]]))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 400 * len(known.weights) / 4


@pytest.mark.parametrize(
    ("vectors", "weights", "error"),
    [
        ([[0, 3, 1]], [], "expected"),
        ([[0, 3]], [1], "expected"),
        ([[1, 3, 1]], [1], "out of range"),
        ([[0, 3, 0]], [1], "out of range"),
        ([[0, 3, 1]], [0], "weight is below 1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(vectors: list[list[int]], weights: list[int], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        CountProfile(np.array(vectors, np.int64), np.array(weights, np.int64))


def workflows(rng: np.random.Generator, number: int, *, faults: float) -> list[Integers]:
    """Sessions of one or two of six workflows of ten templates, in which steps are missing or come in between."""
    sessions = []
    for _ in range(number):
        counts = np.zeros(48, np.int64)
        for flow in rng.choice(6, rng.integers(1, 3), replace=False, p=[0.5, 0.2, 0.15, 0.1, 0.04, 0.01]):
            counts[7 * flow : 7 * flow + 10] += rng.geometric(0.5)
            counts[7 * flow + 9] += rng.integers(0, 30)
        counts[rng.random(48) < faults] = 0
        counts[rng.random(48) < faults / 10] += 1
        events = np.repeat(np.arange(48), counts) + 3
        sessions.append(np.where(events == 50, -rng.integers(0, 3), events))
    return sessions


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([40, 400, 2_000]), st.sampled_from([1, 30, 1_000]))
def test_it_judges_as_the_rules_say_one_by_one(seed: int, number: int, most: int) -> None:
    """The tables of pairs, and what is left out since it cannot matter, change nothing."""
    rng = np.random.default_rng(seed)
    learnt, counts = workflows(rng, number, faults=0.002), rng.integers(1, most + 1, number)
    known, plain = CountProfile.fit(learnt, counts), ProfileOfTables.fit(learnt, counts)
    sessions = [each.tolist() for each in workflows(rng, 60, faults=0.05)]
    ours, theirs = known.judge(*packed(sessions)), plain.judge(*packed(sessions))
    assert ours.final == pytest.approx(theirs.final, rel=1e-12)
    assert ours.running == pytest.approx(theirs.running, rel=1e-12)
    assert np.array_equal(ours.seen, theirs.seen)
    for events in sessions[:10]:
        assert known.unusual_counts(np.array(events)) == pytest.approx(plain.unusual_counts(np.array(events)))


def test_of_more_vectors_than_the_table_holds_all_are_known_and_no_count_of_theirs_is_too_great(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    learnt = workflows(rng, 5_000, faults=0.01)
    monkeypatch.setattr(count_profile, "MAX_VECTORS", 500)
    known = CountProfile.fit(learnt, np.ones(len(learnt), np.int64))
    assert len(known.weights) == 500
    judged = known.judge(*packed([np.maximum(each, UNK).tolist() for each in learnt]))
    assert judged.seen.all()
    assert not judged.final.any()
    assert not judged.running.any()
    shuffled = CountProfile.fit([learnt[row] for row in rng.permutation(len(learnt))], np.ones(len(learnt), np.int64))
    assert np.array_equal(known.weights, shuffled.weights)
    assert np.array_equal(known.seen, shuffled.seen)


def test_a_table_of_a_sample_has_the_shares_of_all_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    learnt, counts = workflows(rng, 5_000, faults=0.01), rng.geometric(0.05, 5_000)
    monkeypatch.setattr(count_profile, "MAX_VECTORS", 1_000)
    known = CountProfile.fit(learnt, counts)

    def share(of: Integers) -> float:
        return float(known.weights[of].sum() / known.weights.sum())

    for token in range(3, 50):
        truth = counts @ np.array([token in events for events in learnt]) / counts.sum()
        sampled = share(np.unique(known.vectors[known.vectors[:, 1] == token, 0]))
        assert sampled == pytest.approx(truth, abs=5 * np.sqrt(truth * (1 - truth) / 1_000) + 0.01)


def packed(sessions: Sequence[Sequence[int]]) -> tuple[Integers, Integers]:
    tokens = np.array([token for events in sessions for token in events], np.int64)
    return tokens, np.append(0, np.cumsum([len(events) for events in sessions]))

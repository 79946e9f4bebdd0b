"""Alarms by counts: where two looks at a session agree, and never by what normal sessions of another time did, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.scoring.count_profile import CountProfile
from detector.scoring.evidence import Evidence, Evidences
from detector.text.vocabulary import UNK, Vocabulary
from detector.training.alarm_bounds import Bounded, bound, bounds_lines, expected_share
from detector.training.data import TrainingSessions

OPEN, READ, WRITE, CLOSE, RETRY, BEAT = range(3, 9)


def session(reads: int = 2, writes: int = 1, *, beats: int = 0, closed: bool = True) -> list[int]:
    return [OPEN, *[READ] * reads, *[WRITE] * writes, *[BEAT] * beats, *[CLOSE] * closed]


def of(*parts: tuple[Sequence[int], int]) -> TrainingSessions:
    """Each session so many times in a row."""
    rows = [np.array(events, np.int64) for events, times in parts for _ in range(times)]
    return TrainingSessions.of(rows, np.zeros(len(rows), np.int8))


def learnt(sessions: TrainingSessions) -> tuple[CountProfile, Bounded]:
    found = bound(sessions)
    return CountProfile.fit(sessions.sequences, sessions.counts, found.bounds), found


def unusual(profile: CountProfile, events: Sequence[int]) -> float:
    return float(profile.judge(np.array(events, np.int64), np.array([0, len(events)])).final[0])


def shuffled(sessions: TrainingSessions) -> TrainingSessions:
    return sessions.select(np.random.default_rng(0).permutation(len(sessions)))


# Two ways of working: 4 reads and 2 writes, or 8 and 4.
VARIED = shuffled(of((session(4, 2), 1_000), (session(8, 4), 1_000)))


def test_a_new_mixture_within_what_nearly_all_sessions_have_in_common_is_no_alarm() -> None:
    profile, _ = learnt(VARIED)
    alone = CountProfile.fit(VARIED.sequences, VARIED.counts)
    between, beyond = session(6, 3), session(60, 30)
    assert unusual(alone, between) > 0, "no session had these counts"
    assert unusual(profile, between) == 0
    assert unusual(profile, beyond) == unusual(alone, beyond) > 0
    assert unusual(profile, [*session(4, 2), RETRY]) == unusual(alone, [*session(4, 2), RETRY]) > 0
    assert unusual(profile, session(8, 3)) == unusual(alone, session(8, 3)) > 0, "there is a write for every two reads"


def test_what_the_other_half_of_the_time_does_is_no_alarm_and_everything_else_still_is() -> None:
    changing = of(*((session(beats=beats), 300) for beats in (0, 1, 3, 6, 2, 9, 7)))
    profile, found = learnt(changing)
    assert found.bounds.habitual.tolist() == [BEAT]
    assert unusual(profile, session(beats=40)) == 0
    assert unusual(profile, [*session(beats=40), RETRY]) > 0
    assert unusual(profile, session(1, 1, beats=40)) > 0
    assert profile.unusual_counts(np.array([*session(beats=40), RETRY])).keys() == {RETRY}


def test_without_a_change_in_time_nothing_is_a_habit() -> None:
    steady = of(*((session(beats=beats), 300) for beats in (0, 1, 3, 6, 2, 9, 7)))
    for sessions in (shuffled(steady), steady.distinct()):  # equal sessions that were merged have no time
        profile, found = learnt(sessions)
        assert not len(found.bounds.habitual)
        assert unusual(profile, session(beats=40)) > 0


def test_few_sessions_show_no_habit() -> None:
    profile, found = learnt(of((session(), 60), (session(beats=3), 60)))
    assert not len(found.bounds.habitual)
    assert unusual(profile, session(beats=40)) > 0


@pytest.mark.parametrize("cut", [0, 12])
def test_a_missing_end_is_excused_where_normal_sessions_lack_theirs(cut: int) -> None:
    """Those in training are cut, too, but had other counts."""
    sessions = shuffled(of((session(), 2_000), (session(4, 1, closed=False), cut), (session(4, 1), 200)))
    profile, _ = learnt(sessions)
    assert (unusual(profile, session(closed=False)) == 0) == (cut > 0)
    assert unusual(profile, [OPEN, READ, READ, CLOSE]) > 0, "what is missing is not at the end"


def test_too_few_sessions_to_tell_what_they_have_in_common_are_judged_by_the_profile_alone() -> None:
    sessions = of((session(4, 2), 12), (session(8, 4), 12))
    profile, _ = learnt(sessions)
    alone = CountProfile.fit(sessions.sequences, sessions.counts)
    for events in (session(6, 3), [*session(), RETRY]):
        assert unusual(profile, events) == unusual(alone, events)


def test_the_share_expected_is_that_of_each_half_judged_by_the_other() -> None:
    _, found = learnt(VARIED)
    evidence = Evidence.certain(found.alike)
    assert expected_share(found.later, evidence) == 0
    # In the last tenth every second session ends otherwise; no habit of the first half tells.
    sessions = of((session(), 1_800), *[(session(), 1), ([*session(), RETRY], 1)] * 100)
    _, found = learnt(sessions)
    evidence = Evidence.certain(found.alike)
    assert expected_share(found.later, evidence) == pytest.approx(100 / 1_800), "a tenth is between the halves"
    vocabulary = Vocabulary(("open", "read", "write", "close", "retry", "beat"))
    lines = list(bounds_lines(found.bounds, 0.05, vocabulary))
    assert "5.00%" in lines[0]
    assert "more than the 1%" in lines[1]
    assert lines[2].endswith("with the time: retry")
    assert len(list(bounds_lines(found.bounds._replace(habitual=np.zeros(0, np.int64)), 0.01, vocabulary))) == 1


def test_the_least_evidence_is_critical_only_where_enough_sessions_show_that_it_is_rare() -> None:
    def level(some: int, of: int) -> float:
        normal = Evidences(np.array([0.0, 1.0]), np.array([of - some, some], np.float64))
        return float(Evidence.certain(normal).levels(np.array([1e-9]))[0])

    assert level(0, 1_100) < 3 < level(0, 2_400), "1,100 without any: 2.3 of them may still be due"
    assert level(9, 12_000) < 3 < level(9, 15_000)
    assert level(0, 150) == pytest.approx(2), "still a warning"
    assert level(0, 60) < 2, "60 sessions do not promise that"


def test_what_one_in_a_thousand_has_at_most_takes_sessions_enough_to_show_it() -> None:
    rng = np.random.default_rng(4)

    def of_sessions(n: int) -> Evidences:
        return Evidences(np.where(rng.random(n) < 0.01, rng.exponential(1.0, n), 0.0), np.ones(n))

    assert np.isinf(Evidences(np.zeros(1), np.array([2_300.0])).rare(0.001)), "2.3 of them may still be due"
    assert Evidences(np.zeros(1), np.array([2_400.0])).rare(0.001) == 0
    beyond = np.array([0.01 * np.exp(-of_sessions(5_000).rare(0.001)) for _ in range(300)])
    assert (beyond > 0.001).mean() <= 0.13, "of one draw in ten more sessions may be beyond it"
    assert np.median(beyond) > 0.0003, "and it is no higher than that takes"
    one = Evidences(np.array([0.0, 2.0, 1.0]), np.array([9_990.0, 4.0, 6.0]))
    assert one.rare(0.001) == 1.0, "four of 10,000 are beyond it; of ten, fifteen may be due"


_EVENTS = st.lists(st.sampled_from([OPEN, READ, WRITE, CLOSE, RETRY, BEAT, 30, -5, -6]), min_size=1, max_size=60)
_CHANGING, _ = learnt(of((session(4, 2), 300), (session(8, 4), 300), (session(8, 4, beats=9), 300), ([RETRY], 4)))


@given(st.lists(_EVENTS, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_what_is_unusual_on_the_way_stays_so_whatever_else_is_judged(sessions: list[list[int]]) -> None:
    events = np.array([token for each in sessions for token in each], np.int64)
    bounds = np.append(0, np.cumsum([len(each) for each in sessions]))
    judged = _CHANGING.judge(events, bounds)
    for row, each in enumerate(sessions):
        alone = _CHANGING.judge(np.array(each, np.int64), np.array([0, len(each)]))
        running = judged.running[bounds[row] : bounds[row + 1]]
        assert alone.final[0] == judged.final[row] >= running[-1]
        assert (alone.running == running).all()
        assert (np.diff(running) >= 0).all()


def test_an_unknown_line_is_told_at_once_although_others_were_usual_beside_something() -> None:
    sessions = shuffled(of((session(), 2_000), ([*session(), UNK, RETRY], 20), ([*session(), RETRY], 20)))
    profile, _ = learnt(sessions)
    judged = profile.judge(np.array([OPEN, READ, READ, -7, WRITE, CLOSE], np.int64), np.array([0, 6]))
    assert (judged.running > 0).tolist() == [False, False, False, True, True, True]
    assert judged.final[0] >= judged.running[-1]


@pytest.mark.parametrize(("kinds", "each", "alone"), [(1, 40, False), (1, 8_000, False), (40, 1, True)])
def test_a_validation_part_calibrates_alone_where_many_kinds_of_its_sessions_are_new(
    kinds: int, each: int, alone: bool
) -> None:
    """One kind may be there by chance, however many sessions have it."""
    usual = shuffled(of(*((session(beats=beats), 100) for beats in range(20))))
    new = of(
        *((session(3 + kind, 9), each) for kind in range(kinds)),
        *((session(beats=beats), 8) for beats in range(20)),
    )
    found = bound(usual, shuffled(new))
    assert found.alike.counts.sum() == len(new) + (0 if alone else len(usual))
    assert (Evidence.certain(found.alike).levels(np.array([1e-9])) < 2) == alone

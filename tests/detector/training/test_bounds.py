"""What recent traffic may change: no alarm becomes usual in a day, and some things never do by themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detector.scoring.families import Families, Verdict, name_of
from detector.scoring.judge import Judge
from detector.text.vocabulary import Vocabulary
from detector.training.bounds import MOST_USUAL, Bounded, bounded
from detector.training.data import TrainingSessions
from detector.training.set_aside import set_aside
from tests.detector.scoring.stream import CLOSED, COPIED, FAILED, OPENED, READ, VOCABULARY, WRITTEN, stream

SESSIONS, _ = stream(1_500)
LATER = VOCABULARY.merged(Vocabulary(("rollout of <*> done", "warming up <*>")))
ROLLED, WARMED = len(VOCABULARY), len(VOCABULARY) + 1
USUAL = np.array([OPENED, READ, WRITTEN, COPIED, COPIED, COPIED, CLOSED])
FEWER, BROKEN = np.delete(USUAL, 3), np.insert(USUAL, 6, FAILED)
FIRST_DAY = 20_000


@pytest.fixture(scope="module")
def judge() -> Judge:
    found = set_aside(VOCABULARY, TrainingSessions.of(SESSIONS)).judge
    return Judge(found.tolerances.aware_of(range(len(VOCABULARY), len(LATER))), found.families)


def traffic(odd: np.ndarray, share: float, days: int, n: int = 900) -> tuple[TrainingSessions, np.ndarray]:
    """Days of usual sessions, so many of which are an odd one; each has a key of its own."""
    rows = [odd if number % 100 < share * 100 else USUAL for number in range(n)]
    sessions = TrainingSessions.of(rows, None, None, [f"k{number}" for number in range(n)])
    return sessions, FIRST_DAY + np.arange(n) * days // n


def traffic_that_ends(odd: np.ndarray) -> tuple[TrainingSessions, np.ndarray]:
    """Two days on which most sessions are odd ones, and one without any."""
    sessions, days = traffic(odd, 0.9, days=3)
    rows = [USUAL if day == days[-1] else row for row, day in zip(sessions.sequences, days, strict=True)]
    return TrainingSessions.of(rows, None, None, sessions.keys), days


def of(judge: Judge, odd: np.ndarray, share: float, days: int, **more: object) -> Bounded:
    return bounded(*traffic(odd, share, days), judge, LATER, **{"watched": {}, **more})  # type: ignore[arg-type]


def test_what_is_new_is_learnt_from_once_it_was_usual_on_enough_days(judge: Judge) -> None:
    odd = np.append(USUAL, ROLLED)
    one = of(judge, odd, 0.2, days=1)
    assert len(one.sessions) == 720
    assert [(each.name, each.sessions) for each in one.stays] == [(f"+{ROLLED}", 180)]
    assert one.usual == ()
    assert one.watched == {f"+{ROLLED}": ("2024-10-04",)}
    again = of(judge, odd, 0.2, days=1, watched=one.watched)
    assert again.watched == one.watched, "the same day once more is no other day"
    three = of(judge, odd, 0.2, days=3)
    assert len(three.sessions) == 900
    assert [each.name for each in three.usual] == [f"+{ROLLED}"]
    assert "rollout of <*> done" in three.usual[0].words
    assert three.watched == {}


def test_days_add_up_over_adaptations_and_are_forgotten_after_a_month(judge: Judge) -> None:
    odd = np.append(USUAL, ROLLED)
    watched = {f"+{ROLLED}": ("2024-10-01", "2024-10-02")}
    assert of(judge, odd, 0.2, days=1, watched=watched).usual
    long_ago = {f"+{ROLLED}": ("2024-08-01", "2024-08-02")}
    assert not of(judge, odd, 0.2, days=1, watched=long_ago).usual
    assert of(judge, odd, 0.2, days=1, needed_days=1).usual


def test_what_is_not_usual_on_a_day_does_not_count_for_it(judge: Judge) -> None:
    rare = of(judge, np.append(USUAL, ROLLED), 0.02, days=3)
    assert rare.watched == {}
    assert len(rare.held_back) == 18


def test_quiet_days_count_together(judge: Judge) -> None:
    odd = np.append(USUAL, ROLLED)
    of_20, of_60 = (bounded(*traffic(odd, 0.2, days, n=300), judge, LATER, watched={}) for days in (15, 5))
    assert of_20.usual == of_60.usual != ()
    alone = bounded(*traffic(odd, 0.2, days=4, n=80), judge, LATER, watched={})
    assert len(alone.watched[f"+{ROLLED}"]) == 1, "the fourth day waits for more"


def test_a_planned_change_is_usual_at_once(judge: Judge) -> None:
    for days in (1, 90):
        assert of(judge, np.append(USUAL, ROLLED), 0.2, days=days, planned=True).usual


def test_what_the_training_set_aside_stays_an_alarm_until_most_sessions_do_it_for_days(judge: Judge) -> None:
    for odd in (BROKEN, FEWER, np.append(BROKEN, ROLLED)):
        found = of(judge, odd, 0.49, days=9)
        assert len(found.held_back) == 441
        assert found.usual == ()
        assert len(of(judge, odd, 0.49, days=9, planned=True).held_back) == 441
        two = of(judge, odd, 0.6, days=2)
        assert len(two.held_back) == 540
        three = bounded(*traffic(odd, 0.6, days=3), judge, LATER, watched={})
        assert len(three.held_back) == 0
        assert {each.sessions for each in three.usual} == {540}
    # A day more goes on where the days before ended.
    later = of(judge, FEWER, 0.6, days=1, watched={"<6": ("2024-10-02", "2024-10-03")})
    assert [each.name for each in later.usual] == ["<6"]


def test_who_vouches_for_what_most_sessions_do_vouches_for_what_was_set_aside(judge: Judge) -> None:
    found = of(judge, FEWER, 0.6, days=1, planned=True)
    assert len(found.sessions) == 900
    assert [(each.name, each.sessions) for each in found.usual] == [("<6", 540)]
    # What breaks more is another matter, and most have to do it on the last day, not some time before.
    more = TrainingSessions.of([np.append(FEWER, FAILED)] * 20, None, None, [f"m{row}" for row in range(20)])
    sessions, days = traffic(FEWER, 0.6, days=1)
    both = bounded(sessions.joined(more), np.append(days, [days[0]] * 20), judge, LATER, watched={}, planned=True)
    assert len(both.held_back) == 20
    before = bounded(*traffic_that_ends(FEWER), judge, LATER, watched={}, planned=True)
    assert before.usual == ()
    # A verdict says the contrary, and holds.
    told = Judge(judge.tolerances, judge.families.judged("<6", "anomalous", "2026-02-03"))
    assert of(told, FEWER, 0.9, days=9, planned=True).usual == ()


def test_what_breaks_more_than_what_is_usual_now_is_still_an_alarm(judge: Judge) -> None:
    sessions, days = traffic(np.append(USUAL, ROLLED), 0.5, days=3)
    one = TrainingSessions.of([np.append(USUAL, [ROLLED, WARMED])], None, None, ["one"])
    worse = sessions.joined(one)
    found = bounded(worse, np.append(days, FIRST_DAY), judge, LATER, watched={})
    assert [each.name for each in found.stays] == [f"+{ROLLED} +{WARMED}"]
    assert [each.name for each in found.usual] == [f"+{ROLLED}"]


def test_what_is_no_evidence_by_itself_is_none_beside_what_is_usual_now(judge: Judge) -> None:
    accepted = Families(tuple(replace(each, accepted=name_of(each.ways) == "<6") for each in judge.families.all))
    sessions, days = traffic(np.append(USUAL, ROLLED), 0.5, days=3)
    both = sessions.joined(TrainingSessions.of([np.append(FEWER, ROLLED)], None, None, ["one"]))
    for families, held_back in ((judge.families, 1), (accepted, 0)):
        found = bounded(both, np.append(days, FIRST_DAY), Judge(judge.tolerances, families), LATER, watched={})
        assert len(found.held_back) == held_back


def test_verdicts_decide_at_once_and_for_good(judge: Judge) -> None:
    def with_verdict(verdict: Verdict) -> Judge:
        families = judge.families
        for name in (f"+{ROLLED}", "<6"):
            families = families.judged(name, verdict, "2026-02-03")
        return Judge(judge.tolerances, families)

    for odd in (np.append(USUAL, ROLLED), FEWER):
        assert len(of(with_verdict("normal"), odd, 0.2, days=1).sessions) == 900
        assert len(of(with_verdict("anomalous"), odd, 0.2, days=9, planned=True).held_back) == 180


def test_what_was_taken_for_normal_is_learnt_from(judge: Judge) -> None:
    accepted = Families(tuple(replace(each, accepted=True) for each in judge.families.all))
    assert len(of(Judge(judge.tolerances, accepted), FEWER, 0.2, days=1).sessions) == 900


def test_a_key_gives_no_more_than_its_share(judge: Judge) -> None:
    sessions, days = traffic(FEWER, 0.0, days=1)
    keys = ["loud" if number % 2 else f"k{number}" for number in range(900)]
    flood = TrainingSessions.of(sessions.sequences, None, None, keys)
    found = bounded(flood, days, judge, LATER, watched={})
    assert found.of_one_key == 450 - 9
    assert list(found.sessions.keys or ()).count("loud") == 9
    hosts = [f"host{number % 4}" for number in range(900)]
    few = TrainingSessions.of(sessions.sequences, None, [2] * 900, hosts)
    assert bounded(few, days, judge, LATER, watched={}).of_one_key == 0


def test_only_so_many_things_become_usual_at_a_time(judge: Judge) -> None:
    kinds = MOST_USUAL + 10
    many = VOCABULARY.merged(Vocabulary(tuple(f"message of kind {'x' * number}" for number in range(1, kinds + 1))))
    aware = Judge(judge.tolerances.aware_of(range(len(VOCABULARY), len(many))), judge.families)
    rows = [np.append(USUAL, len(VOCABULARY) + number % kinds) for number in range(1_800)]
    sessions = TrainingSessions.of(rows, None, None, [f"k{number}" for number in range(1_800)])
    days = FIRST_DAY + np.arange(1_800) // 20 % 3  # each has its share on none: then nothing is usual
    assert not bounded(sessions, days, aware, many, watched={}).usual
    before = ("2024-10-01", "2024-10-02", "2024-10-03")
    known = {f"+{len(VOCABULARY) + number}": before for number in range(kinds)}
    found = bounded(sessions, days, aware, many, watched=known)
    assert len(found.usual) == MOST_USUAL
    assert len(found.held_back) == 300
    assert len(found.watched) == 10

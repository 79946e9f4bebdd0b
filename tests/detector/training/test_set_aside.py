"""What a training without labels sets aside: what went wrong, by families, in words; and what people say of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detector.scoring.count_vectors import CountVectors
from detector.scoring.judge import ANOMALOUS, SUSPECT, USUAL, Judge, scores
from detector.text.vocabulary import UNK
from detector.training.data import TrainingSessions
from detector.training.set_aside import SetAside, set_aside, set_aside_lines
from tests.detector.scoring.stream import (
    AUDIT,
    CLOSED,
    COPIED,
    FAILED,
    OPENED,
    READ,
    SLOW,
    VOCABULARY,
    WRITTEN,
    stream,
)

SESSIONS, WRONG = stream(2_000)
KEYS = [f"s{row}{'!' * wrong}" for row, wrong in enumerate(WRONG.tolist())]
DATA = TrainingSessions.of(SESSIONS, keys=KEYS)
USUAL_ONE = [OPENED, READ, WRITTEN, COPIED, COPIED, COPIED, CLOSED]
FAMILIES = {
    "+9": [OPENED, READ, WRITTEN, COPIED, COPIED, COPIED, FAILED, CLOSED],
    "<6": [OPENED, READ, WRITTEN, COPIED, COPIED, CLOSED],
    "4>5": [OPENED, READ, READ, WRITTEN, COPIED, COPIED, COPIED, CLOSED],
}


@pytest.fixture(scope="module")
def found() -> SetAside:
    return set_aside(VOCABULARY, DATA.select(np.arange(1_500)), DATA.select(np.arange(1_500, 2_000)))


def standing(judge: Judge, *sessions: list[int]) -> list[int]:
    return judge.standings(CountVectors.of_sequences([np.array(each, np.int64) for each in sessions]))[0].tolist()


def running(judge: Judge, events: list[int]) -> list[bool]:
    return judge.running(np.array(events, np.int64), np.array([0, len(events)])).tolist()


def reason(judge: Judge, events: list[int]) -> str:
    said = judge.reason(np.array(events, np.int64), VOCABULARY)
    return "" if said is None else said.text


def test_what_went_wrong_is_set_aside_and_the_rest_is_learnt_from(found: SetAside) -> None:
    assert found.sessions == 2_000
    assert found.set_aside == WRONG.sum()
    keys = [key for part in found.kept for key in part.keys or ()]
    assert keys == [key for key in KEYS if not key.endswith("!")]
    assert [len(part) for part in found.kept] == [(~WRONG[:1_500]).sum(), (~WRONG[1_500:]).sum()]


def test_each_way_to_go_wrong_is_a_family_with_its_size_and_examples(found: SetAside) -> None:
    families = found.judge.families
    assert [each.name for each in families.all] == ["F1", "F2", "F3"]
    sizes = [each.sessions for each in families.all]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == WRONG.sum()
    for name, session in FAMILIES.items():
        family = families.find(name)
        assert family is not None
        assert 1 <= len(family.examples) <= 3
        for example in family.examples:
            assert example.events == tuple(SESSIONS[KEYS.index(example.key)].tolist())
            assert standing(found.judge, list(example.events)) == standing(found.judge, session) == [SUSPECT]


def test_a_familys_words_say_what_is_odd_and_what_is_usual(found: SetAside) -> None:
    words = {name: family.words for name in FAMILIES if (family := found.judge.families.find(name))}
    assert words["+9"].startswith("failure in <*>: 1 time; ")
    assert words["+9"].endswith(" % of sessions have it.")
    assert words["<6"].startswith("copy of <*> stored: 2 times; ")
    assert words["<6"].endswith(" % of sessions with it have exactly 3.")
    assert words["4>5"].startswith("read <*>: ")
    assert words["4>5"].endswith(" % of sessions with either have as many of both.")


def test_a_sessions_reason_names_its_family_and_the_verdict_on_it(found: SetAside) -> None:
    family = found.judge.families.find("<6")
    assert family is not None
    text = reason(found.judge, FAMILIES["<6"])
    assert text.startswith("copy of <*> stored: 2 times; ")
    assert text.endswith(f" Same as family {family.name} ({family.sessions} sessions set aside), not judged yet.")
    judged = Judge(found.judge.tolerances, found.judge.families.judged("<6", "anomalous", "2026-02-03"))
    assert reason(judged, FAMILIES["<6"]).endswith("set aside), judged anomalous on 2026-02-03.")
    assert reason(found.judge, [*FAMILIES["<6"], UNK]) == (
        "A line that no template matches: 1 time; no session of the training had it. It breaks 1 more tolerance. "
        "The training had no session like it."
    )
    assert reason(found.judge, USUAL_ONE) == ""


def test_verdicts_change_how_sessions_stand_and_can_be_taken_back(found: SetAside) -> None:
    sessions = [*FAMILIES.values(), USUAL_ONE]
    assert standing(found.judge, *sessions) == [SUSPECT, SUSPECT, SUSPECT, USUAL]
    families = found.judge.families.judged("+9", "normal", "2026-02-03").judged("<6", "anomalous", "2026-02-03")
    judge = Judge(found.judge.tolerances, families)
    assert standing(judge, *sessions) == [USUAL, ANOMALOUS, SUSPECT, USUAL]
    assert reason(judge, FAMILIES["+9"]) == ""
    back = Judge(found.judge.tolerances, families.judged("+9", None, "").judged("<6", None, ""))
    assert back.to_json() == found.judge.to_json()


def test_a_family_that_training_had_not_can_be_judged_by_what_it_breaks(found: SetAside) -> None:
    both = [OPENED, READ, WRITTEN, COPIED, COPIED, FAILED, CLOSED]
    said = found.judge.reason(np.array(both, np.int64), VOCABULARY)
    assert said is not None
    judge = Judge(found.judge.tolerances, found.judge.families.judged(said.family, "anomalous", "2026-02-03"))
    assert standing(judge, both) == [ANOMALOUS]
    assert reason(judge, both).endswith("Same as family F4, judged anomalous on 2026-02-03.")
    for unknown in ("F9", "nonsense", "+"):
        with pytest.raises(ValueError, match="no family"):
            found.judge.families.judged(unknown, "normal", "2026-02-03")


def test_beyond_six_in_a_hundred_the_largest_families_are_taken_for_normal_and_that_is_said() -> None:
    # Each fault alone is rare, but there are four of 2.5 %.
    sessions, n = [], 2_000
    for row in range(n):
        pairs = [READ, WRITTEN] * (1 + row % 3)
        odd = [[FAILED], [SLOW], [AUDIT], [UNK]][row % 40] if row % 40 < 4 else []
        sessions.append(np.array([OPENED, *pairs, *odd, COPIED, CLOSED], np.int64))
    found = set_aside(VOCABULARY, TrainingSessions.of(sessions))
    accepted = [each.accepted for each in found.judge.families.all]
    assert accepted == [True, True, False, False]
    assert found.set_aside == 100
    assert len(found.kept[0]) == n - 100
    first = found.judge.families.all[0]
    assert standing(found.judge, list(first.examples[0].events)) == [USUAL]
    lines = list(set_aside_lines(found))
    assert lines[0].startswith("100 of 2,000 sessions (5.0%) were set aside")
    assert lines[1].startswith("more than 6% stood out")
    assert any(line.startswith("  F1: 50, taken for normal. ") for line in lines)
    judged = Judge(found.judge.tolerances, found.judge.families.judged("F1", "anomalous", "2026-02-03"))
    assert standing(judged, list(first.examples[0].events)) == [ANOMALOUS]


def test_normal_sessions_alone_are_all_learnt_from() -> None:
    sessions, _ = stream(1_000, share=0.0)
    found = set_aside(VOCABULARY, TrainingSessions.of(sessions))
    assert len(found.kept[0]) == 1_000
    assert next(set_aside_lines(found)).startswith("none of the 1,000 sessions was set aside")


def test_nothing_that_may_still_come_is_held_against_a_session_that_goes_on(found: SetAside) -> None:
    for session, _ in zip(*stream(300, share=0.0, seed=5), strict=True):
        for length in range(1, len(session) + 1):
            assert not any(running(found.judge, session[:length].tolist()))
    assert not any(running(found.judge, FAMILIES["<6"]))  # a third copy may come
    assert not any(running(found.judge, FAMILIES["4>5"]))  # another write may


def test_what_can_no_longer_be_made_good_is_held_against_it_from_its_event_on(found: SetAside) -> None:
    suspect = running(found.judge, FAMILIES["+9"])
    assert suspect == [event in (FAILED, CLOSED) for event in FAMILIES["+9"]]
    copies = [OPENED, READ, WRITTEN, *[COPIED] * 4, READ]
    assert running(found.judge, copies) == [False] * 6 + [True] * 2


def test_it_is_not_while_the_session_may_be_of_a_family_judged_normal(found: SetAside) -> None:
    judge = Judge(found.judge.tolerances, found.judge.families.judged("+9", "normal", "2026-02-03"))
    suspect = running(judge, [*FAMILIES["+9"], COPIED])
    assert suspect == [False] * 8 + [True]  # with a fourth copy it is another family


def test_scores_keep_to_the_bands_of_their_standing() -> None:
    levels = np.linspace(0, 12, 49)
    one = np.ones(49, np.int64)
    usual, suspect, anomalous = (scores(levels, np.full(49, each, np.int8), one) for each in range(3))
    assert (np.diff(usual) >= 0).all()
    assert usual.max() < 0.7
    for each, low, high in ((suspect, 0.7, 0.95), (anomalous, 0.95, 1 + 1e-9)):
        assert (np.diff(each) > 0).all()
        assert each.min() >= low
        assert each.max() < high
    assert (scores(levels, np.full(49, SUSPECT, np.int8), 5 * one)[1:] < suspect[1:]).all()


def test_tolerances_come_back_from_json_as_they_were(found: SetAside) -> None:
    families = found.judge.families.judged("F1", "anomalous", "2026-02-03").judged("-3 4<5", "normal", "2026-02-04")
    judge = Judge(found.judge.tolerances, families)
    again = Judge.from_json(judge.to_json())
    assert again.to_json() == judge.to_json()
    assert again.families == judge.families
    fresh = stream(500, share=0.5, seed=6)[0]
    vectors = CountVectors.of_sequences(fresh)
    np.testing.assert_array_equal(again.standings(vectors)[0], judge.standings(vectors)[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ((b"{", b""), "JSON"),
        ((b'"sessions":2000', b'"sessions":0'), "sessions"),
        ((b'"schema":"logmamba.tolerances/1"', b'"schema":"logmamba.tolerances/9"'), "schema"),
        ((b'"breaks":"+9"', b'"breaks":"9"'), "neither F and a number"),
        ((b'"set_aside":[', b'"set_aside":[1,'), "differ in length"),
        ((b'"name":"F2"', b'"name":"F1"'), "one name"),
        ((b'"verdict":null', b'"verdict":"odd"'), "verdict"),
        ((b'"families"', b'"odd":1,"families"'), "odd"),
    ],
)
def test_damaged_tolerances_are_refused_with_what_is_wrong(
    found: SetAside, damage: tuple[bytes, bytes], message: str
) -> None:
    data = found.judge.to_json()
    assert damage[0] in data
    with pytest.raises(ValueError, match=message):
        Judge.from_json(data.replace(*damage, 1))


def test_sessions_that_stand_for_several_weigh_as_these() -> None:
    merged = DATA.distinct()
    assert len(merged) < len(DATA)
    one, other = (set_aside(VOCABULARY, each).judge for each in (DATA, merged))
    assert one.to_json() == other.to_json()
    twice = set_aside(VOCABULARY, replace(merged, counts=2 * merged.counts))
    assert twice.set_aside == 2 * WRONG.sum()

"""Which sessions a verdict is about: those that break the same, or have the same counts."""

from __future__ import annotations

import numpy as np
import pytest

from detector.scoring.families import Families
from detector.scoring.judge import Judge
from detector.scoring.learning import learn
from detector.scoring.session_pattern import MOST_PARTS, SessionPatterns, events_of, is_pattern, may_become
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary

VOCABULARY = Vocabulary(tuple(f"<*> {word}" for word in ("open", "read", "odd", "close", "late", "burst")))
OPEN, READ, ODD, CLOSE, LATE, BURST = range(N_SPECIAL, N_SPECIAL + 6)
PLAIN = SessionPatterns(VOCABULARY, None)


def tokens(*each: int) -> np.ndarray:
    return np.array(each, np.int64)


@pytest.fixture(scope="module")
def judged() -> SessionPatterns:
    """Of sessions that open, read once to three times and close; few have anything else."""
    sessions = [tokens(OPEN, *[READ] * (1 + at % 3), CLOSE) for at in range(200)]
    sessions += [tokens(OPEN, READ, ODD, CLOSE), tokens(OPEN, READ, LATE, CLOSE)]
    tolerances = learn(sessions, np.ones(len(sessions), np.int64))
    return SessionPatterns(VOCABULARY, Judge(tolerances, Families()))


def test_without_tolerances_a_pattern_is_how_often_each_template_comes_in_whatever_order() -> None:
    pattern = PLAIN.of(tokens(OPEN, READ, READ, CLOSE))
    assert PLAIN.of(tokens(READ, OPEN, CLOSE, READ)) == pattern
    assert PLAIN.of(tokens(OPEN, READ, CLOSE)) != pattern
    assert (is_pattern(pattern), events_of(pattern)) == (True, 4)


def test_with_tolerances_it_is_what_the_session_breaks_whatever_it_has_besides(judged: SessionPatterns) -> None:
    pattern = judged.of(tokens(OPEN, READ, ODD, CLOSE))
    assert pattern.startswith("breaks ")
    assert is_pattern(pattern)
    assert judged.of(tokens(OPEN, READ, ODD, READ, CLOSE)) == pattern
    assert judged.of(tokens(OPEN, READ, LATE, CLOSE)) != pattern
    assert judged.of(tokens(OPEN, READ, ODD, LATE, CLOSE)) != pattern, "it is late as well"
    assert judged.of(tokens(OPEN, READ, CLOSE)) == PLAIN.of(tokens(OPEN, READ, CLOSE)), "it breaks nothing"


def test_a_pattern_means_the_same_whatever_numbers_a_vocabulary_gives() -> None:
    turned = SessionPatterns(Vocabulary(tuple(reversed(VOCABULARY.templates))), None)
    assert turned.of(tokens(BURST, LATE)) == PLAIN.of(tokens(OPEN, READ))


@pytest.mark.parametrize("with_tolerances", [False, True])
def test_a_session_has_none_where_unknown_lines_are_part_of_it_until_they_have_a_template(
    judged: SessionPatterns, with_tolerances: bool
) -> None:
    of = judged if with_tolerances else PLAIN
    for unknown in (VOCABULARY.sketch("read it is not"), UNK):
        events = tokens(OPEN, READ, CLOSE, unknown)
        assert of.of(events) is None
        assert not may_become(of.so_far(events), of.of(tokens(OPEN, READ, ODD, CLOSE)) or "")
    added = VOCABULARY.merged(Vocabulary(("<*> is not",)))
    grown = SessionPatterns(added, of._judge)
    assert is_pattern(grown.of(tokens(OPEN, READ, CLOSE, len(added) - 1)) or "")


@pytest.mark.parametrize("with_tolerances", [False, True])
def test_a_session_may_become_one_of_a_pattern_until_it_has_what_that_does_not(
    judged: SessionPatterns, with_tolerances: bool
) -> None:
    of = judged if with_tolerances else PLAIN
    whole = tokens(OPEN, READ, ODD, CLOSE)
    pattern = of.of(whole)
    for events in range(1, 5):
        assert may_become(of.so_far(whole[:events]), pattern)
    assert not may_become(of.so_far(tokens(OPEN, READ, ODD, LATE)), pattern)
    assert not may_become(PLAIN.so_far(tokens(OPEN, READ, READ)), PLAIN.of(whole))


def test_what_has_very_many_templates_has_a_short_pattern_all_the_same() -> None:
    many = Vocabulary(tuple(f"<*> {chr(97 + at // 26)}{chr(97 + at % 26)}" for at in range(2 * MOST_PARTS)))
    of, events = SessionPatterns(many, None), np.arange(N_SPECIAL, N_SPECIAL + 2 * MOST_PARTS)
    pattern = of.of(events)
    assert len(pattern) < 60
    assert (is_pattern(pattern), events_of(pattern)) == (True, len(events))
    assert of.of(events[::-1].copy()) == pattern
    assert of.of(np.append(events, events[0])) != pattern
    assert not may_become(of.so_far(events[:3]), pattern)


@pytest.mark.parametrize(
    "text", ["", "counts", "counts ", "F1", "breaks -5", "counts 0123456789ab ", "sets 0123456789ab"]
)
def test_what_is_no_pattern_is_known_as_none(text: str) -> None:
    assert not is_pattern(text)

"""Tolerances learnt anew where something has changed: the others stay as they were, to the last digit."""

from __future__ import annotations

import numpy as np
import pytest

from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Way
from detector.scoring.learning import learn
from detector.scoring.relearning import relearnt
from detector.scoring.tolerances import Tolerances
from detector.text.vocabulary import UNK
from tests.detector.scoring.stream import AUDIT, CLOSED, COPIED, FAILED, READ, SLOW, VOCABULARY, WRITTEN, stream

STORED = len(VOCABULARY)
SESSIONS, _ = stream(2_000, share=0.05, seed=1)
REWORDED = {Way("missing", COPIED, 0), Way("rare", STORED, 0)}
FRESH, ODD = stream(1_000, share=0.1, seed=3)


def reworded(sessions: list[np.ndarray]) -> list[np.ndarray]:
    return [np.where(events == COPIED, STORED, events) for events in sessions]


def learnt_from(sessions: list[np.ndarray]) -> Tolerances:
    return learn(sessions, np.ones(len(sessions), np.int64))


def evidence(tolerances: Tolerances, sessions: list[np.ndarray]) -> np.ndarray:
    return tolerances.judge(CountVectors.of_sequences(sessions)).evidence


@pytest.fixture(scope="module")
def before() -> Tolerances:
    return learnt_from(SESSIONS).aware_of([STORED])


@pytest.fixture(scope="module")
def both() -> Tolerances:
    """Of later sessions as well, which say it in other words and never fail."""
    later, _ = stream(5_000, share=0.05, seed=2)
    return learnt_from([*SESSIONS, *reworded([each for each in later if FAILED not in each])])


def test_what_has_changed_is_usual_and_what_breaks_the_rest_has_the_evidence_it_had(
    before: Tolerances, both: Tolerances
) -> None:
    found = relearnt(before, both, REWORDED)
    assert (evidence(before, reworded(FRESH)) > 0).all()
    assert not evidence(found, reworded([each for each, odd in zip(FRESH, ODD, strict=True) if not odd])).any()
    others = [each for each, odd in zip(FRESH, ODD, strict=True) if odd and (each == COPIED).sum() == 3]
    assert ((evidence(found, reworded(others)) > 0) == (evidence(before, others) > 0)).all()
    np.testing.assert_array_equal(evidence(found, others), evidence(before, others))


def test_numbers_of_what_has_not_changed_stay(before: Tolerances, both: Tolerances) -> None:
    found = relearnt(before, both, REWORDED)
    for token in (READ, WRITTEN, AUDIT, SLOW, FAILED, CLOSED):
        np.testing.assert_array_equal(*(each.histogram[each.histogram[:, 0] == token] for each in (before, found)))
        assert found.share_with(token) == before.share_with(token)
    assert before.share_with(FAILED) > 1.5 * both.share_with(FAILED)
    assert found.relation(READ, WRITTEN) == before.relation(READ, WRITTEN)
    assert found.sessions == before.sessions


def test_numbers_of_what_has_changed_are_the_new_ones_of_as_many_sessions(before: Tolerances, both: Tolerances) -> None:
    found = relearnt(before, both, REWORDED)
    for token in (COPIED, STORED):
        assert found.share_with(token) == pytest.approx(both.share_with(token), abs=0.5 / before.sessions)
    assert (found.histogram[:, 2] >= 0).all()


def test_a_relation_that_has_changed_is_held_to_no_more(before: Tolerances, both: Tolerances) -> None:
    uneven = [np.append(each, np.full(row % 4, READ)) for row, each in enumerate(SESSIONS)]
    found = relearnt(before, learnt_from([*SESSIONS, *uneven]), {Way("above", READ, WRITTEN)})
    one_more = [np.append(each, READ) for each, odd in zip(FRESH, ODD, strict=True) if not odd]
    assert (evidence(before, one_more) > 0).all()
    assert (evidence(found, one_more) > 0).mean() < 0.1


def test_a_token_that_was_no_more_than_unknown_is_learnt_once_unknown_ones_may_come(both: Tolerances) -> None:
    before = learnt_from(SESSIONS)
    usual = reworded([each for each, odd in zip(FRESH, ODD, strict=True) if not odd])
    for changed, found in (({Way("missing", COPIED, 0), Way("rare", UNK, 0)}, 0.0), ({Way("missing", COPIED, 0)}, 1.0)):
        assert (evidence(relearnt(before, both, changed), usual) > 0).mean() == found


def test_where_nothing_has_changed_all_stays(before: Tolerances, both: Tolerances) -> None:
    found = relearnt(before, both, ())
    for name in ("histogram", "contexts", "after", "before", "relations", "set_aside", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(before, name), name)

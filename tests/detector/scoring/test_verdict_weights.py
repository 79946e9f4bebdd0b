"""What verdicts on sessions teach: those like them are scored so, others stay as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.checkpoint import load, save
from detector.errors import CheckpointError
from detector.scoring.verdict_weights import VerdictWeights
from tests.detector.small_models import CALIBRATION, PROFILE, RECORD, VOCABULARY, random_model

OPENED, READ, CLOSED, FAILED, SLOW, HALTED = 3, 4, 5, 6, 7, 8
USUAL = [OPENED, READ, READ, CLOSED]
ALARM = 0.75


def sessions(*events: list[int]) -> list[np.ndarray]:
    return [np.array(each, np.int64) for each in events]


def fitted(*judged: tuple[list[int], bool]) -> VerdictWeights:
    """By verdicts on alarms, beside a hundred usual sessions."""
    events, wrong = zip(*judged, strict=True)
    n = len(judged)
    usual = sessions(USUAL), np.array([100.0]), np.array([0.1])
    return VerdictWeights.fit(sessions(*events), np.array(wrong), np.ones(n), np.full(n, ALARM), usual)


def shifted(weights: VerdictWeights, events: list[int], score: float = ALARM) -> float:
    [found] = weights.shifted(np.array([score]), np.array(events, np.int64), np.array([0, len(events)]))
    return float(found)


def test_one_normal_verdict_ends_the_alarms_of_sessions_like_it_and_of_no_others() -> None:
    weights = fitted(([OPENED, READ, READ, SLOW, CLOSED], False))
    assert shifted(weights, [OPENED, READ, READ, SLOW, CLOSED]) < 0.5
    assert shifted(weights, [OPENED, SLOW, READ, CLOSED]) < 0.5
    assert shifted(weights, [OPENED, READ, FAILED, CLOSED]) == pytest.approx(ALARM, abs=0.06)
    assert shifted(weights, USUAL, 0.1) == pytest.approx(0.1, abs=0.02)


def test_verdicts_of_both_kinds_tell_what_comes_last() -> None:
    """Windows over a log are as bad as their newest line, whatever else they hold."""
    weights = fitted(*[([FAILED, READ, READ], False), ([READ, READ, FAILED], True)] * 10)
    assert shifted(weights, [READ, OPENED, FAILED]) > 0.95
    assert shifted(weights, [FAILED, OPENED, READ]) < 0.3


def test_what_a_session_lacks_counts_where_most_have_it() -> None:
    weights = fitted(([OPENED, READ, READ], True), ([OPENED, READ, READ], True))
    assert shifted(weights, [OPENED, READ]) > 0.9
    assert shifted(weights, USUAL, 0.1) < 0.15


def test_early_scores_are_lowered_by_what_is_normal_and_never_raised() -> None:
    weights = fitted(([OPENED, SLOW, CLOSED], False), ([OPENED, FAILED, CLOSED], True))
    events, bounds = np.array([OPENED, SLOW, OPENED, FAILED], np.int64), np.array([0, 2, 4])
    before = np.array([0.1, ALARM, 0.1, ALARM])
    after = weights.lowered(before, events, bounds)
    assert after[1] < 0.6
    assert after[3] == pytest.approx(ALARM)
    assert (after <= before + 1e-9).all()


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    weights = fitted(([OPENED, READ, SLOW, CLOSED], False), ([OPENED, FAILED], True))
    some = sessions([OPENED, SLOW], [FAILED, OPENED, -5], [CLOSED] * 12, [], USUAL)
    bounds = np.append(0, np.cumsum([len(each) for each in some]))
    together = weights.shifted(np.full(len(some), ALARM), np.concatenate(some), bounds)
    assert together.tolist() == [shifted(weights, each.tolist()) for each in some]
    early = weights.lowered(np.full(bounds[-1], ALARM), np.concatenate(some), bounds)
    alone = [weights.lowered(np.full(len(each), ALARM), each, np.array([0, len(each)])) for each in some]
    assert early.tolist() == np.concatenate(alone).tolist()


def test_a_checkpoint_keeps_them_and_refuses_what_are_none(tmp_path: Path) -> None:
    def save_with(features: list[int], name: str) -> Path:
        weights = VerdictWeights(np.array([5, 9]), np.array([0.5, -1.5]))
        weights.features = np.array(features)
        save(
            tmp_path / name,
            model=random_model(),
            vocabulary=VOCABULARY,
            profile=PROFILE,
            calibration=CALIBRATION,
            training=RECORD,
            verdict_weights=weights,
        )
        return tmp_path / name

    found = load(save_with([5, 9], "right")).verdict_weights
    assert found is not None
    assert (found.features.tolist(), found.weights.tolist()) == ([5, 9], [0.5, -1.5])
    with pytest.raises(CheckpointError, match="features are out of order"):
        load(save_with([9, 5], "wrong"))

"""An evaluation of sessions: what it counts, how often, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from detector.quality.baselines import BASELINES
from detector.quality.evaluation import EvaluatedSessions, Evaluation, SequenceScores, evaluate
from detector.quality.metrics import Detection
from detector.quality.operating_points import BEST
from detector.text.vocabulary import N_SPECIAL, UNK

THRESHOLDS = {"warning": 0.7, "critical": 0.95}
SIZE = N_SPECIAL + 3
A, B, C = range(N_SPECIAL, SIZE)

# Score, events and label of each distinct sequence. C occurs in anomalous sessions only.
SEQUENCES = [
    (0.02, [A, B], 0),
    (0.10, [A, B, B], 0),
    (0.75, [A, A, B], 0),
    (0.30, [A, C], 1),
    (0.80, [C, B], 1),
    (0.99, [C, C, A, B], 1),
]
SCORES = SequenceScores(
    final=np.array([score for score, _, _ in SEQUENCES]),
    crossed={"warning": np.array([0, 0, 3, 0, 2, 1]), "critical": np.array([0, 0, 0, 0, 0, 2])},
)


def sessions(
    sequence: Sequence[int], key: Sequence[int] | None = None, counts: Sequence[int] = ()
) -> EvaluatedSessions:
    return EvaluatedSessions(
        sequences=[np.array(events, np.int64) for _, events, _ in SEQUENCES],
        sequence=np.array(sequence),
        key=np.arange(len(sequence)) if key is None else np.array(key),
        labels=np.array([SEQUENCES[index][2] for index in sequence], np.int8),
        counts=np.array(counts or [1] * len(sequence)),
    )


SOME = sessions([0] * 8 + [1] * 4 + [2] * 2 + [3, 4, 4, 5, 5, 5])


def found(read: EvaluatedSessions, normal_weight: float = 1.0) -> Evaluation:
    return evaluate(read, SCORES, thresholds=THRESHOLDS, vocabulary_size=SIZE, normal_weight=normal_weight, seed=3)


@cache
def found_in_some(normal_weight: float = 1.0) -> Evaluation:
    """Of `SOME`; the baselines take most of a test's time."""
    return found(SOME, normal_weight)


@pytest.mark.parametrize("normal_weight", [1.0, 13.7])
def test_figures_at_the_thresholds_are_those_of_the_alerts(normal_weight: float) -> None:
    evaluation = found_in_some(normal_weight)
    assert evaluation.labelled is not None
    anomalous = SOME.labels == 1
    weights = np.where(anomalous, 1.0, normal_weight)
    for severity, threshold in THRESHOLDS.items():
        point = evaluation.labelled.by_session.operating[severity]
        expected = Detection.at(threshold, SCORES.final[SOME.sequence], anomalous, weights)
        assert Detection(point.precision.value, point.recall.value, point.f1.value) == expected
        for estimate in (point.precision, point.recall, point.f1):
            assert estimate.low <= estimate.value <= estimate.high
    operating = evaluation.labelled.by_session.operating
    assert (operating["warning"].misses, operating["warning"].false_alarms) == (1, 2)
    assert (operating["critical"].misses, operating["critical"].false_alarms) == (3, 0)
    assert operating[BEST].f1.value >= operating["warning"].f1.value


def test_a_row_that_stands_for_several_sessions_gives_the_same_figures_as_these() -> None:
    merged = found(sessions(range(6), counts=[8, 4, 2, 1, 2, 3]))
    single = found_in_some()
    assert merged.labelled is not None
    assert single.labelled is not None
    assert merged.sessions == single.sessions == {"normal": 14, "anomalous": 6}
    assert merged.events == single.events == 8 * 2 + 4 * 3 + 2 * 3 + 2 + 2 * 2 + 3 * 4
    assert merged.alerts == single.alerts
    assert merged.histogram == single.histogram
    assert merged.labelled.by_session == single.labelled.by_session
    assert merged.labelled.delay == single.labelled.delay
    assert merged.labelled.curves == single.labelled.curves


def test_a_key_counts_once_with_the_highest_score_of_its_sessions() -> None:
    # Highest scores: 0.02, 0.75; 0.80, 0.99, 0.99. The highest is not always the last.
    read = sessions([0, 0, 2, 0, 4, 3, 5, 4, 5, 5], key=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    labelled = found(read).labelled
    assert labelled is not None
    assert labelled.by_key is not None
    warning, critical = (labelled.by_key.operating[severity] for severity in THRESHOLDS)
    assert (warning.misses, warning.false_alarms, warning.precision.value) == (0, 1, 0.75)
    assert (critical.misses, critical.false_alarms) == (1, 0)
    single = found_in_some().labelled
    assert single is not None
    assert single.by_key is None


def test_sessions_without_a_label_are_counted_and_judged_by_nothing() -> None:
    extra = sessions([0] * 8 + [1] * 4 + [2] * 2 + [3, 4, 4, 5, 5, 5] + [0, 5])
    labels = extra.labels.copy()
    labels[-2:] = -1
    some, more = found_in_some(), found(replace(extra, labels=labels))
    assert more.sessions == {**some.sessions, "unlabelled": 2}
    assert more.alerts["critical"]["unlabelled"] == 0.5
    assert more.labelled == some.labelled


def test_events_that_no_template_matches_are_counted() -> None:
    read = sessions([0, 0, 1])
    sequences = [np.array([UNK, A, -77], np.int64), *read.sequences[1:]]
    assert (found(replace(read, sequences=sequences)).unknown_events, found(read).unknown_events) == (4, 0)


def test_labels_of_one_kind_tell_nothing_about_misses_and_false_alarms() -> None:
    evaluation = found(sessions([0, 0, 1, 2]))
    assert evaluation.labelled is None
    assert evaluation.alerts == {"warning": {"normal": 0.25}, "critical": {"normal": 0.0}}


def test_every_baseline_stands_beside_the_model() -> None:
    labelled = found_in_some(13.7).labelled
    assert labelled is not None
    assert [each.name for each in labelled.baselines] == list(BASELINES)
    by_name = {each.name: each.quality for each in labelled.baselines}
    # C alone tells the labels apart.
    assert by_name["logistic regression"].auprc.value == 1.0
    # [A, A, B] comes twice among the normal sessions, and always in the same fold's or the others' part.
    assert by_name["count-vector novelty"].operating["own"].misses == 0


def test_a_single_anomalous_key_leaves_no_other_to_learn_from() -> None:
    labelled = found(sessions([0, 0, 1, 1, 2, 5])).labelled
    assert labelled is not None
    assert labelled.baselines == []
    assert labelled.by_session.auroc.value == 1.0

"""What `benchmarks.accuracy` makes of scores."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.early import early_detection
from benchmarks.accuracy.measures import describe, measure, mistakes, thresholds
from detector.scoring.scores import EventScores
from tests.benchmarks.sessions import part, task

NOTHING = part([[3]], [0])


def chosen(at: list[tuple[float, int, int]], operating: float, normal_weight: float = 1.0) -> float:
    """The validation threshold where so many sessions, (score, label, sessions), have counts of their own."""
    rows = [(score, label) for score, label, n in at for _ in range(n)]
    sequences = [[3] * (number + 1) for number in range(len(rows))]
    validation = part(sequences, [label for _, label in rows], normal_weight=normal_weight)
    scores = np.array([score for score, _ in rows])
    return thresholds(task(NOTHING, validation, NOTHING), scores, {"fixed": operating, "higher": 0.99})["validation"]


@pytest.mark.parametrize("gap", [(0.1, 0.9), (0.69, 0.71), (0.0, 0.7)])
def test_with_labels_the_operating_threshold_stays_where_it_separates_validation(gap: tuple[float, float]) -> None:
    assert chosen([(gap[0], 0, 20), (gap[1], 1, 20)], 0.7) == 0.7


def test_with_labels_the_operating_threshold_moves_no_further_than_where_validation_is_as_good_as_at_its_best() -> None:
    assert chosen([(0.1, 0, 20), (0.3, 1, 20)], 0.7) == 0.3
    assert chosen([(0.8, 0, 20), (0.9, 1, 20)], 0.7) == np.nextafter(0.8, 1)


@pytest.mark.parametrize("label", [0, 1])
def test_validation_sessions_that_chance_could_have_left_out_move_no_threshold(label: int) -> None:
    where = 0.75 if label == 0 else 0.65
    few, many = (chosen([(0.1, 0, 50), (where, label, n), (0.9, 1, 50)], 0.7) for n in (2, 8))
    assert few == 0.7
    assert many == (np.nextafter(0.75, 1) if label == 0 else 0.65)


def test_equal_counts_move_the_threshold_no_further_for_being_many() -> None:
    sequences = [[3] * (row + 1) for row in range(40)] + [[4]] * 8
    validation = part(sequences, [0] * 20 + [1] * 28, counts=[1] * 40 + [100] * 8)
    scores = np.array([0.1] * 20 + [0.9] * 20 + [0.5] * 8)
    assert thresholds(task(NOTHING, validation, NOTHING), scores, {"fixed": 0.7})["validation"] == 0.7


def test_the_threshold_of_validation_heeds_natural_prevalence() -> None:
    mixed = [(0.1, 0, 10), (0.5, 0, 10), (0.4, 1, 10), (0.9, 1, 10)]
    assert chosen(mixed, 0.3, normal_weight=0.01) == 0.3
    assert chosen(mixed, 0.3, normal_weight=10.0) == np.nextafter(0.5, 1)


def test_without_labels_at_most_the_rest_of_the_validation_sessions_reach_a_percentile() -> None:
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    validation = part([[3]] * 4, [0] * 4, counts=[995, 3, 1, 1])
    found = thresholds(task(NOTHING, validation, NOTHING, labelled=False), scores, {})
    assert found == {"p99.5": np.nextafter(0.0, 1), "p99.9": np.nextafter(2.0, 3)}


def test_f1_weighs_as_at_natural_prevalence_while_mistakes_are_counted_in_sessions() -> None:
    test = part([[3], [4], [5], [6]], [0, 0, 1, 1], counts=[5, 2, 3, 4], normal_weight=10.0)
    figures = measure(task(NOTHING, NOTHING, test), np.array([0.1, 0.8, 0.9, 0.2]), {"fixed": 0.5})["sessions"]
    at = figures["at"]["fixed"]  # type: ignore[index]
    assert (at["false_alarms"], at["misses"]) == (2, 4)
    assert at["precision"] == pytest.approx(3 / (3 + 20))
    assert at["recall"] == pytest.approx(3 / 7)


def test_unseen_leaves_out_test_sessions_whose_sequence_is_in_the_training_part() -> None:
    test = part([[3], [3, 4], [4, 3], [5]], [0, 0, 1, 1])
    learnt = task(part([[3], [3, 4]], [0, 0]), NOTHING, test)
    figures = measure(learnt, np.array([0.9, 0.1, 0.8, 0.7]), {"fixed": 0.5})
    assert (figures["unseen"]["normal"], figures["unseen"]["anomalous"]) == (0, 2)
    assert (figures["sessions"]["normal"], figures["sessions"]["anomalous"]) == (2, 2)


def test_each_event_count_vector_of_a_label_weighs_the_same() -> None:
    # Three sessions of one vector are found, the one of the other is not.
    test = part([[3, 4], [4, 3], [3, 4], [5], [6]], [1, 1, 1, 1, 0], counts=[7, 1, 1, 1, 9], normal_weight=13.0)
    figures = measure(task(NOTHING, NOTHING, test), np.array([0.9, 0.9, 0.9, 0.1, 0.0]), {"fixed": 0.5})
    assert figures["vectors"]["at"]["fixed"]["recall"] == pytest.approx(0.5)  # type: ignore[index]
    assert figures["vectors"]["at"]["best"]["precision"] == pytest.approx(1.0)  # type: ignore[index]


def test_a_part_with_one_kind_of_sessions_has_sizes_but_no_figures() -> None:
    figures = measure(task(NOTHING, NOTHING, part([[3], [4]], [0, 0])), np.array([0.1, 0.2]), {"fixed": 0.5})
    assert figures["sessions"] == {"normal": 2, "anomalous": 0}


def test_the_share_of_test_sessions_that_training_has_too_counts_each_as_often_as_it_occurs() -> None:
    test = part([[3, 4], [4, 3], [5]], [0, 0, 1], counts=[3, 1, 2])
    described = describe(task(part([[3, 4]], [0]), NOTHING, test))
    assert described["repeated"] == {
        "normal, sequence": 0.75,
        "anomalous, sequence": 0.0,
        "normal, count vector": 1.0,
        "anomalous, count vector": 0.0,
    }


def test_mistakes_name_the_worst_first() -> None:
    test = part([[3]] * 5, [0, 0, 1, 1, 1])
    assert mistakes(test, np.array([0.6, 0.9, 0.4, 0.1, 0.5]), 0.5) == {
        "misses": ["s3", "s2"],
        "false_alarms": ["s1", "s0"],
    }


def scores(events: list[float], final: float) -> EventScores:
    array = np.array(events, np.float32)
    return EventScores(surprises=array, scores=array, final=final)


def test_a_session_is_flagged_early_only_if_its_score_is_reached_before_its_last_event() -> None:
    test = part([[3] * 4] * 4, [1, 1, 1, 0])
    found = early_detection(
        test,
        [
            scores([0.0, 0.8, 0.8, 0.8], 0.9),
            scores([0.0, 0.0, 0.0, 0.8], 0.9),
            scores([0.0, 0.0, 0.0, 0.0], 0.9),
            scores([0.0, 0.0, 0.8, 0.8], 0.1),
        ],
        0.7,
    )
    assert found.flagged == pytest.approx(1 / 3)
    assert found.median_delay == 1.0
    assert found.final_precision == 1.0
    assert found.precision == pytest.approx(3 / 4)


def test_the_delay_is_the_share_of_the_events_until_the_alert() -> None:
    found = early_detection(part([[3] * 4], [1]), [scores([0.0, 0.8, 0.9, 0.9], 0.9)], 0.7)
    assert found.median_delay == 0.5


def test_without_an_alert_there_is_no_delay_and_no_precision() -> None:
    found = early_detection(part([[3] * 2], [1]), [scores([0.0, 0.1], 0.1)], 0.7)
    assert (found.flagged, found.median_delay, found.precision) == (0.0, None, 0.0)

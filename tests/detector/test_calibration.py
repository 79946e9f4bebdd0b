"""Scores mean the same for every model: shares of normal sessions without labels, probabilities with them."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.calibration import (
    MAX_LEVEL,
    Calibration,
    Combination,
    Floats,
    SessionStatistics,
    Tail,
)


def statistics(
    highest: Floats,
    logits: Floats | None = None,
    anomalous: np.ndarray | None = None,
    counts: Floats | None = None,
) -> SessionStatistics:
    n = len(highest)
    logits = np.zeros(n) if logits is None else logits
    return SessionStatistics(
        highest=highest,
        logits=logits,
        early_highest=highest,
        early_logits=logits,
        labels=np.zeros(n, dtype=np.int8) if anomalous is None else anomalous.astype(np.int8),
        counts=np.ones(n) if counts is None else counts,
    )


def sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_without_labels_07_is_passed_by_1_percent_of_fresh_normals_and_095_by_1_in_1000(scale: float) -> None:
    rng = np.random.default_rng(3)
    held_out, fresh = (scale * rng.gamma(2.0, 1.0, size) for size in (5_000, 400_000))
    calibration = Calibration.fit(statistics(held_out), classifier=False)
    scores = calibration.final_scores(fresh, np.zeros(len(fresh)))
    assert 0.007 < (scores >= 0.7).mean() < 0.0135
    assert 0.0005 < (scores >= 0.95).mean() < 0.0016


def test_repeated_normal_sessions_weigh_as_their_counts_say() -> None:
    rng = np.random.default_rng(4)
    values = np.round(rng.gamma(2.0, 1.0, 3_000), 1)
    distinct, counts = np.unique(values, return_counts=True)
    one_by_one = Tail.fit(values, np.ones(len(values)))
    counted = Tail.fit(distinct, counts.astype(float))
    assert counted == one_by_one


@pytest.mark.parametrize("values", [[2.0], [2.0] * 500, [0.0] * 300 + [9.0]])
def test_a_tail_of_few_or_equal_values_is_still_an_increasing_map(values: list[float]) -> None:
    tail = Tail.fit(np.array(values), np.ones(len(values)))
    levels = tail.level(np.linspace(0.0, 40.0, 200))
    assert (np.diff(levels) >= 0).all()
    assert levels[0] < 2.0
    assert levels[-1] == MAX_LEVEL


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 60), min_size=1, max_size=80),
    st.lists(st.floats(0, 500), min_size=1, max_size=40),
    st.data(),
)
def test_scores_rise_with_surprise_stay_in_0_1_and_ignore_their_neighbours(
    normals: list[float], surprises: list[float], data: st.DataObject
) -> None:
    calibration = Calibration.fit(statistics(np.array(normals)), classifier=False)
    highest = np.sort(np.array(surprises))
    logits = np.zeros(len(highest))
    scores = calibration.final_scores(highest, logits)
    assert (scores >= 0).all()
    assert (scores <= 1).all()
    assert (np.diff(scores) >= 0).all()
    chosen = data.draw(st.lists(st.integers(0, len(highest) - 1), min_size=1))
    assert (calibration.final_scores(highest[chosen], logits[chosen]) == scores[chosen]).all()


def test_with_labels_the_score_is_the_probability_of_an_anomaly() -> None:
    rng = np.random.default_rng(5)
    n = 200_000
    anomalous = rng.random(n) < 0.2
    logits = rng.normal(np.where(anomalous, 1.5, -1.5), 2.0)
    highest = rng.gamma(2.0, np.where(anomalous, 1.4, 1.0))
    fitted = Calibration.fit(statistics(highest[:20_000], logits[:20_000], anomalous[:20_000]), classifier=True)
    scores = fitted.final_scores(highest, logits)
    for low in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        chosen = (scores >= low) & (scores < low + 0.1)
        assert anomalous[chosen].mean() == pytest.approx(scores[chosen].mean(), abs=0.03)


def test_sessions_of_unknown_label_shape_the_tail_but_not_the_regression() -> None:
    rng = np.random.default_rng(10)
    labels = np.repeat([0, 1, -1], 500).astype(np.int8)
    logits = rng.normal(np.where(labels == 1, 2.0, -2.0), 1.0)
    highest = rng.gamma(2.0, 1.0, 1_500)
    whole = SessionStatistics(highest, logits, highest, logits, labels, np.ones(1_500))
    calibration = Calibration.fit(whole, classifier=True)
    assert calibration.tail == Tail.fit(highest[labels != 1], np.ones(1_000))
    known = labels >= 0
    levels = calibration.tail.level(highest[known])
    assert calibration.final == Combination.fit(logits[known], levels, labels[known] == 1, np.ones(1_000))


def test_both_statistics_raise_the_score_when_both_tell() -> None:
    rng = np.random.default_rng(6)
    truth = rng.normal(size=(4_000, 2))
    anomalous = rng.random(4_000) < sigmoid(2 * truth[:, 0] + truth[:, 1] - 1)
    combination = Combination.fit(truth[:, 0], truth[:, 1], anomalous, np.ones(4_000))
    assert combination.logit_weight == pytest.approx(2.0, abs=0.3)
    assert combination.level_weight == pytest.approx(1.0, abs=0.2)
    assert combination.bias == pytest.approx(-1.0, abs=0.2)


def test_a_statistic_that_points_the_wrong_way_gets_no_weight() -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(4_000, 2))
    anomalous = rng.random(4_000) < sigmoid(2 * truth[:, 0] - 3 * truth[:, 1])
    combination = Combination.fit(truth[:, 0], truth[:, 1], anomalous, np.ones(4_000))
    assert combination.level_weight == 0.0
    assert combination.logit_weight > 0.5
    backwards = Combination.fit(-truth[:, 0], truth[:, 1], anomalous, np.ones(4_000))
    assert (backwards.logit_weight, backwards.level_weight) == (0.0, 0.0)
    assert sigmoid(np.array(backwards.bias)) == pytest.approx(anomalous.mean(), abs=0.01)


def test_perfectly_separated_sessions_give_finite_weights_and_the_right_side() -> None:
    logits = np.concatenate([np.full(900, -9.0), np.full(30, 9.0)])
    levels = np.zeros(930)
    anomalous = logits > 0
    combination = Combination.fit(logits, levels, anomalous, np.ones(930))
    scores = combination.score(logits, levels)
    assert (scores[anomalous] > 0.95).all()
    assert (scores[~anomalous] < 0.01).all()
    assert combination.logit_weight < 10


def test_counts_are_as_good_as_copies_in_the_regression() -> None:
    rng = np.random.default_rng(8)
    logits, levels = rng.normal(size=(2, 60))
    anomalous = rng.random(60) < 0.4
    counts = rng.integers(1, 9, 60)
    counted = Combination.fit(logits, levels, anomalous, counts.astype(float))
    copies = Combination.fit(
        *(np.repeat(values, counts) for values in (logits, levels, anomalous)), np.ones(counts.sum())
    )
    assert list(asdict(counted).values()) == pytest.approx(list(asdict(copies).values()), rel=1e-6)


def test_early_scores_without_labels_never_exceed_the_final_one() -> None:
    rng = np.random.default_rng(9)
    calibration = Calibration.fit(statistics(rng.gamma(2.0, 1.0, 500)), classifier=False)
    surprises = rng.gamma(2.0, 2.0, (200, 12))
    running = np.maximum.accumulate(surprises, axis=1)
    early = calibration.early_scores(running, np.zeros_like(running))
    final = calibration.final_scores(running[:, -1], np.zeros(200))
    assert (np.diff(early, axis=1) >= 0).all()
    assert (early <= final[:, None]).all()

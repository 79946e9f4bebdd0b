"""Figures of a ranking, against scikit-learn's and by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from detector.quality.metrics import Detection, Ranking, average_precision, confidence_intervals

Sessions = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.float64]]


def sessions(seed: int, n: int = 300) -> Sessions:
    """Scores with many ties, labels that go with them, and counts."""
    rng = np.random.default_rng(seed)
    anomalous = rng.random(n) < 0.3
    scores = np.round(np.clip(rng.normal(0.35 + 0.3 * anomalous, 0.2), 0, 1), 1)
    return scores, anomalous, rng.integers(1, 5, n).astype(np.float64)


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_scikit_learns_with_counts_as_sample_weights(seed: int) -> None:
    scores, anomalous, counts = sessions(seed)
    ranking = Ranking.of(scores, anomalous, counts)
    assert ranking.average_precision() == pytest.approx(
        average_precision_score(anomalous, scores, sample_weight=counts), abs=1e-12
    )
    assert ranking.auroc() == pytest.approx(roc_auc_score(anomalous, scores, sample_weight=counts), abs=1e-12)
    for threshold in (0.0, 0.3, 0.55, 1.0):
        alert = scores >= threshold
        expected = [
            figure(anomalous, alert, sample_weight=counts, zero_division=0)
            for figure in (precision_score, recall_score, f1_score)
        ]
        assert list(ranking.detection(threshold)) == pytest.approx(expected, abs=1e-12)
        detection = Detection.at(threshold, scores, anomalous, counts)
        assert [detection.precision, detection.recall, detection.f1] == pytest.approx(expected, abs=1e-12)


def test_a_count_is_the_same_as_so_many_equal_sessions() -> None:
    scores, anomalous, counts = sessions(1)
    times = counts.astype(np.int64)
    repeated = Ranking.of(np.repeat(scores, times), np.repeat(anomalous, times), np.ones(times.sum()))
    merged = Ranking.of(scores, anomalous, counts)
    for one, other in zip((merged.scores, merged.anomalous, merged.normal), vars(repeated).values(), strict=False):
        np.testing.assert_array_equal(one, other)


def test_the_best_threshold_gives_the_highest_f1_of_all() -> None:
    scores, anomalous, counts = sessions(2)
    ranking = Ranking.of(scores, anomalous, counts)
    every = [Detection.at(threshold, scores, anomalous, counts).f1 for threshold in np.unique(scores)]
    assert ranking.detection(ranking.best_threshold()).f1 == max(every)


def test_the_weight_of_normal_sessions_changes_precision_and_not_recall() -> None:
    scores, anomalous, counts = sessions(3)
    ranking = Ranking.of(scores, anomalous, counts)
    plain, weighted = ranking.detection(0.5), ranking.with_normal_weight(13.7).detection(0.5)
    hits = counts[anomalous & (scores >= 0.5)].sum()
    false = counts[~anomalous & (scores >= 0.5)].sum()
    assert weighted.precision == pytest.approx(hits / (hits + 13.7 * false))
    assert weighted.recall == plain.recall


def test_figures_of_missing_kinds_and_of_no_alerts_are_0() -> None:
    scores, one_kind = np.array([0.2, 0.9]), np.array([False, False])
    ranking = Ranking.of(scores, one_kind, np.ones(2))
    assert (ranking.auroc(), ranking.average_precision(), *ranking.detection(0.5)) == (0, 0, 0, 0, 0)
    assert Ranking.of(scores, ~one_kind, np.ones(2)).auroc() == 0
    assert Detection.at(2.0, scores, ~one_kind, np.ones(2)) == Detection(0.0, 0.0, 0.0)
    assert average_precision(scores, ~one_kind, np.ones(2)) == 1.0


def test_a_resample_has_as_many_sessions_of_each_label_and_only_scores_that_were_there() -> None:
    scores, anomalous, counts = sessions(4)
    ranking = Ranking.of(scores, anomalous, counts)
    drawn = ranking.resampled(50, np.random.default_rng(0))
    for kind in ("anomalous", "normal"):
        original, resampled = getattr(ranking, kind), getattr(drawn, kind)
        np.testing.assert_array_equal(resampled.sum(axis=1), original.sum())
        assert not resampled[:, original == 0].any()
    assert len(np.unique(drawn.anomalous, axis=0)) > 1


def test_every_figure_of_resamples_is_the_figure_of_each_resample() -> None:
    ranking = Ranking.of(*sessions(5))
    drawn = ranking.resampled(7, np.random.default_rng(0)).with_normal_weight(3.0)
    for number in range(7):
        one = Ranking(drawn.scores, drawn.anomalous[number], drawn.normal[number])
        assert drawn.auroc()[number] == one.auroc()
        assert drawn.average_precision()[number] == one.average_precision()
        assert [rate[number] for rate in drawn.detection(0.5)] == list(one.detection(0.5))


def test_the_interval_of_a_recall_is_the_binomial_one() -> None:
    n, found = 1000, 800
    scores = np.array([1.0, 0.0, 0.0])
    ranking = Ranking.of(scores, np.array([True, True, False]), np.array([found, n - found, 500.0]))
    [(low, high)] = confidence_intervals(ranking, lambda each: [each.detection(0.5).recall], resamples=4000)
    spread = 1.96 * np.sqrt(0.8 * 0.2 / n)
    assert (low, high) == pytest.approx((0.8 - spread, 0.8 + spread), abs=0.003)


def test_intervals_depend_on_the_seed_alone() -> None:
    ranking = Ranking.of(*sessions(6))

    def intervals(seed: int) -> list[tuple[float, float]]:
        return confidence_intervals(
            ranking, lambda each: [each.auroc(), each.average_precision()], resamples=100, seed=seed
        )

    assert intervals(1) == intervals(1)
    assert intervals(1) != intervals(2)

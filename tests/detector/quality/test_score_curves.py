"""Distributions of scores and the delay of early alerts, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detector.quality.metrics import Detection
from detector.quality.score_curves import NEVER, Delay, Histogram, Quartiles, ShareAtOrAbove, reliability

SCORES = np.array([0.0, 0.019, 0.02, 0.5, 0.95, 1.0])
COUNTS = np.array([5, 1, 1, 2, 1, 3])
KINDS = {"normal": np.array([True] * 4 + [False] * 2), "anomalous": np.array([False] * 4 + [True] * 2)}


def test_every_session_is_in_the_bin_of_its_score() -> None:
    histogram = Histogram.of(SCORES, COUNTS, KINDS)
    normal, anomalous = histogram.sessions["normal"], histogram.sessions["anomalous"]
    assert (normal[0], normal[1], normal[25], sum(normal)) == (6, 1, 2, 9)
    assert (anomalous[47], anomalous[49], sum(anomalous)) == (1, 3, 4)
    assert len(histogram.edges) == len(normal) + 1


def test_the_share_at_or_above_a_score_is_of_the_sessions_of_that_kind() -> None:
    found = ShareAtOrAbove.of(SCORES, COUNTS, KINDS)
    for name, kind in KINDS.items():
        expected = [COUNTS[kind & (score <= SCORES)].sum() / COUNTS[kind].sum() for score in found.scores]
        assert found.shares[name] == pytest.approx(expected, abs=1e-12)
    assert found.scores == sorted(found.scores)


def test_a_reliability_bin_compares_the_mean_score_with_the_share_that_is_anomalous() -> None:
    scores, anomalous = np.array([0.12, 0.18, 0.95]), np.array([False, True, True])
    counts = np.array([3, 1, 2])
    low, high = reliability(scores, anomalous, counts, counts * np.where(anomalous, 1.0, 2.0))
    assert (low.low, low.high, low.sessions) == (0.1, 0.2, 4)
    assert (low.mean_score, low.anomalous) == pytest.approx(((6 * 0.12 + 0.18) / 7, 1 / 7))
    assert (high.sessions, high.anomalous) == (2, 1.0)


def test_quartiles_count_equal_sessions() -> None:
    assert Quartiles.of(np.array([9.0, 1.0, 5.0]), np.array([1, 2, 1])) == Quartiles(1.0, 1.0, 5.0)


def test_a_delay_says_when_anomalous_sessions_are_first_flagged() -> None:
    anomalous = np.array([True, True, True, True, False, False])
    counts = np.array([2, 1, 1, 1, 3, 1])
    delay = Delay.of(
        0.7,
        crossed=np.array([2, 10, NEVER, NEVER, NEVER, 5]),
        lengths=np.array([8, 10, 4, 4, 6, 10]),
        final=np.array([0.1, 0.9, 0.8, 0.2, 0.1, 0.9]),
        anomalous=anomalous,
        counts=counts,
        weights=counts.astype(np.float64),
    )
    assert (delay.before_last_event, delay.at_last_event, delay.at_end, delay.never) == (0.4, 0.2, 0.2, 0.2)
    assert delay.events == Quartiles(2.0, 2.0, 10.0)
    assert delay.share_of_length == Quartiles(0.25, 0.25, 1.0)
    assert [delay.flagged_by[hundredth] for hundredth in (24, 25, 99, 100)] == [0.0, 0.4, 0.4, 0.6]
    assert delay.normal_flagged_early == 0.25
    assert delay.alerts == Detection(precision=0.8, recall=0.8, f1=pytest.approx(0.8))


def test_a_delay_without_early_flags_has_no_quartiles() -> None:
    ones = np.ones(2, np.int64)
    delay = Delay.of(
        0.7,
        crossed=np.array([NEVER, NEVER]),
        lengths=ones,
        final=np.array([0.9, 0.0]),
        anomalous=np.array([True, False]),
        counts=ones,
        weights=ones.astype(np.float64),
    )
    assert (delay.at_end, delay.events, delay.share_of_length) == (1.0, None, None)

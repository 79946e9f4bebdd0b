"""Detectors on event counts: what they see, learn and leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pytest
from scipy.sparse import csr_array

from detector.quality.baselines import (
    BASELINES,
    FOLDS,
    Baseline,
    count_vectors,
    cross_fitted,
    distinct_rows,
    folds_of_keys,
)
from detector.quality.metrics import Flags, Floats
from detector.text.vocabulary import N_SPECIAL, UNK

SIZE = N_SPECIAL + 4
A, B, C, D = range(N_SPECIAL, SIZE)


def vectors(*sequences: Sequence[int]) -> csr_array:
    return count_vectors([np.array(tokens, np.int64) for tokens in sequences], SIZE)


def some_sessions(seed: int = 0) -> tuple[csr_array, Flags, Floats]:
    """Normal sessions mostly have few of A and of B; anomalous ones have C too, and twelve of A."""
    rng = np.random.default_rng(seed)
    anomalous = np.arange(120) % 4 == 0
    rows = [[A] * (12 if odd else rng.geometric(0.6)) + [B] * rng.geometric(0.6) + [C] * int(odd) for odd in anomalous]
    return vectors(*rows), anomalous, rng.integers(1, 4, len(rows)).astype(np.float64)


def test_a_count_vector_holds_how_often_each_token_occurs() -> None:
    expected = np.zeros((3, SIZE))
    expected[0, A], expected[0, C] = 2, 1
    expected[2, D] = 1
    np.testing.assert_array_equal(vectors([A, C, A], [], [D]).toarray(), expected)


def test_every_unknown_line_is_the_same_event_whatever_its_text() -> None:
    found = vectors([-17, UNK, -912_345, A]).toarray()
    assert (found[0, UNK], found[0].sum()) == (3, 4)


def test_equal_rows_are_told_from_different_ones() -> None:
    first, which = distinct_rows(vectors([A, B], [B, A], [A], [B], [A, A], [A]))
    assert which.tolist() == [0, 0, 1, 2, 3, 1]
    assert first.tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("name", BASELINES)
def test_each_baseline_ranks_what_normal_sessions_never_have_above_what_they_have(name: str) -> None:
    counts, anomalous, weights = some_sessions()
    baseline = BASELINES[name](0).fit(counts, anomalous, weights)
    scores = baseline.score(vectors([A, B], [*[A] * 12, B, C]))
    assert scores[0] < scores[1]
    assert scores[1] >= baseline.threshold


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    counts, anomalous, weights = some_sessions()
    once, again = (BASELINES[name](3).fit(counts, anomalous, weights).score(counts) for _ in range(2))
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("name", [name for name, make in BASELINES.items() if not make(0).uses_labels])
def test_a_baseline_without_labels_learns_nothing_from_anomalous_sessions(name: str) -> None:
    counts, anomalous, weights = some_sessions()
    both = BASELINES[name](0).fit(counts, anomalous, weights)
    normal = BASELINES[name](0).fit(counts[~anomalous], anomalous[~anomalous], weights[~anomalous])
    np.testing.assert_array_equal(both.score(counts), normal.score(counts))


def test_novelty_falls_with_the_number_of_normal_sessions_that_had_these_counts() -> None:
    baseline = BASELINES["count-vector novelty"](0)
    baseline.fit(vectors([A], [A, B], [B, A]), np.zeros(3, np.bool_), np.array([9.0, 1.0, 2.0]))
    assert baseline.score(vectors([A], [B, A], [C])).tolist() == [1 / 10, 1 / 4, 1.0]


def test_a_weight_counts_as_so_many_sessions_where_labels_contradict_each_other() -> None:
    counts, anomalous = vectors([A], [A], [B]), np.array([True, False, False])
    scores = [
        BASELINES["decision tree"](0).fit(counts, anomalous, np.array([weight, 1.0, 1.0])).score(vectors([A]))[0]
        for weight in (1.0, 3.0)
    ]
    assert scores == [0.5, 0.75]


class _Learnt(Baseline):
    """Remembers the column that tells each session's key; scores 1 for one that it has learnt from."""

    threshold = 1.0
    uses_labels = True

    def __init__(self, _seed: int) -> None:
        self.keys: set[float] = set()

    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        self.keys = set(counts.toarray()[:, A].tolist())
        return self

    def score(self, counts: csr_array) -> Floats:
        return np.array([float(key in self.keys) for key in counts.toarray()[:, A].tolist()])


def test_no_key_is_learnt_from_and_scored_by_the_same_fit() -> None:
    keys = np.arange(60) % 20
    labels = np.arange(20) % 3 == 0
    folds = folds_of_keys(labels, seed=1)
    counts = vectors(*([A] * (key + 1) for key in keys))
    scores = cross_fitted(_Learnt, counts, labels[keys], np.ones(60), folds[keys], seed=0)
    assert not scores.any()


def test_folds_have_each_label_to_within_one_key() -> None:
    labels = np.random.default_rng(0).random(103) < 0.2
    folds = folds_of_keys(labels, seed=5)
    for label in (False, True):
        sizes = np.bincount(folds[labels == label], minlength=FOLDS)
        assert sizes.max() - sizes.min() <= 1
    assert not np.array_equal(folds, folds_of_keys(labels, seed=6))

"""Detectors on event counts that learn from logs as they come, from the literature on them."""

from __future__ import annotations

from itertools import combinations
from typing import Self

import numpy as np
from scipy.sparse import csr_array

from benchmarks.accuracy.tasks import Floats
from detector.quality.baselines import Baseline
from detector.quality.metrics import Flags

HELD_BY = 0.97
RATIOS = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))

_C_ALPHA = 3.2905  # normal quantile of a confidence of 99.9 %, as Xu et al. have it


class Pca(Baseline):
    """Distance from the subspace of the k greatest principal components (Xu et al. 2009), squared.

    Counts are weighed by the inverse document frequency, as there. The threshold is the Q-statistic of Jackson and
    Mudholkar (1979).
    """

    uses_labels = False

    def __init__(self, k: int) -> None:
        self._k = k

    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        """As of `Baseline`; labels are not looked at."""
        del anomalous
        dense = counts.toarray().astype(np.float64)
        had = (dense > 0).T @ weights
        self._idf = np.where(had > 0, np.log(weights.sum() / np.maximum(had, 1)), 0.0)
        dense *= self._idf
        self._mean = np.average(dense, axis=0, weights=weights)
        centred = dense - self._mean
        covariance = (centred * weights[:, None]).T @ centred / weights.sum()
        values, vectors = np.linalg.eigh(covariance)
        self._rest = vectors[:, : -self._k]
        left = np.maximum(values[: -self._k], 0.0)
        phi = [float((left**power).sum()) for power in (1, 2, 3)]
        self.threshold = float(np.finfo(np.float64).eps)  # of a subspace that leaves nothing out
        if not phi[1]:
            return self
        h = 1 - 2 * phi[0] * phi[2] / (3 * phi[1] ** 2)
        inner = _C_ALPHA * np.sqrt(2 * phi[1] * h**2) / phi[0] + 1 + phi[1] * h * (h - 1) / phi[0] ** 2
        self.threshold = float(phi[0] * max(inner, 0.0) ** (1 / h))
        return self

    def score(self, counts: csr_array) -> Floats:
        """As of `Baseline`."""
        beside: Floats = (((counts.toarray() * self._idf - self._mean) @ self._rest) ** 2).sum(1)
        return beside


class Invariants(Baseline):
    """How many invariants a session breaks: counts of two events in a small ratio in nearly all sessions (Lou 2010)."""

    uses_labels = False
    threshold = 1.0

    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        """As of `Baseline`; labels are not looked at."""
        del anomalous
        dense = counts.toarray()
        self._held: list[tuple[int, int, int, int]] = []
        often = np.flatnonzero((dense > 0).T @ weights > (1 - HELD_BY) * weights.sum())
        for a, b in combinations(often.tolist(), 2):
            for p, q in RATIOS:
                if weights[q * dense[:, a] != p * dense[:, b]].sum() <= (1 - HELD_BY) * weights.sum():
                    self._held.append((a, b, p, q))
        return self

    def score(self, counts: csr_array) -> Floats:
        """As of `Baseline`."""
        dense = counts.toarray()
        broken = np.zeros(len(dense))
        for a, b, p, q in self._held:
            broken += q * dense[:, a] != p * dense[:, b]
        return broken

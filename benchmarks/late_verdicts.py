"""Baselines that learn from verdicts on sessions alone, anew whenever there are more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack
from sklearn.ensemble import RandomForestClassifier

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class LastEvent:
    """How often sessions with this last event were judged anomalous, of all that were judged; one in 16 at first."""

    def __init__(self, sessions: Sequence[Integers], names: int, _seed: int) -> None:
        self._last = np.array([events[-1] for events in sessions])
        self._n = names

    def fit(self, rows: Integers, wrong: Flags, counts: Floats) -> None:
        """Learn from all verdicts so far."""
        last = self._last[rows]
        hits, all_ = (np.bincount(last, each, self._n) for each in (counts * wrong, counts))
        self._share = (hits + 1 / 32) / (all_ + 1 / 2)

    def scores(self, rows: Integers) -> Floats:
        """Of these sessions."""
        return self._share[self._last[rows]]


class Forest:
    """A random forest on event counts and the last event."""

    def __init__(self, sessions: Sequence[Integers], names: int, seed: int) -> None:
        lengths = np.array([len(each) for each in sessions])
        events = np.concatenate(sessions)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        counts = csr_matrix((np.ones(len(events)), (rows, events)), shape=(len(lengths), names))
        last = csr_matrix(
            (np.ones(len(lengths)), (np.arange(len(lengths)), events[np.cumsum(lengths) - 1])), counts.shape
        )
        self._table, self._seed = hstack([counts, last]).tocsr(), seed
        for name in ("indices", "indptr"):
            setattr(self._table, name, getattr(self._table, name).astype(np.int32))

    def fit(self, rows: Integers, wrong: Flags, counts: Floats) -> None:
        """Learn anew from all verdicts so far."""
        self._trees = RandomForestClassifier(50, random_state=self._seed).fit(self._table[rows], wrong, counts)

    def scores(self, rows: Integers) -> Floats:
        """Of these sessions."""
        found: Floats = self._trees.predict_proba(self._table[rows])[:, 1]
        return found

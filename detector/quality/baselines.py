"""Simple detectors on event counts, to compare a model with.

A session is the vector of how often each event occurs in it. Three baselines learn from labels, two from normal
sessions alone. What a score means differs between them; a session is an alert at or above the baseline's own
`threshold`, fixed beforehand.
"""

import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from detector.quality.metrics import Flags, Floats
from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]

FOLDS = 5

# An isolation tree sees this many sessions (Liu et al. 2008).
_ISOLATION_SESSIONS = 256
_TREES = 100


def count_vectors(sequences: Sequence[Integers], vocabulary_size: int) -> csr_array:
    """How often each token occurs in each session; unknown lines count as one event, UNK.

    Args:
        sequences: the event tokens of each session, (events,).
        vocabulary_size: number of tokens.

    Returns:
        float32 (sessions, vocabulary_size), the columns of each row ascending.
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    tokens = np.concatenate(sequences) if len(sequences) else np.empty(0, np.int64)
    tokens = np.where(tokens < 0, UNK, tokens)
    cells, counts = np.unique(
        np.repeat(np.arange(len(sequences)), lengths) * vocabulary_size + tokens, return_counts=True
    )
    rows, columns = np.divmod(cells, vocabulary_size)
    starts = np.searchsorted(rows, np.arange(len(sequences) + 1))
    # scikit-learn's trees take indices of 32 bits only.
    columns, starts = columns.astype(np.int32), starts.astype(np.int32)
    return csr_array((counts.astype(np.float32), columns, starts), shape=(len(sequences), vocabulary_size))


def distinct_rows(counts: csr_array) -> tuple[Integers, Integers]:
    """The first of each set of equal rows, (d,), and which of these each row equals, (n,)."""
    numbers: dict[bytes, int] = {}
    which = np.fromiter((numbers.setdefault(row, len(numbers)) for row in _rows(counts)), np.int64, counts.shape[0])
    return np.unique(which, return_index=True)[1], which


class Baseline(ABC):
    """A detector on count vectors.

    Attributes:
        threshold: a score at or above it is an alert.
        uses_labels: whether it learns from anomalous sessions too.
    """

    threshold: float
    uses_labels: bool

    @abstractmethod
    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        """Learn from sessions, at least one of which is normal and, with `uses_labels`, one anomalous.

        Args:
            counts: (n, tokens), as `count_vectors` gives them.
            anomalous: label of each, (n,); without `uses_labels` those that are anomalous are left out.
            weights: how many sessions each row stands for, (n,).
        """

    @abstractmethod
    def score(self, counts: csr_array) -> Floats:
        """Scores of sessions, (n,), higher for more anomalous ones."""


class _Classifier(Baseline):
    """Probability of being anomalous, from a classifier of scikit-learn."""

    threshold = 0.5
    uses_labels = True

    def __init__(self, model: LogisticRegression | RandomForestClassifier | DecisionTreeClassifier) -> None:
        self._model = model

    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        with warnings.catch_warnings():
            # On separable sessions the optimum lies at infinity; where the solver stops is as good as any.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(counts.log1p(), anomalous, sample_weight=weights)
        return self

    def score(self, counts: csr_array) -> Floats:
        probability: Floats = self._model.predict_proba(counts.log1p())[:, 1]
        return probability


class _CountNovelty(Baseline):
    """1 / (1 + how many normal sessions had exactly these counts): 1 means never seen."""

    threshold = 1.0
    uses_labels = False

    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        self._seen: dict[bytes, float] = defaultdict(float)
        for row, is_anomalous, weight in zip(_rows(counts), anomalous.tolist(), weights.tolist(), strict=True):
            if not is_anomalous:
                self._seen[row] += weight
        return self

    def score(self, counts: csr_array) -> Floats:
        seen = np.fromiter((self._seen.get(row, 0.0) for row in _rows(counts)), np.float64, counts.shape[0])
        return 1.0 / (1.0 + seen)


class _Isolation(Baseline):
    """Isolation forest (Liu et al. 2008) on normal sessions; its score is 0.5 for a session of average depth."""

    threshold = 0.5
    uses_labels = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, counts: csr_array, anomalous: Flags, weights: Floats) -> Self:
        normal = np.flatnonzero(~anomalous)
        # Rows stand for different numbers of sessions, and its trees draw rows: so the rows are drawn to weight first.
        rng = np.random.default_rng(self._seed)
        drawn = rng.choice(normal, _TREES * _ISOLATION_SESSIONS, p=weights[normal] / weights[normal].sum())
        self._model = IsolationForest(
            n_estimators=_TREES, max_samples=_ISOLATION_SESSIONS, random_state=self._seed
        ).fit(counts[drawn])
        return self

    def score(self, counts: csr_array) -> Floats:
        score: Floats = -self._model.score_samples(counts)
        return score


BASELINES: Mapping[str, Callable[[int], Baseline]] = {
    "logistic regression": lambda seed: _Classifier(LogisticRegression(max_iter=1000, random_state=seed)),
    # Its trees differ by their features alone: a row may stand for many sessions, and a bootstrap drops whole rows.
    "random forest": lambda seed: _Classifier(RandomForestClassifier(_TREES, bootstrap=False, random_state=seed)),
    "decision tree": lambda seed: _Classifier(DecisionTreeClassifier(random_state=seed)),
    "count-vector novelty": lambda _seed: _CountNovelty(),
    "isolation forest": _Isolation,
}
"""The baselines by name; each is made from a seed."""


def cross_fitted(
    make: Callable[[int], Baseline], counts: csr_array, anomalous: Flags, weights: Floats, folds: Integers, seed: int
) -> Floats:
    """Score every session with a baseline that has learnt from the other folds.

    Args:
        make: makes the baseline from the seed.
        counts: (n, tokens).
        anomalous: label of each row, (n,).
        weights: how many sessions each row stands for, (n,).
        folds: number of each row's fold, (n,); see `folds_of_keys`.
        seed: of the baseline.

    Returns:
        (n,) scores.
    """
    scores = np.zeros(counts.shape[0])
    for fold in np.unique(folds):
        left_out = folds == fold
        learnt = make(seed).fit(counts[~left_out], anomalous[~left_out], weights[~left_out])
        scores[left_out] = learnt.score(counts[left_out])
    return scores


def folds_of_keys(anomalous: Flags, seed: int) -> Integers:
    """Put session keys into `FOLDS` folds at random, those of each label evenly.

    Args:
        anomalous: label of each key, (keys,).
        seed: of what is drawn.

    Returns:
        Number of each key's fold, (keys,). A label of two keys or more is in two folds or more.
    """
    rng = np.random.default_rng(seed)
    folds = np.empty(len(anomalous), np.int64)
    for label in (False, True):
        keys = rng.permutation(np.flatnonzero(anomalous == label))
        folds[keys] = np.arange(len(keys)) % FOLDS
    return folds


def _rows(counts: csr_array) -> Iterator[bytes]:
    """Each row as bytes that equal rows share."""
    columns, values, starts = counts.indices, counts.data, counts.indptr.tolist()
    for start, stop in pairwise(starts):
        yield columns[start:stop].tobytes() + values[start:stop].tobytes()

"""What verdicts on single sessions add to the log-odds of a score.

A checkpoint that learnt without labels says how unusual a session is. Verdicts say which of it is wrong, and that shows
in what such sessions have: which templates, how often each, which comes last, and which they lack that most sessions
have. So the log-odds of a score are shifted by the sum of the weights of these. They are fitted to the verdicts by
logistic regression, with the log-odds from before as its offset and a normal prior around 0 (ridge): what no verdict is
like stays as it was, and without verdicts all does.

A verdict is to speak of what is unusual in its session, not of what most sessions have: a weight's deviation is
`DEVIATION` where a share of at most `RARE` of the usual sessions has the same, and falls to 0 with the information
(-log share) of more. So that few verdicts do not move usual sessions, these take part, together as many as
`BACKGROUND`, with the scores that they have as what to say of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_array, diags_array, hstack

from detector.scoring.count_vectors import CountVectors
from detector.scoring.tolerances import RARE
from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BACKGROUND: Final = 100.0
DEVIATION: Final = 3.0
"""Of a weight, in nats, before any verdict."""

_MOST_COUNT: Final = 8  # more of a template is no other thing
_PRESENT, _LAST, _ABSENT = 0, _MOST_COUNT + 1, _MOST_COUNT + 2  # kinds of features; those between are counts
_KINDS: Final = _ABSENT + 1
_MOST_HAVE: Final = 0.5
_SURE: Final = 1e-6  # a score this close to 0 or 1 is taken for that


class VerdictWeights:
    """Weights of what sessions have.

    Args:
        features: int64 (k,), ascending: number of a template's token times kinds plus the kind.
        weights: float64 (k,), log-odds.

    Raises:
        ValueError: they do not fit, are out of order or not finite.
    """

    def __init__(self, features: Integers, weights: Floats) -> None:
        if features.ndim != 1 or features.shape != weights.shape:
            raise ValueError(f"features {features.shape} and weights {weights.shape}; expected (k,) each")
        if (np.diff(features) <= 0).any() or (len(features) and features[0] < 0):
            raise ValueError("features are out of order")
        if not np.isfinite(weights).all():
            raise ValueError("a weight is not finite")
        self.features = features
        self.weights = weights

    @classmethod
    def fit(
        cls,
        sequences: Sequence[Integers],
        anomalous: Flags,
        counts: Floats,
        scores: Floats,
        usual: tuple[Sequence[Integers], Floats, Floats],
    ) -> Self:
        """Fit to verdicts.

        Args:
            sequences: tokens of each session that was judged.
            anomalous: the verdict on it, (n,).
            counts: how many equal ones were judged so, (n,).
            scores: without the weights, (n,).
            usual: sessions without a verdict that are no alarms: tokens, counts and scores.
        """
        others, other_counts, other_scores = usual
        weigh = np.append(counts, other_counts * (BACKGROUND / max(float(other_counts.sum()), BACKGROUND)))
        wrong = np.append(anomalous, other_scores)
        offset = log_odds(np.append(scores, other_scores))
        rows, found = _features(*_flat([*sequences, *others]))
        features, column = np.unique(found, return_inverse=True)
        n, k = len(weigh), len(features)
        table = csr_array((np.ones(len(rows)), (rows, column)), shape=(n, k))
        among_usual = table.T @ np.where(np.arange(n) < len(counts), 0.0, weigh)
        share = (among_usual + 1) / (weigh[len(counts) :].sum() + 1)
        lacked = np.flatnonzero((features % _KINDS == _PRESENT) & (share > _MOST_HAVE))
        table = hstack([table, csr_array(1 - table[:, lacked].toarray())]).tocsr()
        features = np.append(features, features[lacked] + _ABSENT)
        share = np.append(share, 1 - share[lacked])
        information = -np.log(np.clip(share, RARE, 1.0)) / -np.log(RARE)
        table = (table @ diags_array(DEVIATION * information)).tocsr()
        across = table.T.tocsr()

        def loss(weights: Floats) -> tuple[float, Floats]:
            z = offset + table @ weights
            p = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
            value = float(weigh @ (np.logaddexp(0, z) - wrong * z) + weights @ weights / 2)
            return value, across @ (weigh * (p - wrong)) + weights

        fitted = minimize(loss, np.zeros(len(features)), jac=True, method="L-BFGS-B").x * DEVIATION * information
        order = np.argsort(features)
        return cls(features[order], fitted[order])

    def shifted(self, scores: Floats, tokens: Integers, bounds: Integers) -> Floats:
        """Scores of complete sessions, (n,).

        Args:
            scores: without the weights, (n,).
            tokens: int64 (events,), of the sessions end to end; negative ones are unknown lines.
            bounds: int64 (n + 1,), where each starts and, last, how many events there are.
        """
        rows, found = _features(tokens, bounds)
        shift = np.bincount(rows, self._weights_of(found), len(scores)).astype(np.float64)
        absent = self.features % _KINDS == _ABSENT
        if absent.any():
            present = rows[found % _KINDS == _PRESENT], found[found % _KINDS == _PRESENT]
            had = np.bincount(present[0], self._weights_of(present[1] + _ABSENT), len(scores))
            shift += self.weights[absent].sum() - had
        return _score(log_odds(scores) + shift)

    def lowered(self, scores: Floats, tokens: Integers, bounds: Integers) -> Floats:
        """Scores after each event of sessions that go on, (events,), where what they have so far is normal.

        That they will turn out wrong is not said before their end.
        """
        lengths = np.diff(bounds)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        known = np.maximum(tokens, UNK)
        order = np.lexsort((np.arange(len(known)), known, rows))
        change = (
            np.append(True, (np.diff(rows[order]) != 0) | (np.diff(known[order]) != 0)) if len(order) else order > 0
        )
        starts = np.flatnonzero(change)
        occurrence = np.empty(len(known), np.int64)
        occurrence[order] = np.arange(len(known)) - np.repeat(starts, np.diff(np.append(starts, len(known)))) + 1
        return self.going_on(scores, tokens, occurrence, bounds, np.zeros(len(lengths)))[0]

    def going_on(
        self, scores: Floats, tokens: Integers, occurrence: Integers, bounds: Integers, before: Floats
    ) -> tuple[Floats, Floats]:
        """As `lowered`, of the next events of sessions.

        Args:
            scores: as there.
            tokens: as there.
            occurrence: how often each event's template has come in its session, it included; of an unknown line, any.
            bounds: as there.
            before: what was returned with the events before them, 0 where there are none, (n,).

        Returns:
            The scores, and what the next events go on from.
        """
        known = np.maximum(tokens, UNK)
        count = np.minimum(occurrence, _MOST_COUNT)
        step = self._weights_of(known * _KINDS + count) - np.where(
            occurrence > 1, self._weights_of(known * _KINDS + np.minimum(occurrence - 1, _MOST_COUNT)), 0.0
        )
        step += np.where(occurrence == 1, self._weights_of(known * _KINDS + _PRESENT), 0.0)
        some = np.flatnonzero(np.diff(bounds) > 0)
        step[bounds[some]] += before[some]
        total = np.zeros(len(known))
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            total[start:end] = np.cumsum(step[start:end])
        after = before.copy()
        after[some] = total[bounds[1:][some] - 1]
        total += self._weights_of(known * _KINDS + _LAST)
        return _score(log_odds(scores) + np.minimum(total, 0.0)), after

    def _weights_of(self, features: Integers) -> Floats:
        """Of each feature, 0 for one that none was fitted for."""
        if not len(self.features):
            return np.zeros(len(features))
        at = np.minimum(np.searchsorted(self.features, features), len(self.features) - 1)
        found: Floats = np.where(self.features[at] == features, self.weights[at], 0.0)
        return found


def log_odds(scores: Floats) -> Floats:
    """Of scores between 0 and 1."""
    within = np.clip(scores, _SURE, 1 - _SURE)
    found: Floats = np.log(within) - np.log1p(-within)
    return found


def _score(z: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
    return found


def _features(tokens: Integers, bounds: Integers) -> tuple[Integers, Integers]:
    """What sessions have: the session of each feature, and the feature."""
    vectors = CountVectors.of(tokens, bounds)
    of_token = vectors.tokens * _KINDS
    some = np.flatnonzero(np.diff(bounds) > 0)
    last = np.maximum(tokens[bounds[1:][some] - 1], UNK) * _KINDS + _LAST
    rows = np.concatenate([vectors.rows, vectors.rows, some])
    found = np.concatenate([of_token + _PRESENT, of_token + np.minimum(vectors.counts, _MOST_COUNT), last])
    return rows, found


def _flat(sequences: Sequence[Integers]) -> tuple[Integers, Integers]:
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    events = np.concatenate(sequences) if len(sequences) else np.zeros(0, np.int64)
    return events, np.append(0, np.cumsum(lengths))

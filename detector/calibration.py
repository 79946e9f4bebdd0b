"""From what the model says about a session to a score in [0, 1] that means the same for every checkpoint.

Two statistics of a session enter, both taken over its events and, once it is complete, its end:

- the *highest surprise* s, in nats. Its tail probability p among held-out normal sessions (`Tail`) makes it
  comparable between models: level = -log10 p.
- the *class logit* c of the classifier, where labels were there to train one.

A score is logistic(bias + logit_weight * c + level_weight * level). Without labels logit_weight is 0 and
the other two put 0.7 at p = 1 % and 0.95 at p = 0.1 %: one normal session in a hundred is at least a
warning, one in a thousand critical. With labels the three numbers come from a logistic regression on
validation sessions, so that the score is the probability that the session is anomalous.

Early scores, of the events so far, use running maxima of both statistics and so never fall while a
session goes on. Without labels the complete session's highest surprise can only be higher, so an early
score never exceeds the final one. With labels the early regression is fitted on each validation session's
*highest* early statistics: what is calibrated is the chance that a session which ever reached this early
score is anomalous.

Everything here is float64, element by element: a result never depends on its neighbours in the batch.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WARNING_LEVEL, WARNING_SCORE = 2.0, 0.7
CRITICAL_LEVEL, CRITICAL_SCORE = 3.0, 0.95

# Beyond this level (one normal session in 10^12) and these logits a statistic says no more than "extreme".
MAX_LEVEL = 12.0
MAX_LOGIT = 20.0

# The exponential tail is fitted on this share of the held-out normals, but on no fewer than so many
# sessions: a 1 % quantile of a few hundred sessions is otherwise decided by two or three of them.
TAIL_SHARE = 0.02
TAIL_SESSIONS = 30
# Nats. Keeps the tail from becoming a cliff when all held-out normals are equally surprising.
MIN_MEAN_EXCESS = 0.25
MAX_KNOTS = 64

_NEWTON_STEPS = 100
_SMALLEST_STEP = 1e-6


@dataclass(frozen=True)
class Tail:
    """Level (-log10 of the tail probability among normal sessions) of a highest surprise.

    Linear between the knots, constant below the first and linear, with `slope`, beyond the last: an
    exponential tail.

    Attributes:
        knots: highest surprises in nats, ascending.
        levels: level at each knot, ascending.
        slope: levels per nat beyond the last knot.
    """

    knots: tuple[float, ...]
    levels: tuple[float, ...]
    slope: float

    @classmethod
    def fit(cls, highest: Floats, counts: Floats) -> "Tail":
        """Fit on held-out normal sessions: empirical in the bulk, exponential beyond it.

        Args:
            highest: highest surprise of each session, (n,), n >= 1.
            counts: how many equal sessions each stands for, (n,).
        """
        values, inverse = np.unique(highest, return_inverse=True)
        mass = np.bincount(inverse, weights=counts)
        total = mass.sum()
        at_least = np.cumsum(mass[::-1])[::-1]
        levels = np.log10((total + 1.0) / (at_least + 1.0))

        wanted = min(max(TAIL_SHARE * total, TAIL_SESSIONS), total / 4)
        start = min(int(np.searchsorted(-at_least, -wanted)), len(values) - 1)
        excess = np.average(values[start:] - values[start], weights=mass[start:])
        slope = 1.0 / (max(float(excess), MIN_MEAN_EXCESS) * np.log(10.0))

        steps = np.linspace(levels[0], levels[start], MAX_KNOTS)
        kept = np.unique(np.searchsorted(levels[: start + 1], steps))
        return cls(tuple(values[kept].tolist()), tuple(levels[kept].tolist()), float(slope))

    def level(self, highest: Floats) -> Floats:
        """Level of each highest surprise, between 0 and `MAX_LEVEL`."""
        last = self.knots[-1]
        bulk = np.interp(highest, self.knots, self.levels)
        beyond = self.levels[-1] + (highest - last) * self.slope
        level: Floats = np.minimum(np.where(highest > last, beyond, bulk), MAX_LEVEL)
        return level


@dataclass(frozen=True)
class Combination:
    """score = logistic(bias + logit_weight * class logit + level_weight * level); no weight is negative."""

    bias: float
    logit_weight: float
    level_weight: float

    @classmethod
    def of_level_alone(cls) -> "Combination":
        """The one that puts the warning and critical scores at their levels."""
        low, high = (float(np.log(s / (1 - s))) for s in (WARNING_SCORE, CRITICAL_SCORE))
        weight = (high - low) / (CRITICAL_LEVEL - WARNING_LEVEL)
        return cls(bias=low - weight * WARNING_LEVEL, logit_weight=0.0, level_weight=weight)

    @classmethod
    def fit(cls, logits: Floats, levels: Floats, anomalous: npt.NDArray[np.bool_], counts: Floats) -> "Combination":
        """Logistic regression with non-negative weights on labelled sessions.

        The targets are drawn in from 0 and 1 by one session of each kind (Platt 1999), so that perfectly
        separated sessions do not give infinite weights.

        Args:
            logits: class logit of each session, (n,).
            levels: its level, (n,).
            anomalous: its label, (n,); both kinds are present.
            counts: how many equal sessions it stands for, (n,).
        """
        n_anomalous = counts[anomalous].sum()
        n_normal = counts[~anomalous].sum()
        high, low = (n_anomalous + 1) / (n_anomalous + 2), 1 / (n_normal + 2)
        targets = np.where(anomalous, high, low)
        features = np.stack([np.ones_like(levels), _bounded(logits), levels], axis=1)
        # The problem is convex, so its constrained optimum is the best of the feasible optima over the
        # sets of weights that are free; with two weights there are four such sets.
        best: tuple[float, Floats] | None = None
        for free in product((True, False), repeat=2):
            chosen = np.array([True, *free])
            weights = np.zeros(3)
            loss, weights[chosen] = _logistic_regression(features[:, chosen], targets, counts)
            if (weights[1:] >= 0).all() and (best is None or loss < best[0]):
                best = loss, weights
        assert best is not None, "the regression without weights is always feasible"
        bias, logit_weight, level_weight = best[1].tolist()
        return cls(bias=bias, logit_weight=logit_weight, level_weight=level_weight)

    def score(self, logits: Floats, levels: Floats) -> Floats:
        """Score in [0, 1] of each pair."""
        z = self.bias + self.logit_weight * _bounded(logits) + self.level_weight * levels
        score: Floats = 1.0 / (1.0 + np.exp(-np.clip(z, -500.0, 500.0)))
        return score


@dataclass(frozen=True)
class SessionStatistics:
    """What the calibration is fitted on, one entry a validation session.

    Attributes:
        highest: highest surprise over the events and the end, nats, (n,).
        logits: class logit at the end, (n,).
        early_highest: highest surprise over the events alone, (n,).
        early_logits: highest class logit over the events alone, (n,).
        labels: 1 anomalous, 0 normal, -1 not known, (n,).
        counts: how many equal sessions the entry stands for, (n,).
    """

    highest: Floats
    logits: Floats
    early_highest: Floats
    early_logits: Floats
    labels: npt.NDArray[np.int8]
    counts: Floats


@dataclass(frozen=True)
class Calibration:
    """The whole mapping, as plain numbers: the manifest of a checkpoint holds exactly these."""

    tail: Tail
    early: Combination
    final: Combination

    @classmethod
    def fit(cls, validation: SessionStatistics, *, classifier: bool) -> "Calibration":
        """Fit on validation sessions.

        The tail comes from all that are not labelled anomalous, at least one; with `classifier` the
        combinations come from the labelled ones, at least one of each kind.
        """
        normal = validation.labels != 1
        tail = Tail.fit(validation.highest[normal], validation.counts[normal])
        if not classifier:
            alone = Combination.of_level_alone()
            return cls(tail=tail, early=alone, final=alone)
        known = validation.labels >= 0
        anomalous, counts = validation.labels[known] == 1, validation.counts[known]
        levels, early_levels = (tail.level(s[known]) for s in (validation.highest, validation.early_highest))
        return cls(
            tail=tail,
            early=Combination.fit(validation.early_logits[known], early_levels, anomalous, counts),
            final=Combination.fit(validation.logits[known], levels, anomalous, counts),
        )

    def early_scores(self, highest: Floats, logits: Floats) -> Floats:
        """Scores of the events so far, from the running maxima of their surprises and class logits."""
        return self.early.score(logits, self.tail.level(highest))

    def final_scores(self, highest: Floats, logits: Floats) -> Floats:
        """Scores of complete sessions, from their highest surprises (end included) and last class logits."""
        return self.final.score(logits, self.tail.level(highest))


def _bounded(logits: Floats) -> Floats:
    return np.clip(logits, -MAX_LOGIT, MAX_LOGIT)


def _logistic_regression(features: Floats, targets: Floats, counts: Floats) -> tuple[float, Floats]:
    """Newton's method with step halving; returns (loss, weights)."""
    weights = np.zeros(features.shape[1])

    def loss_at(w: Floats) -> float:
        z = features @ w
        return float(counts @ (np.logaddexp(0.0, z) - targets * z))

    loss = loss_at(weights)
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(features @ weights, -500.0, 500.0)))
        gradient = features.T @ (counts * (p - targets))
        curvature = (features * (counts * p * (1 - p))[:, None]).T @ features
        # A feature that is the same for all sessions leaves the curvature singular.
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
        size = 1.0
        while (new := loss_at(weights - size * step)) > loss and size > _SMALLEST_STEP:
            size /= 2
        if new > loss - 1e-10 * (1 + loss):
            break
        weights, loss = weights - size * step, new
    return loss, weights

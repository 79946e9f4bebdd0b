"""How well scores tell anomalous sessions from normal ones; a session may stand for several equal ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Of one array of a bootstrap at a time: 8 MB.
_RESAMPLED_VALUES = 1 << 20


@dataclass(frozen=True)
class Detection:
    """Alerts at one threshold: a session whose score is at or above it is an alert.

    Attributes:
        precision: share of the alerts that are anomalous; 0 without alerts.
        recall: share of the anomalous sessions that are alerts; 0 without anomalous sessions.
        f1: harmonic mean of the two.
    """

    precision: float
    recall: float
    f1: float

    @classmethod
    def at(cls, threshold: float, scores: Floats, anomalous: Flags, counts: Floats) -> "Detection":
        """Count the alerts; the three arrays are (n,)."""
        return cls(*map(float, Ranking.of(scores, anomalous, counts).detection(threshold)))


def average_precision(scores: Floats, anomalous: Flags, counts: Floats) -> float:
    """Area under the precision-recall curve as a step function; equal scores enter together.

    Returns:
        0 when no session is anomalous.
    """
    return float(Ranking.of(scores, anomalous, counts).average_precision())


class Rates(NamedTuple):
    """Precision, recall and F1 as in `Detection`, one of each for every weighting of a `Ranking`, (...)."""

    precision: Floats
    recall: Floats
    f1: Floats


@dataclass(frozen=True)
class Ranking:
    """Sessions merged by their scores, which is all that every figure of a ranking depends on.

    A leading axis of the weights holds other weightings of the same scores (the resamples of a bootstrap); every
    figure then has that axis too.

    Attributes:
        scores: distinct scores, descending, (g,).
        anomalous: weight of the anomalous sessions with each score, (..., g).
        normal: weight of the normal ones, (..., g).
    """

    scores: Floats
    anomalous: Floats
    normal: Floats

    @classmethod
    def of(cls, scores: Floats, anomalous: Flags, weights: Floats) -> "Ranking":
        """Merge sessions; the three arrays are (n,), n >= 1."""
        ascending, group = np.unique(scores, return_inverse=True)

        def merged(kind: Flags) -> Floats:
            total: Floats = np.bincount(group, np.where(kind, weights, 0.0), len(ascending)).astype(np.float64)
            return total[::-1]

        return cls(ascending[::-1], merged(anomalous), merged(~anomalous))

    def with_normal_weight(self, weight: float) -> "Ranking":
        """Each normal session weighing this many times as much."""
        return Ranking(self.scores, self.anomalous, self.normal * weight)

    def resampled(self, times: int, rng: np.random.Generator) -> "Ranking":
        """Bootstrap resamples of a ranking whose weights are numbers of sessions, (times, g).

        Stratified: anomalous and normal sessions are each drawn, with replacement, as often as there are of them. The
        prevalence is what the sessions were assembled to, or what a weight of the normal ones makes of it, and not
        something that they estimate.
        """
        return Ranking(self.scores, *(_drawn(counts, times, rng) for counts in (self.anomalous, self.normal)))

    def detection(self, threshold: float) -> Rates:
        """Figures of the alerts at a threshold."""
        last = int(np.searchsorted(-self.scores, -threshold, side="right"))
        hits, false = (np.asarray(part[..., :last].sum(axis=-1)) for part in (self.anomalous, self.normal))
        return _rates(hits, hits + false, np.asarray(self.anomalous.sum(axis=-1)))

    def best_threshold(self) -> float:
        """The highest of the thresholds that give the best F1; of a ranking with one weighting.

        It is chosen after the fact: no threshold fixed beforehand gives more.
        """
        return float(self.scores[int(np.argmax(self.curve.f1))])

    @cached_property
    def curve(self) -> Rates:
        """Figures at each score as the threshold, (..., g)."""
        return _rates(self._hits, self._hits + self._false, self._hits[..., -1:])

    @cached_property
    def false_positive_rate(self) -> Floats:
        """Share of the normal sessions at or above each score, (..., g); 0 without normal sessions."""
        return _ratio(self._false, self._false[..., -1:])

    def average_precision(self) -> Floats:
        """Area under the precision-recall curve as a step function; 0 when no session is anomalous."""
        area = np.asarray(np.sum(self.anomalous * self.curve.precision, axis=-1))
        return _ratio(area, np.asarray(self.anomalous.sum(axis=-1)))

    def auroc(self) -> Floats:
        """Chance that an anomalous session scores above a normal one, an equal score counting one half (Bamber 1975).

        0 when either kind is missing.
        """
        below = self._false[..., -1:] - self._false
        wins = np.asarray(np.sum(self.anomalous * (below + self.normal / 2), axis=-1))
        return _ratio(wins, np.asarray(self.anomalous.sum(axis=-1) * self.normal.sum(axis=-1)))

    @cached_property
    def _hits(self) -> Floats:
        return np.cumsum(self.anomalous, axis=-1)

    @cached_property
    def _false(self) -> Floats:
        return np.cumsum(self.normal, axis=-1)


def confidence_intervals(
    ranking: Ranking,
    figures: Callable[[Ranking], Sequence[Floats]],
    *,
    normal_weight: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """95 % percentile bootstrap intervals (Efron 1979) of figures of a ranking.

    Args:
        ranking: with numbers of sessions as its weights, (g,).
        figures: its figures, each (...,) like the weightings of the ranking it is given.
        normal_weight: of each normal session, in every resample.
        resamples: how many.
        seed: of what is drawn.

    Returns:
        Lower and upper bound of each figure.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, _RESAMPLED_VALUES // len(ranking.scores))
    parts = []
    for first in range(0, resamples, at_once):
        drawn = ranking.resampled(min(at_once, resamples - first), rng)
        parts.append(np.stack(figures(drawn.with_normal_weight(normal_weight))))
    low, high = np.quantile(np.concatenate(parts, axis=1), (0.025, 0.975), axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _drawn(counts: Floats, times: int, rng: np.random.Generator) -> Floats:
    total = counts.sum()
    drawn = np.zeros((times, len(counts)))
    present = counts > 0
    if total:
        drawn[:, present] = rng.multinomial(int(total), counts[present] / total, size=times)
    return drawn


def _rates(hits: Floats, alerts: Floats, positives: Floats) -> Rates:
    return Rates(_ratio(hits, alerts), _ratio(hits, positives), _ratio(2 * hits, alerts + positives))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """What part of the whole it is, 0 where there is no whole."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)

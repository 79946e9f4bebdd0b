"""What scores look like over many sessions: histogram, shares at or above a score, calibration, delay of early alerts.

All arrays of sessions are (n,), one entry a row that stands for `counts` equal sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.quality.metrics import Detection, Flags, Floats

Integers = npt.NDArray[np.int64]

NEVER = 0
"""Number of the event that crossed a threshold when none did."""

_HISTOGRAM_BINS = 50
_RELIABILITY_BINS = 10
_DELAY_POINTS = 101
_LOGIT_POINTS = 97
_LARGEST_LOGIT = 12.0  # 6e-6 from 0 and 1: a published score has six decimals


@dataclass(frozen=True)
class Histogram:
    """Sessions by score.

    Attributes:
        edges: ascending; a score on an edge belongs to the bin above it, 1 to the last one.
        sessions: by kind of session, how many are in each bin.
    """

    edges: list[float]
    sessions: dict[str, list[int]]

    @classmethod
    def of(cls, scores: Floats, counts: Integers, kinds: Mapping[str, Flags]) -> Histogram:
        """Bins of equal width."""
        edges = np.linspace(0.0, 1.0, _HISTOGRAM_BINS + 1)
        bins = _bins(scores, _HISTOGRAM_BINS)
        return cls(
            edges.tolist(),
            {
                name: np.bincount(bins[kind], counts[kind], _HISTOGRAM_BINS).astype(int).tolist()
                for name, kind in kinds.items()
            },
        )


@dataclass(frozen=True)
class ShareAtOrAbove:
    """Share of the sessions whose score is at or above each of some scores.

    Attributes:
        scores: ascending, evenly spaced in their logits: dense near 0 and 1.
        shares: by kind of session, of its own sessions.
    """

    scores: list[float]
    shares: dict[str, list[float]]

    @classmethod
    def of(cls, scores: Floats, counts: Integers, kinds: Mapping[str, Flags]) -> ShareAtOrAbove:
        """Shares of each kind; every kind has sessions."""
        at = 1.0 / (1.0 + np.exp(-np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, _LOGIT_POINTS)))
        shares = {}
        for name, kind in kinds.items():
            order = np.argsort(scores[kind])
            below = np.concatenate([[0], np.cumsum(counts[kind][order])])
            found = below[np.searchsorted(scores[kind][order], at, side="left")]
            shares[name] = (1.0 - found / below[-1]).tolist()
        return cls(at.tolist(), shares)


@dataclass(frozen=True)
class ReliabilityBin:
    """Labelled sessions whose scores are alike: calibrated scores are the share that is anomalous.

    Attributes:
        low, high: the scores of the bin, `high` left out but in the last one.
        sessions: how many there are, unweighted.
        mean_score: theirs, weighted.
        anomalous: share of them that is, weighted.
    """

    low: float
    high: float
    sessions: int
    mean_score: float
    anomalous: float


def reliability(scores: Floats, anomalous: Flags, counts: Integers, weights: Floats) -> list[ReliabilityBin]:
    """Bins of equal width that hold a session; `weights` already count each row's sessions."""
    bins = _bins(scores, _RELIABILITY_BINS)
    sessions, weight, score, hits = (
        np.bincount(bins, values, _RELIABILITY_BINS)
        for values in (counts, weights, weights * scores, weights * anomalous)
    )
    return [
        ReliabilityBin(
            low=index / _RELIABILITY_BINS,
            high=(index + 1) / _RELIABILITY_BINS,
            sessions=int(sessions[index]),
            mean_score=float(score[index] / weight[index]),
            anomalous=float(hits[index] / weight[index]),
        )
        for index in np.flatnonzero(weight).tolist()
    ]


@dataclass(frozen=True)
class Quartiles:
    """Of a quantity over sessions: 25, 50 and 75 % of them have at most this."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Floats, counts: Integers) -> Quartiles:
        """Of rows that stand for several sessions each, at least one."""
        order = np.argsort(values)
        share = np.cumsum(counts[order]) / counts.sum()
        return cls(*(float(values[order][np.searchsorted(share, level)]) for level in (0.25, 0.5, 0.75)))


@dataclass(frozen=True)
class Delay:
    """When the early score first reaches a threshold, and what an alert at that moment is worth.

    The first four are shares of the anomalous sessions and add up to 1.

    Attributes:
        threshold: a score at or above it is an alert.
        before_last_event: flagged by an event before their last one.
        at_last_event: flagged by their last event.
        at_end: flagged by the score of the complete session only.
        never: not flagged.
        events: events until the flag, of the sessions flagged by an event; None when there are none.
        share_of_length: the same, as a share of the session's events.
        flagged_by: share of the anomalous sessions flagged by each hundredth of their length, 0 to 1.
        normal_flagged_early: share of the normal sessions that an event flags.
        alerts: precision, recall and F1 when an early or a final score at or above the threshold is an alert.
    """

    threshold: float
    before_last_event: float
    at_last_event: float
    at_end: float
    never: float
    events: Quartiles | None
    share_of_length: Quartiles | None
    flagged_by: list[float]
    normal_flagged_early: float
    alerts: Detection

    @classmethod
    def of(
        cls,
        threshold: float,
        *,
        crossed: Integers,
        lengths: Integers,
        final: Floats,
        anomalous: Flags,
        counts: Integers,
        weights: Floats,
    ) -> Delay:
        """Of labelled sessions of both kinds.

        Args:
            threshold: the score that was crossed.
            crossed: events until the early score was at or above it, else `NEVER`.
            lengths: events of each session.
            final: score of each complete session.
            anomalous: label of each session.
            counts: how many sessions each row stands for.
            weights: the same, with the weight of normal sessions.
        """
        by_event, at_end = crossed != NEVER, final >= threshold
        total = counts[anomalous].sum()

        def share(chosen: Flags) -> float:
            return float(counts[anomalous & chosen].sum() / total)

        flagged = anomalous & by_event
        position = crossed[flagged] / lengths[flagged]
        points = np.linspace(0.0, 1.0, _DELAY_POINTS)
        order = np.argsort(position)
        reached = np.concatenate([[0], np.cumsum(counts[flagged][order])])
        flagged_by = reached[np.searchsorted(position[order], points, side="right")] / total
        return cls(
            threshold=threshold,
            before_last_event=share(by_event & (crossed < lengths)),
            at_last_event=share(crossed == lengths),
            at_end=share(~by_event & at_end),
            never=share(~by_event & ~at_end),
            events=Quartiles.of(crossed[flagged].astype(np.float64), counts[flagged]) if flagged.any() else None,
            share_of_length=Quartiles.of(position, counts[flagged]) if flagged.any() else None,
            flagged_by=flagged_by.tolist(),
            normal_flagged_early=float(counts[~anomalous & by_event].sum() / counts[~anomalous].sum()),
            alerts=Detection.at(1.0, (by_event | at_end).astype(np.float64), anomalous, weights),
        )


def thinned(points: int, limit: int) -> Sequence[int] | npt.NDArray[np.int64]:
    """At most `limit` of the numbers 0 to points - 1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, points - 1, min(points, limit)).round().astype(np.int64))


def _bins(scores: Floats, bins: int) -> Integers:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)

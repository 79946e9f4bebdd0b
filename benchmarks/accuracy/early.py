"""Early detection: how soon the scores of a session that is still going on tell that it is anomalous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.datasets import Flags, Integers
from benchmarks.accuracy.tasks import Floats, Part
from detector.scoring.scores import EventScores


class Early(NamedTuple):
    """What early scores give at one threshold; every session counts as often as it occurs.

    Attributes:
        flagged: share of the anomalous sessions whose early score reaches the threshold before their last event.
        median_delay: of the anomalous sessions that alert, the share of their events until they do.
        final_precision: of the final scores alone, at natural prevalence.
        precision: of sessions that alert early or at the end.
    """

    flagged: float
    median_delay: float | None
    final_precision: float
    precision: float


def early_detection(part: Part, scores: Sequence[EventScores], threshold: float) -> Early:
    """What early scores give at a threshold.

    Args:
        part: the sessions, at least one of them anomalous.
        scores: of each.
        threshold: a session alerts as soon as a score of its events so far is at or above it.
    """
    lengths = np.array([len(each.scores) for each in scores])
    crossings = np.array([_crossing(each, threshold) for each in scores])
    final = finals(scores) >= threshold
    alert = final | (crossings < lengths)
    anomalous = part.anomalous
    counts = part.counts[anomalous]
    before_last = (crossings < lengths - 1)[anomalous]
    delays = ((np.minimum(crossings, lengths - 1) + 1) / lengths)[anomalous & alert]
    return Early(
        flagged=float(counts[before_last].sum() / counts.sum()),
        median_delay=_median(delays, part.counts[anomalous & alert]),
        final_precision=_precision(part, final),
        precision=_precision(part, alert),
    )


def _crossing(scores: EventScores, threshold: float) -> int:
    """The first event whose early score reaches the threshold; the number of events if none does."""
    reached = scores.scores >= threshold
    return int(np.argmax(reached)) if reached.any() else len(reached)


def _median(values: Floats, counts: Integers) -> float | None:
    if not len(values):
        return None
    return float(np.quantile(values, 0.5, weights=counts, method="inverted_cdf"))


def _precision(part: Part, alert: Flags) -> float:
    alerts = float(part.weights[alert].sum())
    return float(part.weights[alert & part.anomalous].sum()) / alerts if alerts else 0.0


def finals(scores: Sequence[EventScores]) -> Floats:
    """Scores of the complete sessions, (n,)."""
    return np.array([each.final for each in scores])

"""How well scores tell anomalous sessions from normal ones; a session may stand for several equal ones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


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
        alert = scores >= threshold
        hits = float(counts[alert & anomalous].sum())
        alerts = float(counts[alert].sum())
        positives = float(counts[anomalous].sum())
        return cls(
            precision=hits / alerts if alerts else 0.0,
            recall=hits / positives if positives else 0.0,
            f1=2 * hits / (alerts + positives) if alerts + positives else 0.0,
        )


def average_precision(scores: Floats, anomalous: Flags, counts: Floats) -> float:
    """Area under the precision-recall curve as a step function; equal scores enter together.

    Returns:
        0 when no session is anomalous.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(np.where(anomalous, counts, 0.0)[order])
    alerts = np.cumsum(counts[order])
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    hits, alerts = hits[last_of_equals], alerts[last_of_equals]
    if len(hits) == 0 or hits[-1] == 0:
        return 0.0
    return float(np.sum(np.diff(hits, prepend=0.0) * hits / alerts) / hits[-1])

"""How well scores tell anomalous from normal sessions, with confidence intervals: at thresholds and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detector.quality.metrics import Flags, Floats, Ranking, confidence_intervals
from detector.quality.score_curves import Integers

BEST = "best"
"""Name of the threshold that is chosen after the fact."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """Alerts at one threshold.

    Attributes:
        threshold: a score at or above it is an alert.
        precision, recall, f1: with the weight of normal sessions.
        misses: anomalous sessions that are no alert.
        false_alarms: normal sessions that are one, unweighted.
    """

    threshold: float
    precision: Estimate
    recall: Estimate
    f1: Estimate
    misses: int
    false_alarms: int


@dataclass(frozen=True)
class Quality:
    """How well scores tell anomalous from normal sessions.

    Attributes:
        operating: by name, the alerts at each threshold that was fixed beforehand, and at `BEST`: the threshold with
            the highest F1, which is chosen on these very sessions and so promises too much.
        auprc: area under the precision-recall curve, as a step function.
        auroc: area under the ROC curve.
    """

    operating: dict[str, OperatingPoint]
    auprc: Estimate
    auroc: Estimate

    @classmethod
    def of(
        cls,
        scores: Floats,
        anomalous: Flags,
        counts: Integers,
        *,
        thresholds: Mapping[str, float],
        normal_weight: float,
        seed: int,
    ) -> Quality:
        """Figures of labelled sessions of both kinds; the arrays are (n,), the seed is the bootstrap's."""
        counted = Ranking.of(scores, anomalous, counts.astype(np.float64))
        weighted = counted.with_normal_weight(normal_weight)
        thresholds = {**thresholds, BEST: weighted.best_threshold()}

        def figures(ranking: Ranking) -> list[Floats]:
            rates = [rate for threshold in thresholds.values() for rate in ranking.detection(threshold)]
            return [*rates, ranking.average_precision(), ranking.auroc()]

        intervals = confidence_intervals(counted, figures, normal_weight=normal_weight, seed=seed)
        estimates = iter(
            [Estimate(float(value), *interval) for value, interval in zip(figures(weighted), intervals, strict=True)]
        )
        operating = {}
        for name, threshold in thresholds.items():
            alert = scores >= threshold
            operating[name] = OperatingPoint(
                threshold=threshold,
                precision=next(estimates),
                recall=next(estimates),
                f1=next(estimates),
                misses=int(counts[anomalous & ~alert].sum()),
                false_alarms=int(counts[~anomalous & alert].sum()),
            )
        auprc, auroc = estimates
        return cls(operating, auprc, auroc)

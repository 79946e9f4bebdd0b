"""How final scores are spread over [0, 1]: what a training found, and what a worker sees beside it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 20
"""Bins of equal width; the thresholds that the settings begin with, 0.7 and 0.95, are edges of theirs."""

_DIGITS = 6  # of a score, that severities are judged by


def score_histogram(scores: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """How many scores each bin has: bin i those from i / `BINS` on and below the next; a score of 1 is in the last.

    Args:
        scores: in [0, 1], (n,).
        counts: how often each is there; once by default.

    Returns:
        (`BINS`,) counts.
    """
    bins = np.floor(np.round(np.asarray(scores, np.float64), _DIGITS) * BINS + 10.0**-_DIGITS).astype(np.int64)
    weights = None if counts is None else np.asarray(counts, np.float64)
    return np.bincount(np.clip(bins, 0, BINS - 1), weights, BINS).astype(np.float64)

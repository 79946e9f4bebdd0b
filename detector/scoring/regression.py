"""Logistic regression on sessions that stand for several equal ones, with targets between 0 and 1."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_NEWTON_STEPS = 100
_SMALLEST_STEP = 1e-6
_MOST_LOWERED = 40.0  # log-odds
_CLOSE = 0.01


def drawn_in(anomalous: Flags, weights: Floats) -> Floats:
    """Targets of sessions of each label, drawn in from 0 and 1 by half a session of what they weigh, (n,)."""
    totals = np.where(anomalous, weights[anomalous].sum(), weights[~anomalous].sum())
    targets: Floats = np.where(anomalous, totals + 0.5, 0.5) / (totals + 1)
    return targets


def logistic_regression(features: Floats, targets: Floats, counts: Floats) -> tuple[float, Floats]:
    """Newton's method with step halving.

    Args:
        features: of each session, (n, k).
        targets: what to say of it, (n,).
        counts: how many equal sessions it stands for, (n,).

    Returns:
        The loss in nats and the weights, (k,).
    """
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


def lowered_by(z: Floats, targets: Floats, counts: Floats, price: float) -> float:
    """What to take from these log-odds to fit the targets best; 0 where the loss falls by less than the price."""
    low, high = 0.0, _MOST_LOWERED
    while high - low > _CLOSE:  # the loss is convex, so its slope changes sign once
        middle = (low + high) / 2
        too_low = counts @ (1 / (1 + np.exp(-np.clip(z - middle, -500.0, 500.0))) - targets) < 0
        low, high = (low, middle) if too_low else (middle, high)

    def loss(by: float) -> float:
        return float(counts @ (np.logaddexp(0.0, z - by) - targets * (z - by)))

    return low if loss(0.0) - loss(low) > price else 0.0

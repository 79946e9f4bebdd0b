"""How much evidence the normal sessions of a log have, and the level that evidence of a session comes to by that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

Floats = npt.NDArray[np.float64]

WARNING_LEVEL: Final = 2.0
CRITICAL_LEVEL: Final = 3.0
SURPRISE_LEVEL: Final = 1.9

CERTAINTY: Final = 0.9  # with which what sessions show is bounded

# Beyond this level (one normal session in 10^12) a statistic says no more than "extreme".
MAX_LEVEL: Final = 12.0
_PRIOR_SESSIONS: Final = 5.0


class Evidences(NamedTuple):
    """Evidence of some normal sessions.

    Attributes:
        nats: of each, 0 for none, (n,).
        counts: how many equal sessions each stands for, (n,).
    """

    nats: Floats
    counts: Floats

    @classmethod
    def joined(cls, parts: Sequence["Evidences"]) -> "Evidences":
        """Of the sessions of all parts, at least one."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def rare(self, share: float) -> float:
        """The least nats that no more than this share of sessions like these are beyond; infinite where none is shown.

        With `CERTAINTY`, by the upper bound for a Poisson count: few sessions show nothing.
        """
        highest_first = np.argsort(-self.nats, kind="stable")
        beyond = np.append(0.0, np.cumsum(self.counts[highest_first]))
        shown = np.count_nonzero(gammaincinv(beyond + 1, CERTAINTY) <= share * self.counts.sum())
        if not shown:
            return float(np.inf)
        return float(np.append(self.nats[highest_first], 0.0)[shown - 1])


@dataclass(frozen=True)
class Evidence:
    """Level of the sessions with evidence, from how many normal ones have some and how fast it falls off.

    Attributes:
        level: of the least evidence, -log10 of the share of normal sessions that have any.
        slope: levels per nat.
    """

    level: float
    slope: float

    @classmethod
    def fit(cls, evidence: Floats, counts: Floats) -> "Evidence":
        """Fit on held-out normal sessions.

        Args:
            evidence: nats, 0 for none, (n,).
            counts: how many equal sessions each stands for, (n,).
        """
        some = evidence > 0
        k = float(counts[some].sum())
        # Nats are -log p already: what few sessions say of their fall is drawn towards one nat a nat.
        mean = (float(counts[some] @ evidence[some]) + _PRIOR_SESSIONS) / (k + _PRIOR_SESSIONS)
        return cls(level=float(np.log10((counts.sum() + 1) / (k + 1))), slope=1 / (mean * float(np.log(10))))

    @classmethod
    def certain(cls, normal: Evidences) -> "Evidence":
        """As `fit`, but the least evidence is critical only by the share of normal sessions with `CERTAINTY`.

        That is the upper bound for a Poisson count: of few sessions without evidence it is no proof that there are
        none. For a warning the estimate is enough.
        """
        evidence = cls.fit(*normal)
        at_most = gammaincinv(normal.counts[normal.nats > 0].sum() + 1, CERTAINTY) / normal.counts.sum()
        return replace(evidence, level=min(evidence.level, max(WARNING_LEVEL, -float(np.log10(at_most)))))

    def levels(self, evidence: Floats) -> Floats:
        """Level of sessions with evidence, from `SURPRISE_LEVEL` to `MAX_LEVEL`, ascending."""
        steps = self.slope * evidence
        # Where many normal sessions have evidence, little of it is no warning, but still ranks above surprise alone.
        ranked = WARNING_LEVEL - (WARNING_LEVEL - SURPRISE_LEVEL) / (1 + steps)
        levels: Floats = np.minimum(np.maximum(self.level + steps, ranked), MAX_LEVEL)
        return levels

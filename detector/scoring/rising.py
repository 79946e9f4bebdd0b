"""What has become more frequent lately: of each template, how the share of the sessions that have it has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from detector.scoring.count_vectors import CountVectors

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_RISING: Final = 6.0
"""Levels (powers of ten) that a share may rise or fall by; beyond that it says no more than that."""

STAYS: Final = 0.8
"""Of what is lately at an adaptation, the share that still is at the next: lately is about the last five of them."""

_DIGITS: Final = 3
_Mass = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Rising:
    """How many sessions had each template lately, and how many before.

    Equal sessions of one stretch of traffic count together as the square root of their number: what repeats itself
    without end is no more frequent for it.

    Attributes:
        templates: token, sessions of lately and of before that have it, ascending.
        lately: sessions of lately.
        before: sessions of before.
    """

    templates: tuple[tuple[Annotated[int, Field(ge=0, lt=2**63)], _Mass, _Mass], ...]
    lately: _Mass
    before: _Mass

    @classmethod
    def at_first(cls, sessions: CountVectors, counts: Integers) -> Rising:
        """What was before the first adaptation: distinct sessions, and how many equal ones each stands for."""
        had, total = _masses(sessions, counts)
        return cls(tuple((token, 0.0, mass) for token, mass in sorted(had.items())), 0.0, total)

    def then(self, sessions: CountVectors, counts: Integers) -> Rising:
        """After the traffic of one more adaptation, likewise."""
        had, total = _masses(sessions, counts)
        found = {token: (STAYS * now, was + (1 - STAYS) * now) for token, now, was in self.templates}
        templates = []
        for token in sorted(found.keys() | had.keys()):
            now, was = found.get(token, (0.0, 0.0))
            templates.append((token, round(now + had.get(token, 0.0), _DIGITS), round(was, _DIGITS)))
        lately, before = STAYS * self.lately + total, self.before + (1 - STAYS) * self.lately
        return Rising(tuple(templates), round(lately, _DIGITS), round(before, _DIGITS))

    def of_sessions(self, sessions: CountVectors) -> Floats:
        """The mean change over the events of each session, in levels, at most `MOST_RISING` either way, (sessions,).

        1 is ten times as frequent as before. What was not there yet is as if one more session had it lately and one
        before.
        """
        token, now, was = np.array(self.templates, np.float64).reshape(-1, 3).T
        base = np.log10(self.before + 1) - np.log10(self.lately + 1)
        table = np.full(1 + int(max(sessions.tokens.max(initial=0), token.max(initial=0))), base)
        table[token.astype(np.int64)] += np.log10(now + 1) - np.log10(was + 1)
        rows = sessions.rows
        total = np.bincount(rows, sessions.counts * table[sessions.tokens], sessions.sessions)
        events = np.bincount(rows, sessions.counts, sessions.sessions)
        found: Floats = np.clip(total / np.maximum(events, 1), -MOST_RISING, MOST_RISING)
        return found


def _masses(sessions: CountVectors, counts: Integers) -> tuple[dict[int, float], float]:
    """How many sessions have each token, and how many there are."""
    weigh = np.sqrt(counts.astype(np.float64))
    totals = np.bincount(sessions.tokens, weigh[sessions.rows])
    had = {token: round(float(totals[token]), _DIGITS) for token in np.flatnonzero(totals).tolist()}
    return had, round(float(weigh.sum()), _DIGITS)

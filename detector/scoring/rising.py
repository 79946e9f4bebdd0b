"""What has become more frequent lately: of each template, how the share of the sessions that have it has changed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from detector.scoring.count_vectors import CountVectors

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_RISING: Final = 6.0
"""Levels (powers of ten) that a share may rise or fall by; beyond that it says no more than that."""

EVENTS: Final = 10
"""Independent events that the change of a session counts for. Were all of its events independent, the sum over them
would be how much likelier the session is lately than before; but they are not, and the longest sessions would always
come first."""

LATELY: Final = 5
"""Lately is since so many adaptations before the last one. Until then nothing of it is `before`: a burst that goes on
would else soon be compared with itself."""

_DIGITS: Final = 3
_Mass = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Stretch:
    """How many sessions of a stretch of traffic had each template.

    Equal sessions of one stretch count together as the square root of their number: what repeats itself without end is
    no more frequent for it.

    Attributes:
        sessions: of all of it.
        templates: token and sessions that have it, ascending.
    """

    sessions: _Mass
    templates: tuple[tuple[Annotated[int, Field(ge=0, lt=2**63)], _Mass], ...]

    @classmethod
    def of(cls, sessions: CountVectors, counts: Integers) -> Stretch:
        """Of distinct sessions, and how many equal ones each stands for."""
        weigh = np.sqrt(counts.astype(np.float64))
        totals = np.bincount(sessions.tokens, weigh[sessions.rows])
        had = tuple((token, round(float(totals[token]), _DIGITS)) for token in np.flatnonzero(totals).tolist())
        return cls(round(float(weigh.sum()), _DIGITS), had)

    def joined(self, other: Stretch) -> Stretch:
        """Both as one."""
        had = defaultdict(float, self.templates)
        for token, mass in other.templates:
            had[token] += mass
        sessions = round(self.sessions + other.sessions, _DIGITS)
        return Stretch(sessions, tuple((token, round(mass, _DIGITS)) for token, mass in sorted(had.items())))


@dataclass(frozen=True)
class Rising:
    """The traffic of lately, and all before.

    Attributes:
        before: what was there before the stretches of lately.
        lately: what came until each of the last adaptations, in order.
    """

    before: Stretch
    lately: Annotated[tuple[Stretch, ...], Field(max_length=LATELY)] = ()

    def then(self, traffic: Stretch) -> Rising:
        """After one more adaptation."""
        before, lately = self.before, (*self.lately, traffic)
        if len(lately) > LATELY:
            before, lately = before.joined(lately[0]), lately[1:]
        return Rising(before, lately)

    def of_sessions(self, sessions: CountVectors) -> Floats:
        """The mean change over the events of each session, in levels, at most `MOST_RISING` either way, (sessions,).

        1 is ten times as frequent as before. What was not there yet is as if one more session had it lately and one
        before.
        """
        token, levels, of_none = self._levels
        table = np.full(1 + int(max(sessions.tokens.max(initial=0), token.max(initial=0))), of_none)
        table[token] = levels
        rows = sessions.rows
        total = np.bincount(rows, sessions.counts * table[sessions.tokens], sessions.sessions)
        events = np.bincount(rows, sessions.counts, sessions.sessions)
        found: Floats = np.clip(total / np.maximum(events, 1), -MOST_RISING, MOST_RISING)
        return found

    @cached_property
    def _levels(self) -> tuple[Integers, Floats, float]:
        """Tokens, the change of each, and that of a template that never came."""
        lately = reduce(Stretch.joined, self.lately, Stretch(0.0, ()))
        now, was = dict(lately.templates), dict(self.before.templates)
        token = np.array(sorted(now.keys() | was.keys()), np.int64)
        base = float(np.log10(self.before.sessions + 1) - np.log10(lately.sessions + 1))
        of_each = [np.log10(now.get(each, 0.0) + 1) - np.log10(was.get(each, 0.0) + 1) for each in token.tolist()]
        return token, base + np.array(of_each, np.float64), base

"""Pauses and bursts: what nearly all sessions keep in time, and which do not.

A session with the events of any other one, in the same order, may still be slow, or pour out in a second what takes
others an hour. Two things are held to limits:

- *pause*: how long before an event, right after another one, nothing came; where hardly any session has the two in a
  row, whatever came before it;
- *burst*: how many events of a template come within a second.

The limit is so many times what is usual (`detector.scoring.pace_learning`): `PAUSES` times and a second for a pause,
`BURSTS` times and at least `FEWEST_AT_ONCE` for a burst. What is less far out is what slow disks and busy hours do
(`benchmarks/results/accuracy.md`).

Times are those of the events, as sessions have them. One event without a time, or a pause that is longer than the
session was open in stream time, which follows no single wrong clock, and there is no evidence. An unusual pace is a
warning, never critical: it says that something took long, not that it failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from detector.scoring import pace_loop as loop
from detector.scoring.scores import Sequences
from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PAUSES: Final = 3
BURSTS: Final = 2
FEWEST_AT_ONCE: Final = 3
"""Events of a template within a second that are never a burst."""
ANY: Final = loop.ANY
"""In place of the template before a pause: whatever it is."""
_NEVER: Final = 2**62

PaceKind = Literal["pause", "burst"]


class Timed(NamedTuple):
    """Sessions with the times of their events.

    Attributes:
        sequences: their tokens.
        times: ms, NO_TIME where an event has none, int64 (events,).
        spans: ms of stream time from the first event of each to its last, int64 (n,).
    """

    sequences: Sequences
    times: Integers
    spans: Integers

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sessions of all parts, which is at least one."""
        if len(parts) == 1:
            return parts[0]
        sequences = Sequences.joined([part.sequences for part in parts])
        times, spans = (np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "spans"))
        return cls(sequences, times, spans)

    def select(self, rows: Integers) -> Self:
        """These sessions, in this order."""
        times = Sequences(self.times, self.sequences.ends).select(rows).tokens
        return type(self)(self.sequences.select(rows), times, self.spans[rows])

    @property
    def tokens(self) -> Integers:
        """Of the events; every unknown line is UNK."""
        return np.maximum(self.sequences.tokens, UNK)

    @property
    def rows(self) -> Integers:
        """The session of each event."""
        ends = self.sequences.ends
        return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))

    def pauses(self) -> Integers:
        """Before each event, ms (`pace_loop.pauses`)."""
        found = np.empty(len(self.times), np.int64)
        loop.pauses(self.times, self.sequences.ends, self.spans, found)
        return found


class Unusual(NamedTuple):
    """A pause or a burst beyond its limit.

    Attributes:
        kind: which of the two.
        token: of the template.
        previous: of the one before the pause; ANY where it does not matter, or for a burst.
        value: ms of the pause, events within a second.
        usual: what `within` of `sessions` that have it have at most.
        limit: beyond it is unusual.
    """

    kind: PaceKind
    token: int
    previous: int
    value: int
    usual: int
    limit: int
    within: int
    sessions: int

    @property
    def beyond(self) -> float:
        """How far beyond the limit, from 0 to 1."""
        return 1 - self.limit / self.value


@dataclass(frozen=True, eq=False)
class Pace:
    """What was learnt.

    Attributes:
        pauses: token, the one before it or ANY, sessions that have both in a row, how many of these have at most the
            usual pause there, that pause in ms; ascending, int64 (k, 5).
        bursts: token, sessions that have it, how many of these have at most as many within a second as is usual, how
            many that is; ascending, int64 (k, 4).

    Raises:
        ValueError: the tables have another shape.
    """

    pauses: Integers
    bursts: Integers

    def __post_init__(self) -> None:
        for name, table, width in (("pauses", self.pauses, 5), ("bursts", self.bursts, 4)):
            if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != width or (table < 0).any():
                raise ValueError(f"{name} is no table of {width} columns of numbers from 0 on")

    def unusual(self, sessions: Timed) -> dict[int, list[Unusual]]:
        """The pauses and bursts beyond their limits of each session that has any, the furthest beyond first."""
        paused = sessions.pauses()
        suspect = np.empty(len(sessions.sequences.ends), np.int64)
        loop.suspects(self._limits, sessions.tokens, sessions.times, sessions.sequences.ends, paused, suspect)
        rows = np.flatnonzero(suspect)
        found: dict[int, list[Unusual]] = {}
        if not len(rows):
            return found
        some = sessions.select(rows)
        for row, each in (*self._long_pauses(some), *self._bursts_of(some)):
            found.setdefault(int(rows[row]), []).append(each)
        for number, several in found.items():
            found[number] = sorted(several, key=lambda each: (-each.beyond, each.kind, each.token, each.previous))
        return dict(sorted(found.items()))

    def __bool__(self) -> bool:
        return bool(len(self.pauses) or len(self.bursts))

    # -- what follows from the numbers ---------------------------------------------------------------------------------

    @cached_property
    def _limits(self) -> loop.Limits:
        longest = PAUSES * self.pauses[:, 4] + loop.SECOND
        size = max(int(self.pauses[:, 0].max(initial=UNK)), int(self.bursts[:, 0].max(initial=UNK))) + 2
        least, most = np.full((2, size), _NEVER)
        np.minimum.at(least, self.pauses[:, 0], longest)
        most[self.bursts[:, 0]] = np.maximum(BURSTS * self.bursts[:, 3], FEWEST_AT_ONCE)
        return loop.Limits(pairs(self.pauses[:, 0], self.pauses[:, 1]), longest, least, most)

    def _long_pauses(self, sessions: Timed) -> list[tuple[int, Unusual]]:
        tokens, rows, paused, limits = sessions.tokens, sessions.rows, sessions.pauses(), self._limits
        greatest: dict[tuple[int, int], int] = {}
        for event in np.flatnonzero(paused > limits.least[np.minimum(tokens, len(limits.least) - 1)]).tolist():
            place = loop.place_of(limits.pairs, int(tokens[event]), int(tokens[event - 1]))
            if place != loop.NONE and paused[event] > limits.longest[place]:
                which = int(rows[event]), place
                greatest[which] = max(int(paused[event]), greatest.get(which, 0))
        found = []
        for (row, place), value in greatest.items():
            token, before, had, within, usual = self.pauses[place].tolist()
            limit = int(limits.longest[place])
            found.append((row, Unusual("pause", token, before, value, usual, limit, within, had)))
        return found

    def _bursts_of(self, sessions: Timed) -> list[tuple[int, Unusual]]:
        found = []
        for row, token, value in at_once(sessions).tolist():
            limit = int(self._limits.most[min(token, len(self._limits.most) - 1)])
            if value > limit:
                [(_, had, within, usual)] = self.bursts[self.bursts[:, 0] == token].tolist()
                found.append((row, Unusual("burst", token, ANY, value, usual, limit, within, had)))
        return found


def pairs(tokens: Integers, previous: Integers) -> Integers:
    """As `pace_loop.pair`."""
    return (tokens << loop.PAIR_BITS) + previous


def has_times(sessions: Timed) -> Flags:
    """Whether all events of each session have a time."""
    lacking = np.bincount(sessions.rows, sessions.times == loop.NO_TIME, len(sessions.sequences.ends))
    found: Flags = lacking == 0
    return found


def at_once(sessions: Timed) -> Integers:
    """Session, token, the most events of it within a second; a row for each token of each session with times."""
    tokens, rows = sessions.tokens, sessions.rows
    kept = has_times(sessions)[rows]
    tokens, rows, times = tokens[kept], rows[kept], sessions.times[kept]
    order = np.lexsort((times, tokens, rows))
    tokens, rows, times = tokens[order], rows[order], times[order]
    groups = np.cumsum((np.diff(rows, prepend=-1) != 0) | (np.diff(tokens, prepend=-1) != 0))
    found = np.empty(len(times), np.int64)
    loop.within_a_second(groups, times, found)
    return greatest(rows, tokens, found)


def greatest(rows: Integers, codes: Integers, values: Integers) -> Integers:
    """Session, code, the greatest value that it has there; ascending, (k, 3)."""
    order = np.lexsort((codes, rows))
    rows, codes, values = rows[order], codes[order], values[order]
    first = np.flatnonzero((np.diff(rows, prepend=-1) != 0) | (np.diff(codes, prepend=-1) != 0))
    most = np.maximum.reduceat(values, first) if len(first) else values
    return np.column_stack([rows[first], codes[first], most])

"""What nearly all sessions of a log have in common, anomalies among them or not, and which sessions break it.

Nothing here knows a label. A tolerance is a statement about counts that all but a share of `RARE` of the sessions keep:

- *presence*: a template that nearly all sessions have is expected; one that hardly any has is rare; else it is free;
- *range*: of its count in the sessions that have it: the one count that nearly all of them have, else between the
  `RARE / 2` quantiles at both ends, widened by their ratio, up to twice;
- *relation*: n_a = c n_b in the sessions that have one of the two, where both counts vary.

Two things excuse. A rare template is no evidence where an accepted one of the session makes it `LIKELY` and `LIFT`
times likelier than elsewhere (*context*). An expected template may be missing where it nearly always comes after
everything usual that is there, or before it: the session was cut (*ends*).

The *evidence* of a broken tolerance is minus the log of the share of its violators among the sessions it speaks of, a
session's is the greatest, and a session with any stands out. A session's own count vector takes no part in the shares
unless it is `RARE` of all: copies of an anomaly do not excuse each other. In counts as small as they are, v of n
sessions are the share (v + 1) / (n + 1), so nothing is learnt from fewer than 1 / `RARE` sessions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from detector.scoring.count_vectors import Codes, CountVectors, code
from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

RARE: Final = 0.03
LIKELY: Final = 0.1
LIFT: Final = 3.0

_LEAST = -float(np.log(RARE))  # nats of the weakest evidence
CELLS: Final = 1 << 22
"""Of a dense table of counts that is looked at at a time."""
LOOSE: Final = 2 * RARE
"""Without its own sessions a tolerance may be kept that is not kept with them."""

Kind = Literal["missing", "rare", "fewer", "more", "below", "above", "pause", "burst"]
KINDS: Final[tuple[Kind, ...]] = ("missing", "rare", "fewer", "more", "below", "above", "pause", "burst")
MISSING, RARE_TEMPLATE, FEWER, MORE, BELOW, ABOVE = range(6)


class Broken(NamedTuple):
    """A tolerance that a session breaks, and which way.

    Attributes:
        kind: `missing` and `rare` of presence, `fewer` and `more` of a range, `below` and `above` of a relation;
            `pause` and `burst` are of `detector.scoring.pace`.
        token: of the template.
        other: of the one it is related to; 0 where there is none.
        nats: of evidence.
    """

    kind: Kind
    token: int
    other: int
    nats: float


class Judged(NamedTuple):
    """How some sessions stand to the tolerances.

    Attributes:
        evidence: nats, 0 for a session that breaks none, (sessions,).
        families: a number for which tolerances it breaks and which way, 0 for none, uint64 (sessions,).
        broken: how many that are, int64 (sessions,).
    """

    evidence: Floats
    families: Codes
    broken: Integers


class _Entries(NamedTuple):
    """Broken tolerances of some sessions, an entry each."""

    rows: Integers
    kinds: Integers
    tokens: Integers
    others: Integers
    nats: Floats


@dataclass(frozen=True)
class Tolerances:
    """What was learnt, as the numbers it follows from.

    Attributes:
        sessions: how many it was learnt from.
        histogram: token, count, sessions that have the token so often, (k, 3), ascending.
        contexts: a rare token, another one, sessions that have both, (k, 3), ascending.
        after: an expected token, a usual one that it nearly always comes after, (k, 2), ascending.
        before: likewise, before.
        relations: tokens a and b, numbers p and q with q n_a = p n_b, sessions that break it, sessions that have one of
            both, (k, 6).
        set_aside: code of each count vector with evidence among what was learnt from, ascending, (k,).
        weights: sessions that have it, (k,).
    """

    sessions: int
    histogram: Integers
    contexts: Integers
    after: Integers
    before: Integers
    relations: Integers
    set_aside: Codes
    weights: Integers

    def judge(self, vectors: CountVectors, own: Integers | None = None) -> Judged:
        """Judge complete sessions.

        Args:
            vectors: their counts.
            own: how many sessions of what was learnt from take no part as each vector is theirs, (sessions,); None for
                those that were set aside.
        """
        found = self._entries(vectors, self._own(vectors) if own is None else own)
        evidence = np.zeros(vectors.sessions)
        np.maximum.at(evidence, found.rows, found.nats)
        families = np.zeros(vectors.sessions, np.uint64)
        np.add.at(families, found.rows, way_codes(found.kinds, found.tokens, found.others))
        return Judged(evidence, families, np.bincount(found.rows, minlength=vectors.sessions))

    def broken(self, vectors: CountVectors) -> list[list[Broken]]:
        """The tolerances that each of some sessions breaks, the most evidence first."""
        found = self._entries(vectors, self._own(vectors))
        broken: list[list[Broken]] = [[] for _ in range(vectors.sessions)]
        order = np.lexsort((found.others, found.tokens, found.kinds, -found.nats))
        columns = (column[order].tolist() for column in found)
        for row, kind, token, other, nats in zip(*columns, strict=True):
            broken[row].append(Broken(KINDS[kind], token, other, nats))
        return broken

    def share_within(self, token: int) -> tuple[int, int, float]:
        """The range of a template's count, and which share of the sessions that have it lie within."""
        at = self._column[token]
        mine = self.histogram[self.histogram[:, 0] == token]
        low, high = int(np.ceil(self._low[at])), int(np.floor(self._high[at]))
        inside = (mine[:, 1] >= low) & (mine[:, 1] <= high)
        return low, high, float(mine[inside, 2].sum() / mine[:, 2].sum())

    def share_with(self, token: int) -> float:
        """Share of the sessions that have a template."""
        return float(self._had[self._column[token]] / self.sessions)

    def relation(self, token: int, other: int) -> tuple[int, int, float]:
        """How many of a template go with how many of another one, and in which share of the sessions with either."""
        [found] = self.relations[(self.relations[:, 0] == token) & (self.relations[:, 1] == other)]
        _, _, p, q, broken, either = found.tolist()
        return p, q, 1 - broken / either

    def on_the_way(self, tokens: Integers) -> tuple[Flags, Flags, Floats]:
        """What can be said of events while their sessions go on.

        Returns:
            Of each token: whether it is rare; whether so, and no other one would make it likely; how often it may
            come.
        """
        at = self._at(tokens)
        rare = self._is_rare
        lone = rare.copy()
        lone[self._at(self.contexts[:, 0])] = False
        return rare[at], lone[at], self._most[at]

    def aware_of(self, tokens: Iterable[int]) -> Tolerances:
        """These, where tokens that were not among what was learnt from are each rare, rather than one all together."""
        new = sorted(set(tokens).difference(self._column))
        if not new:
            return self
        rows = np.column_stack([np.array(new, np.int64), *np.repeat([[1], [0]], len(new), 1)])
        histogram = np.concatenate([self.histogram, rows])
        return replace(self, histogram=histogram[np.lexsort((histogram[:, 1], histogram[:, 0]))])

    def knows(self, token: int) -> bool:
        """Whether it was among what was learnt from."""
        return token in self._column

    # -- what follows from the numbers ---------------------------------------------------------------------------------

    @cached_property
    def _tokens(self) -> Integers:
        """Those that there are columns for: all that were seen, and UNK for every other one."""
        return np.unique(np.append(self.histogram[:, 0], UNK))

    @cached_property
    def _columns(self) -> Integers:
        """The column of each token up to one beyond the greatest; whatever was not seen is as good as unknown."""
        columns = np.full(int(self._tokens[-1]) + 2, np.searchsorted(self._tokens, UNK))
        columns[self._tokens] = np.arange(len(self._tokens))
        return columns

    @cached_property
    def _column(self) -> dict[int, int]:
        return {token: at for at, token in enumerate(self._tokens.tolist())}

    @cached_property
    def _had(self) -> Floats:
        """Sessions that have each column's token."""
        had = np.bincount(self._at(self.histogram[:, 0]), self.histogram[:, 2], len(self._tokens))
        return had.astype(np.float64)

    def _at(self, tokens: Integers) -> Integers:
        return self._columns[np.minimum(tokens, len(self._columns) - 1)]

    @cached_property
    def _is_rare(self) -> Flags:
        found: Flags = _nats(self._had, np.array(self.sessions)) >= _LEAST
        return found

    @cached_property
    def _is_expected(self) -> Flags:
        found: Flags = _nats(self.sessions - self._had, np.array(self.sessions)) >= _LEAST
        return found

    @cached_property
    def _may_be_rare(self) -> Flags:
        return self._had <= LOOSE * self.sessions

    @cached_property
    def _may_be_expected(self) -> Flags:
        return self.sessions - self._had <= LOOSE * self.sessions

    @cached_property
    def _is_usual(self) -> Flags:
        return self._had > RARE * self.sessions

    @cached_property
    def _starts(self) -> Integers:
        """Where each column's part of the histogram begins and, last, ends."""
        return np.searchsorted(self._at(self.histogram[:, 0]), np.arange(len(self._tokens) + 1))

    @cached_property
    def _bounds(self) -> tuple[Floats, Floats]:
        low, high = np.zeros(len(self._tokens)), np.full(len(self._tokens), np.inf)
        for at in np.flatnonzero(self._is_usual).tolist():
            (low[at],), (high[at],) = self._range(at, np.zeros(1))
        return low, high

    @property
    def _low(self) -> Floats:
        return self._bounds[0]

    @property
    def _high(self) -> Floats:
        return self._bounds[1]

    def _range(self, at: int, own: Floats) -> tuple[Floats, Floats]:
        """Least and greatest tolerated count of a column's token, without `own` sessions beyond that end; all (k,)."""
        part = self.histogram[self._starts[at] : self._starts[at + 1]]
        cumulative = np.cumsum(part[:, 2])

        def quantile(share: float, below: Floats) -> Floats:
            found = np.searchsorted(cumulative, share * (self._had[at] - own) + below)
            counts: Floats = part[np.minimum(found, len(part) - 1), 1].astype(np.float64)
            return counts

        def quantiles(below: Floats) -> tuple[Floats, Floats, Floats]:
            low, high = quantile(RARE / 2, below), quantile(1 - RARE / 2, below)
            return low, high, np.minimum(high / low, 2.0)

        commonest = int(part[:, 2].argmax())
        exactly = float(part[commonest, 1])
        exact = _nats(self._had[at] - own - part[commonest, 2], self._had[at] - own) >= _LEAST
        # Those below the low end are in all cumulative sums, those above the high end in none that matter.
        low, _, wider = quantiles(own)
        least = low / wider
        _, high, wider = quantiles(np.zeros_like(own))
        return np.where(exact, exactly, least), np.where(exact, exactly, high * wider)

    @cached_property
    def _most(self) -> Floats:
        """Greatest count of each column's token that breaks nothing."""
        columns = np.arange(len(self._tokens))
        evident = _nats(self._beyond(columns, self._high, below=False), self._had) >= _LEAST
        return np.where(evident, self._high, np.inf)

    @cached_property
    def _ends(self) -> tuple[Flags, Flags]:
        """Whether each token nearly always comes after, before each other one, (columns, columns)."""
        found = []
        for pairs in (self.after, self.before):
            table = np.zeros((len(self._tokens), len(self._tokens)), np.bool_)
            table[self._at(pairs[:, 0]), self._at(pairs[:, 1])] = True
            found.append(table)
        return found[0], found[1]

    def _own(self, vectors: CountVectors) -> Integers:
        """Sessions of each vector that take no part in what it is judged by."""
        own = np.zeros(vectors.sessions, np.int64)
        if len(self.set_aside):
            codes = vectors.codes
            at = np.minimum(np.searchsorted(self.set_aside, codes), len(self.set_aside) - 1)
            own = np.where(self.set_aside[at] == codes, self.weights[at], 0)
        return own

    # -- judging -------------------------------------------------------------------------------------------------------

    def _entries(self, vectors: CountVectors, own: Integers) -> _Entries:
        parts: list[_Entries] = []
        suspects = self._suspects(vectors, own)
        few = vectors.take(suspects)
        step = max(CELLS // len(self._tokens), 1)
        for first in range(0, len(suspects), step):
            rows = suspects[first : first + step]
            counts = self._dense(few, first, first + len(rows))
            parts += [part._replace(rows=rows[part.rows]) for part in self._broken(counts, own[rows].astype(float))]
        if not parts:
            none = np.zeros(0, np.int64)
            return _Entries(none, none, none, none, np.zeros(0))
        return _Entries(*map(np.concatenate, zip(*parts, strict=True)))

    def _suspects(self, vectors: CountVectors, own: Integers) -> Integers:
        """The sessions that may break anything: a look at their entries is cheaper than a table of all counts."""
        at, rows = self._at(vectors.tokens), vectors.rows
        odd = self._is_rare[at] | (vectors.counts < self._low[at]) | (vectors.counts > self._high[at])
        suspect = np.bincount(rows, odd, vectors.sessions) > 0
        had = np.bincount(rows, self._is_expected[at], vectors.sessions)
        suspect |= (own > 0) | (had < np.count_nonzero(self._is_expected))
        relations = self.relations[_nats(*self.relations[:, 4:].T.astype(np.float64)) >= _LEAST]
        related = np.unique(self._at(relations[:, :2].ravel()))
        if len(related):
            place = np.full(len(self._tokens), -1)
            place[related] = np.arange(len(related))
            mine = place[at] >= 0
            counts = np.zeros((vectors.sessions, len(related)), np.int64)
            counts[rows[mine], place[at[mine]]] = vectors.counts[mine]
            a, b = (place[self._at(relations[:, column])] for column in (0, 1))
            suspect |= (relations[:, 3] * counts[:, a] != relations[:, 2] * counts[:, b]).any(1)
        return np.flatnonzero(suspect)

    def _dense(self, vectors: CountVectors, first: int, last: int) -> Integers:
        """Counts of each column's token in sessions `first` to `last`, (sessions, columns)."""
        start, stop = vectors.bounds[first], vectors.bounds[last]
        rows = np.repeat(np.arange(last - first), np.diff(vectors.bounds[first : last + 1]))
        cells = rows * len(self._tokens) + self._at(vectors.tokens[start:stop])
        n_cells = (last - first) * len(self._tokens)
        counts = np.bincount(cells, vectors.counts[start:stop], n_cells)  # those never seen share a column
        return counts.astype(np.int64).reshape(last - first, len(self._tokens))

    def _broken(self, counts: Integers, own: Floats) -> list[_Entries]:
        has = counts > 0
        return [
            self._missing(has, own),
            self._rare(has, own),
            *self._out_of_range(counts, own),
            *self._unrelated(counts, own),
        ]

    def _found(self, kind: int, rows: Integers, at: Integers, nats: Floats, others: Integers | None = None) -> _Entries:
        some = nats >= _LEAST
        tokens = self._tokens[at]
        others = np.zeros_like(tokens) if others is None else others
        return _Entries(rows[some], np.full(some.sum(), kind), tokens[some], others[some], nats[some])

    def _missing(self, has: Flags, own: Floats) -> _Entries:
        columns = np.flatnonzero(self._may_be_expected)
        rows, at = np.nonzero(~has[:, columns])
        at = columns[at]
        nats = _nats(self.sessions - self._had[at] - own[rows], self.sessions - own[rows])
        usual = has[rows] & self._is_usual
        not_yet, no_more = (~(usual & ~table[at]).any(1) for table in self._ends)
        excused = usual.any(1) & (not_yet | no_more)
        return self._found(MISSING, rows, at, np.where(excused, 0.0, nats))

    def _rare(self, has: Flags, own: Floats) -> _Entries:
        columns = np.flatnonzero(self._may_be_rare)
        rows, at = np.nonzero(has[:, columns])
        at = columns[at]
        had, others = self._had[at] - own[rows], self.sessions - own[rows]
        nats = _nats(had, others)
        odd = nats >= _LEAST
        rows, at, nats, had, others = rows[odd], at[odd], nats[odd], had[odd], others[odd]
        accepted = has.copy()
        accepted[rows, at] = False
        # Every (rare token of a session, context of that token that the session has).
        rare, context = self._at(self.contexts[:, 0]), self._at(self.contexts[:, 1])
        starts = np.searchsorted(rare, np.arange(len(self._tokens) + 1))
        sizes = np.diff(starts)[at]
        entry = np.repeat(np.arange(len(at)), sizes)
        pair = np.arange(len(entry)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + starts[at][entry]
        there = has[rows[entry], context[pair]]
        entry, pair = entry[there], pair[there]
        row, by = rows[entry], context[pair]
        both, had_by = self.contexts[pair, 2] - own[row], self._had[by] - own[row]
        holds = (both >= LIKELY * had_by) & (both * others[entry] >= LIFT * had[entry] * had_by) & (both > 0)
        row, by, entry = row[holds], by[holds], entry[holds]
        while True:
            explained = np.zeros(len(at), np.bool_)
            explained[entry[accepted[row, by]]] = True
            explained &= ~accepted[rows, at]
            if not explained.any():
                break
            accepted[rows[explained], at[explained]] = True
        return self._found(RARE_TEMPLATE, rows, at, np.where(accepted[rows, at], 0.0, nats))

    def _out_of_range(self, counts: Integers, own: Floats) -> list[_Entries]:
        low, high = self._low, self._high
        outside = (counts > 0) & ((counts < low) | (counts > high))
        outside |= (counts > 0) & (own > 0)[:, None] & self._is_usual
        rows, at = np.nonzero(outside)
        if not len(rows):
            return []
        value, mine = counts[rows, at].astype(np.float64), own[rows]
        bottom, top = low[at], high[at]
        for column in np.unique(at[mine > 0]).tolist():
            these = np.flatnonzero((at == column) & (mine > 0))
            bottom[these], top[these] = self._range(column, mine[these])
        found = []
        for kind, beyond, ends in ((FEWER, value < bottom, bottom), (MORE, value > top, top)):
            these = np.flatnonzero(beyond)
            violators = self._beyond(at[these], ends[these], below=kind == FEWER) - mine[these]
            nats = _nats(violators, self._had[at[these]] - mine[these])
            found.append(self._found(kind, rows[these], at[these], nats))
        return found

    def _beyond(self, at: Integers, end: Floats, *, below: bool) -> Floats:
        """Sessions whose count of a column's token is below, above an end, (k,)."""
        sums = np.zeros(len(at))
        for column in np.unique(at).tolist():
            these = at == column
            part = self.histogram[self._starts[column] : self._starts[column + 1]]
            cumulative = np.append(0, np.cumsum(part[:, 2])).astype(np.float64)
            side: Literal["left", "right"] = "left" if below else "right"
            under = cumulative[np.searchsorted(part[:, 1], end[these], side=side)]
            sums[these] = under if below else cumulative[-1] - under
        return sums

    def _unrelated(self, counts: Integers, own: Floats) -> list[_Entries]:
        if not len(self.relations):
            return []
        a, b = self._at(self.relations[:, 0]), self._at(self.relations[:, 1])
        p, q, broken, either = self.relations[:, 2:].T
        difference = q * counts[:, a] - p * counts[:, b]
        found = []
        for kind, way in ((BELOW, difference < 0), (ABOVE, difference > 0)):
            rows, which = np.nonzero(way)
            nats = _nats(broken[which] - own[rows], either[which] - own[rows])
            found.append(self._found(kind, rows, a[which], nats, self._tokens[b[which]]))
        return found


def way_codes(kinds: Integers, tokens: Integers, others: Integers) -> Codes:
    """Numbers for broken tolerances, whose sums tell families apart."""
    return code((tokens << 24) + others, kinds)


def _nats(violators: Floats, sessions: Floats) -> Floats:
    nats: Floats = -np.log((np.maximum(violators, 0) + 1) / (np.maximum(sessions, 0) + 1))
    return nats

"""What normal sessions hold: which counts of which templates go together, and how unusual a session's counts are.

Much of what goes wrong in a log is a count: a replica that was never written, a deletion that came twice. The order of
events says little there, since copies interleave. A `CountProfile` is the table of distinct count vectors of normal
sessions, and a session is judged by four rules:

- A count vector that a normal session had is not unusual, however rare.
- Otherwise each count is judged by the rarest statement that the table supports about it: among all sessions, or among
  those that share another count of this session to which it is related, at most a share of `RARE` had it. A statement
  over few sessions is weak, so it says little: c of n counts as (c + 1) / (n + 1). So is one about a count that takes
  many values: where these sessions show T of them, one no greater than the greatest counts as no less than T / (n + T),
  the estimate of Witten and Bell (1991, method C) for a value never seen.
- A rare count is explained by another one of the session, itself no rarer, that makes it at least `LIFT` times likelier
  or of which too little is known to say that it does not. Explanations chain; a chain is as unusual as its most unusual
  link. So a session that puts rare but known behaviours together is no alarm, and one that contradicts them is.
- Two counts are related where a likelihood-ratio test says so and one tells at least `TOLD` of the other's entropy.

How unusual the session is altogether is the sum over its counts, each beyond what explains it, but no less than the
most unusual of them. Counts above 8 are grouped, two groups to each doubling. All numbers are sums of whole sessions,
so nothing depends on order or on what else is judged.

The table holds every distinct vector up to `MAX_VECTORS` of them. Of more it holds a sample by priority: a vector of w
sessions stays if w / u is among the greatest, u uniform in (0, 1), and then stands for max(w, t) sessions, where t is
the greatest one left out (Duffield, Lund and Thorup 2007), and beside it, for each template, a vector with its greatest
count. Weights are in units of t, so a sampled vector counts as one session, and what the table says is as sure as a
sample of its size can be. u is made of the vector, so the table depends on no order and no seed. That a vector was
seen is remembered of all of them, by a number of 64 bits.

Where no label says what is wrong, the counts alone make alarms, and two more rules (`Bounds`) bound these:

- Two looks at a session have to agree. The table is exact about which counts go together, so it takes for unusual what
  is only a new mixture of known behaviours, or more of one; tolerances (`detector.scoring.tolerances`) know only what
  nearly all sessions have in common, and how far it may go. Counts that break no tolerance are not unusual.
- What normal sessions of another time did, too, is no evidence. A template whose counts are *habitually* unusual, when
  the profile of one half of the time judges the other half (`detector.training.alarm_bounds`), makes none.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from detector.scoring import count_profile_loop as loop
from detector.scoring.count_profile_loop import MOST_UNUSUAL, NONE, UNUSUAL, WORD, Known
from detector.scoring.count_vectors import Codes, CountVectors, code
from detector.scoring.learning import learn_vectors
from detector.scoring.tolerances import RARE, Tolerances
from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MAX_VECTORS = 1 << 14
"""Distinct count vectors in the table: bounds its size and the time that judging one session takes."""

_ANY = 1 << 62  # a count that nothing reaches
_EXACT = 8  # counts up to this have a group each
_GROUPS_PER_DOUBLING = 2
_TOKENS_AT_ONCE = 32  # whose counts are compared with all others


class Judged(NamedTuple):
    """How unusual the counts of some sessions are, in nats beyond what `RARE` is; 0 for usual ones.

    Attributes:
        final: of each complete session, (sessions,).
        running: after each event, (events,): whether some template came more often than in any session of the
            profile. What is missing cannot be told before the end, so this never exceeds `final`.
        seen: whether a session of the profile had the counts of the complete session, (sessions,).
    """

    final: Floats
    running: Floats
    seen: Flags


class Bounds(NamedTuple):
    """What bounds the alarms that counts make.

    Attributes:
        habitual: tokens whose unusual counts say nothing, ascending, (k,).
        after, before: of `Tolerances`, which the table does not hold.
    """

    habitual: Integers
    after: Integers
    before: Integers


class CountProfile:
    """The counts of normal sessions.

    Args:
        vectors: int64 (k, 3): row of the table, token, count; ordered by row, then token; counts at least 1.
        weights: int64 (rows,), how many sessions had each vector; in a sample, in units of what its least ones stand
            for.
        seen: numbers of the vectors that sessions had and the table has not, uint64 (others,); none by default.
        bounds: on what is unusual; none by default.

    Raises:
        ValueError: the first two do not fit.
    """

    def __init__(
        self, vectors: Integers, weights: Integers, seen: Codes | None = None, bounds: Bounds | None = None
    ) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != 3 or weights.ndim != 1 or not len(weights):
            raise ValueError(f"vectors {vectors.shape} and weights {weights.shape}; expected (k, 3) and (rows,)")
        rows, tokens, counts = vectors.T
        if len(vectors) and (rows.min() < 0 or rows.max() >= len(weights) or tokens.min() < 0 or counts.min() < 1):
            raise ValueError("a row, a token or a count is out of range")
        if (weights < 1).any():
            raise ValueError("a weight is below 1")
        self.vectors = vectors
        self.weights = weights
        self.seen = np.zeros(0, np.uint64) if seen is None else seen
        self.bounds = bounds
        self._n = int(weights.sum())

    @classmethod
    def fit(cls, sequences: Sequence[Integers], counts: Integers, bounds: Bounds | None = None) -> Self:
        """The profile of normal sessions.

        Args:
            sequences: tokens of each session's events; unknown lines count as UNK.
            counts: how many equal sessions each stands for.
            bounds: as for the class.
        """
        # An unknown line never comes again to be recognised by its text: whatever it is then has a template.
        return cls.of(CountVectors.of_sequences(sequences), counts, bounds)

    @classmethod
    def of(cls, vectors: CountVectors, counts: Integers, bounds: Bounds | None = None) -> Self:
        """The profile of sessions by their count vectors, which may come more than once; else as `fit`."""
        grouped = vectors._replace(counts=_group(vectors.counts))
        codes, first, which = np.unique(grouped.codes, return_index=True, return_inverse=True)
        weights = np.bincount(which, counts, len(codes)).astype(np.int64)
        if len(codes) <= MAX_VECTORS:
            return cls(_table(vectors.take(first)), weights, bounds=bounds)
        kept, weights = _sample(grouped.take(first), codes, weights)
        return cls(_table(vectors.take(first[kept])), weights, np.delete(codes, kept), bounds)

    def judge(self, tokens: Integers, bounds: Integers, complete: Flags | None = None) -> Judged:
        """How unusual the counts of some sessions are, complete and after each event; those of an empty one never.

        Args:
            tokens: int64 (k,), the sessions' events end to end; negative ones are unknown lines.
            bounds: int64 (sessions + 1,), where each session starts and, last, k.
            complete: (sessions,), those whose `final` and `seen` are wanted, None for all; of others they mean
                nothing.
        """
        lengths = np.diff(bounds)
        n_sessions = len(lengths)
        if not len(tokens):
            return Judged(np.zeros(n_sessions), np.zeros(0), np.zeros(n_sessions, np.bool_))
        # Unknown lines are any numbers: they are counted by new ones, after all others.
        size = len(self._most) - 1
        other = (tokens < 0) | (tokens >= size)
        names, renamed = np.unique(tokens[other], return_inverse=True)
        numbered = tokens.copy()
        numbered[other] = size + renamed
        occurrences, table = np.empty(len(tokens), np.int64), np.empty((len(tokens), 3), np.int64)
        table = table[: loop.count(numbered, bounds, size + len(names), occurrences, table)]
        of, token, counts = table.T
        known = token < size
        token = np.where(known, token, np.append(names, 0)[np.where(known, -1, token - size)])
        # In the order in which they come, which changes nothing here.
        vectors = CountVectors(np.searchsorted(of, np.arange(n_sessions + 1)), token, _group(counts))
        codes = vectors.codes
        seen = self._has_seen(codes) & (lengths > 0)
        wanted = ~seen & (lengths > 0)
        if complete is not None:
            wanted &= complete
        final = np.zeros(n_sessions)
        # Sessions with equal counts come in many orders.
        rows = np.flatnonzero(wanted)
        _, those, which = np.unique(codes[rows], return_index=True, return_inverse=True)
        final[rows] = self._totals(vectors.take(rows[those]))[which]
        if self.common is not None:
            rows = np.flatnonzero(final)
            own = CountVectors.of(tokens[np.repeat(final > 0, lengths)], np.append(0, np.cumsum(lengths[rows])))
            final[rows[self.common.judge(own).evidence == 0]] = 0

        more = np.cumsum(self.exceeds(tokens, occurrences))
        before = np.repeat(np.append(0, more)[bounds[:-1]], lengths)
        running = self.running(more > before)
        ending = bounds[1:][lengths > 0] - 1
        final[lengths > 0] = np.maximum(final[lengths > 0], running[ending])
        return Judged(final, running, seen)

    def exceeds(self, tokens: Integers, occurrences: Integers) -> Flags:
        """Whether each event's token came more often than in any session of the profile.

        Args:
            tokens: of the events, (events,).
            occurrences: how often each has come in its session, the event included; of unknown lines, at least 1.
        """
        known = np.where(tokens < 0, len(self._most), tokens)
        found: Flags = _group(occurrences) > self._most[np.minimum(known, len(self._most) - 1)]
        return found

    def running(self, exceeds: Flags) -> Floats:
        """`Judged.running` of events by whether it `exceeds` for one of its session up to each, (events,)."""
        never = float(np.log(self._n + 1)) - loop.floor_of(self._n)
        return np.where(exceeds, never, 0.0)

    def unusual_counts(self, events: Integers) -> dict[int, float]:
        """The unusual counts of one complete session: nats above the floor by token, the greatest first."""
        if not self.judge(events, np.array([0, len(events)])).final[0]:
            return {}
        tokens, counts = np.unique(events, return_counts=True)
        rare, excess = np.zeros((MOST_UNUSUAL, 4), np.int64), np.empty(MOST_UNUSUAL)
        mine = np.full(len(self.known.tokens), NONE, np.int64)
        loop.judge_one(self.known, tokens, _group(counts), 0, len(tokens), mine, rare, excess)
        excess[np.isin(rare[:, loop.RARE_TOKEN], self._habitual)] = 0
        nats = zip(rare[:, loop.RARE_TOKEN].tolist(), excess.tolist(), strict=True)
        return dict(sorted(((token, most) for token, most in nats if most > 0), key=lambda each: -each[1]))

    def _totals(self, vectors: CountVectors) -> Floats:
        totals = np.zeros(vectors.sessions)
        if len(totals):
            ignored = np.isin(self.known.tokens, self._habitual).astype(np.int64)
            loop.judge_all(self.known, vectors.tokens, vectors.counts, vectors.bounds, ignored, totals)
        return totals

    def unusual_by_token(self, vectors: CountVectors, weights: Integers, size: int) -> Integers:
        """In how many sessions each token's counts are unusual, (size,).

        Args:
            vectors: of the sessions, no token beyond `size`.
            weights: how many equal sessions each stands for, (vectors,).
            size: of the vocabulary.
        """
        grouped = vectors._replace(counts=_group(vectors.counts))
        rows = np.flatnonzero(~self._has_seen(grouped.codes))
        chosen, sums = grouped.take(rows), np.zeros(size, np.int64)
        loop.tally(self.known, self._most, chosen.tokens, chosen.counts, chosen.bounds, weights[rows], sums)
        return sums

    def _has_seen(self, codes: Codes) -> Flags:
        at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        found: Flags = self._codes[at] == codes
        return found

    @cached_property
    def _codes(self) -> Codes:
        """Of all vectors seen, ascending; that another one has one of them by chance is out of the question."""
        codes = np.zeros(len(self.weights), np.uint64)
        np.add.at(codes, self.vectors[:, 0], code(self.vectors[:, 1], _group(self.vectors[:, 2])))
        return np.sort(np.append(codes, self.seen))

    @cached_property
    def _most(self) -> Integers:
        """Group of the greatest count of each token that is not unusual on the way; the last entry is of all others.

        Without bounds of the greatest that each had. With bounds a count has to break a tolerance for good, too.
        """
        most = np.zeros(int(self.vectors[:, 1].max(initial=UNK)) + 2, np.int64)
        np.maximum.at(most, self.vectors[:, 1], _group(self.vectors[:, 2]))
        if self.common is not None:
            _, lone, tolerated = self.common.on_the_way(np.arange(len(most)))
            most_tolerated = _group(np.minimum(tolerated, _ANY).astype(np.int64))
            most = np.where(lone, most, np.maximum(most, most_tolerated))
            most[np.isin(np.arange(len(most)), self._habitual)] = _group(np.array([_ANY]))[0]
        return most

    @property
    def _habitual(self) -> Integers:
        return np.zeros(0, np.int64) if self.bounds is None else self.bounds.habitual

    @cached_property
    def common(self) -> Tolerances | None:
        """What nearly all sessions have in common; None without bounds, and of fewer sessions than can tell."""
        if self.bounds is None or self._n < 1 / RARE:
            return None
        vectors = CountVectors(
            np.searchsorted(self.vectors[:, 0], np.arange(len(self.weights) + 1)), *self.vectors.T[1:]
        )
        found = learn_vectors(vectors, self.weights, self.bounds.after, self.bounds.before)
        # That unknown lines are likely somewhere says nothing of another one.
        return replace(found, contexts=found.contexts[found.contexts[:, 0] != UNK])

    @cached_property
    def known(self) -> Known:
        """What sessions with new counts are judged by; made when it is first asked for."""
        row, token, count = self.vectors.T
        group = _group(count)
        tokens = np.unique(token)
        numbers = np.full(int(tokens.max(initial=UNK)) + 1, NONE, np.int64)
        numbers[tokens] = np.arange(len(tokens))
        # Each token's absence is a cell, too, whether or not any session lacks it.
        size = int(group.max(initial=0)) + 1
        cells, cell = np.unique(
            np.append(numbers[token] * size + group, np.arange(len(tokens)) * size), return_inverse=True
        )
        own = cell[: len(row)]
        of, groups = np.divmod(cells, size)
        first = np.searchsorted(of, np.arange(len(tokens) + 1))
        absent, absence = first[:-1], first[numbers[token]]
        present = np.bincount(absence, self.weights[row], len(cells)).astype(np.int64)[absent]
        sessions = np.bincount(own, self.weights[row], len(cells)).astype(np.int64)
        sessions[absent] = self._n - present

        bits = np.zeros((len(cells), -(-len(self.weights) // WORD)), np.int64)
        bit = np.int64(1) << (row % WORD)
        np.bitwise_or.at(bits, (own, row // WORD), bit)
        np.bitwise_or.at(bits, (absence, row // WORD), bit)
        bits[absent] = ~bits[absent] & _bits(np.ones((1, len(self.weights)), np.bool_))

        table = np.column_stack([of, groups, sessions])
        # Absence stands for presence in what follows: few templates are in many sessions.
        entries = np.append(row, row), np.append(own, absence)
        having = csr_array((np.ones(2 * len(row), np.int64), entries), shape=(len(self.weights), len(cells)))
        weighted = csr_array((self.weights[entries[0]], entries), shape=having.shape).T.tocsr()
        related = np.zeros((len(tokens), -(-len(tokens) // WORD)), np.int64)
        company, found = [np.zeros((0, related.shape[1]), np.int64)], []
        for begin in range(0, len(tokens), _TOKENS_AT_ONCE):
            end = min(begin + _TOKENS_AT_ONCE, len(tokens))
            part = slice(first[begin], first[end])
            together = np.ascontiguousarray((weighted[part] @ having).toarray())
            held = np.where(groups[part, None] > 0, together[:, absent], present - together[:, absent])
            company.append(_bits(held > 0))
            loop.relate(table, first, together, self._n, begin, end, related)
            after = _flags(related[of[part]], len(tokens)) & (np.arange(len(tokens)) > of[part, None])
            one, other = np.nonzero(together * after[:, of])
            found.append(np.column_stack([(one + first[begin]) * len(cells) + other, together[one, other]]))
        pairs = np.zeros((1 << int(1.5 * sum(map(len, found)) + 1).bit_length(), 2), np.int64)
        for each in found:
            loop.enter(pairs, each)
        near_of, near = np.nonzero(_flags(related, len(tokens)))
        near_first = np.searchsorted(near_of, np.arange(len(tokens) + 1))
        begun = np.cumsum(np.append(0, np.diff(near_first)[of]))
        known = Known(
            weights=np.ascontiguousarray(self.weights),
            numbers=numbers,
            tokens=tokens,
            first=first,
            cells=table,
            rows=bits,
            company=np.concatenate(company),
            pairs=pairs,
            related=related,
            near_first=near_first,
            near=np.ascontiguousarray(near),
            begun=begun[:-1],
            contrary=np.zeros(begun[-1], np.int64),
            shown=np.zeros(begun[-1], np.int64),
            usual=np.flatnonzero(present > (1 - UNUSUAL) * self._n),
            sessions=self._n,
        )
        loop.look_around(known)
        return known


def _sample(vectors: CountVectors, codes: Codes, weights: Integers) -> tuple[Integers, Integers]:
    """Rows of distinct vectors to keep, ascending, and what each weighs.

    Args:
        vectors: distinct ones, more than `MAX_VECTORS`, with groups for counts.
        codes: of the vectors, (n,).
        weights: sessions that had each, (n,).
    """
    priority = weights / (((codes >> np.uint64(11)) + np.uint64(1)) / 2.0**53)
    greatest_first = np.lexsort((-vectors.counts, vectors.tokens))
    _, entries = np.unique(vectors.tokens[greatest_first], return_index=True)
    greatest = np.unique(vectors.rows[greatest_first[entries]])[: MAX_VECTORS // 2]
    others = np.delete(np.arange(len(weights)), greatest)
    others = others[np.argsort(-priority[others], kind="stable")]
    room = MAX_VECTORS - len(greatest)
    kept = np.sort(np.append(greatest, others[:room]))
    return kept, np.maximum(np.rint(weights[kept] / priority[others[room]]), 1).astype(np.int64)


def _table(vectors: CountVectors) -> Integers:
    return np.column_stack([vectors.rows, vectors.tokens, vectors.counts])


def _bits(flags: Flags) -> Integers:
    """Flags, (rows, n), as words of 64 bits, (rows, words)."""
    words = -(-flags.shape[1] // WORD)
    packed = np.zeros((len(flags), words * 8), np.uint8)
    bytes_ = np.packbits(flags, axis=1, bitorder="little")
    packed[:, : bytes_.shape[1]] = bytes_
    return packed.view("<i8").astype(np.int64)


def _flags(bits: Integers, n: int) -> Flags:
    """The contrary of `_bits`."""
    return np.unpackbits(bits.astype("<i8").view(np.uint8), axis=1, count=n, bitorder="little").astype(np.bool_)


def _group(counts: Integers) -> Integers:
    """Counts up to 8 as they are, greater ones by their logarithm."""
    groups, many = counts.copy(), counts > _EXACT
    doublings = _GROUPS_PER_DOUBLING * np.log2(counts[many] / _EXACT)
    groups[many] = _EXACT + 1 + np.floor(doublings).astype(np.int64)
    return groups

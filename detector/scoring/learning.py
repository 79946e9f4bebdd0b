"""Learns tolerances (`detector.scoring.tolerances`) from sessions, in one pass over their distinct count vectors.

The order of templates, which only excuses, is learnt from distinct sequences, from some of them where there are many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from detector.scoring.count_vectors import CountVectors
from detector.scoring.tolerances import CELLS, LIFT, LIKELY, LOOSE, RARE, Integers, Tolerances
from detector.text.vocabulary import UNK

_ORDERED = 50_000  # distinct sequences that the order of templates is learnt from
_SAMPLE = 2_000  # sessions that tell which relations are worth a look at all


def learn(sequences: Sequence[Integers], counts: Integers) -> Tolerances:
    """Learn from sessions as they are.

    Args:
        sequences: tokens of each session's events, at least one session; unknown lines count as UNK.
        counts: how many equal sessions each stands for, (n,).
    """
    vectors = CountVectors.of_sequences(sequences)
    codes, first, which = np.unique(vectors.codes, return_index=True, return_inverse=True)
    distinct, weights = vectors.take(first), np.bincount(which, counts).astype(np.int64)
    had = np.bincount(distinct.tokens, weights[distinct.rows]).astype(np.int64)
    learnt = learn_vectors(distinct, weights, *learn_order(sequences, counts, had))
    own = np.where(weights < RARE * learnt.sessions, weights, 0)
    some = learnt.judge(distinct, own).evidence > 0
    return replace(learnt, set_aside=codes[some], weights=weights[some])


def learn_vectors(vectors: CountVectors, weights: Integers, after: Integers, before: Integers) -> Tolerances:
    """Learn from distinct count vectors, setting none aside.

    Args:
        vectors: at least one.
        weights: sessions that have each, (n,).
        after: of `learn_order`.
        before: likewise.
    """
    n = int(weights.sum())
    rows = vectors.rows
    size = int(vectors.counts.max(initial=0)) + 1
    cells, inverse = np.unique(vectors.tokens * size + vectors.counts, return_inverse=True)
    sums = np.bincount(inverse, weights[rows]).astype(np.int64)
    histogram = np.column_stack([*np.divmod(cells, size), sums])
    had = np.bincount(vectors.tokens, weights[rows]).astype(np.int64)
    return Tolerances(
        sessions=n,
        histogram=histogram,
        contexts=_contexts(vectors, weights, had, n),
        after=after,
        before=before,
        relations=_relations(vectors, weights, histogram, had, n),
        set_aside=np.zeros(0, np.uint64),
        weights=np.zeros(0, np.int64),
    )


def _contexts(vectors: CountVectors, weights: Integers, had: Integers, n: int) -> Integers:
    """Rare tokens and what makes them likely, with the sessions that have both."""
    ones = np.ones(len(vectors.tokens))
    table = csr_array((ones, vectors.tokens, vectors.bounds), shape=(vectors.sessions, len(had)))
    rare = np.flatnonzero((had > 0) & (had <= LOOSE * n))
    weighted = csr_array((weights[vectors.rows].astype(np.float64), vectors.tokens, vectors.bounds), shape=table.shape)
    together = (weighted[:, rare].T @ table).tocoo()
    a, b, both = rare[together.row], together.col, together.data
    chosen = (a != b) & (both >= LIKELY * had[b]) & (both * n >= LIFT * had[a] * had[b].astype(np.float64))
    found = np.column_stack([a[chosen], b[chosen], both[chosen].astype(np.int64)]).astype(np.int64)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def learn_order(sequences: Sequence[Integers], counts: Integers, had: Integers) -> tuple[Integers, Integers]:
    """Expected tokens and the usual ones that they nearly always come after, before: `Tolerances.after`, `before`.

    Args:
        sequences: tokens of each session's events, at least one session; unknown lines count as UNK.
        counts: how many equal sessions each stands for, (n,).
        had: how many sessions have each token.
    """
    n = int(counts.sum())
    expected, usual = np.flatnonzero(n - had <= LOOSE * n), np.flatnonzero(had > RARE * n)
    if not len(expected):
        return np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)
    column = np.full(len(had), -1)
    column[usual] = np.arange(len(usual))
    chosen = range(0, len(sequences), max(len(sequences) // _ORDERED, 1))
    both, after, before = np.zeros((3, len(expected), len(usual)))
    step = max(CELLS // len(usual), 1)
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        lengths = np.array([len(sequences[row]) for row in part])
        events = np.maximum(np.concatenate([sequences[row] for row in part]), UNK)
        session = np.repeat(np.arange(len(part)), lengths)
        place = np.arange(len(events)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = column[events] >= 0
        cells = session[kept] * len(usual) + column[events[kept]]
        first, last = np.full((2, len(part), len(usual)), -1)
        last.flat[cells] = place[kept]  # the last one of equal cells stays
        first.flat[cells[::-1]] = place[kept][::-1]
        w = counts[np.array(part)].astype(np.float64)
        has = last >= 0
        for number, token in enumerate(expected.tolist()):
            at = column[token]
            having = has[:, at]
            x, y = first[having, at][:, None], last[having, at][:, None]
            there = has[having]
            both[number] += w[having] @ there
            after[number] += w[having] @ (there & (x > last[having]))
            before[number] += w[having] @ (there & (y < first[having]))
    pairs = []
    for table in (after, before):
        some = (both > 0) & (table >= (1 - RARE) * both)
        rows, columns = np.nonzero(some)
        pairs.append(np.column_stack([expected[rows], usual[columns]]))
    return pairs[0], pairs[1]


def _relations(vectors: CountVectors, weights: Integers, histogram: Integers, had: Integers, n: int) -> Integers:
    """Pairs of tokens whose counts have one ratio in nearly all sessions that have one of both, where both vary."""
    usual = np.flatnonzero(had > RARE * n)
    column = np.full(len(had), -1)
    column[usual] = np.arange(len(usual))
    kept = column[vectors.tokens] >= 0
    table = np.zeros((vectors.sessions, len(usual)), np.int32)
    table[vectors.rows[kept], column[vectors.tokens[kept]]] = vectors.counts[kept]
    most = np.maximum(n - had, 0)[usual]
    np.maximum.at(
        most, column[histogram[:, 0]][column[histogram[:, 0]] >= 0], histogram[column[histogram[:, 0]] >= 0, 2]
    )
    varies = most < (1 - RARE) * n
    rng = np.random.default_rng(0)
    sample = table[rng.choice(vectors.sessions, min(_SAMPLE, n), p=weights / n)].astype(np.int64)
    w = weights.astype(np.float64)
    found = []
    for i in range(len(usual)):
        for j in range(i + 1, len(usual)):
            if not (varies[i] and varies[j]):
                continue
            ratio = _ratio(sample[:, i], sample[:, j])
            if ratio is None:
                continue
            p, q = ratio
            a, b = table[:, i], table[:, j]
            either = float(w[(a > 0) | (b > 0)].sum())
            broken = float(w[q * a != p * b].sum())
            if broken <= LOOSE * either:
                found.append((usual[i], usual[j], p, q, broken, either))
    return np.array(found, np.int64).reshape(-1, 6)


def _ratio(a: Integers, b: Integers) -> tuple[int, int] | None:
    """The commonest ratio of two counts as p, q, where most sessions that have one of both have it."""
    both = (a > 0) & (b > 0)
    either = np.count_nonzero((a > 0) | (b > 0))
    if not either or np.count_nonzero(both) < (1 - 2 * LOOSE) * either:
        return None
    divisor = np.gcd(a[both], b[both])
    ratios, times = np.unique(np.column_stack([a[both] // divisor, b[both] // divisor]), axis=0, return_counts=True)
    best = int(times.argmax())
    if times[best] < (1 - 2 * LOOSE) * either:
        return None
    p, q = ratios[best].tolist()
    return p, q

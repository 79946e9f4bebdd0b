"""The compiled loops over blocks of sessions: what they hold, how far that is from others, what it adds up to."""

from __future__ import annotations

from math import log2
from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Bytes, Column, Floats, Table, allocating, compiled

NO_TIME: Final = -(2**63)
"""The time of an event without one, as sessions have it."""
NO_PAUSE: Final = 255
"""In place of the pause before the first event of a session, and of one that is not known."""
PER_OCTAVE: Final = 4  # steps of a pause, and of a length, to its double
_LONGEST: Final = 127  # steps; 37 days


class Tables(NamedTuple):
    """What blocks hold, a row each; a row of `tokens` for sessions, and of all others too.

    Attributes:
        tokens: sessions with each column of tokens.
        lengths: sessions of each length, in steps.
        pauses: pauses of each length, in octaves.
        scores: sessions of each score.
        counts: pauses before events of each column of tokens.
        sums: of those, in steps.
    """

    tokens: Table
    lengths: Table
    pauses: Table
    scores: Table
    counts: Table
    sums: Table


@compiled
def fill_pauses(times: Column, ends: Column, found: Bytes) -> None:
    """Fill in how long each event came after the one before it in its session, in steps from 1 ms on.

    Args:
        times: of the events of sessions, end to end, in ms.
        ends: where those of each session end.
        found: is filled, one an event; `NO_PAUSE` where there is none before it.
    """
    begin = 0
    for session in range(len(ends)):
        end = ends[session]
        for at in range(begin, end):
            if at == begin or times[at] == NO_TIME or times[at - 1] == NO_TIME:
                found[at] = NO_PAUSE
            elif times[at] <= times[at - 1]:
                found[at] = 0
            else:
                passed = float(times[at]) - float(times[at - 1])
                found[at] = min(int(PER_OCTAVE * log2(passed + 1)), _LONGEST)
        begin = end


@compiled
def count(
    tokens: Column, ends: Column, pauses: Bytes, scores: Floats, of: Column, size: int, latest: Column, tables: Tables
) -> None:
    """Count what blocks hold.

    Args:
        tokens: of the events of sessions, end to end.
        ends: where those of each session end.
        pauses: before each event (`fill_pauses`).
        scores: of each session, 0 to 1; NaN for none.
        of: the column of each token; the first one's is that of unknown lines, the last one's that of all beyond.
        size: sessions of a block; what does not fill one is left out.
        latest: of each column of tokens the session that had it last; -1 for none, and changed.
        tables: added to.
    """
    begin = 0
    for session in range(len(ends) // size * size):
        end, row = ends[session], session // size
        for at in range(begin, end):
            column = of[min(max(tokens[at], 0), len(of) - 1)]
            if latest[column] != session:
                latest[column] = session
                tables.tokens[row, column] += 1
            if pauses[at] != NO_PAUSE:
                pause = np.int64(pauses[at])
                tables.pauses[row, pause // PER_OCTAVE] += 1
                tables.counts[row, column] += 1
                tables.sums[row, column] += pause
        length = int(PER_OCTAVE * log2(float(max(end - begin, 1))))
        tables.lengths[row, min(length, tables.lengths.shape[1] - 1)] += 1
        if scores[session] == scores[session]:
            score = int(scores[session] * tables.scores.shape[1])
            tables.scores[row, min(max(score, 0), tables.scores.shape[1] - 1)] += 1
        begin = end


@allocating
def nearest(blocks: Table, stretches: Table, own: Column, around: int, found: Floats) -> None:
    """Fill in the Jensen-Shannon divergence of each row of counts from the nearest row of others, in bits.

    It is half the sum of p log p + q log q - (p + q) log((p + q) / 2) over the columns, where p and q are the shares of
    both. Without p a column adds q / 2, so only those with it are looked at. A row without counts is 0 away.

    Args:
        blocks: the rows.
        stretches: the others, of which there is one at least that may be near.
        own: of each row the one of the others that it is in; -1 for none.
        around: so many beside that one are left out, too.
        found: is filled, one a row.
    """
    others, width = stretches.shape
    shares, terms = np.zeros((others, width)), np.zeros((others, width))  # q, and q log q - q
    somewhat = np.zeros(others)
    for other in range(others):
        total = 0
        for column in range(width):
            total += stretches[other, column]
        somewhat[other] = 1.0 if total else 0.0
        for column in range(width):
            if stretches[other, column]:
                q = stretches[other, column] / total
                shares[other, column], terms[other, column] = q, q * log2(q) - q
    columns, own_shares = np.empty(width, np.int64), np.empty(width)
    for row in range(len(blocks)):
        there = total = 0
        for column in range(width):
            if blocks[row, column]:
                columns[there] = column
                there += 1
                total += blocks[row, column]
        mine = 0.0
        for each in range(there):
            p = own_shares[each] = blocks[row, columns[each]] / total
            mine += p * log2(p)
        least = np.inf if total else 0.0
        for other in range(others):
            if own[row] >= 0 and abs(other - own[row]) <= around:
                continue
            away = mine + somewhat[other]
            for each in range(there):
                both = own_shares[each] + shares[other, columns[each]]
                away += terms[other, columns[each]] - both * (log2(both) - 1)
            least = min(least, max(away / 2, 0.0))
        found[row] = least


@compiled
def add_up(evidence: Floats, most: Floats, usual: float, at: Floats, found: Floats) -> None:
    """Cumulative sums of evidence beyond the usual, never below 0.

    Args:
        evidence: of block after block, a value for each sum.
        most: of each sum.
        usual: is taken off each value.
        at: where the sums are; changed.
        found: is filled: where they are after each block.
    """
    for row in range(len(evidence) // max(len(at), 1)):
        for column in range(len(at)):
            here = row * len(at) + column
            at[column] = min(max(at[column] + evidence[here] - usual, 0.0), most[column])
            found[here] = at[column]


@compiled
def watch(sums: Floats, thresholds: Floats, watching: Column, lasted: int, found: Column) -> None:
    """Fill in for how many blocks some sum has been too great; that ends well below where it begins.

    Args:
        sums: after each block (`add_up`).
        thresholds: from which on each is too great; below half of it it no longer is.
        watching: whether each is; changed.
        lasted: blocks that it had lasted before.
        found: is filled, one a block; 0 where none is.
    """
    for row in range(len(found)):
        some = False
        for column in range(len(thresholds)):
            here = sums[row * len(thresholds) + column]
            if here >= thresholds[column]:
                watching[column] = 1
            elif here < thresholds[column] / 2:
                watching[column] = 0
            some |= watching[column] > 0
        lasted = lasted + 1 if some else 0
        found[row] = lasted


@compiled
def first_of_turns(times: Column, width: int, most: int, state: Column, found: Column) -> int:
    """Which of some events are among the first `most` of each stretch of time of that width.

    Args:
        times: in ms.
        width: ms of such a stretch, counted from 0.
        most: of each.
        state: the stretch that the latest one was in, and how many of it were; changed.
        found: is filled with their places.

    Returns:
        How many they are.
    """
    n = 0
    for at in range(len(times)):
        turn = times[at] // width
        if turn != state[0]:
            state[0], state[1] = turn, 0
        if state[1] < most:
            found[n] = at
            n += 1
        state[1] += 1
    return n

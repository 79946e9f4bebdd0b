"""The compiled loop that judges count vectors by the rules of `detector.scoring.count_profile`.

A *cell* is a group of counts of one token, its absence among them; the table of known vectors has each as bits over its
rows. How many sessions have both of two cells is looked up; the bits are joined only for what three cells say, and only
where an explanation can still matter: a count that the sessions with another one do not make unusual needs none, and
where even the most sessions that can have all three leave it unexplained, they are not counted.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Column, Floats, Table, allocating, compiled

RARE: Final = 1e-3
LIFT: Final = 100.0
TOLD: Final = 0.1
UNUSUAL: Final = 0.1  # a count that more sessions share explains nothing and needs no explanation
LEAST_SEEN: Final = 2.5  # where so few sessions are known that none is rarer than RARE, what was never seen still is
MOST_UNUSUAL: Final = 16  # counts of a session that are judged, the rarest

NONE: Final = -1
WORD_BITS: Final = 6
WORD: Final = 1 << WORD_BITS

# Columns of `cells`
TOKEN, GROUP, SESSIONS = range(3)
# Columns of `pairs`; a power of two of entries. 0 is no pair: the smaller cell comes first.
ENTRY_PAIR, ENTRY_SESSIONS = range(2)
# Columns of `rare`
RARE_TOKEN, RARE_NUMBER, RARE_CELL, RARE_VALUES = range(4)

_DE_BRUIJN: Final = 0x03F79D71B4CB0A89  # every 6 bits of it differ (Leiserson, Prokop and Randall 1998)
_BIT: Final = np.zeros(64, np.int64)
for _bit in range(64):
    _BIT[((_DE_BRUIJN << _bit) & (2**64 - 1)) >> 58] = _bit


class Known(NamedTuple):
    """A table of vectors. Tokens are numbered in ascending order; their cells follow each other, absence first."""

    weights: Column  # sessions of each row
    numbers: Column  # of each token; of one that no vector holds NONE
    tokens: Column  # by number
    first: Column  # cell of each token by number, and how many cells there are
    cells: Table  # (cells, 3)
    rows: Table  # (cells, words), bits
    company: Table  # (cells, words), bits of the tokens that rows with the cell hold
    pairs: Table  # (entries, 2), of cells of related tokens; absence stands for presence there
    related: Table  # (tokens, words), bits of the tokens that each is related to
    near_first: Column  # where in `near` those begin, by number, and, last, how many there are
    near: Column
    begun: Column  # where in the next two the cells begin, which have an entry for each token near their own
    contrary: Column  # bits of the groups of that token that make the cell rare
    shown: Column  # how many groups of that token the sessions with the cell show
    usual: Column  # numbers of the tokens that a session without them lacks
    sessions: int


@compiled
def lowest(bits: int) -> int:
    """The place of the lowest bit."""
    return int(_BIT[((bits & -bits) * _DE_BRUIJN >> 58) & 63])


@compiled
def entry_of(pairs: Table, pair: int) -> int:
    """Where a pair of cells stands in the table, or would."""
    last = len(pairs) - 1
    mixed = pair * np.int64(-0x61C8864680B583EB)
    entry = (mixed ^ (mixed >> 32)) & last
    while pairs[entry, ENTRY_PAIR] != pair and pairs[entry, ENTRY_PAIR] != 0:
        entry = (entry + 1) & last
    return int(entry)


@compiled
def enter(pairs: Table, found: Table) -> None:
    """Put pairs into a table that has room."""
    for at in range(len(found)):
        entry = entry_of(pairs, found[at, ENTRY_PAIR])
        for part in range(found.shape[1]):
            pairs[entry, part] = found[at, part]


@compiled
def with_cells(cells: Table, sessions: int, one: int, other: int, found: int) -> int:
    """How many sessions have two cells of different tokens; `found` have them or, where a cell is absence, presence."""
    if cells[one, GROUP] and cells[other, GROUP]:
        return found
    if cells[one, GROUP]:
        return int(cells[one, SESSIONS] - found)
    if cells[other, GROUP]:
        return int(cells[other, SESSIONS] - found)
    return int(cells[one, SESSIONS] + cells[other, SESSIONS] - sessions + found)


@compiled
def with_both(cells: Table, pairs: Table, sessions: int, one: int, other: int) -> int:
    """How many of all sessions have two cells of related tokens."""
    if one == NONE or other == NONE:
        return 0
    pair = min(one, other) * len(cells) + max(one, other)
    entry = entry_of(pairs, pair)
    found = pairs[entry, ENTRY_SESSIONS] if pairs[entry, ENTRY_PAIR] == pair else 0
    return with_cells(cells, sessions, one, other, found)


@compiled
def nats(had: int, of: int, values: int) -> float:
    """Surprise of what so many sessions had of some that show so many values."""
    return -math.log(max((had + 1) / (of + 1), values / (of + values)))


@compiled
def floor_of(sessions: int) -> float:
    """Nats of what is no more than rare, among so many sessions."""
    return math.log(min(1 / RARE, (sessions + 1) / LEAST_SEEN))


@compiled
def look_around(k: Known) -> None:
    """Find out what each cell says of the tokens near its own: writes `contrary` and `shown`.

    A statement over few sessions does not make anything rare.
    """
    for cell in range(len(k.cells)):
        number = k.cells[cell, TOKEN]
        at = k.begun[cell]
        for place in range(k.near_first[number], k.near_first[number + 1]):
            for other in range(k.first[k.near[place]], k.first[k.near[place] + 1]):
                both = with_both(k.cells, k.pairs, k.sessions, cell, other)
                k.shown[at] += both > 0
                if nats(both, k.cells[other, SESSIONS], 1) > floor_of(k.sessions):
                    k.contrary[at] |= np.int64(1) << k.cells[other, GROUP]
            at += 1


@compiled
def with_all(k: Known, one: int, other: int, third: int) -> int:
    """How many sessions have three cells."""
    found = 0
    for word in range(k.rows.shape[1]):
        bits = k.rows[one, word] & k.rows[other, word] & k.rows[third, word]
        while bits:
            found += k.weights[word * WORD + lowest(bits)]
            bits &= bits - 1
    return int(found)


@compiled
def number_of(numbers: Column, token: int) -> int:
    """The number of a token; NONE if no vector holds it."""
    return int(numbers[token]) if 0 <= token < len(numbers) else NONE


@compiled
def cell_of(first: Column, cells: Table, number: int, group: int) -> int:
    """The cell of a token's count; NONE if no vector has that."""
    if number != NONE:
        for cell in range(first[number], first[number + 1]):
            if cells[cell, GROUP] == group:
                return cell
    return NONE


@compiled
def values_of(first: Column, cells: Table, number: int, group: int) -> int:
    """How many counts of the token there are; 1 for a count beyond all of them, which is no other one of its kind."""
    if number == NONE or cells[first[number + 1] - 1, GROUP] < group:
        return 1
    absent = first[number]
    return int(first[number + 1] - absent - (cells[absent, SESSIONS] == 0))


@compiled
def values_with(
    cells: Table, near_first: Column, near: Column, begun: Column, shown: Column, number: int, cell: int
) -> int:
    """How many counts of a token the sessions with a cell of a related one show; 1 where there are no sessions."""
    own = near_first[cells[cell, TOKEN]]
    low, high = own, near_first[cells[cell, TOKEN] + 1]
    while low + 1 < high:
        middle = (low + high) >> 1
        if near[middle] <= number:
            low = middle
        else:
            high = middle
    return max(int(shown[begun[cell] + low - own]), 1)


@compiled
def depend(cells: Table, first: Column, together: Table, sessions: int, one: int, other: int) -> bool:
    """Whether the counts of two tokens, by number, depend on each other.

    G-test at about five standard deviations, and a share of the entropy: the statistic of independent counts has the
    mean df and the variance 2 df. `together` is of `relate`, from the first cell of the one on.
    """
    n = float(sessions)
    information, least_entropy = 0.0, math.inf
    df = 1
    for token in (one, other):
        entropy = 0.0
        groups = 0
        for cell in range(first[token], first[token + 1]):
            own = cells[cell, SESSIONS]
            if own:
                groups += 1
                entropy -= own * math.log(own / n)
        df *= groups - 1
        least_entropy = min(least_entropy, entropy)
    if df == 0:
        return False
    for a in range(first[one], first[one + 1]):
        for b in range(first[other], first[other + 1]):
            both = with_cells(cells, sessions, a, b, together[a - first[one], b])
            if both:
                information += both * math.log(both / (cells[a, SESSIONS] * (cells[b, SESSIONS] / n)))
    return 2 * information > df + 5 * math.sqrt(2.0 * df) + 10 and information >= TOLD * least_entropy


@compiled
def relate(cells: Table, first: Column, together: Table, sessions: int, begin: int, end: int, related: Table) -> None:
    """Find out which tokens depend on which.

    Args:
        cells: of `Known`.
        first: of `Known`.
        sessions: of `Known`.
        together: how many sessions have two cells, absence standing for presence, (cells from the first one of the
            token `begin` on, all cells).
        begin: the first token, by number, that is compared with those after it.
        end: where these tokens end.
        related: written, (tokens, words).
    """
    for one in range(begin, end):
        for other in range(one + 1, len(first) - 1):
            if depend(cells, first, together[first[one] - first[begin] :], sessions, one, other):
                related[one, other >> WORD_BITS] |= np.int64(1) << (other & (WORD - 1))
                related[other, one >> WORD_BITS] |= np.int64(1) << (one & (WORD - 1))


@compiled
def are_related(related: Table, one: int, other: int) -> bool:
    """Whether two tokens are, by number."""
    if one == NONE or other == NONE:
        return False
    return bool((related[one, other >> WORD_BITS] >> (other & (WORD - 1))) & 1)


@allocating
def explain(k: Known, rare: Table, count: int, context: int, among: int, best: Floats, link: Floats) -> None:
    """Nats of each rare count among some sessions, after the best explanation: minimax paths, as in Dijkstra's.

    A path begins at "no explanation"; its links cost the surprise of a count given the one before.

    Args:
        k: what is known.
        rare: the counts, (count, 4).
        count: of them.
        context: the cell of the sessions; NONE for all. Counts that are not related to it take no part.
        among: how many sessions that are.
        best: written: the most that a link of its path costs, 0 for a count that takes no part.
        link: written: what the last one does.
    """
    had, enough = np.zeros(count, np.int64), np.zeros(count)
    waiting = np.zeros(count, np.bool_)
    for i in range(count):
        best[i] = link[i] = 0.0
        cell, number, values = rare[i, RARE_CELL], rare[i, RARE_NUMBER], rare[i, RARE_VALUES]
        if context != NONE:
            other = k.cells[context, TOKEN]
            if not are_related(k.related, number, other):
                continue
            values = min(values, values_with(k.cells, k.near_first, k.near, k.begun, k.shown, number, context))
        if cell != NONE:
            had[i] = (
                k.cells[cell, SESSIONS] if context == NONE else with_both(k.cells, k.pairs, k.sessions, cell, context)
            )
        best[i] = link[i] = nats(had[i], among, values)
        enough[i] = nats(had[i], among, 1) - math.log(LIFT)
        waiting[i] = True
    while True:
        by = NONE
        for i in range(count):
            if waiting[i] and (
                by == NONE or best[i] < best[by] or (best[i] == best[by] and rare[i, RARE_TOKEN] < rare[by, RARE_TOKEN])
            ):
                by = i
        if by == NONE:
            return
        waiting[by] = False
        for i in range(count):
            if not (waiting[i] and are_related(k.related, rare[i, RARE_NUMBER], rare[by, RARE_NUMBER])):
                continue
            both = with_both(k.cells, k.pairs, k.sessions, rare[i, RARE_CELL], rare[by, RARE_CELL])
            both = min(both, had[i], had[by])
            for exact in (context == NONE, True):
                given = nats(both, had[by], 1)
                path = max(best[by], given)
                if given >= enough[i] or path > best[i] or (path == best[i] and given >= link[i]):
                    break
                if exact:
                    best[i], link[i] = path, given
                    break
                if both:
                    both = with_all(k, rare[i, RARE_CELL], rare[by, RARE_CELL], context)


@allocating
def judge_one(
    k: Known,
    tokens: Column,
    groups: Column,
    begin: int,
    end: int,
    mine: Column,
    rare: Table,
    excess: Floats,
) -> float:
    """How unusual a vector is.

    Args:
        k: what is known.
        tokens: of counts; those of the vector from `begin` to `end`.
        groups: of the same counts.
        begin: where the vector begins.
        end: where it ends.
        mine: NONE for each token by number, and so again at the end.
        rare: written: its rare counts, the rarest first, (`MOST_UNUSUAL`, 4).
        excess: written: nats of each of them beyond `RARE`; NaN where there is none.
    """
    excess[:] = math.nan
    words = k.related.shape[1]
    floor = floor_of(k.sessions)
    around = np.zeros(words, np.int64)  # tokens whose counts are a context
    count = 0
    surprise = np.empty(MOST_UNUSUAL)
    for at in range(begin, end):
        number = number_of(k.numbers, tokens[at])
        if number != NONE:
            mine[number] = groups[at]
            around[number >> WORD_BITS] |= np.int64(1) << (number & (WORD - 1))
    for at in range(begin, end + len(k.usual)):
        if at < end:
            token, group = tokens[at], groups[at]
            number = number_of(k.numbers, token)
        else:
            number, group = k.usual[at - end], 0
            if mine[number] != NONE:
                continue
            token = k.tokens[number]
            around[number >> WORD_BITS] |= np.int64(1) << (number & (WORD - 1))
        cell, values = cell_of(k.first, k.cells, number, group), values_of(k.first, k.cells, number, group)
        most = nats(k.cells[cell, SESSIONS] if cell != NONE else 0, k.sessions, values)
        if most <= -math.log(UNUSUAL):
            continue
        place = count
        while place and (
            surprise[place - 1] < most or (surprise[place - 1] == most and rare[place - 1, RARE_TOKEN] > token)
        ):
            if place < MOST_UNUSUAL:
                surprise[place], rare[place] = surprise[place - 1], rare[place - 1]
            place -= 1
        if place < MOST_UNUSUAL:
            surprise[place] = most
            rare[place, RARE_TOKEN], rare[place, RARE_NUMBER] = token, number
            rare[place, RARE_CELL], rare[place, RARE_VALUES] = cell, values
            count = min(count + 1, MOST_UNUSUAL)

    total = 0.0
    if count:
        worst, link, best, unused = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
        for i in range(count):
            # What goes with a rare count may be missing here, and that may be what is wrong.
            if rare[i, RARE_CELL] != NONE:
                around |= k.company[rare[i, RARE_CELL]]
        explain(k, rare, count, NONE, k.sessions, worst, link)
        for i in range(count):
            total += max(link[i] - floor, 0.0)
        asked = np.zeros(words, np.int64)
        for i in range(count):
            number, own = rare[i, RARE_NUMBER], rare[i, RARE_CELL]
            if number == NONE:
                continue
            first = k.near_first[number]
            for at in range(first, k.near_first[number + 1]):
                context = k.near[at]
                word, bit = context >> WORD_BITS, np.int64(1) << (context & (WORD - 1))
                group = max(mine[context], 0)
                if own != NONE and not (k.contrary[k.begun[own] + at - first] >> group) & 1:
                    continue
                if not around[word] & bit or asked[word] & bit:
                    continue
                cell = cell_of(k.first, k.cells, context, group)
                if cell == NONE:
                    continue
                among, bar = k.cells[cell, SESSIONS], max(floor, worst[i])
                had = with_both(k.cells, k.pairs, k.sessions, own, cell)
                shown = values_with(k.cells, k.near_first, k.near, k.begun, k.shown, number, cell)
                if nats(had, among, min(rare[i, RARE_VALUES], shown)) > bar:
                    asked[word] |= bit
                    explain(k, rare, count, cell, among, best, unused)
                    worst = np.maximum(worst, best)
        most = 0.0
        for i in range(count):
            excess[i] = max(worst[i] - floor, 0.0)
            most = max(most, excess[i])
        total = max(total, most)
    for at in range(begin, end):
        number = number_of(k.numbers, tokens[at])
        if number != NONE:
            mine[number] = NONE
    return total


@allocating
def judge_all(k: Known, tokens: Column, groups: Column, bounds: Column, ignored: Column, totals: Floats) -> None:
    """How unusual vectors are that lie end to end, into `totals`.

    Counts of a token, by number, that is `ignored` (1) explain others, but are not unusual themselves.
    """
    mine = np.full(len(k.tokens), NONE, np.int64)
    rare, excess = np.zeros((MOST_UNUSUAL, 4), np.int64), np.empty(MOST_UNUSUAL)
    for row in range(len(totals)):
        totals[row] = judge_one(k, tokens, groups, bounds[row], bounds[row + 1], mine, rare, excess)
        left = 0.0
        for i in range(MOST_UNUSUAL):
            if excess[i] > 0 and (rare[i, RARE_NUMBER] == NONE or not ignored[rare[i, RARE_NUMBER]]):
                left += excess[i]
        totals[row] = min(totals[row], left)


@allocating
def tally(
    k: Known, most: Column, tokens: Column, groups: Column, bounds: Column, weights: Column, sums: Column
) -> None:
    """Add up in how many sessions each token has unusual counts.

    Args:
        k: what is known.
        most: by token, the greatest group that none goes beyond.
        tokens: of counts, vector after vector; below the length of `sums`.
        groups: of the same counts.
        bounds: where the vectors begin and, last, end.
        weights: sessions that have each vector.
        sums: added to, by token.
    """
    mine = np.full(len(k.tokens), NONE, np.int64)
    rare, excess = np.zeros((MOST_UNUSUAL, 4), np.int64), np.empty(MOST_UNUSUAL)
    last = np.full(len(sums), NONE, np.int64)  # vector in which each was unusual
    for row in range(len(weights)):
        judge_one(k, tokens, groups, bounds[row], bounds[row + 1], mine, rare, excess)
        for at in range(bounds[row], bounds[row + 1]):
            if groups[at] > most[min(tokens[at], len(most) - 1)]:
                last[tokens[at]] = row
                sums[tokens[at]] += weights[row]
        for i in range(MOST_UNUSUAL):
            token = rare[i, RARE_TOKEN]
            if excess[i] > 0 and last[token] != row:
                last[token] = row
                sums[token] += weights[row]


@allocating
def count(tokens: Column, bounds: Column, size: int, occurrences: Column, vectors: Table) -> int:
    """Counts of tokens in sessions end to end.

    Args:
        tokens: of the events, from 0 to `size`.
        bounds: where each session starts and, last, how many events there are.
        size: of the tokens.
        occurrences: written: how often each event's token came in its session so far, the event included.
        vectors: written: session, token and count, in order of sessions, (events, 3).

    Returns:
        How many rows of `vectors` there are.
    """
    place = np.full(size, NONE, np.int64)
    found = 0
    for session in range(len(bounds) - 1):
        begun = found
        for at in range(bounds[session], bounds[session + 1]):
            row = place[tokens[at]]
            if row < begun:
                row = found
                place[tokens[at]] = row
                vectors[row, 0], vectors[row, 1], vectors[row, 2] = session, tokens[at], 0
                found += 1
            vectors[row, 2] += 1
            occurrences[at] = vectors[row, 2]
    return found

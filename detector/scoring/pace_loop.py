"""The compiled loops over the times of events: pauses, how many come within a second, and which sessions to look at."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Column, allocating, compiled

NO_TIME: Final = -(2**63)
"""The time of an event without one, as sessions have it."""
SECOND: Final = 1_000
ANY: Final = 0  # in place of the token before a pause: whatever it is
NONE: Final = -1
PAIR_BITS: Final = 32
LONGEST: Final = 2**60  # ms of a pause; whatever says more is no time


@compiled
def pauses(times: Column, ends: Column, spans: Column, found: Column) -> None:
    """Fill in the pause before each event: by how much it and all after it came later than all before it.

    It is 0 before the first event, in a session with an event that has no time, and where the session was not open for
    so long: such a time is some clock's error.

    Args:
        times: of the events of sessions, end to end, in ms.
        ends: where those of each session end.
        spans: ms for which each was open; late events make it somewhat less than what their times say.
        found: is filled, one an event.
    """
    begin = 0
    for session in range(len(ends)):
        end, complete = ends[session], True
        least = times[end - 1] if end > begin else np.int64(0)
        for at in range(end - 1, begin - 1, -1):
            complete &= times[at] != NO_TIME
            least = min(least, times[at])
            found[at] = least
        span = min(max(spans[session], np.int64(0)), LONGEST)
        longest = np.uint64(span + span // 4 + SECOND)
        greatest = times[begin] if end > begin else np.int64(0)
        for at in range(begin, end):
            later = found[at]
            apart = np.uint64(later - greatest)  # may take 64 bits where it is one at all
            found[at] = np.int64(apart) if complete and later > greatest and apart <= longest else np.int64(0)
            greatest = max(greatest, times[at])
        begin = end


@compiled
def within_a_second(groups: Column, times: Column, found: Column) -> None:
    """Fill in how many events of its group each one ends a second with; they are ordered by group and time."""
    first = 0
    for at in range(len(times)):
        while groups[first] != groups[at] or np.uint64(times[at] - times[first]) >= np.uint64(SECOND):
            first += 1
        found[at] = at - first + 1


class Limits(NamedTuple):
    """Beyond what a pause and a burst are unusual.

    Attributes:
        pairs: of tokens (`pair`) that have a limit, ascending.
        longest: of each of them, the longest pause in ms.
        least: the least of these before each token up to one beyond the greatest that has any.
        most: how many of each of these tokens within a second are no burst.
    """

    pairs: Column
    longest: Column
    least: Column
    most: Column


@compiled
def pair(token: int, previous: int) -> int:
    """Of a token and the one before it."""
    return int((np.int64(token) << PAIR_BITS) + previous)


@compiled
def place_of(pairs: Column, token: int, previous: int) -> int:
    """Where the limit of a pause between these is, or that before the token whatever came before it, or NONE."""
    for before in (previous, ANY):
        wanted = pair(token, before)
        low, high = 0, len(pairs)
        while low < high:
            middle = (low + high) >> 1
            if pairs[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        if low < len(pairs) and pairs[low] == wanted:
            return low
    return NONE


@allocating
def suspects(limits: Limits, tokens: Column, times: Column, ends: Column, paused: Column, found: Column) -> None:
    """Fill in 1 for each session that has an unusual pause or may have a burst, 0 for one that has none.

    Args:
        limits: of tokens; of all tokens beyond, what is said of the last.
        tokens: of the events of sessions, end to end.
        times: of the events, in ms.
        ends: where those of each session end.
        paused: as of `pauses`.
        found: is filled, one a session.
    """
    size = len(limits.most)
    counts, oldest, newest = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    following = np.zeros(len(tokens), np.int64)  # where the next event of the same token is
    begin = 0
    for session in range(len(ends)):
        suspect, in_order = False, True
        for at in range(begin, ends[session]):
            token = min(tokens[at], size - 1)
            counts[token] += 1
            in_order &= at == begin or times[at - 1] <= times[at]
            if counts[token] == 1:
                oldest[token] = at
            else:
                following[newest[token]] = at
            newest[token] = at
            if counts[token] > limits.most[token]:
                # The oldest of as many events as would be a burst, where their times are in order.
                if counts[token] > limits.most[token] + 1:
                    oldest[token] = following[oldest[token]]
                apart = np.uint64(times[at] - times[oldest[token]])
                suspect |= bool(not in_order or apart < np.uint64(SECOND))
            if paused[at] > limits.least[token]:
                place = place_of(limits.pairs, tokens[at], tokens[at - 1])
                suspect |= bool(place != NONE and paused[at] > limits.longest[place])
        for at in range(begin, ends[session]):
            counts[min(tokens[at], size - 1)] = 0
        found[session] = 1 if suspect else 0
        begin = ends[session]

"""The compiled loop that finds a pattern in many texts, by an automaton that `worker.formats.one_pass` makes of it."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Bytes, Column, compiled

# A step: what has to hold, what is remembered, and the state after it.
TEXT_BEGINS, TEXT_ENDS, WORD_BOUNDARY, NO_WORD_BOUNDARY = 1, 2, 4, 8
GROUP_BEGINS, GROUP_ENDS = 16, 32
AFTER_MATCH: Final = 64  # a match that ends here is preferred to it
FLAGS: Final = 127
STATE: Final = 7  # bits before the state
NO_STEP: Final = -1
CONDITIONS: Final = TEXT_BEGINS | TEXT_ENDS | WORD_BOUNDARY | NO_WORD_BOUNDARY

ABSENT: Final = -1
TOO_LONG: Final = -1

TOGETHER: Final = 32  # bytes that are looked at for a needle at the same time
STEPS_A_BYTE, STEPS = 8, 256  # that a text may take: a search whose attempts overlap is not linear


class Automaton(NamedTuple):
    """A pattern; its first state is 0."""

    kinds: Bytes  # (256,) of each byte; from 1 on
    steps: Column  # at a state, what its match asks for, or NO_STEP; a byte's kind behind it, what the byte does
    needle: int  # a byte that every match has at the same place; none where a match begins where the text does
    needle_at: int  # that place
    anchored: bool  # a match begins where the text does


@compiled
def is_word(data: Bytes, at: int) -> bool:
    """Whether a letter, a digit or an underscore of ASCII stands somewhere."""
    byte = data[at]
    return bool(48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 95)


@compiled
def holds(step: int, data: Bytes, begin: int, end: int, at: int) -> bool:
    """Whether the conditions of a step hold at a place of the text from `begin` to `end`."""
    if step & TEXT_BEGINS and at != begin:
        return False
    if step & TEXT_ENDS and at != end:
        return False
    if step & (WORD_BOUNDARY | NO_WORD_BOUNDARY):
        before = at > begin and is_word(data, at - 1)
        after = at < end and is_word(data, at)
        if step & WORD_BOUNDARY and before == after:
            return False
        if step & NO_WORD_BOUNDARY and before != after:
            return False
    return True


@compiled
def match_at(
    a: Automaton, data: Bytes, begin: int, end: int, first: int, begins: Column, ends: Column, number: int
) -> int:
    """Look for the match that begins at `first` in the text from `begin` to `end`; returns how many steps it took.

    Begin and end of the group are filled in at this number, both ABSENT where there is no match.
    """
    state, at, group_begin, group_end = 0, first, ABSENT, ABSENT
    match_end, found_begin, found_end = ABSENT, ABSENT, ABSENT
    while True:
        matches = a.steps[np.uint64(state)]
        matched = matches != NO_STEP and (matches & CONDITIONS == 0 or holds(matches, data, begin, end, at))
        if matched:
            match_end = at
            found_begin = at if matches & GROUP_BEGINS else group_begin
            found_end = at if matches & GROUP_ENDS else group_end
        if at == end:
            break
        step = a.steps[np.uint64(state + a.kinds[data[np.uint64(at)]])]
        if step & FLAGS:
            if step == NO_STEP or (matched and step & AFTER_MATCH) or not holds(step, data, begin, end, at):
                break
            if step & GROUP_BEGINS:
                group_begin, group_end = at, ABSENT
            if step & GROUP_ENDS:
                group_end = at
        at += 1
        if step == state << STATE and (matches == NO_STEP or matches & CONDITIONS == 0):
            # As in a number: whatever comes, only the last of these bytes decides.
            while at < end and a.steps[np.uint64(state + a.kinds[data[np.uint64(at)]])] == step:
                at += 1
        state = step >> STATE
    # A group that has no part in the match is empty.
    begins[number], ends[number] = (found_begin, found_end) if found_end != ABSENT else (match_end, match_end)
    return at - first


@compiled
def next_place(a: Automaton, data: Bytes, at: int, end: int) -> int:
    """The next place, from `at` on, where a match may begin; beyond the end if there is none."""
    at += a.needle_at
    while at + TOGETHER <= end:
        there = np.uint8(0)
        for place in range(TOGETHER):
            there |= np.uint8(data[np.uint64(at + place)] == a.needle)
        if there:
            break
        at += TOGETHER
    while at < end and data[np.uint64(at)] != a.needle:
        at += 1
    return at - a.needle_at if at < end else end + 1


@compiled
def find_all(a: Automaton, data: Bytes, bounds: Column, begins: Column, ends: Column) -> int:
    """Fill in where in `data` the group of the first match in each text begins and ends, both ABSENT without a match.

    Args:
        a: the pattern.
        data: of n texts.
        bounds: (n + 1,) theirs.
        begins: (n,) to be filled in.
        ends: (n,) to be filled in.

    Returns:
        How many bytes all groups have; TOO_LONG where looking takes much longer in a text than the text is long.
    """
    length = 0
    for number in range(len(begins)):
        begin, end = bounds[number], bounds[number + 1]
        left = STEPS_A_BYTE * (end - begin) + STEPS
        place = begin if a.anchored else next_place(a, data, begin, end)
        begins[number], ends[number] = ABSENT, ABSENT
        while place <= end:
            left -= match_at(a, data, begin, end, place, begins, ends, number)
            if begins[number] != ABSENT or a.anchored:
                break
            if left < 0:
                return TOO_LONG
            place = next_place(a, data, place + 1, end)
        length += ends[number] - begins[number]
    return length


@compiled
def cut_out(data: Bytes, begins: Column, ends: Column, texts: Bytes, bounds: Column) -> None:
    """Fill in the bytes from each begin to its end, one after the other, and the bounds of each."""
    to = np.uint64(0)
    for number in range(len(begins)):
        begin, length = np.uint64(begins[number]), np.uint64(ends[number] - begins[number])
        for place in range(length):
            texts[to + place] = data[begin + place]
        to += length
        bounds[number + 1] = to

"""The compiled loops around the model: equal sequences found, remembered scores looked up, a pass's maxima taken.

A table of sequences has open addressing on a hash with a secret seed, and an entry serves only a sequence of the same
tokens: an entry is a number from 1 on, 0 where there is none, and the table has at least twice as many as there are
sequences.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Column, Floats, Singles, compiled

NONE: Final = -1


class Remembered(NamedTuple):
    """Scores of sequences, in the order in which they came; each column has room for more.

    Attributes:
        table: numbers of sequences by their hashes.
        hashes: of each sequence.
        ends: where the events of each end.
        finals: NaN where it was never asked for.
        highest: surprise over the events and the end, what a final score needs besides the events.
        logits: of the class at the end, likewise.
        tokens: of the events, sequence after sequence, and so on.
        surprises: of the events.
        scores: of the events.
    """

    table: Column
    hashes: Column
    ends: Column
    finals: Floats
    highest: Floats
    logits: Floats
    tokens: Column
    surprises: Singles
    scores: Singles


@compiled
def hash_of(tokens: Column, begin: int, end: int, seed: int) -> int:
    """64 bits of a sequence, each token multiplied by a secret odd number."""
    found = np.int64((end - begin) * seed)
    for at in range(begin, end):
        found = (found ^ tokens[at]) * seed
        found ^= found >> 32
    return int(found ^ (found >> 29))


@compiled
def equal(tokens: Column, begin: int, others: Column, other: int, n: int) -> bool:
    """Whether n tokens from two places on are the same."""
    one, two, differs = np.uint64(begin), np.uint64(other), np.int64(0)
    for place in range(np.uint64(n)):
        differs |= tokens[one + place] ^ others[two + place]
    return bool(differs == 0)


@compiled
def distinct(
    tokens: Column, bounds: Column, seed: int, table: Column, of: Column, first: Column, hashes: Column
) -> int:
    """Number n sequences so that equal ones have the same number, in the order in which they first come.

    Args:
        tokens: sequence after sequence.
        bounds: (n + 1,), where each begins and, last, ends.
        seed: odd.
        table: of zeros; its length is a power of two.
        of: (n,), written: the number of each.
        first: (n,), written: which sequence is the first of each number.
        hashes: (n,), written: of each number.

    Returns:
        How many numbers there are.
    """
    last, found = len(table) - 1, 0
    for row in range(len(of)):
        begin, end = bounds[row], bounds[row + 1]
        hashed = hash_of(tokens, begin, end, seed)
        entry = hashed & last
        number = NONE
        while number == NONE and table[entry]:
            held = table[entry] - 1
            place = bounds[first[held]]
            same = hashes[held] == hashed and bounds[first[held] + 1] - place == end - begin
            if same and equal(tokens, begin, tokens, place, end - begin):
                number = held
            entry = (entry + 1) & last
        if number == NONE:
            number = found
            table[entry], first[number], hashes[number] = number + 1, row, hashed
            found += 1
        of[row] = number
    return found


@compiled
def place_of(held: Remembered, tokens: Column, begin: int, end: int, hashed: int) -> int:
    """The row of a sequence among remembered ones; NONE if it is not there."""
    last = len(held.table) - 1
    entry = hashed & last
    while held.table[entry]:
        row = held.table[entry] - 1
        place = held.ends[row - 1] if row else 0
        same = held.hashes[row] == hashed and held.ends[row] - place == end - begin
        if same and equal(tokens, begin, held.tokens, place, end - begin):
            return int(row)
        entry = (entry + 1) & last
    return NONE


@compiled
def recall(held: Remembered, wanted: Remembered, n: int, rows: Column) -> None:
    """Fill in what is remembered of n sequences.

    Args:
        held: what is remembered.
        wanted: the sequences, their hashes and room for the rest.
        n: how many they are.
        rows: (n,), the row of each among those remembered; written where it is NONE.
    """
    begin = 0
    for number in range(n):
        end = wanted.ends[number]
        if rows[number] == NONE:
            row = place_of(held, wanted.tokens, begin, end, wanted.hashes[number])
            rows[number] = row
            if row != NONE:
                place = held.ends[row - 1] if row else 0
                wanted.finals[number] = held.finals[row]
                wanted.highest[number], wanted.logits[number] = held.highest[row], held.logits[row]
                for at in range(end - begin):
                    wanted.surprises[begin + at] = held.surprises[place + at]
                    wanted.scores[begin + at] = held.scores[place + at]
        begin = end


@compiled
def remember(held: Remembered, n: int, known: Remembered, numbers: Column) -> int:
    """Add sequences to those remembered, which have room for them and hold none of them.

    Args:
        held: what is remembered.
        n: how many sequences that is.
        known: sequences and their scores.
        numbers: which of these are to be remembered.

    Returns:
        How many are remembered.
    """
    last = len(held.table) - 1
    to = held.ends[n - 1] if n else 0
    for each in range(len(numbers)):
        number = numbers[each]
        begin, end = known.ends[number - 1] if number else 0, known.ends[number]
        for at in range(begin, end):
            held.tokens[to], held.surprises[to] = known.tokens[at], known.surprises[at]
            held.scores[to] = known.scores[at]
            to += 1
        held.hashes[n], held.ends[n], held.finals[n] = known.hashes[number], to, known.finals[number]
        held.highest[n], held.logits[n] = known.highest[number], known.logits[number]
        entry = held.hashes[n] & last
        while held.table[entry]:
            entry = (entry + 1) & last
        n += 1
        held.table[entry] = n
    return n


@compiled
def note_finals(held: Remembered, known: Remembered, numbers: Column) -> None:
    """Enter the final scores of these sequences where they are remembered."""
    for each in range(len(numbers)):
        number = numbers[each]
        begin = known.ends[number - 1] if number else 0
        row = place_of(held, known.tokens, begin, known.ends[number], known.hashes[number])
        if row != NONE:
            held.finals[row] = known.finals[number]


@compiled
def gather(ends: Column, values: Singles, others: Singles, rows: Column, into: Singles, into_others: Singles) -> None:
    """Copy the values of these sequences, which end at `ends`, one after the other."""
    to = 0
    for each in range(len(rows)):
        row = rows[each]
        for at in range(ends[row - 1] if row else 0, ends[row]):
            into[to], into_others[to] = values[at], others[at]
            to += 1


@compiled
def gather_tokens(bounds: Column, tokens: Column, rows: Column, into: Column) -> None:
    """Copy the tokens of these sequences, which begin at `bounds`, one after the other."""
    to = 0
    for each in range(len(rows)):
        for at in range(bounds[rows[each]], bounds[rows[each] + 1]):
            into[to] = tokens[at]
            to += 1


@compiled
def running_maxima(values: Singles, bounds: Column, events: Floats, ends: Floats) -> None:
    """The highest of the values of its session up to each one.

    Args:
        values: of the events of each session and, last, of its end.
        bounds: where each session begins and, last, how many values there are.
        events: written: up to each event, session after session.
        ends: written: up to the end of each session.
    """
    to = 0
    for session in range(len(bounds) - 1):
        highest = -np.inf
        for at in range(bounds[session], bounds[session + 1]):
            value = float(values[at])
            # What is no number stays, whatever comes after it.
            if value > highest or value != value:
                highest = value
            if at + 1 < bounds[session + 1]:
                events[to] = highest
                to += 1
        ends[session] = highest


@compiled
def take_pass(surprises: Singles, early: Floats, bounds: Column, numbers: Column, known: Remembered) -> None:
    """Put a pass's surprises and early scores where the sequences of it have theirs.

    Args:
        surprises: of the events of each session and, last, of its end.
        early: scores after each event, session after session.
        bounds: of `surprises`.
        numbers: which sequence each session is.
        known: of all sequences.
    """
    at = 0
    for session in range(len(numbers)):
        number, begin = numbers[session], bounds[session]
        to = known.ends[number - 1] if number else 0
        for place in range(bounds[session + 1] - begin - 1):
            known.surprises[to + place] = surprises[begin + place]
            known.scores[to + place] = np.float32(early[at])
            at += 1

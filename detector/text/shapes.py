"""Shapes of lines as one flat array: hashes of words in their places, and what becomes of shapes when words do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]

VALUE = 0
"""The number of the word `WILDCARD`."""

_GONE = -1  # the "word" of a place that is left out

_WORD, _PLACE, _SEED = (np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93))


class Kinds(NamedTuple):
    """By the number of a word: what it is (see `detector.text.learning`)."""

    fixed: Flags
    key: Flags
    digit: Flags
    follower: Flags
    calendar: Flags
    odd: Flags
    plain: Flags
    entity_key: Flags
    preposition: Flags


class Shapes:
    """Distinct shapes; equal ones among those given are one, in the place of the first.

    Attributes:
        words: (N,) numbers of words, shape after shape.
        widths: (N,) most words of a line that the word stands for.
        starts, lengths: (n,) of each shape.
        lines: (n,) how many lines have it.
        row, place: (N,) of each word.
        hashes: (N,) of each word in its place; `totals` (n,) their sums.
        became: of each shape given, the row of the one it is.
    """

    def __init__(self, words: Ints, widths: Ints, lengths: Ints, lines: Ints) -> None:
        starts = np.cumsum(lengths) - lengths
        row = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(words)) - starts[row]
        hashes = hash_of(words, place)
        totals = sums(hashes, starts)
        _, first, inverse = np.unique(totals, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self.became = rank[inverse]
        if len(first) < len(lengths):
            kept = first[order]
            widths = widths.copy()
            np.maximum.at(widths, starts[kept][self.became][row] + place, widths)
            lines = np.bincount(self.became, lines, len(kept)).astype(np.int64)
            keep = np.zeros(len(lengths), np.bool_)
            keep[kept] = True
            lengths, totals, keep = lengths[keep], totals[keep], keep[row]
            words, widths, place, hashes = words[keep], widths[keep], place[keep], hashes[keep]
            starts = np.cumsum(lengths) - lengths
            row = np.repeat(np.arange(len(lengths)), lengths)
        self.words, self.widths, self.lengths, self.lines = words, widths, lengths, lines
        self.starts, self.row, self.place, self.hashes, self.totals = starts, row, place, hashes, totals

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int]], widths: Sequence[Sequence[int]], lines: Sequence[int]) -> Shapes:
        """Return the table of these shapes; each has at least one word."""
        lengths = np.array([len(shape) for shape in shapes], np.int64)
        words, wide = (np.array([each for part in parts for each in part], np.int64) for parts in (shapes, widths))
        return cls(words, wide, lengths, np.array(lines, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def any_of(self, flags: Flags) -> Flags:
        """(n,) whether a word of the shape has the flag."""
        return self.count(flags) > 0

    def count(self, flags: Flags) -> Ints:
        """(n,) how many words of the shape have the flag."""
        return np.bincount(self.row[flags], minlength=len(self))

    def next_to(self, flags: Flags) -> tuple[Flags, Flags]:
        """(N,) whether the flag is set for the word before, and for the word after, in the same shape."""
        before, after = np.zeros(len(flags), np.bool_), np.zeros(len(flags), np.bool_)
        same = self.row[1:] == self.row[:-1]
        before[1:] = flags[:-1] & same
        after[:-1] = flags[1:] & same
        return before, after

    def with_values(self, becomes: Flags, kinds: Kinds) -> Shapes:
        """Return the shapes in which these words are values.

        Values that follow each other are one, and so is what belongs to a value beside it, as in
        `detector.text.words.words`.
        """
        value = becomes | (self.words == VALUE)
        while True:
            before, after = self.next_to(value)
            more = ~(value | kinds.fixed[self.words]) & (
                (before & kinds.follower[self.words])
                | (after & kinds.calendar[self.words])
                | (before & after & kinds.digit[self.words])
            )
            if not more.any():
                break
            value |= more
        heads = np.flatnonzero(~(value & self.next_to(value)[0]))
        words = np.where(value, VALUE, self.words)[heads]
        lengths = np.bincount(self.row[heads], minlength=len(self))
        return Shapes(words, np.add.reduceat(self.widths, heads), lengths, self.lines)

    def without_words(self) -> tuple[Hashes, Ints]:
        """(N,) the hash of each word's shape without it, and how many of its places are left out.

        A word that stands in a shape twice varies as one: all its places are left out. A value is left out alone.
        """
        n = len(self.words)
        gone = hash_of(np.full(n, _GONE), self.place)
        twins = self.row * (self.words.max(initial=0) + 1) + self.words
        order = np.argsort(twins, kind="stable")
        heads = np.flatnonzero(_changes(twins[order]))
        sizes = np.diff(np.append(heads, n))
        left_out, repeats = np.empty(n, np.uint64), np.empty(n, np.int64)
        left_out[order] = np.repeat(np.add.reduceat((self.hashes - gone)[order], heads), sizes)
        repeats[order] = np.repeat(sizes, sizes)
        value = self.words == VALUE
        left_out[value], repeats[value] = (self.hashes - gone)[value], 1
        return self.totals[self.row] - left_out + mix(self.lengths[self.row].astype(np.uint64)), repeats

    def prefixes(self) -> tuple[Hashes, Hashes]:
        """(N,) the hash of the words before each word, and of those after it; 0 where there are none."""
        before = np.cumsum(self.hashes) - self.hashes  # wraps around
        before -= before[self.starts][self.row]
        return before, self.totals[self.row] - before - self.hashes


def hash_of(words: Ints, places: Ints) -> Hashes:
    """Hashes of words in places; the sum over a shape is the hash of the shape."""
    return mix(words.astype(np.uint64) * _WORD + places.astype(np.uint64) * _PLACE + _SEED)


def mix(x: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sums(hashes: Hashes, starts: Ints) -> Hashes:
    """The sum over each shape; a shape has at least one word."""
    return np.add.reduceat(hashes, starts) if len(starts) else hashes[:0]


def unique(values: Ints) -> Ints:
    """The different values, ascending; `np.unique` hashes such numbers, which takes several times as long."""
    ascending = np.sort(values)
    return ascending[_changes(ascending)]


class Groups:
    """Items with equal keys.

    Attributes:
        of: (n,) the group of each item, numbered from 0.
    """

    def __init__(self, keys: NDArray[np.generic]) -> None:
        unique, self.of = np.unique(keys, return_inverse=True)
        self._n = len(unique)

    def count(self, flags: Flags) -> Ints:
        """How many items of each group have the flag."""
        return np.bincount(self.of[flags], minlength=self._n)

    def distinct(self, values: NDArray[np.generic]) -> Ints:
        """How many different values each group has."""
        if values.dtype == np.uint64:  # hashes; numbers are few enough for a pair to be one number
            _, values = np.unique(values, return_inverse=True)
        span = int(values.max(initial=0)) + 1
        return np.bincount(unique(self.of * span + values) // span, minlength=self._n)


def _changes(values: NDArray[np.generic]) -> Flags:
    changes = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes

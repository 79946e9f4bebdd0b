"""Scores of sequences that were asked for lately, in columns of bounded size."""

import secrets
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detector.scoring import scored_sequences_loop as loop
from detector.scoring.scored_sequences_loop import NONE, Remembered
from detector.scoring.scores import Integers, Sequences

# Longer sequences hardly ever come twice, and a cache full of them would take gigabytes: an entry needs 16 bytes an
# event and about 60 more.
MAX_CACHED_EVENTS = 256

_FEWEST_ROWS = 256
_OF_SEQUENCES, _OF_EVENTS = ("hashes", "ends", "finals", "highest", "logits"), ("tokens", "surprises", "scores")


class Distinct(NamedTuple):
    """Sequences without those that came before, and room for their scores.

    Attributes:
        of: which of them each sequence is, (n,).
        known: of them (m,).
    """

    of: Integers
    known: Remembered

    @property
    def sequences(self) -> Sequences:
        """Their events."""
        return Sequences(self.known.tokens, self.known.ends)


class ScoreCache:
    """Remembers scores of sequences of up to `MAX_CACHED_EVENTS` events.

    Those remembered come in two halves. Whatever is asked for goes into the younger one; when that is full it becomes
    the older one, whose rest, not asked for since, is forgotten.

    Args:
        size: most sequences that are remembered, at least half of them those asked for last.
    """

    def __init__(self, size: int) -> None:
        self._half = (size + 1) // 2
        self._seed = int(secrets.randbits(62)) | 1  # so that nobody can choose sequences that collide
        self._older = self._younger = _Half(0)
        if size:
            self._younger = _Half(self._half)

    def distinct(self, sequences: Sequences) -> Distinct:
        """The sequences, equal ones once, in the order in which they first come."""
        n = len(sequences.ends)
        of, first, hashes = np.empty((3, n), np.int64)
        m = loop.distinct(sequences.tokens, sequences.bounds, self._seed, _table(n), of, first, hashes)
        tokens, ends = sequences if m == n else sequences.select(first[:m])
        finals, highest, logits = np.empty((3, m))
        surprises, scores = np.empty((2, len(tokens)), np.float32)
        no_table = np.zeros(0, np.int64)
        return Distinct(of, Remembered(no_table, hashes[:m], ends, finals, highest, logits, tokens, surprises, scores))

    def recall(self, wanted: Remembered) -> npt.NDArray[np.bool_]:
        """Fill in the scores of distinct sequences as far as they are remembered, and return of which, (m,)."""
        rows = np.full(len(wanted.ends), NONE, np.int64)
        loop.recall(self._younger.columns, wanted, len(rows), rows)
        elsewhere = rows == NONE
        if elsewhere.any() and self._older.n:
            loop.recall(self._older.columns, wanted, len(rows), rows)
            again = np.flatnonzero(elsewhere & (rows != NONE))
            self.remember(wanted, again)
        found: npt.NDArray[np.bool_] = rows != NONE
        return found

    def remember(self, known: Remembered, numbers: Integers) -> None:
        """Remember the scores of these of distinct sequences, none of which is in the younger half."""
        lengths = np.diff(known.ends, prepend=0)[numbers]
        numbers = numbers[lengths <= MAX_CACHED_EVENTS]
        while self._half and len(numbers):
            if self._younger.n == self._half:
                self._older, self._younger = self._younger, _Half(self._half)
            now, numbers = np.split(numbers, [self._half - self._younger.n])
            self._younger.add(known, now)

    def complete(self, known: Remembered, numbers: Integers) -> None:
        """Remember the final scores of these of distinct sequences, where they are remembered without."""
        loop.note_finals(self._younger.columns, known, numbers)


class _Half:
    """Scores of up to `most` sequences, their columns growing as they come."""

    def __init__(self, most: int) -> None:
        self.n = 0
        self._most = most
        rows = min(most, _FEWEST_ROWS)
        hashes, ends = np.empty((2, rows), np.int64)
        finals, highest, logits = np.empty((3, rows))
        tokens, (surprises, scores) = np.empty(16 * rows, np.int64), np.empty((2, 16 * rows), np.float32)
        self.columns = Remembered(_table(most), hashes, ends, finals, highest, logits, tokens, surprises, scores)

    def add(self, known: Remembered, numbers: Integers) -> None:
        """Add the scores of these of distinct sequences, which there is room for."""
        events = int(np.diff(known.ends, prepend=0)[numbers].sum())
        used = int(self.columns.ends[self.n - 1]) if self.n else 0
        self._make_room(_OF_SEQUENCES, self.n, len(numbers))
        self._make_room(_OF_EVENTS, used, events)
        self.n = loop.remember(self.columns, self.n, known, numbers)

    def _make_room(self, names: tuple[str, ...], used: int, more: int) -> None:
        columns = {name: getattr(self.columns, name) for name in names}
        if used + more > len(columns[names[0]]):
            for name, column in columns.items():
                columns[name] = np.empty(2 * used + more, column.dtype)
                columns[name][:used] = column[:used]
            self.columns = self.columns._replace(**columns)


def _table(rows: int) -> Integers:
    """An empty table for so many sequences."""
    return np.zeros(1 << (2 * rows).bit_length(), np.int64)

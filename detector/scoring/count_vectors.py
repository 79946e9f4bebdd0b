"""How often each token occurs in each of many sessions, as columns."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]


class _Columns(NamedTuple):
    bounds: Integers
    tokens: Integers
    counts: Integers


class CountVectors(_Columns):
    """The count vectors of n sessions.

    Attributes:
        bounds: int64 (n + 1,), where each session's entries start and, last, k.
        tokens: int64 (k,), ascending within a session; unknown lines are one token, UNK.
        counts: int64 (k,), at least 1.
    """

    @classmethod
    def of(cls, events: Integers, bounds: Integers) -> Self:
        """Of sessions end to end.

        Args:
            events: int64 (events,), their tokens; negative ones are unknown lines.
            bounds: int64 (n + 1,), where each session starts and, last, how many events there are.
        """
        n = len(bounds) - 1
        tokens = np.maximum(events, UNK)
        size = int(tokens.max(initial=UNK)) + 1
        cells, counts = np.unique(np.repeat(np.arange(n), np.diff(bounds)) * size + tokens, return_counts=True)
        session, token = np.divmod(cells, size)
        return cls(np.searchsorted(session, np.arange(n + 1)), token, counts.astype(np.int64))

    @classmethod
    def of_sequences(cls, sequences: Sequence[Integers]) -> Self:
        """Of sessions one by one, each the tokens of its events."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        events = np.concatenate(sequences) if len(sequences) else np.zeros(0, np.int64)
        return cls.of(events, np.append(0, np.cumsum(lengths)))

    @property
    def sessions(self) -> int:
        """How many there are."""
        return len(self.bounds) - 1

    @property
    def rows(self) -> Integers:
        """The session of each entry, (k,)."""
        return np.repeat(np.arange(self.sessions), np.diff(self.bounds))

    @property
    def codes(self) -> Codes:
        """A number for each session, (n,); that two different vectors share one by chance is out of the question."""
        codes = np.zeros(self.sessions, np.uint64)
        np.add.at(codes, self.rows, code(self.tokens, self.counts))
        return codes

    def take(self, chosen: Integers) -> Self:
        """These sessions, in this order."""
        lengths = np.diff(self.bounds)[chosen]
        bounds = np.append(0, np.cumsum(lengths))
        entries = np.arange(bounds[-1]) + np.repeat(self.bounds[chosen] - bounds[:-1], lengths)
        return type(self)(bounds, self.tokens[entries], self.counts[entries])


def code(tokens: Integers, counts: Integers) -> Codes:
    """Numbers whose sums tell count vectors apart: SplitMix64's mixing (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = tokens.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03) + counts.astype(np.uint64)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Codes = z ^ (z >> np.uint64(31))
    return mixed

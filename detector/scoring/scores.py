"""What a scorer says of sessions, in columns; and the events of sessions, likewise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from detector.scoring.scored_sequences_loop import gather, gather_tokens

Integers = npt.NDArray[np.int64]

LONG: Final = 128
"""Events from beyond which a session that goes on is given by what is new of it. Shorter ones are given as a whole:
their scores are remembered by their events, and often known of another session."""


class Sequences(NamedTuple):
    """The events of n sessions, end to end.

    Attributes:
        tokens: int64 (events,).
        ends: where those of each session end, int64 (n,).
    """

    tokens: Integers
    ends: Integers

    @classmethod
    def of(cls, sequences: Sequence[bytes]) -> Self:
        """Of sessions one by one, each the int64 tokens of its events in native byte order.

        Raises:
            ValueError: one is not a whole number of tokens.
        """
        if any(len(each) % 8 for each in sequences):
            raise ValueError("a sequence is not a multiple of 8 bytes, a token each")
        ends = np.fromiter(accumulate(len(each) // 8 for each in sequences), np.int64, len(sequences))
        return cls(np.frombuffer(bytearray().join(sequences), np.int64), ends)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sessions of all parts, which is at least one."""
        begins = np.cumsum([0, *(len(part.tokens) for part in parts)])
        ends = [begin + part.ends for begin, part in zip(begins.tolist(), parts, strict=False)]
        return cls(np.concatenate([part.tokens for part in parts]), np.concatenate(ends))

    def select(self, rows: Integers) -> Self:
        """These sessions, in this order."""
        ends = np.cumsum(np.diff(self.ends, prepend=0)[rows])
        tokens = np.empty(ends[-1] if len(rows) else 0, np.int64)
        gather_tokens(self.bounds, self.tokens, rows, tokens)
        return type(self)(tokens, ends)

    @property
    def bounds(self) -> Integers:
        """Where each session begins and, last, how many events there are, int64 (n + 1,)."""
        return np.append(0, self.ends)


class Growth(NamedTuple):
    """Sessions that go on, n of them.

    Attributes:
        numbers: that tell the sessions apart, above 0; no other session ever has the same, int64 (n,).
        begins: how many events of each came before those given, int64 (n,).
        sequences: the events from there on.
    """

    numbers: Integers
    begins: Integers
    sequences: Sequences

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sessions of all parts, which is at least one."""
        numbers, begins, sequences = zip(*parts, strict=True)
        return cls(np.concatenate(numbers), np.concatenate(begins), Sequences.joined(sequences))

    def select(self, rows: Integers) -> Self:
        """These sessions, in this order."""
        return type(self)(self.numbers[rows], self.begins[rows], self.sequences.select(rows))


class EventScores(NamedTuple):
    """Scores of one session; the arrays are read-only.

    Attributes:
        surprises: nats of each event given those before it, float32 (n,).
        scores: calibrated score in [0, 1] of events 0 to i, the session going on, float32 (n,).
        final: calibrated score of the session complete with its n events; NaN where it was never asked for.
    """

    surprises: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    final: float


@dataclass(frozen=True, slots=True, eq=False)
class Scores(Sequence[EventScores]):
    """Scores of n sessions.

    Attributes:
        ends: where the events of each end, int64 (n,).
        surprises: as of `EventScores`, session after session, float32 (events,).
        scores: likewise.
        finals: float64 (n,).
    """

    ends: Integers
    surprises: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    finals: npt.NDArray[np.float64]

    @classmethod
    def of(cls, each: Iterable[EventScores]) -> Self:
        """Of sessions one by one."""
        rows = list(each)
        nothing = np.empty(0, np.float32)
        return cls(
            np.cumsum([len(row.scores) for row in rows], dtype=np.int64),
            np.concatenate([nothing, *(row.surprises for row in rows)]),
            np.concatenate([nothing, *(row.scores for row in rows)]),
            np.array([row.final for row in rows], np.float64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Of the sessions of all parts, which is at least one."""
        if len(parts) == 1:
            return parts[0]
        begins = np.cumsum([0, *(len(part.scores) for part in parts)])
        ends = [begin + part.ends for begin, part in zip(begins.tolist(), parts, strict=False)]
        columns = ([getattr(part, name) for part in parts] for name in ("surprises", "scores", "finals"))
        return cls(np.concatenate(ends), *map(np.concatenate, columns))

    def select(self, rows: Integers) -> Self:
        """Of these sessions, in this order."""
        ends = np.cumsum(np.diff(self.ends, prepend=0)[rows])
        surprises, scores = np.empty((2, ends[-1] if len(rows) else 0), np.float32)
        gather(self.ends, self.surprises, self.scores, rows, surprises, scores)
        return type(self)(ends, surprises, scores, self.finals[rows])

    def part(self, begin: int, end: int) -> Self:
        """Of the sessions from one to before another."""
        first, last = (int(self.ends[at - 1]) if at else 0 for at in (begin, end))
        return type(self)(
            self.ends[begin:end] - first, self.surprises[first:last], self.scores[first:last], self.finals[begin:end]
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> EventScores: ...
    @overload
    def __getitem__(self, at: slice) -> list[EventScores]: ...
    def __getitem__(self, at: int | slice) -> EventScores | list[EventScores]:
        if isinstance(at, slice):
            return [self[row] for row in range(len(self))[at]]
        row = range(len(self))[at]
        begin, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        surprises, scores = self.surprises[begin:end], self.scores[begin:end]
        surprises.flags.writeable = scores.flags.writeable = False
        return EventScores(surprises, scores, float(self.finals[row]))

"""Training sessions: merged where they are equal, split, fingerprinted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detector.errors import TrainingError
from detector.scoring.count_vectors import CountVectors
from detector.scoring.scores import Sequences
from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED

Tokens = npt.NDArray[np.int64]

_MOST_CUTS = 4


@dataclass(frozen=True)
class TrainingSessions:
    """Sessions to learn from.

    Attributes:
        sequences: the event tokens of each session, int64 (events,), without BOS and EOS.
        labels: int8 (n,): 0 normal, 1 anomalous, -1 not known.
        counts: int64 (n,): how many equal sessions each stands for, at least 1.
        keys: of the sessions, of the first one where it stands for several; None where they are not known.
    """

    sequences: Sequence[Tokens]
    labels: npt.NDArray[np.int8]
    counts: npt.NDArray[np.int64]
    keys: Sequence[str] | None = None

    @classmethod
    def of(
        cls,
        sequences: Sequence[Tokens],
        labels: Sequence[int] | npt.NDArray[np.int8] | None = None,
        counts: Sequence[int] | npt.NDArray[np.int64] | None = None,
        keys: Sequence[str] | None = None,
    ) -> "TrainingSessions":
        """Sessions with their labels (none: not known), counts (none: 1 each) and keys.

        Raises:
            ValueError: lengths differ, a label is not one of -1, 0, 1 or a count is below 1.
        """
        n = len(sequences)
        label_array = np.full(n, UNLABELLED, np.int8) if labels is None else np.asarray(labels, np.int8)
        count_array = np.ones(n, np.int64) if counts is None else np.asarray(counts, np.int64)
        n_keys = n if keys is None else len(keys)
        if label_array.shape != (n,) or count_array.shape != (n,) or n_keys != n:
            raise ValueError(f"{n} sequences, {label_array.shape} labels, {count_array.shape} counts, {n_keys} keys")
        if not np.isin(label_array, (NORMAL, ANOMALOUS, UNLABELLED)).all():
            raise ValueError("a label is not one of -1, 0, 1")
        if (count_array < 1).any():
            raise ValueError("a count is below 1")
        return cls(sequences, label_array, count_array, keys)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events of each session, (n,)."""
        return np.fromiter((len(events) for events in self.sequences), dtype=np.int64, count=len(self))

    @property
    def columns(self) -> Sequences:
        """The sessions as a scorer takes them."""
        return Sequences(np.concatenate([np.empty(0, np.int64), *self.sequences]), np.cumsum(self.lengths))

    def fingerprint(self) -> str:
        """``sha256:<hex>`` of sequences, labels and counts, in their order."""
        digest = hashlib.sha256()
        for array in (self.lengths, self.labels, self.counts, *self.sequences):
            digest.update(np.ascontiguousarray(array).data)
        return f"sha256:{digest.hexdigest()}"

    def select(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "TrainingSessions":
        """The sessions at these indices, or those the mask names."""
        indices = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return TrainingSessions(
            [self.sequences[index] for index in indices],
            self.labels[indices],
            self.counts[indices],
            None if self.keys is None else [self.keys[index] for index in indices],
        )

    def distinct(self) -> "TrainingSessions":
        """Equal sessions of one label merged, their counts added, in order of first appearance."""
        rows: dict[tuple[bytes, int], int] = {}
        firsts: list[int] = []
        counts: list[int] = []
        for index, (events, label, count) in enumerate(
            zip(self.sequences, self.labels.tolist(), self.counts.tolist(), strict=True)
        ):
            row = rows.setdefault((events.tobytes(), label), len(rows))
            if row == len(firsts):
                firsts.append(index)
                counts.append(0)
            counts[row] += count
        merged = self.select(np.array(firsts, dtype=np.int64))
        return replace(merged, counts=np.array(counts, dtype=np.int64))

    def joined(self, other: "TrainingSessions") -> "TrainingSessions":
        """These sessions and then the others; their keys where both have some."""
        return TrainingSessions(
            [*self.sequences, *other.sequences],
            np.append(self.labels, other.labels),
            np.append(self.counts, other.counts),
            None if self.keys is None or other.keys is None else [*self.keys, *other.keys],
        )

    def cut_short(self, most: int, seed: int) -> "TrainingSessions":
        """Normal sessions that end too early: beginnings of those labelled normal, drawn at random.

        They end between two phases, where every kind of event so far has come for the last time: pauses are there, and
        what ends within a phase lacks some of its events, which may well be an anomaly. Of each session one to
        `_MOST_CUTS`, more as long as they are not more than `most` in all. Equal ones come once, and none has the
        events of a session labelled anomalous, in whatever order.
        """
        if not most:
            return TrainingSessions.of([])
        rng = np.random.default_rng(seed)
        anomalous = {
            np.sort(self.sequences[row]).tobytes() for row in np.flatnonzero(self.labels == ANOMALOUS).tolist()
        }
        cut: dict[bytes, Tokens] = {}
        normal = np.flatnonzero(self.labels == NORMAL).tolist()
        each = min(max(most // max(len(normal), 1), 1), _MOST_CUTS)
        for row in normal:
            events = self.sequences[row]
            for length in rng.permutation(_ends_of_phases(events))[:each].tolist():
                begun = events[:length]
                if np.sort(begun).tobytes() not in anomalous:
                    cut.setdefault(begun.tobytes(), begun)
        return TrainingSessions.of(list(cut.values()), [NORMAL] * len(cut))

    def usual(self) -> "TrainingSessions":
        """Those whose counts tell of normal sessions.

        That is all that are not labelled anomalous, but for such as are labelled normal and have counts that are more
        frequent among those labelled anomalous. What has no label contradicts none.
        """
        codes, which = np.unique(CountVectors.of_sequences(self.sequences).codes, return_inverse=True)
        anomalous, normal = self.labels == ANOMALOUS, self.labels == NORMAL
        odd, good = (np.bincount(which, self.counts * kind, len(codes)) for kind in (anomalous, normal))
        contradicted = odd * good.sum() > good * odd.sum()
        return self.select(~anomalous & ~(normal & contradicted[which]))

    def split(self, share: float, seed: int) -> tuple["TrainingSessions", "TrainingSessions"]:
        """Split by session into training and validation, each label's share the same to within one session.

        A row that stands for several equal sessions is divided: some of them may fall on either side, as they
        would one by one.

        Args:
            share: of the sessions that go to validation, between 0 and 1.
            seed: which sessions those are.

        Raises:
            TrainingError: `share` is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise TrainingError(f"the share of validation sessions is {share}; allowed: between 0 and 1")
        rng = np.random.default_rng(seed)
        held_out = np.zeros(len(self), dtype=np.int64)
        for label in (NORMAL, ANOMALOUS, UNLABELLED):
            rows = rng.permutation(np.flatnonzero(self.labels == label))
            # Every (1 / share)-th session of the shuffled order, from a random start.
            taken = np.floor(np.cumsum(self.counts[rows]) * share + rng.random()).astype(np.int64)
            held_out[rows] = np.diff(taken, prepend=0)
        kept = self.counts - held_out
        parts = []
        for counts in (kept, held_out):
            part = self.select(counts > 0)
            parts.append(replace(part, counts=counts[counts > 0]))
        return parts[0], parts[1]


def _ends_of_phases(events: Tokens) -> Tokens:
    """Lengths of the beginnings, shorter than all, that hold every occurrence of each of their tokens."""
    _, kind = np.unique(events, return_inverse=True)
    last = np.zeros(kind.max() + 1, np.int64)
    np.maximum.at(last, kind, np.arange(len(events)))
    return np.flatnonzero(np.maximum.accumulate(last[kind])[:-1] == np.arange(len(events) - 1)) + 1

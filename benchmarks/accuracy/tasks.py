"""A protocol's sessions as every detector gets them: tokens of a vocabulary that the training part alone shaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.accuracy.datasets import Dataset, Flags, Integers
from benchmarks.accuracy.protocols import Protocol
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK, Vocabulary

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Sessions of one part.

    Attributes:
        keys: session ids.
        tokens: of each session's events, int64 (events,); what training did not show is negative or UNK.
        anomalous: bool (n,).
        counts: how many equal sessions each stands for, int64 (n,).
        weights: the same at natural prevalence, float64 (n,).
    """

    keys: Sequence[str]
    tokens: Sequence[Integers]
    anomalous: Flags
    counts: Integers
    weights: Floats

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def sequences(self) -> list[bytes]:
        """What makes two sessions equal, (n,)."""
        return [tokens.tobytes() for tokens in self.tokens]

    @cached_property
    def vectors(self) -> list[bytes]:
        """What makes two sessions equal but for the order of their events, (n,); unknown events are one kind."""
        return [np.sort(np.maximum(tokens, UNK)).tobytes() for tokens in self.tokens]


@dataclass(frozen=True, eq=False)
class Task:
    """What a detector learns from and what it is asked; without `labelled` only the test has anomalous sessions.

    With `as_they_come` the other parts have some, too, and no detector may look at their labels.

    Equal to itself alone, so that what is learnt of it can be remembered.
    """

    vocabulary: Vocabulary
    training: Part
    validation: Part
    test: Part
    labelled: bool
    as_they_come: bool = False

    @classmethod
    def of(cls, protocol: Protocol, seed: int) -> Task:
        """Read, split and encode."""
        data = protocol.read()
        split = protocol.split(data, seed)
        training, validation = (
            rows if protocol.labelled or protocol.as_they_come else rows[~data.anomalous[rows]]
            for rows in (split.training, split.validation)
        )
        vocabulary = _vocabulary(data, training)
        tokens = Tokenizer(vocabulary).encode(pa.array(data.texts, pa.string()))
        return cls(
            vocabulary,
            training=_part(data, training, tokens),
            validation=_part(data, validation, tokens),
            test=_part(data, split.test, tokens),
            labelled=protocol.labelled,
            as_they_come=protocol.as_they_come,
        )


def _vocabulary(data: Dataset, training: Integers) -> Vocabulary:
    seen = np.unique(np.concatenate([data.sessions[row] for row in training]))
    texts = [data.texts[row] for row in seen]
    if data.kind == "lines":
        return learn_vocabulary([pa.array(texts, pa.string())])
    return Vocabulary(tuple(texts), kind="events")


def _part(data: Dataset, rows: Integers, tokens: Integers) -> Part:
    anomalous, counts = data.anomalous[rows], data.counts[rows]
    return Part(
        keys=[data.keys[row] for row in rows],
        tokens=[tokens[data.sessions[row]] for row in rows],
        anomalous=anomalous,
        counts=counts,
        weights=np.where(anomalous, counts, counts * data.normal_weight),
    )

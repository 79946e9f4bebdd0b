"""Small data sets and tasks for the tests of `benchmarks.accuracy`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.accuracy.datasets import Dataset
from benchmarks.accuracy.tasks import Part, Task
from detector.text.vocabulary import Vocabulary


def dataset(
    sessions: Sequence[Sequence[int]],
    anomalous: Sequence[int],
    *,
    texts: Sequence[str] = tuple("abcdefghij"),
    counts: Sequence[int] | None = None,
    normal_weight: float = 1.0,
) -> Dataset:
    n = len(sessions)
    return Dataset(
        kind="events",
        texts=texts,
        sessions=[np.array(events, np.int64) for events in sessions],
        keys=[f"s{row}" for row in range(n)],
        anomalous=np.array(anomalous, np.bool_),
        counts=np.ones(n, np.int64) if counts is None else np.array(counts),
        order=np.arange(n)[::-1].copy(),
        normal_weight=normal_weight,
    )


def blocks(n_normal: int, n_faulty: int, *, seed: int = 0) -> Dataset:
    """Sessions of two events, up to six of each, in any order; a faulty one begins with a third."""
    rng = np.random.default_rng(seed)

    def session(start: int) -> list[int]:
        return [start, *rng.permutation([1] * int(rng.integers(1, 7)) + [2] * int(rng.integers(1, 7)))]

    sessions = [session(0) for _ in range(n_normal)] + [session(3) for _ in range(n_faulty)]
    order = rng.permutation(n_normal + n_faulty)
    return dataset([sessions[row] for row in order], [int(row >= n_normal) for row in order], normal_weight=2.0)


def part(
    sequences: Sequence[Sequence[int]],
    anomalous: Sequence[int],
    *,
    counts: Sequence[int] | None = None,
    normal_weight: float = 1.0,
) -> Part:
    data = dataset(sequences, anomalous, counts=counts)
    return Part(
        data.keys,
        data.sessions,
        data.anomalous,
        data.counts,
        np.where(data.anomalous, 1.0, normal_weight) * data.counts,
    )


def task(training: Part, validation: Part, test: Part, *, labelled: bool = True) -> Task:
    return Task(Vocabulary(tuple("abcdefg"), kind="events"), training, validation, test, labelled)

"""The protocols: which sessions a detector learns from, which it is validated on, which it is tested on.

A split is by session id. With `labelled` false a detector sees no anomalous session before the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.accuracy import datasets
from benchmarks.accuracy.datasets import Dataset, Integers

TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15
# Of a stretch of time the last fifth is what later sessions are most like.
LAST_SHARE = 0.2
# Windows of 21 events slide by one event: this many of them share events with the one after them.
OVERLAPPING_WINDOWS = 20


@dataclass(frozen=True)
class Split:
    """Rows of a data set, int64 each; no row is in two parts, some may be in none."""

    training: Integers
    validation: Integers
    test: Integers


@dataclass(frozen=True)
class Protocol:
    """One question about accuracy.

    Attributes:
        title: the question, for tables.
        read: the data set.
        split: by data set and seed.
        labelled: whether labels may be learnt from; otherwise training and validation keep their normal sessions.
        as_they_come: without `labelled`, whether they keep their anomalous ones, too, unknown to any detector.
    """

    title: str
    read: Callable[[], Dataset]
    split: Callable[[Dataset, int], Split]
    labelled: bool
    as_they_come: bool = False


def random_split(data: Dataset, seed: int) -> Split:
    """By session, each label in the same shares."""
    return _by_group(np.arange(len(data)), data, seed)


def unseen_count_vectors(data: Dataset, seed: int) -> Split:
    """By distinct event-count vector: none of the test part's is in another part."""
    group_of: dict[bytes, int] = {}
    groups = [group_of.setdefault(np.sort(events).tobytes(), len(group_of)) for events in data.sessions]
    return _by_group(np.array(groups, np.int64), data, seed)


def chronological(training_share: float) -> Callable[[Dataset, int], Split]:
    """The first sessions by order, their last fifth for validation; the test is all the rest."""

    def split(data: Dataset, _seed: int) -> Split:
        rows = np.argsort(data.order, kind="stable")
        end = round(training_share * len(rows))
        cut = round((1 - LAST_SHARE) * end)
        return Split(rows[:cut], rows[cut:end], rows[end:])

    return split


def last_windows(data: Dataset, _seed: int) -> Split:
    """Of each kind of windows the last fifth in file order for the test, of the rest the last fifth for validation.

    The windows before a cut that share events with those after it are in no part.
    """
    parts: tuple[list[Integers], ...] = ([], [], [])
    for kind in (False, True):
        rows = np.flatnonzero(data.anomalous == kind)
        test = round((1 - LAST_SHARE) * len(rows))
        validation = round((1 - LAST_SHARE) * test)
        parts[0].append(rows[: validation - OVERLAPPING_WINDOWS])
        parts[1].append(rows[validation : test - OVERLAPPING_WINDOWS])
        parts[2].append(rows[test:])
    return Split(*(np.concatenate(part) for part in parts))


def halves(anomalous_share: float | None = None) -> Callable[[Dataset, int], Split]:
    """Two halves by session, of the first a fifth for validation; each label is divided evenly.

    Args:
        anomalous_share: of the sessions in each half, as many anomalous ones being left out; None for all there are.
    """

    def split(data: Dataset, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        parts: tuple[list[Integers], ...] = ([], [], [])
        normal = int((~data.anomalous).sum())
        for kind in (False, True):
            rows = rng.permutation(np.flatnonzero(data.anomalous == kind))
            if kind and anomalous_share is not None:
                rows = rows[: round(normal * anomalous_share / (1 - anomalous_share))]
            end = len(rows) // 2
            cut = round((1 - LAST_SHARE) * end)
            for part, mine in zip(parts, (rows[:cut], rows[cut:end], rows[end:]), strict=True):
                part.append(mine)
        return Split(*(np.sort(np.concatenate(part)) for part in parts))

    return split


def by_order(data: Dataset, seed: int) -> Split:
    """Sessions of order 0, a random fifth of them for validation, to those of order 1."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(data.order == 0))
    cut = round((1 - LAST_SHARE) * len(rows))
    return Split(np.sort(rows[:cut]), np.sort(rows[cut:]), np.flatnonzero(data.order == 1))


def _by_group(groups: Integers, data: Dataset, seed: int) -> Split:
    """Whole groups, those that hold an anomalous session in the same shares as the others."""
    rng = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    anomalous = np.bincount(groups, weights=data.anomalous, minlength=n_groups) > 0
    part_of = np.zeros(n_groups, np.int64)
    for kind in (False, True):
        shuffled = rng.permutation(np.flatnonzero(anomalous == kind))
        n_test = round(TEST_SHARE * len(shuffled))
        n_validation = round(VALIDATION_SHARE * len(shuffled))
        part_of[shuffled[:n_test]] = 2
        part_of[shuffled[n_test : n_test + n_validation]] = 1
    return Split(*(np.flatnonzero(part_of[groups] == part) for part in range(3)))


PROTOCOLS = {
    "hdfs-random": Protocol("HDFS, random split, labelled", datasets.hdfs, random_split, labelled=True),
    "hdfs-first-10": Protocol(
        "HDFS in time order, first 10 % to the rest, labelled", datasets.hdfs_ordered, chronological(0.1), labelled=True
    ),
    "hdfs-first-20": Protocol(
        "HDFS in time order, first 20 % to the rest, labelled", datasets.hdfs_ordered, chronological(0.2), labelled=True
    ),
    "hdfs-unseen": Protocol(
        "HDFS, event-count vectors never seen in training, labelled", datasets.hdfs, unseen_count_vectors, labelled=True
    ),
    "hdfs-unseen-normals": Protocol(
        "HDFS, event-count vectors never seen in training, normals only",
        datasets.hdfs,
        unseen_count_vectors,
        labelled=False,
    ),
    "hdfs-random-normals": Protocol("HDFS, random split, normals only", datasets.hdfs, random_split, labelled=False),
    "hdfs-first-50-normals": Protocol(
        "HDFS in time order, first 50 % to the rest, normals only",
        datasets.hdfs_ordered,
        chronological(0.5),
        labelled=False,
    ),
    "hdfs-first-50": Protocol(
        "HDFS in time order, first 50 % to the rest, no labels, as they come",
        datasets.hdfs_ordered,
        chronological(0.5),
        labelled=False,
        as_they_come=True,
    ),
    **{
        f"hdfs-halves-{percent}": Protocol(
            f"HDFS, random halves with {percent} % anomalous sessions, no labels, as they come",
            datasets.hdfs_unweighted,
            halves(percent / 100),
            labelled=False,
            as_they_come=True,
        )
        for percent in (1, 3, 5)
    },
    "hdfs-raw-halves": Protocol(
        "HDFS raw lines, first half of the log to the second, by key, no labels, as they come",
        datasets.hdfs_raw_halves,
        by_order,
        labelled=False,
        as_they_come=True,
    ),
    "thunderbird-halves": Protocol(
        "Thunderbird, random halves, no labels, as they come",
        datasets.thunderbird,
        halves(),
        labelled=False,
        as_they_come=True,
    ),
    "bgl-last": Protocol("BGL windows, last 20 % in file order, labelled", datasets.bgl, last_windows, labelled=True),
    "bgl-last-normals": Protocol(
        "BGL windows, last 20 % in file order, normals only", datasets.bgl, last_windows, labelled=False
    ),
    "bgl-last-lines": Protocol(
        "BGL, every tenth window, as lines through the tokenizer, last 20 % in file order, labelled",
        datasets.bgl_lines,
        last_windows,
        labelled=True,
    ),
    "thunderbird": Protocol("Thunderbird, random split, labelled", datasets.thunderbird, random_split, labelled=True),
    "thunderbird-normals": Protocol(
        "Thunderbird, random split, normals only", datasets.thunderbird, random_split, labelled=False
    ),
    "hdfs-raw-lines": Protocol(
        "HDFS, blocks with raw lines, through the tokenizer, labelled", datasets.hdfs_raw, random_split, labelled=True
    ),
    "hdfs-parsed-lines": Protocol(
        "HDFS, the same blocks as parsed sessions, labelled", datasets.hdfs_parsed_of_raw, random_split, labelled=True
    ),
}

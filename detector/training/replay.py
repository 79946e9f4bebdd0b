"""The sample of its sessions that a checkpoint keeps, so that what is learnt later need not be at their expense.

Distinct sequences of tokens with their counts: all of them where they are few enough, else each with a chance in
proportion to its count, and what is chosen counts as much as stands for those that are not (threshold sampling,
Duffield, Lund and Thorup 2005): the count of any kind of session stays what it was, on average.

`replay.safetensors` holds them end to end: tokens, and of each session its length, label and count.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy

from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.training.data import TrainingSessions

REPLAY_FILE: Final = "replay.safetensors"
"""Its name in a checkpoint."""

MOST_EVENTS: Final = 262_144
"""Of all sequences of a sample: 2 MiB."""

_LONGEST: Final = 4_096  # events of a sequence that is kept; a few endless ones would leave no room for others


def sample(sessions: TrainingSessions, seed: int = 0, most_events: int = MOST_EVENTS) -> TrainingSessions:
    """Distinct sessions of at most so many events in all, that stand for all of them; without keys.

    Sessions of more than 4,096 events are not among them.
    """
    short = replace(sessions.select(sessions.lengths <= _LONGEST), keys=None).distinct()
    least = _threshold(short, most_events)
    if least <= 1:
        return short
    rng = np.random.default_rng(seed)
    chosen = short.counts > least * rng.random(len(short))
    counts = np.maximum(short.counts, least)[chosen]
    found = replace(short.select(chosen), counts=counts)
    order = np.lexsort((rng.random(len(found)), counts == least))  # what chance has taken too much goes
    fits = np.cumsum(found.lengths[order]) <= most_events
    return found.select(np.sort(order[fits]))


def _threshold(sessions: TrainingSessions, most_events: int) -> int:
    """The count below which a session is left to chance, so that about 0.98 of the events asked for are chosen."""
    low, high = 1, int(sessions.counts.max(initial=1)) * max(int(sessions.lengths.sum()), 1)
    if int(sessions.lengths.sum()) <= most_events:
        return 1
    while low < high:
        middle = (low + high) // 2
        expected = float(np.minimum(sessions.counts / middle, 1) @ sessions.lengths)
        low, high = (low, middle) if expected <= 0.98 * most_events else (middle + 1, high)
    return low


def to_bytes(sessions: TrainingSessions) -> bytes:
    """The content of `replay.safetensors`: the same bytes for the same sessions."""
    events = np.concatenate([np.zeros(0, np.int64), *sessions.sequences])
    columns = {"tokens": events, "lengths": sessions.lengths, "labels": sessions.labels, "counts": sessions.counts}
    return safetensors.numpy.save(columns)


def from_bytes(data: bytes, tokens: int) -> TrainingSessions:
    """Read `replay.safetensors`.

    Args:
        data: its content.
        tokens: of the vocabulary, how many; those of the sessions are below.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        columns = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    kinds = {"tokens": np.int64, "lengths": np.int64, "labels": np.int8, "counts": np.int64}
    if columns.keys() != kinds.keys() or any(columns[name].dtype != kind for name, kind in kinds.items()):
        raise ValueError(f"holds {', '.join(sorted(columns))}, not {', '.join(kinds)}")
    events, lengths, labels, counts = (columns[name] for name in kinds)
    if not events.ndim == lengths.ndim == labels.ndim == counts.ndim == 1:
        raise ValueError("a column is not one row of numbers")
    if not len(lengths) == len(labels) == len(counts) or (lengths < 1).any() or lengths.sum() != len(events):
        raise ValueError("its columns do not fit each other")
    if not np.isin(labels, (NORMAL, ANOMALOUS, UNLABELLED)).all() or (counts < 1).any():
        raise ValueError("a label or a count is none")
    if events.max(initial=0) >= tokens:
        raise ValueError(f"token {events.max()} is beyond the vocabulary of {tokens} tokens")
    bounds = np.append(0, np.cumsum(lengths)).tolist()
    sequences = [events[start:end] for start, end in pairwise(bounds)]
    return TrainingSessions(sequences, labels, counts)

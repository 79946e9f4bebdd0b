"""How the sessions of a training were spread, and what is far from that: what drift is told by.

Sessions are taken in blocks of `BLOCK` in the order in which they end. Of a block there are histograms: how many of its
sessions have each template, how long they are, how long they pause between events, how they are scored. How far a
histogram is from the training is its least Jensen-Shannon divergence (in bits, 0 to 1; Lin, Divergence measures based
on the Shannon entropy, 1991) from any of the stretches that the training is cut into by time: what was usual at night
is usual at night.

How far is too far the training says itself. Each of its blocks is compared with the stretches that it is not in, so
that what varies from hour to hour counts, and an exponential tail is laid over the divergences found, as heavy as the
heaviest of them needs. It turns a block into evidence, -log10 of its tail probability, which a cumulative sum (Page,
Continuous inspection schemes, 1954) adds up beyond what is usual. No block has more than `_MOST_EVIDENCE`, so that one
odd one is no verdict. The sum that is too much is well above the greatest one that the training comes to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from detector.text.vocabulary import UNK

Feature = Literal["tokens", "unknown", "lengths", "pauses", "scores"]
"""What is compared: all but `unknown`, the share of sessions with a line that no template matches, by divergence."""

FEATURES: Final[tuple[Feature, ...]] = get_args(Feature)
BLOCK: Final = 25
"""Sessions that are judged together."""
LEAST_BLOCKS: Final = 8
"""With fewer a training has no fingerprint, and of fewer nothing is said."""

_OWN_BINS = 254  # templates, the most frequent ones; then the other ones, and lines that no template matches
_LENGTH_BINS = 80
_PAUSE_BINS = 40
_SCORE_BINS = 20
_MOST_STRETCHES = 16
_MOST_BLOCKS = 2_000  # of a training, evenly spaced
AT_ONCE = 64  # blocks, by memory
_NOTHING = 1e-9
_USUAL_EVIDENCE = 0.8  # is taken off each block's; a block of the training has 0.43 in the mean
_MOST_EVIDENCE = 6.0
_LEAST_THRESHOLD = 9.0
_ABOVE_TRAINING = 1.5
_STEP = 0.02  # bits: what one in a block that differs from all of a uniform training comes to
_STEPS: Final[Mapping[Feature, float]] = {"unknown": 1 / BLOCK}

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Histograms = Mapping[Feature, Floats]
"""(blocks, bins) of each feature but `unknown`, which is the last bin of `tokens`."""


@dataclass(frozen=True)
class Tail:
    """How evidence comes of a value.

    Attributes:
        median: of the training's blocks; half of them have as much or more.
        slope: by how much -log10 of the share of blocks rises with the value.
        threshold: sum of evidence that means `watch`.
    """

    median: float
    slope: float
    threshold: float

    def evidence(self, values: Floats) -> Floats:
        """-log10 of the probability of as much or more, at most `_MOST_EVIDENCE`."""
        evidence: Floats = np.clip(np.log10(2) + self.slope * (values - self.median), 0, _MOST_EVIDENCE)
        return evidence

    @classmethod
    def over(cls, values: Floats, step: float) -> Tail:
        """A tail that gives none of these, in their order of time, less probability than they show.

        `step` is the least that a block may differ by: once more than was seen, the greatest value is still to be met
        with, and so is one step from the median.
        """
        n = len(values)
        median = float(np.median(values))
        above = np.sort(np.append(values, max(values.max(), median + step)))[::-1][: n // 4]
        needed = np.log10((n + 1) / np.arange(1, len(above) + 1)) - np.log10(2)
        slope = float((needed / np.maximum(above - median, _NOTHING))[above > median].min())
        fitted = cls(median, slope, np.inf)
        reached = sums(np.zeros(1), fitted.evidence(values)[:, None], np.array([np.inf])).max()
        return cls(median, slope, max(_LEAST_THRESHOLD, _ABOVE_TRAINING * float(reached)))


def sums(start: Floats, evidence: Floats, most: Floats) -> Floats:
    """Cumulative sums of evidence beyond the usual, never below 0: (blocks, features) after each block."""
    at, found = start, np.empty_like(evidence)
    for row, each in enumerate(evidence):
        at = found[row] = np.clip(at + each - _USUAL_EVIDENCE, 0, most)
    return found


@dataclass(frozen=True)
class Fingerprint:
    """How the sessions of a training were spread, in stretches of time.

    Attributes:
        sessions: that it was made of.
        templates: tokens with a bin of their own; then follow those of other templates and of unknown lines.
        others: tokens of the other templates that it had.
        tokens: of each stretch, how many sessions have each.
        lengths, pauses, scores: of each stretch, how many sessions, pauses and held-out sessions each bin has; of
            pauses and scores none where they are not known.
        tails: of the features that can be judged.
    """

    sessions: int
    templates: list[int]
    others: list[int]
    tokens: list[list[int]]
    lengths: list[list[int]]
    pauses: list[list[int]]
    scores: list[list[int]]
    tails: dict[Feature, Tail]

    @classmethod
    def of(cls, stream: Stream, scores: npt.NDArray[np.float64], held_out: npt.NDArray[np.bool_]) -> Fingerprint | None:
        """Of the sessions of a training, in the order in which they ended; None where there are too few.

        Args:
            stream: the sessions.
            scores: of each; NaN for those that were learnt from.
            held_out: which of them the vocabulary was not learnt from: only they show how many lines are unknown.
        """
        if len(stream) < LEAST_BLOCKS * BLOCK:
            return None
        counts = np.bincount(stream.tokens[stream.tokens > UNK])
        templates = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        bins = Bins(np.sort(templates[:_OWN_BINS]))
        whole = _blocks(bins, stream, np.full(len(stream), np.nan))
        values: dict[Feature, Floats] = {}
        compared: tuple[Feature, ...] = ("tokens", "lengths", "pauses")
        stretches = {name: _stretches(whole[name]) for name in compared}
        for name in compared:
            if whole[name].any():
                values[name] = _left_out(whole[name], stretches[name])
        if int(held_out.sum()) >= LEAST_BLOCKS * BLOCK:
            rows = np.flatnonzero(held_out)
            apart = _blocks(bins, stream.select(rows), scores[rows])
            values["unknown"] = apart["tokens"][:, -1] / BLOCK
            stretches["scores"] = _stretches(apart["scores"])
            if apart["scores"].any():
                values["scores"] = _left_out(apart["scores"], stretches["scores"], rising=True)
        kept = {name: each.astype(np.int64).tolist() if each.any() else [] for name, each in stretches.items()}
        return cls(
            sessions=len(stream),
            templates=bins.templates.tolist(),
            others=np.sort(templates[_OWN_BINS:]).tolist(),
            tokens=kept["tokens"],
            lengths=kept["lengths"],
            pauses=kept["pauses"],
            scores=kept.get("scores", list[list[int]]()),
            tails={name: Tail.over(each, _STEPS.get(name, _STEP)) for name, each in values.items()},
        )


@dataclass(frozen=True, eq=False)
class Stream:
    """Sessions in the order in which they ended.

    Attributes:
        tokens: of their events, end to end, int64 (events,).
        ends: where those of each end, int64 (n,).
        pauses: before each event but a session's first, by `pause_bins`; -1 for the first ones, int8 (events,).
    """

    tokens: Ints
    ends: Ints
    pauses: npt.NDArray[np.int8]

    @classmethod
    def of(cls, sequences: Sequence[Ints], pauses: Sequence[npt.NDArray[np.int8]] | None = None) -> Stream:
        """Of sessions one by one; without pauses where their times are not known."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        tokens = np.concatenate([np.empty(0, np.int64), *sequences])
        none = np.full(len(tokens), -1, np.int8)
        return cls(tokens, np.cumsum(lengths), none if pauses is None else np.concatenate([none[:0], *pauses]))

    @classmethod
    def timed(cls, tokens: Ints, ends: Ints, times: Ints | None) -> Stream:
        """Of events with times, in ms."""
        return cls(tokens, ends, np.full(len(tokens), -1, np.int8) if times is None else pause_bins(times, ends))

    @classmethod
    def joined(cls, parts: Sequence[Stream]) -> Stream:
        """The sessions of all parts, which is at least one."""
        begins = np.cumsum([0, *(len(each.tokens) for each in parts)]).tolist()
        return cls(
            np.concatenate([each.tokens for each in parts]),
            np.concatenate([begin + each.ends for begin, each in zip(begins, parts, strict=False)]),
            np.concatenate([each.pauses for each in parts]),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, begin: int, end: int) -> Stream:
        """The sessions from one to before another."""
        first, last = (int(self.ends[at - 1]) if at else 0 for at in (begin, end))
        return Stream(self.tokens[first:last], self.ends[begin:end] - first, self.pauses[first:last])

    def select(self, rows: Ints) -> Stream:
        """These sessions, in this order."""
        lengths = np.diff(self.ends, prepend=0)[rows]
        ends = np.cumsum(lengths)
        at = np.repeat(self.ends[rows] - ends, lengths) + np.arange(lengths.sum())
        return Stream(self.tokens[at], ends, self.pauses[at])


def pause_bins(times: Ints, ends: Ints) -> npt.NDArray[np.int8]:
    """The bin of the pause before each event: of doubling widths from 1 ms on; -1 for the first event of a session."""
    pauses = np.maximum(np.diff(times, prepend=0), 0)
    bins: npt.NDArray[np.int8] = np.minimum(np.floor(np.log2(pauses + 1)), _PAUSE_BINS - 1).astype(np.int8)
    bins[np.append(0, ends[:-1])[: len(ends)]] = -1
    return bins


class Bins:
    """What counts as one: of tokens, lengths, pauses and scores.

    Args:
        templates: tokens with a bin of their own, in order.
    """

    def __init__(self, templates: Ints) -> None:
        self.templates = templates
        self.tokens = len(templates) + 2
        self._of = np.full(int(templates.max(initial=UNK)) + 2, len(templates), np.int64)
        self._of[: UNK + 1] = len(templates) + 1
        self._of[templates] = np.arange(len(templates))

    def of_blocks(self, stream: Stream, scores: Floats) -> dict[Feature, Floats]:
        """(blocks, bins) of each feature, of whole blocks; scores that are NaN are left out."""
        n, lengths = len(stream), np.diff(stream.ends, prepend=0)
        of = np.repeat(np.arange(n), lengths)
        has = np.zeros((n, self.tokens), np.uint8)
        has[of, self._of[np.clip(stream.tokens, 0, len(self._of) - 1)]] = 1
        paused, known = np.flatnonzero(stream.pauses >= 0), np.flatnonzero(~np.isnan(scores))
        length_bins = np.minimum((4 * np.log2(np.maximum(lengths, 1))).astype(np.int64), _LENGTH_BINS - 1)
        score_bins = np.clip((scores[known] * _SCORE_BINS).astype(np.int64), 0, _SCORE_BINS - 1)

        def counted(blocks: Ints, bins: Ints, most: int) -> Floats:
            return np.bincount(blocks * most + bins, minlength=n // BLOCK * most).reshape(-1, most).astype(np.float64)

        return {
            "tokens": has.reshape(n // BLOCK, BLOCK, -1).sum(axis=1, dtype=np.float64),
            "lengths": counted(np.arange(n) // BLOCK, length_bins, _LENGTH_BINS),
            "pauses": counted(of[paused] // BLOCK, stream.pauses[paused].astype(np.int64), _PAUSE_BINS),
            "scores": counted(known // BLOCK, score_bins, _SCORE_BINS),
        }


def _blocks(bins: Bins, stream: Stream, scores: Floats) -> dict[Feature, Floats]:
    blocks = len(stream) // BLOCK
    chosen = np.unique(np.linspace(0, blocks - 1, min(blocks, _MOST_BLOCKS)).astype(np.int64))
    parts = []
    for some in np.array_split(chosen, -(-len(chosen) // AT_ONCE)):
        rows = (some[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        parts.append(bins.of_blocks(stream.select(rows), scores[rows]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _stretch_of(blocks: int) -> Ints:
    stretches = int(np.clip(blocks // (LEAST_BLOCKS // 2), 2, _MOST_STRETCHES))
    return np.arange(blocks) * stretches // blocks


def _stretches(blocks: Floats) -> Floats:
    of = _stretch_of(len(blocks))
    found = np.zeros((of[-1] + 1, blocks.shape[1]))
    np.add.at(found, of, blocks)
    return found


def _left_out(blocks: Floats, stretches: Floats, *, rising: bool = False) -> Floats:
    """How far each block is from the stretches that it is not in."""
    of = _stretch_of(len(blocks))
    return nearest(blocks, stretches, own=of, rising=rising)


def divergences(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon divergence, in bits, of each histogram of one table from each of another: (len(p), len(q)).

    An empty histogram is 0 away from all.
    """
    used = p.any(axis=0) | q.any(axis=0)
    p, q = p[:, used], q[:, used]
    empty = p.sum(1) == 0
    p = p / np.maximum(p.sum(1, keepdims=True), 1)
    q = q / np.maximum(q.sum(1, keepdims=True), 1)
    found = np.empty((len(p), len(q)))
    of_q = _entropy(q)
    for begin in range(0, len(p), AT_ONCE):
        part = p[begin : begin + AT_ONCE]
        mixed = (part[:, None, :] + q[None, :, :]) / 2
        found[begin : begin + AT_ONCE] = _entropy(mixed) - (_entropy(part)[:, None] + of_q) / 2
    found[empty] = 0
    return np.maximum(found, 0)


def _entropy(p: Floats) -> Floats:
    bits: Floats = entr(p).sum(axis=-1) / np.log(2)
    return bits


def nearest(blocks: Floats, stretches: Floats, *, own: Ints | None = None, rising: bool = False) -> Floats:
    """How far each histogram is from the nearest stretch but its own; `rising`: 0 unless its mean is above theirs."""
    away = divergences(blocks, stretches)
    if own is not None:
        away[np.arange(len(blocks)), own] = np.inf
    found: Floats = away.min(axis=1)
    if rising:  # fewer anomalies than in the training are no reason to train again
        found = np.where(_means(blocks) > _means(stretches.sum(0, keepdims=True)), found, 0.0)
    return found


def _means(scores: Floats) -> Floats:
    means: Floats = scores @ np.arange(scores.shape[1]) / np.maximum(scores.sum(1), 1)
    return means

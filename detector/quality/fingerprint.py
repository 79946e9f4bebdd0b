"""How the sessions of a training were spread, and what is far from that: what drift is told by.

Sessions are taken in blocks of `BLOCK` in the order in which they end. Of a block there are histograms: how many of its
sessions have each template, how long they are, how they are scored. How far a histogram is from the training is its
least Jensen-Shannon divergence (in bits, 0 to 1; Lin, Divergence measures based on the Shannon entropy, 1991) from any
of the stretches that the training is cut into by time: what was usual at night is usual at night.

Pauses are compared by the event that they come before, since what gets slower is one thing among many: the mean of
their logarithms in a block, by how much it is beyond those of all stretches, in standard errors. A shift that no
histogram of all pauses would show adds up there.

How far is too far the training says itself. Each of its blocks is compared with the stretches that it is neither in nor
next to, since what is near in time is alike, so that what varies from hour to hour counts. An exponential tail is laid
over what comes of it, as heavy as the heaviest of them needs. It turns a block into evidence, -log10 of its tail
probability, which a cumulative sum (Page, Continuous inspection schemes, 1954) adds up beyond what is usual. No block
has more than `_MOST_EVIDENCE`, so that one odd one is no verdict. The sum that is too much is well above the greatest
one that the training comes to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detector.quality import block_loop as loop
from detector.quality.block_loop import Tables
from detector.text.vocabulary import UNK

Feature = Literal["tokens", "unknown", "lengths", "pauses", "scores"]
"""What is compared; `unknown` is the share of sessions with a line that no template matches."""

FEATURES: Final[tuple[Feature, ...]] = get_args(Feature)
BLOCK: Final = 25
"""Sessions that are judged together."""
LEAST_BLOCKS: Final = 8
"""With fewer a training has no fingerprint, and of fewer nothing is said."""

_OWN_BINS = 254  # templates, the most frequent ones; then the other ones, and lines that no template matches
_LENGTH_BINS = 80
_PAUSE_BINS = 32
_SCORE_BINS = 20
_MOST_STRETCHES = 16
_FEW_STRETCHES = 3
_MOST_BLOCKS = 2_000  # of a training, evenly spaced
_LEAST_PAUSES = 20  # of a stretch, to have a mean
_BY_CHANCE = 2.0  # standard errors
_LEAST_SPREAD = 0.5  # octaves: what clocks that count seconds do not tell
_USUAL_EVIDENCE = 0.8  # is taken off each block's; a block of the training has 0.43 in the mean
_MOST_EVIDENCE = 6.0
_NOTHING = 1e-9
_LEAST_THRESHOLD = 9.0
_ABOVE_TRAINING = 1.5
_STEP = 0.02  # bits: what one in a block that differs from all of a uniform training comes to
_STEPS: Final[Mapping[Feature, float]] = {"unknown": 1 / BLOCK, "pauses": 1.0}

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Pauses = npt.NDArray[np.uint8]


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
        """-log10 of the probability of as much or more, at most `_MOST_EVIDENCE`; 0 where a value is -inf."""
        evidence: Floats = np.clip(np.log10(2) + self.slope * (values - self.median), 0, _MOST_EVIDENCE)
        return evidence

    @classmethod
    def over(cls, values: Floats, step: float) -> Tail:
        """A tail that gives none of these less probability than they show.

        `step` is the least that a block may differ by: once more than was seen, the greatest value is still to be met
        with, and so is one step from the median.

        Args:
            values: of blocks in their order of time, (blocks, kinds); -inf where a block has none of a kind.
            step: in their unit.
        """
        there = values[np.isfinite(values)]
        n = len(there)
        median = float(np.median(there))
        above = np.sort(np.append(there, max(there.max(), median + step)))[::-1][: max(n // 4, 1)]
        needed = np.log10((n + 1) / np.arange(1, len(above) + 1)) - np.log10(2)
        slope = float((needed / np.maximum(above - median, _NOTHING))[above > median].min())
        fitted = cls(median, slope, np.inf)
        reached = sums(np.zeros(values.shape[1]), fitted.evidence(values), np.full(values.shape[1], np.inf)).max()
        return cls(median, slope, max(_LEAST_THRESHOLD, _ABOVE_TRAINING * float(reached)))


def sums(start: Floats, evidence: Floats, most: Floats) -> Floats:
    """Cumulative sums of evidence beyond the usual, never below 0: (blocks, sums) after each block."""
    found = np.empty(evidence.size)
    loop.add_up(evidence.ravel(), most, _USUAL_EVIDENCE, start.copy(), found)
    return found.reshape(evidence.shape)


@dataclass(frozen=True)
class UsualPause:
    """How long events of a template come after the one before them, in octaves of 1 ms.

    Attributes:
        token: of the template.
        least, most: mean of the stretch of the training in which they came soonest, and latest.
        spread: standard error of the mean of a block's pauses, times the root of their number.
    """

    token: int
    least: float
    most: float
    spread: float


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
        waits: of templates that came often enough, in the order of `templates`; checkpoints of before have none.
    """

    sessions: int
    templates: list[int]
    others: list[int]
    tokens: list[list[int]]
    lengths: list[list[int]]
    pauses: list[list[int]]
    scores: list[list[int]]
    tails: dict[Feature, Tail]
    waits: list[UsualPause] = field(default_factory=list)

    @classmethod
    def of(cls, stream: Stream, scores: Floats, held_out: Flags) -> Fingerprint | None:
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
        stretches = {name: _stretches(getattr(whole, name)) for name in ("tokens", "lengths", "pauses")}
        values = {name: _left_out(getattr(whole, name), stretches[name]) for name in ("tokens", "lengths")}
        waits, waited = _waits(bins, whole)
        if waits:
            values["pauses"] = waited
        if int(held_out.sum()) >= LEAST_BLOCKS * BLOCK:
            rows = np.flatnonzero(held_out)
            apart = _blocks(bins, stream.select(rows), scores[rows])
            values["unknown"] = unknown(apart)
            stretches["scores"] = _stretches(apart.scores)
            if apart.scores.any():
                values["scores"] = _left_out(apart.scores, stretches["scores"], rising=True)
        kept = {name: each.tolist() if each.any() else [] for name, each in stretches.items()}
        return cls(
            sessions=len(stream),
            templates=bins.templates.tolist(),
            others=np.sort(templates[_OWN_BINS:]).tolist(),
            tokens=kept["tokens"],
            lengths=kept["lengths"],
            pauses=kept["pauses"],
            scores=kept.get("scores", []),
            tails={name: Tail.over(values[name], _STEPS.get(name, _STEP)) for name in FEATURES if name in values},
            waits=waits,
        )


@dataclass(frozen=True, eq=False)
class Stream:
    """Sessions in the order in which they ended.

    Attributes:
        tokens: of their events, end to end, int64 (events,).
        ends: where those of each end, int64 (n,).
        pauses: before each event but a session's first, by `fill_pauses`, uint8 (events,).
    """

    tokens: Ints
    ends: Ints
    pauses: Pauses

    @classmethod
    def of(cls, sequences: Sequence[Ints], pauses: Sequence[Pauses] | None = None) -> Stream:
        """Of sessions one by one; without pauses where their times are not known."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        tokens = np.concatenate([np.empty(0, np.int64), *sequences])
        none = np.full(len(tokens), loop.NO_PAUSE, np.uint8)
        return cls(tokens, np.cumsum(lengths), none if pauses is None else np.concatenate([none[:0], *pauses]))

    @classmethod
    def timed(cls, tokens: Ints, ends: Ints, times: Ints | None) -> Stream:
        """Of events with times, in ms."""
        pauses = np.full(len(tokens), loop.NO_PAUSE, np.uint8) if times is None else fill_pauses(times, ends)
        return cls(tokens, ends, pauses)

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


def fill_pauses(times: Ints, ends: Ints) -> Pauses:
    """Before each event, in steps (`block_loop.fill_pauses`)."""
    found = np.empty(len(times), np.uint8)
    loop.fill_pauses(np.ascontiguousarray(times), ends, found)
    return found


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

    def of_blocks(self, stream: Stream, scores: Floats) -> Tables:
        """A row for each whole block; scores that are NaN are left out."""
        widths = (self.tokens, _LENGTH_BINS, _PAUSE_BINS, _SCORE_BINS, self.tokens, self.tokens)
        found = Tables(*(np.zeros((len(stream) // BLOCK, width), np.int64) for width in widths))
        latest = np.full(self.tokens, -1, np.int64)
        loop.count(stream.tokens, stream.ends, stream.pauses, scores, self._of, BLOCK, latest, found)
        return found


def _blocks(bins: Bins, stream: Stream, scores: Floats) -> Tables:
    blocks = len(stream) // BLOCK
    if blocks > _MOST_BLOCKS:
        chosen = np.unique(np.linspace(0, blocks - 1, _MOST_BLOCKS).astype(np.int64))
        rows = (chosen[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        stream, scores = stream.select(rows), scores[rows]
    return bins.of_blocks(stream, scores)


def _stretch_of(blocks: int) -> Ints:
    stretches = int(np.clip(blocks // (LEAST_BLOCKS // 2), 2, _MOST_STRETCHES))
    return np.arange(blocks) * stretches // blocks


def _stretches(blocks: Ints) -> Ints:
    of = _stretch_of(len(blocks))
    found = np.zeros((int(of[-1]) + 1, blocks.shape[1]), np.int64)
    np.add.at(found, of, blocks)
    return found


def _around(stretches: int) -> int:
    """How many beside its own a block is not compared with; of very few some have to be left."""
    return 1 if stretches > _FEW_STRETCHES else 0


def _left_out(blocks: Ints, stretches: Ints, *, rising: bool = False) -> Floats:
    """How far each block is from the stretches that it is neither in nor next to, (blocks, 1)."""
    return nearest(blocks, stretches, own=_stretch_of(len(blocks)), rising=rising)


def nearest(blocks: Ints, stretches: Ints, *, own: Ints | None = None, rising: bool = False) -> Floats:
    """How far each histogram is from the nearest stretch, (blocks, 1); `rising`: 0 unless its mean is above theirs.

    Args:
        blocks: histograms, (blocks, bins); an empty one is 0 away.
        stretches: of the training, (stretches, bins).
        own: the stretch that each is in, which it is not compared with; none where they are of other sessions.
        rising: whether only a rise counts: fewer anomalies than in the training are no reason to train again.
    """
    found = np.empty(len(blocks))
    nowhere = np.full(len(blocks), -1, np.int64)
    loop.nearest(blocks, stretches, nowhere if own is None else own, _around(len(stretches)), found)
    if rising:
        found = np.where(_means(blocks) > _means(stretches.sum(0, keepdims=True)), found, 0.0)
    return found[:, None]


def _means(scores: Ints) -> Floats:
    means: Floats = scores @ np.arange(scores.shape[1]) / np.maximum(scores.sum(1), 1)
    return means


def unknown(blocks: Tables) -> Floats:
    """Share of the sessions of each block with a line that no template matches, (blocks, 1)."""
    return blocks.tokens[:, -1:] / BLOCK


def _waits(bins: Bins, blocks: Tables) -> tuple[list[UsualPause], Floats]:
    """How long events of templates wait, and how far each block is from stretches neither its own nor next to it."""
    own, columns = _stretch_of(len(blocks.counts)), slice(len(bins.templates))
    n, sums_of = blocks.counts[:, columns], blocks.sums[:, columns]
    counts = _stretches(n)
    total = _octaves(sums_of.sum(0), n.sum(0))
    apart = n * (_octaves(sums_of, n) - total) ** 2
    spread = np.maximum(np.sqrt(apart.sum(0) / np.maximum((n > 0).sum(0), 1)), _LEAST_SPREAD)
    # By how much the means of stretches differ from all is theirs as far as chance does not explain it.
    differs = _octaves(_stretches(sums_of), counts) - total
    chance = _BY_CHANCE * spread / np.sqrt(np.maximum(counts, 1))
    means = total + np.sign(differs) * np.maximum(abs(differs) - chance, 0)
    means = np.where(counts >= _LEAST_PAUSES, means, np.nan)
    number = np.arange(len(means))
    near = abs(number[:, None] - number) <= _around(len(means))
    # (stretches that are left out, stretches, templates)
    others = np.where(near[:, :, None], np.nan, means)
    usual = np.flatnonzero(np.isfinite(others).any(axis=1).all(axis=0))
    if not len(usual):
        return [], np.empty((len(own), 0))
    least, most = np.nanmin(others[:, :, usual], axis=1), np.nanmax(others[:, :, usual], axis=1)
    n, sums_of, spread = n[:, usual], sums_of[:, usual], spread[usual]
    found = [
        UsualPause(token, *(round(each, 4) for each in (low, high, wide)))
        for token, low, high, wide in zip(
            bins.templates[usual].tolist(),
            np.nanmin(means[:, usual], axis=0).tolist(),
            np.nanmax(means[:, usual], axis=0).tolist(),
            spread.tolist(),
            strict=True,
        )
    ]
    return found, beyond(n, sums_of, least[own], most[own], spread)


def _octaves(sums: Ints, counts: Ints) -> Floats:
    means: Floats = sums / np.maximum(counts, 1) / loop.PER_OCTAVE
    return means


def beyond(counts: Ints, sums: Ints, least: Floats, most: Floats, spread: Floats) -> Floats:
    """By how many standard errors mean pauses are below the least or above the most, (blocks, kinds); -inf of none.

    Args:
        counts: pauses of blocks, (blocks, kinds).
        sums: of them, in steps.
        least: as of `UsualPause`, (kinds,) or of each block its own.
        most: likewise.
        spread: likewise, (kinds,).
    """
    means = _octaves(sums, counts)
    return np.where(counts > 0, np.maximum(means - most, least - means) * np.sqrt(counts) / spread, -np.inf)

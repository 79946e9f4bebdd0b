"""Whether sessions are still those that a training saw: its fingerprint beside them, block by block, and a verdict."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np

from detector.quality.fingerprint import (
    AT_ONCE,
    BLOCK,
    LEAST_BLOCKS,
    Bins,
    Feature,
    Fingerprint,
    Floats,
    Histograms,
    Ints,
    Stream,
    divergences,
    nearest,
    sums,
)
from detector.text.vocabulary import UNK

Verdict = Literal["ok", "watch", "retrain"]

RETRAIN_AFTER: Final = 40
"""Blocks that a `watch` lasts until it is `retrain`: what has changed has stayed."""

_BEYOND = 3.0  # above the threshold the sum goes no further: what is over has to be seen to be over
_MOST_WAITING = 1_000_000  # events, by memory
_APART_MS = 20_000
_WINDOW_MS = 3_600_000
_MOST_WINDOW = 64  # blocks
_MOST_KINDS = 64  # of unknown line, of a block
_SHOWN = 3  # of the templates that moved
_OFTEN = 0.05  # share of sessions from which on a template is missed in a window


class Moved(NamedTuple):
    """A template whose share of sessions has moved.

    Attributes:
        token: of the template; `UNK` stands for all lines that no template matches.
        before: share of the training's sessions that have it.
        now: of those in the window.
    """

    token: int
    before: float
    now: float


@dataclass(frozen=True)
class Drift:
    """How the latest sessions compare with the training's.

    Attributes:
        verdict: None until `LEAST_BLOCKS` blocks have come.
        since_ms: time of the session from which on it is `ok`, or is not.
        sessions: in the window that the figures are of.
        unknown: share of its sessions with a line that no template matches.
        new: share of its sessions with a line that the training did not have: an unknown one, or one of a template
            that came later.
        churn: of the templates that are there or should be, the share of those that came or went.
        divergence: of each feature but `unknown`, how far the window is from the nearest stretch of the training.
        because: features whose evidence is beyond the threshold.
        moved: the three templates that moved most.
    """

    verdict: Verdict | None = None
    since_ms: int | None = None
    sessions: int = 0
    unknown: float = 0.0
    new: float = 0.0
    churn: float = 0.0
    divergence: Mapping[Feature, float] = field(default_factory=dict)
    because: tuple[Feature, ...] = ()
    moved: tuple[Moved, ...] = ()


@dataclass(frozen=True, slots=True)
class _Block:
    at_ms: int
    histograms: dict[Feature, Floats]
    kinds: dict[int, int]  # tokens that the training did not have, and how many sessions have each
    new: int  # sessions that have any of them


class DriftMonitor:
    """Compares sessions, as they end, with a training's.

    Args:
        fingerprint: of the training.

    Attributes:
        verdict: as of the latest whole block; None until `LEAST_BLOCKS` have come.
        seen: sessions in whole blocks so far.
    """

    def __init__(self, fingerprint: Fingerprint) -> None:
        self._fingerprint = fingerprint
        self._bins = Bins(np.array(fingerprint.templates, np.int64))
        known = [*fingerprint.templates, *fingerprint.others]
        self._known = np.zeros(max(known, default=UNK) + 2, np.bool_)
        self._known[known] = True
        self._stretches: dict[Feature, Floats] = {
            name: np.array(table, np.float64)
            for name in ("tokens", "lengths", "pauses", "scores")
            if (table := getattr(fingerprint, name))
        }
        self._judged = tuple(fingerprint.tails)
        self._tails = [fingerprint.tails[name] for name in self._judged]
        self._thresholds = np.array([tail.threshold for tail in self._tails])
        self._sums = np.zeros(len(self._tails))
        self._turn, self._taken = -1, 0  # of stream time, and how many sessions of it were taken
        self._waiting: list[tuple[Stream, Floats, Ints]] = []
        self._waits = self._waiting_events = 0
        self._window: deque[_Block] = deque(maxlen=_MOST_WINDOW)
        self._watched = 0  # blocks that the watch has lasted
        self._watching = np.zeros(len(self._tails), np.bool_)
        self._since_ms: int | None = None
        self.verdict: Verdict | None = None
        self.seen = 0

    def wanted(self, ended_ms: Ints) -> Ints:
        """Which sessions to add, of some that have ended: no more than a block of `_APART_MS`.

        So a topic with many sessions costs no more than one with few.

        Args:
            ended_ms: time of the last event of each, in ms, (n,).
        """
        if not len(ended_ms):
            return np.empty(0, np.int64)
        turns = ended_ms // _APART_MS
        begins = np.flatnonzero(np.append(True, np.diff(turns) != 0))
        lengths = np.diff(np.append(begins, len(turns)))
        taken = np.zeros(len(begins), np.int64)
        taken[0] = self._taken if turns[0] == self._turn else 0
        place = np.arange(len(turns)) - np.repeat(begins - taken, lengths)
        self._turn, self._taken = int(turns[-1]), int(place[-1]) + 1
        return np.flatnonzero(place < BLOCK)

    def add(self, stream: Stream, scores: Floats, ended_ms: Ints) -> None:
        """Sessions have ended; they are judged once there are many, or somebody wants to know.

        Args:
            stream: the sessions, in the order of their ends.
            scores: their final scores, (n,).
            ended_ms: time of the last event of each, in ms, (n,); all 0 where it is not known.
        """
        if len(stream):
            self._waiting.append((stream, scores, ended_ms))
            self._waits += len(stream)
            self._waiting_events += len(stream.tokens)
            if self._waits >= BLOCK * AT_ONCE or self._waiting_events >= _MOST_WAITING:
                self.judge()

    def judge(self) -> None:
        """Judge the whole blocks among the sessions that were added."""
        if self._waits < BLOCK:
            return
        streams, all_scores, ends = zip(*self._waiting, strict=True)
        joined, scores, ended_ms = Stream.joined(streams), np.concatenate(all_scores), np.concatenate(ends)
        whole = self._waits // BLOCK * BLOCK
        rest = np.arange(whole, self._waits)
        self._waiting = [(joined.select(rest), scores[rest], ended_ms[rest])] if len(rest) else []
        self._waits -= whole
        self._waiting_events = len(self._waiting[0][0].tokens) if self._waiting else 0
        for begin in range(0, whole, BLOCK * AT_ONCE):
            end = min(whole, begin + BLOCK * AT_ONCE)
            self._judge(joined.part(begin, end), scores[begin:end], ended_ms[begin:end])

    def _judge(self, stream: Stream, scores: Floats, ended_ms: Ints) -> None:
        blocks = self._bins.of_blocks(stream, scores)
        evidence = np.stack(
            [tail.evidence(self._values(name, blocks)) for name, tail in zip(self._judged, self._tails, strict=True)],
            axis=1,
        )
        unseen = np.flatnonzero(~self._known[np.clip(stream.tokens, 0, len(self._known) - 1)])
        # A session counts once for each token of its that the training did not have.
        of = np.searchsorted(stream.ends, unseen, side="right")
        pairs = np.unique(np.stack([of, stream.tokens[unseen]]), axis=1) if len(unseen) else np.empty((2, 0), np.int64)
        with_new = np.unique(pairs[0]) // BLOCK
        for row, after in enumerate(sums(self._sums, evidence, self._thresholds + _BEYOND)):
            mine = pairs[1, pairs[0] // BLOCK == row] if len(unseen) else pairs[1]
            tokens, counts = np.unique(mine, return_counts=True) if len(mine) else (mine, mine)
            self._window.append(
                _Block(
                    int(ended_ms[row * BLOCK : (row + 1) * BLOCK].max()),
                    {name: table[row] for name, table in blocks.items()},
                    dict(zip(tokens[:_MOST_KINDS].tolist(), counts.tolist(), strict=False)),
                    int(np.count_nonzero(with_new == row)),
                )
            )
            self._decide(after)

    def _decide(self, after: Floats) -> None:
        self._sums = after
        self.seen += BLOCK
        # A watch ends well below where it begins, so that it does not come and go.
        self._watching = (after >= self._thresholds) | (self._watching & (after >= self._thresholds / 2))
        self._watched = self._watched + 1 if self._watching.any() else 0
        before = self.verdict
        if self.seen >= LEAST_BLOCKS * BLOCK:
            self.verdict = "ok" if not self._watched else "watch" if self._watched <= RETRAIN_AFTER else "retrain"
        if self.verdict != before and (before is None or "ok" in (self.verdict, before)):
            self._since_ms = self._window[-1].at_ms

    def _values(self, name: Feature, blocks: Histograms) -> Floats:
        if name == "unknown":
            return blocks["tokens"][:, -1] / BLOCK
        return nearest(blocks[name], self._stretches[name], rising=name == "scores")

    def look(self) -> Drift:
        """The figures of the latest hour, or of the latest `LEAST_BLOCKS` where that has fewer."""
        self.judge()
        while len(self._window) > LEAST_BLOCKS and self._window[0].at_ms < self._window[-1].at_ms - _WINDOW_MS:
            self._window.popleft()
        blocks, sessions = list(self._window), len(self._window) * BLOCK
        if not blocks:
            return Drift()
        window = {name: np.sum([each.histograms[name] for each in blocks], axis=0)[None, :] for name in self._stretches}
        now = window["tokens"][0] / sessions
        training = self._stretches["tokens"].sum(0)
        before = training / max(1.0, self._stretches["lengths"].sum())
        tokens = [*self._fingerprint.templates, -1, UNK]
        kinds: Counter[int] = Counter()
        for each in blocks:
            kinds.update(each.kinds)
        moved = [
            Moved(token, was, is_now)
            for token, was, is_now in zip(tokens, before.tolist(), now.tolist(), strict=True)
            if token >= 0 and was != is_now
        ]
        moved += [Moved(token, 0.0, count / sessions) for token, count in kinds.items() if token > UNK]
        moved.sort(key=lambda each: -abs(each.now - each.before))
        own = len(tokens) - 2
        here, expected = now[:own] > 0, before[:own] >= _OFTEN
        there = len(kinds) + int((here | expected).sum())
        return Drift(
            verdict=self.verdict,
            since_ms=self._since_ms,
            sessions=sessions,
            unknown=float(now[-1]),
            new=sum(each.new for each in blocks) / sessions,
            churn=(len(kinds) + int((expected & ~here).sum())) / max(1, there),
            divergence={name: float(divergences(table, self._stretches[name]).min()) for name, table in window.items()},
            because=tuple(name for name, is_so in zip(self._judged, self._watching.tolist(), strict=True) if is_so),
            moved=tuple(moved[:_SHOWN]),
        )

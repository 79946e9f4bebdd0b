"""Whether sessions are still those that a training saw: its fingerprint beside them, block by block, and a verdict."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np

from detector.quality import block_loop as loop
from detector.quality.block_loop import Tables
from detector.quality.fingerprint import (
    BLOCK,
    FEATURES,
    LEAST_BLOCKS,
    Bins,
    Feature,
    Fingerprint,
    Floats,
    Ints,
    Stream,
    beyond,
    nearest,
    sums,
    unknown,
)
from detector.text.vocabulary import UNK

Verdict = Literal["ok", "watch", "retrain"]

RETRAIN_AFTER: Final = 40
"""Blocks that a `watch` lasts until it is `retrain`: what has changed has stayed."""

_BEYOND = 3.0  # above the threshold the sum goes no further: what is over has to be seen to be over
_AT_ONCE = 64  # blocks, by memory
_MOST_WAITING = 1_000_000  # events, by memory
_APART_MS = 20_000
_WINDOW_MS = 3_600_000
_MOST_WINDOW = 64  # blocks
_MOST_KINDS = 64  # of unknown line, of a block
_TOKEN_BITS = 32
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


class Wait(NamedTuple):
    """A template whose events come sooner after those before them than they did, or later.

    Attributes:
        token: of the template.
        before: usual pause of the training, the geometric mean of pauses, in ms.
        now: that of the window.
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
        waits: the three of whose pauses there is most evidence, where these are a reason.
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
    waits: tuple[Wait, ...] = ()


class _Block(NamedTuple):
    at_ms: int
    tables: Tables
    row: int  # of them
    kinds: dict[int, int]  # tokens that the training did not have, and how many sessions have each
    new: int  # sessions that have any of them

    def rows(self) -> list[Ints]:
        """Its row of each table."""
        return [table[self.row] for table in self.tables]


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
        self._stretches: dict[Feature, Ints] = {
            name: np.array(table, np.int64)
            for name in ("tokens", "lengths", "pauses", "scores")
            if (table := getattr(fingerprint, name))
        }
        waits = fingerprint.waits
        self._least, self._most, self._spread = (
            np.array([getattr(each, name) for each in waits]) for name in ("least", "most", "spread")
        )
        self._waits_at = np.searchsorted(self._bins.templates, [each.token for each in waits])
        # A sum for each of them, but of pauses for each template that has usual ones.
        judged = [name for name in FEATURES if name in fingerprint.tails and (name != "pauses" or waits)]
        self._tails = {name: fingerprint.tails[name] for name in judged}
        self._of = [name for name in judged for _ in (waits if name == "pauses" else (None,))]
        self._thresholds = np.array([self._tails[name].threshold for name in self._of])
        self._sums = np.zeros(len(self._of))
        self._turn = np.array([-1, 0])  # of stream time, and how many sessions of it came
        self._waiting: list[tuple[Stream, Floats, Ints]] = []
        self._waits = self._waiting_events = 0
        self._window: deque[_Block] = deque(maxlen=_MOST_WINDOW)
        self._watched = 0  # blocks that the watch has lasted
        self._watching = np.zeros(len(self._of), np.int64)
        self._since_ms: int | None = None
        self.verdict: Verdict | None = None
        self.seen = 0

    def wanted(self, ended_ms: Ints) -> Ints:
        """Which sessions to add, of some that have ended: no more than a block of `_APART_MS`.

        So a topic with many sessions costs no more than one with few.

        Args:
            ended_ms: time of the last event of each, in ms, (n,).
        """
        found = np.empty(len(ended_ms), np.int64)
        return found[: loop.first_of_turns(np.ascontiguousarray(ended_ms), _APART_MS, BLOCK, self._turn, found)]

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
            if self._waits >= BLOCK * _AT_ONCE or self._waiting_events >= _MOST_WAITING:
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
        for begin in range(0, whole, BLOCK * _AT_ONCE):
            end = min(whole, begin + BLOCK * _AT_ONCE)
            self._judge(joined.part(begin, end), scores[begin:end], ended_ms[begin:end])

    def _judge(self, stream: Stream, scores: Floats, ended_ms: Ints) -> None:
        blocks = self._bins.of_blocks(stream, scores)
        values = [(tail, self._values(name, blocks)) for name, tail in self._tails.items()]
        evidence = np.concatenate([tail.evidence(each) for tail, each in values], axis=1)
        kinds, new = self._unseen(stream, blocks)
        last = ended_ms.reshape(-1, BLOCK).max(axis=1).tolist()
        self._window += map(_Block, last, itertools.repeat(blocks), range(len(last)), kinds, new)
        after = sums(self._sums, evidence, self._thresholds + _BEYOND)
        self._sums = after[-1]
        self._decide(after, last)

    def _unseen(self, stream: Stream, blocks: Tables) -> tuple[list[dict[int, int]], list[int]]:
        """Of each block how many sessions have each token that the training did not have, and how many have any."""
        kinds: list[dict[int, int]] = [{} for _ in blocks.tokens]
        if not blocks.tokens[:, -2:].any():  # all are of templates with a bin
            return kinds, [0] * len(kinds)
        unseen = np.flatnonzero(~self._known[np.clip(stream.tokens, 0, len(self._known) - 1)])
        of, tokens = np.searchsorted(stream.ends, unseen, side="right"), np.maximum(stream.tokens[unseen], UNK)
        once = np.unique(of << _TOKEN_BITS | tokens)  # a session counts once for each
        of, tokens = once >> _TOKEN_BITS, once & ((1 << _TOKEN_BITS) - 1)
        pairs, counts = np.unique(of // BLOCK << _TOKEN_BITS | tokens, return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            block = kinds[pair >> _TOKEN_BITS]
            if len(block) < _MOST_KINDS:
                block[pair & ((1 << _TOKEN_BITS) - 1)] = count
        return kinds, np.bincount(np.unique(of) // BLOCK, minlength=len(kinds)).tolist()

    def _decide(self, after: Floats, last: list[int]) -> None:
        watched = np.empty(len(after), np.int64)
        loop.watch(after.ravel(), self._thresholds, self._watching, self._watched, watched)
        for at_ms, self._watched in zip(last, watched.tolist(), strict=True):
            self.seen += BLOCK
            if self.seen < LEAST_BLOCKS * BLOCK:
                continue
            verdict: Verdict = "ok" if not self._watched else "watch" if self._watched <= RETRAIN_AFTER else "retrain"
            if verdict != self.verdict:
                if "ok" in (verdict, self.verdict) or self.verdict is None:
                    self._since_ms = at_ms
                self.verdict = verdict

    def _values(self, name: Feature, blocks: Tables) -> Floats:
        if name == "unknown":
            return unknown(blocks)
        if name == "pauses":
            counts, waited = blocks.counts[:, self._waits_at], blocks.sums[:, self._waits_at]
            return beyond(counts, waited, self._least, self._most, self._spread)
        return nearest(getattr(blocks, name), self._stretches[name], rising=name == "scores")

    def look(self) -> Drift:
        """The figures of the latest hour, or of the latest `LEAST_BLOCKS` where that has fewer."""
        self.judge()
        while len(self._window) > LEAST_BLOCKS and self._window[0].at_ms < self._window[-1].at_ms - _WINDOW_MS:
            self._window.popleft()
        blocks, sessions = list(self._window), len(self._window) * BLOCK
        if not blocks:
            return Drift()
        window = Tables(*(np.sum(rows, axis=0)[None] for rows in zip(*(each.rows() for each in blocks), strict=True)))
        now = window.tokens[0] / sessions
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
            divergence={
                name: float(nearest(getattr(window, name), stretches).item())
                for name, stretches in self._stretches.items()
            },
            because=tuple(dict.fromkeys(itertools.compress(self._of, self._watching.tolist()))),
            moved=tuple(moved[:_SHOWN]),
            waits=tuple(self._moved_waits(window)),
        )

    def _moved_waits(self, window: Tables) -> Iterator[Wait]:
        begin = self._of.index("pauses") if "pauses" in self._of else len(self._of)
        mine = slice(begin, begin + len(self._waits_at))
        of, at = np.where(self._watching[mine] > 0, self._sums[mine], -1.0), self._waits_at
        for row in np.argsort(-of, kind="stable")[:_SHOWN].tolist():
            counts = int(window.counts[0, at[row]])
            if of[row] >= 0 and counts:
                usual = float(self._least[row] + self._most[row]) / 2
                now = float(window.sums[0, at[row]]) / counts / loop.PER_OCTAVE
                yield Wait(self._fingerprint.waits[row].token, 2**usual - 1, 2**now - 1)

"""Sessions that are scored as they grow: what is known of each, so that only its new events have to be looked at.

Of each session there is a slot with the model's state (`detector.model.carried`), the running maxima and counts that
its next early score follows from, and the scores of its events. The session least recently asked for goes first where
slots are short; nothing but time depends on which are known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from detector.model.carried import GoingOn, StatePool, Told
from detector.model.inference import Inference
from detector.scoring import scored_sequences_loop as loop
from detector.scoring.count_profile import CountProfile
from detector.scoring.judge import Judge, SoFar
from detector.scoring.scores import LONG, Growth, Integers
from detector.text.vocabulary import BOS, UNK

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]


class EarlyScores(Protocol):
    """Makes scores of events so far."""

    def __call__(self, highest: Floats, logits: Floats, unusual: Floats, suspect: Flags | None) -> Floats:
        """Of running maxima, of how unusual counts are and of what a judge says, all (events,)."""


class Grown(NamedTuple):
    """Scores of some sessions.

    Attributes:
        bounds: where the events of each begin and, last, how many there are, (n + 1,).
        surprises: of the events that were given, float32 (events,).
        scores: likewise.
        highest: surprise over the events and, of a complete session, the end, (n,).
        logits: of the class at the end of complete sessions, (n,).
    """

    bounds: Integers
    surprises: Singles
    scores: Singles
    highest: Floats
    logits: Floats


class GrowingSessions:
    """What is known of sessions that grow.

    Args:
        inference: measures their events.
        most: sessions that are known at a time; 0 for none.
        profile: of the counts of normal sessions.
        judge: of sessions, if there is one.
        early: makes scores.
        vocabulary: tokens.
    """

    def __init__(
        self,
        inference: Inference,
        most: int,
        *,
        profile: CountProfile,
        judge: Judge | None,
        early: EarlyScores,
        vocabulary: int,
    ) -> None:
        self._inference = inference
        self._profile = profile
        self._judge = judge
        self._early = early
        self._pool: StatePool | None = inference.pool(most) if most else None
        self._slots: OrderedDict[int, int] = OrderedDict()  # of sessions by number, the one asked for last at the end
        self._free: list[int] = []
        # Of each slot; tokens are those since the state's, and counts end with that of unknown lines.
        self._events = np.zeros(0, np.int64)
        self._tokens: list[Integers] = []
        self._told: list[npt.NDArray[np.float32]] = []  # surprises and scores, (2, room)
        self._so_far: list[SoFar] = []
        self._highest, self._logits = np.zeros((2, 0))
        self._has_more = np.zeros(0, np.bool_)
        self._counts = np.zeros((0, vocabulary + 1), np.int64)

    def events(self, numbers: Integers) -> Integers:
        """How many events of these sessions are known, 0 of one that is not."""
        slots = np.array([self._slots.get(number, -1) for number in numbers.tolist()], np.int64)
        return np.where(slots < 0, 0, self._events[slots]) if len(self._events) else np.zeros(len(slots), np.int64)

    def take_in(self, numbers: Integers) -> Flags:
        """Make room for sessions that are not known as yet, as far as there is; which of all these are known then."""
        wanted = numbers.tolist()
        for number in wanted:
            if number in self._slots:
                self._slots.move_to_end(number)
        asked = set(wanted)
        fresh = [number for number in wanted if number not in self._slots]
        taken = []
        for number in fresh:
            slot = self._slot(asked)
            if slot is None:
                break
            self._slots[number] = slot
            taken.append(slot)
        if taken and self._pool is not None:
            slots = np.array(taken, np.int64)
            self._pool.clear(slots)
            self._events[slots] = 0
            self._highest[slots] = self._logits[slots] = -np.inf
            self._has_more[slots] = False
            self._counts[slots] = 0
            for slot in taken:
                self._tokens[slot], self._told[slot] = np.array([BOS]), np.empty((2, 2 * LONG), np.float32)
                self._so_far[slot] = SoFar()
        return np.array([number in self._slots for number in wanted], np.bool_)

    def forget(self, numbers: Integers) -> None:
        """Let these sessions go, as far as they are known."""
        for number in numbers.tolist():
            slot = self._slots.pop(number, None)
            if slot is not None:
                self._free.append(slot)
                self._told[slot] = np.empty((2, 0), np.float32)

    def score(self, growth: Growth, complete: Flags, after_pass: Callable[[], None]) -> Grown:
        """Score known sessions, each given once and from no later event on than those that are known.

        Args:
            growth: the sessions.
            complete: those that end with what is given, (n,).
            after_pass: called after each forward pass. What it raises ends the call.
        """
        numbers, bounds = growth.numbers.tolist(), growth.sequences.bounds
        slots = np.array([self._slots[number] for number in numbers], np.int64)
        known = self._events[slots]
        ends = growth.begins + np.diff(bounds)
        new = [
            growth.sequences.tokens[begin:end]
            for begin, end in zip((bounds[1:] - np.maximum(ends - known, 0)).tolist(), bounds[1:].tolist(), strict=True)
        ]
        at_end, logits = self._highest[slots], np.full(len(slots), np.nan)
        rows = np.flatnonzero((ends > known) | complete)
        waiting = set(rows.tolist())
        try:
            for told in self._measured(slots[rows], [new[row] for row in rows.tolist()], complete[rows]):
                those = rows[told.indices]
                self._take(told, slots[those], [new[row] for row in those.tolist()])
                at_end[those] = self._highest[slots[those]]
                last = told.end_surprises.astype(np.float64)
                # What is no number stays.
                beyond = complete[those] & ((last > at_end[those]) | np.isnan(last))
                at_end[those[beyond]] = last[beyond]
                logits[those] = told.end_logits
                waiting.difference_update(those.tolist())
                after_pass()
        finally:
            # Of what was not told, states may have gone on.
            self.forget(growth.numbers[sorted(waiting)])
        surprises, scores = np.empty((2, len(growth.sequences.tokens)), np.float32)
        places = zip(slots.tolist(), growth.begins.tolist(), ends.tolist(), pairwise(bounds.tolist()), strict=True)
        for slot, first, end, (begin, stop) in places:
            surprises[begin:stop], scores[begin:stop] = self._told[slot][:, first:end]
        return Grown(bounds, surprises, scores, at_end, logits)

    def _slot(self, asked: set[int]) -> int | None:
        """A free slot, if need be that of a session that nobody asks for now."""
        if not self._free and self._pool is not None and self._pool.grow():
            self._widen(len(self._pool))
        if not self._free and self._slots and (oldest := next(iter(self._slots))) not in asked:
            self.forget(np.array([oldest]))
        return self._free.pop() if self._free else None

    def _widen(self, slots: int) -> None:
        more = slots - len(self._events)
        self._free += range(slots - 1, len(self._events) - 1, -1)
        self._tokens += [np.zeros(0, np.int64)] * more
        self._told += [np.empty((2, 0), np.float32)] * more
        self._so_far += [SoFar()] * more
        for name in ("_events", "_highest", "_logits", "_has_more", "_counts"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate((column, np.zeros((more, *column.shape[1:]), column.dtype))))

    def _measured(self, slots: Integers, new: list[Integers], complete: Flags) -> Iterator[Told]:
        if not len(slots) or self._pool is None:
            return iter(())
        before = [self._tokens[slot] for slot in slots.tolist()]
        parts = [part for both in zip(before, new, strict=True) for part in both]
        seen = np.array([len(part) for part in before], np.int64)
        ends = np.cumsum(seen + np.array([len(part) for part in new], np.int64))
        return self._inference.carry_on(GoingOn(np.concatenate(parts), ends, seen, slots, complete), self._pool)

    def _take(self, told: Told, slots: Integers, new: list[Integers]) -> None:
        """Take in what was measured of the new events of these slots."""
        assert self._pool is not None
        events, lengths = np.concatenate([*new, np.zeros(0, np.int64)]), np.diff(told.bounds)
        highest, logits = np.empty((2, len(events)))
        occurrences, with_unknown = np.empty((2, len(events)), np.int64)
        so_far = loop.SoFar(self._highest, self._logits, self._counts)
        loop.go_on(
            events,
            told.surprises,
            told.logits,
            told.bounds,
            slots,
            UNK,
            so_far,
            highest,
            logits,
            occurrences,
            with_unknown,
        )
        before = np.repeat(self._has_more[slots], lengths)
        exceeds = self._profile.exceeds(events, occurrences)
        has_more = before | _since(exceeds, told.bounds)
        suspect = None
        if self._judge is not None:
            known = [self._so_far[slot] for slot in slots.tolist()]
            suspect, known = self._judge.going_on(events, told.bounds, with_unknown, known)
            for slot, each in zip(slots.tolist(), known, strict=True):
                self._so_far[slot] = each
        scores = self._early(highest, logits, self._profile.running(has_more), suspect)
        of_segment = self._pool.tokens
        places = zip(slots.tolist(), new, pairwise(told.bounds.tolist()), strict=True)
        for slot, own, (begin, end) in places:
            if begin == end:
                continue
            first = int(self._events[slot])
            last = first + end - begin
            room = self._told[slot]
            if last > room.shape[1]:
                room = np.empty((2, 2 * last), np.float32)
                room[:, :first] = self._told[slot][:, :first]
                self._told[slot] = room
            room[0, first:last], room[1, first:last] = told.surprises[begin:end], scores[begin:end]
            tokens = np.concatenate((self._tokens[slot], own))
            self._tokens[slot] = tokens[len(tokens) - (1 + last - int(of_segment[slot])) :].copy()
            self._events[slot] = last
            self._has_more[slot] = has_more[end - 1]


def _since(flags: Flags, bounds: Integers) -> Flags:
    """Whether any of its session's flags was set up to each, (events,)."""
    so_far = np.cumsum(flags)
    before = np.repeat(np.append(0, so_far)[bounds[:-1]], np.diff(bounds))
    found: Flags = so_far > before
    return found

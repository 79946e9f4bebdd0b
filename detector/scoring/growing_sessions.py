"""Sessions that are scored as they grow: what is known of each, so that only its new events have to be looked at.

Of each session there is a slot with the model's state (`detector.model.carried`), the running maxima and counts that
its next early score follows from, and the scores of its events. Where slots are short, short sessions go first, and of
these or of long ones the session least recently asked for; nothing but time depends on which are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from detector.model.carried import GoingOn, StatePool, Told
from detector.model.inference import Inference
from detector.scoring import growing_loop as loop
from detector.scoring.count_profile import CountProfile
from detector.scoring.judge import Judge, SoFar
from detector.scoring.scored_sequences_loop import gather_tokens
from detector.scoring.scores import LONG, Growth, Integers, Sequences
from detector.scoring.verdict_weights import VerdictWeights
from detector.text.vocabulary import BOS, UNK

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]

# Of short sessions that find no slot, one in so many takes that of another. Where there are more open ones than slots,
# each would else lose its slot before its next event, and be taken in for nothing; so those stay that have one.
_TAKES_ANOTHERS = 16
_COLUMNS = "_numbers", "_asked", "_is_short", "_events", "_rooms", "_has_more", "_by_verdicts", "_rest"


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
        logits: of the class at the end of complete sessions, NaN for others, (n,).
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
        verdict_weights: of what sessions have, if there are some.
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
        verdict_weights: VerdictWeights | None,
        vocabulary: int,
    ) -> None:
        self._inference = inference
        self._profile = profile
        self._judge = judge
        self._early = early
        self._verdict_weights = verdict_weights
        self._pool: StatePool | None = inference.pool(most) if most else None
        self._slots: dict[int, int] = {}  # of sessions by number
        self._free: list[int] = []
        self._calls = 0
        self._without = 0  # short sessions that found no slot since one took another's
        # Of each slot; those of none that is known have the number 0.
        self._numbers, self._asked, self._events, self._rooms = np.zeros((4, 0), np.int64)
        self._is_short, self._has_more = np.zeros((2, 0), np.bool_)
        self._by_verdicts = np.zeros(0)
        self._so_far = loop.SoFar(np.zeros(0), np.zeros(0), np.zeros((0, vocabulary + 1), np.int64))
        self._rest = np.zeros((0, self.least or 0), np.int64)  # tokens since the state's
        self._told = loop.Told(np.zeros(0, np.int64), *np.zeros((2, 0), np.float32))
        self._told_end = 0  # where there is room from
        self._judged: list[SoFar] = []

    @property
    def least(self) -> int | None:
        """Events from which on something is kept of a session, so that what comes is less to look at; None for none."""
        return None if self._pool is None else self._pool.segment

    def events(self, numbers: Integers) -> Integers:
        """How many events of these sessions are known, 0 of one that is not."""
        if not self._slots:
            return np.zeros(len(numbers), np.int64)
        slots = self._slots_of(numbers)
        return np.where(slots < 0, 0, self._events[slots])

    def take_in(self, numbers: Integers, *, short: bool = False) -> Flags:
        """Make room for sessions that are not known as yet, as far as there is; which of all these are known then.

        Args:
            numbers: of the sessions.
            short: whether they have no more than `LONG` events; no long session makes room for them.
        """
        self._calls += 1
        slots = self._slots_of(numbers)
        known = slots >= 0
        self._asked[slots[known]], self._is_short[slots[known]] = self._calls, short
        fresh = numbers[~known].tolist()
        while len(self._free) < len(fresh) and self._pool is not None and self._pool.grow():
            self._widen(len(self._pool))
        self._make_room(len(fresh) - len(self._free), short)
        fresh = fresh[: len(self._free)]
        if fresh and self._pool is not None:
            taken = np.array([self._free.pop() for _ in fresh], np.int64)
            self._slots.update(zip(fresh, taken.tolist(), strict=True))
            self._pool.clear(taken)
            self._numbers[taken], self._asked[taken], self._is_short[taken] = fresh, self._calls, short
            self._events[taken] = self._by_verdicts[taken] = self._rooms[taken] = 0
            self._has_more[taken] = False
            self._so_far.highest[taken] = self._so_far.logits[taken] = -np.inf
            self._so_far.counts[taken] = 0
            self._rest[taken, 0] = BOS
            for slot in taken.tolist():
                self._judged[slot] = SoFar()
        known[np.flatnonzero(~known)[: len(fresh)]] = True
        return known

    def forget(self, numbers: Integers) -> None:
        """Let these sessions go, as far as they are known."""
        gone = [slot for number in numbers.tolist() if (slot := self._slots.pop(number, None)) is not None]
        self._numbers[gone] = self._rooms[gone] = 0
        self._free += gone

    def score(self, growth: Growth, complete: Flags, after_pass: Callable[[], None]) -> Grown:
        """Score known sessions, each given once and from no later event on than those that are known.

        Those that are complete are not known any more after it.

        Args:
            growth: the sessions.
            complete: those that end with what is given, (n,).
            after_pass: called after each forward pass. What it raises ends the call.
        """
        assert self._pool is not None
        bounds, slots = growth.sequences.bounds, self._slots_of(growth.numbers)
        known = self._events[slots]
        ends = growth.begins + np.diff(bounds)
        at_end, logits = self._so_far.highest[slots], np.full(len(slots), np.nan)
        rows = np.flatnonzero((ends > known) | complete)
        if len(rows):
            going, new = self._going_on(growth, slots, rows, complete)
            waiting = np.ones(len(rows), np.bool_)
            try:
                for told in self._inference.carry_on(going, self._pool):
                    those = rows[told.indices]
                    self._take(told, going, new)
                    at_end[those] = self._so_far.highest[slots[those]]
                    last = told.end_surprises.astype(np.float64)
                    # What is no number stays.
                    beyond = complete[those] & ((last > at_end[those]) | np.isnan(last))
                    at_end[those[beyond]] = last[beyond]
                    logits[those] = np.where(complete[those], told.end_logits, np.nan)
                    waiting[told.indices] = False
                    after_pass()
            finally:
                # Of what was not told, states may have gone on; of what is complete, they have not.
                self.forget(growth.numbers[rows[waiting | complete[rows]]])
        surprises, scores = np.empty((2, len(growth.sequences.tokens)), np.float32)
        loop.look_up(self._told, slots, growth.begins, surprises, scores, bounds)
        return Grown(bounds, surprises, scores, at_end, logits)

    def _slots_of(self, numbers: Integers) -> Integers:
        """-1 for a session that is not known."""
        return np.array([self._slots.get(number, -1) for number in numbers.tolist()], np.int64)

    def _make_room(self, lacking: int, short: bool) -> None:
        """Let sessions go that nobody asks for now, for others that find no slot."""
        if lacking <= 0:
            return
        if short:
            lacking, self._without = divmod(self._without + lacking, _TAKES_ANOTHERS)
        may_go = np.flatnonzero((self._numbers > 0) & (self._asked < self._calls) & (self._is_short | (not short)))
        order = np.lexsort((self._asked[may_go], ~self._is_short[may_go]))
        self.forget(self._numbers[may_go[order[:lacking]]])

    def _widen(self, slots: int) -> None:
        more = slots - len(self._numbers)
        self._free += range(slots - 1, len(self._numbers) - 1, -1)
        self._judged += [SoFar()] * more

        def wider(column: _Array) -> _Array:
            return np.concatenate((column, np.zeros((more, *column.shape[1:]), column.dtype)))

        for name in _COLUMNS:
            setattr(self, name, wider(getattr(self, name)))
        self._so_far = loop.SoFar(*map(wider, self._so_far))
        self._told = self._told._replace(begins=wider(self._told.begins))

    def _going_on(self, growth: Growth, slots: Integers, rows: Integers, complete: Flags) -> tuple[GoingOn, Sequences]:
        """These of the sessions as the model takes them, and their new events."""
        assert self._pool is not None
        given, own = growth.sequences, slots[rows]
        ends = given.bounds[1:][rows]
        counts = np.maximum(growth.begins[rows] + np.diff(given.bounds)[rows] - self._events[own], 0)
        bounds = np.append(0, np.cumsum(counts))
        new = given.tokens[np.arange(bounds[-1]) + np.repeat(ends - bounds[1:], counts)]
        seen = 1 + self._events[own] - self._pool.tokens[own]
        tokens = np.empty(int(seen.sum()) + len(new), np.int64)
        loop.join(self._rest, own, seen, new, bounds, tokens)
        return GoingOn(tokens, np.cumsum(seen + counts), seen, own, complete[rows]), Sequences(new, bounds[1:])

    def _take(self, told: Told, going: GoingOn, new: Sequences) -> None:
        """Take in what was measured of the new events of some of the sessions."""
        assert self._pool is not None
        bounds, slots = told.bounds, going.slots[told.indices]
        events = np.empty(bounds[-1], np.int64)
        gather_tokens(new.bounds, new.tokens, told.indices, events)
        highest, logits = np.empty((2, len(events)))
        occurrences, with_unknown = np.empty((2, len(events)), np.int64)
        loop.go_on(
            events,
            told.surprises,
            told.logits,
            bounds,
            slots,
            UNK,
            self._so_far,
            highest,
            logits,
            occurrences,
            with_unknown,
        )
        some = np.flatnonzero(np.diff(bounds))
        before = np.repeat(self._has_more[slots], np.diff(bounds))
        has_more = before | _since(self._profile.exceeds(events, occurrences), bounds)
        self._has_more[slots[some]] = has_more[bounds[1:][some] - 1]
        suspect = None
        if self._judge is not None:
            known = [self._judged[slot] for slot in slots.tolist()]
            suspect, known = self._judge.going_on(events, bounds, with_unknown, known)
            for slot, each in zip(slots.tolist(), known, strict=True):
                self._judged[slot] = each
        scores = self._early(highest, logits, self._profile.running(has_more), suspect)
        if self._verdict_weights is not None:
            scores, self._by_verdicts[slots] = self._verdict_weights.going_on(
                scores, events, with_unknown, bounds, self._by_verdicts[slots]
            )
        known_before = self._events[slots]
        self._events[slots] += np.diff(bounds)
        self._make_room_to_tell(slots, known_before)
        loop.tell(self._told, slots, known_before, told.surprises, scores.astype(np.float32), bounds)
        # Those that are complete are about to be forgotten.
        kept = np.where(going.complete[told.indices], 0, 1 + self._events[slots] - self._pool.tokens[slots])
        loop.keep(self._rest, slots, going.tokens, going.ends[told.indices], kept)

    def _make_room_to_tell(self, slots: Integers, known: Integers) -> None:
        """Room for what is told of all events of these slots, so many of which were known before."""
        lacks = self._events[slots] > self._rooms[slots]
        slots, known = slots[lacks], known[lacks]
        if not len(slots):
            return
        rooms = np.maximum(2 * self._events[slots], 2 * LONG)
        self._rooms[slots] = 0
        old, end = self._told, self._told_end + int(rooms.sum())
        begins = old.begins.copy()
        if end > len(old.scores):
            # All that there is, closer together.
            others = np.flatnonzero(self._rooms)
            begins[others] = np.cumsum(self._rooms[others]) - self._rooms[others]
            end = int(self._rooms.sum() + rooms.sum())
            self._told = loop.Told(begins, *np.empty((2, end + end // 2), np.float32))
            loop.move(old, others, self._events[others], self._told)
        else:
            self._told = old._replace(begins=begins)
        begins[slots] = end - int(rooms.sum()) + np.cumsum(rooms) - rooms
        loop.move(old, slots, known, self._told)
        self._rooms[slots], self._told_end = rooms, end


def _since(flags: Flags, bounds: Integers) -> Flags:
    """Whether any of its session's flags was set up to each, (events,)."""
    so_far = np.cumsum(flags)
    before = np.repeat(np.append(0, so_far)[bounds[:-1]], np.diff(bounds))
    found: Flags = so_far > before
    return found

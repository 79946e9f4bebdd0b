"""What bounds the alarms of a training without labels, and how often normal sessions would be alarms all the same.

No label is needed: normal sessions judge each other, by the counts of their events alone. There are two ways to divide
them, which ask two questions.

- *Halves of time*, each judged by the profile of the other: what would a log do to a profile as old as it is long? A
  template whose counts are unusual in more than `PROMISED` of the sessions of a half is *habitual*: that is shown with
  `CERTAINTY` by the bound of Clopper and Pearson (1934), and halves of fewer sessions than tell such a share show
  nothing. Shorter stretches do not tell: there the same job runs before and after.
- *Folds* drawn at random, each judged by the profile of the others: what is rare among sessions like these? All of them
  calibrate (cross-conformal prediction, Vovk 2015), so no threshold rests on the few kinds of sessions that chance put
  into a validation part; unless that part, by the other one, shows beyond doubt (`_SURE`) that more than `PROMISED` of
  its sessions have evidence: then it is of another time, or its sessions hold parts of each other, and it calibrates
  alone. A few kinds with many sessions each show no such thing.

That a session was cut excuses what it lacks only where some of these sessions were cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtrc, betaincinv

from detector.scoring.count_profile import Bounds, CountProfile
from detector.scoring.count_vectors import CountVectors
from detector.scoring.evidence import CERTAINTY, WARNING_LEVEL, Evidence, Evidences
from detector.scoring.learning import learn_order, learn_vectors
from detector.scoring.tolerances import Floats, Integers
from detector.text.vocabulary import Vocabulary
from detector.training.data import TrainingSessions

PROMISED = 0.01
"""Of the normal sessions of another time; what more of them do is no evidence."""

BETWEEN = 0.1  # of the sessions, between the halves of the time
_FOLDS = 5
_SURE = 0.999
_MOST_JUDGED = 1 << 16  # distinct vectors that shares are estimated from


class Bounded(NamedTuple):
    """What came of it.

    Attributes:
        bounds: of the count profile.
        alike: evidence of normal sessions by others like them, or of the validation part by the other one.
        later: evidence of the sessions of each half of the time by the other half.
    """

    bounds: Bounds
    alike: Evidences
    later: Evidences


def bound(*parts: TrainingSessions) -> Bounded:
    """Bound the alarms of a profile that learns from sessions, all of them normal.

    Args:
        parts: those to learn from and, where they are apart, those to validate by; each in order of time, as far as
            that is known. A row that stands for several sessions has no time: it is divided evenly.
    """
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    halves = np.concatenate([_halves(part.counts) for part in parts], axis=1)
    last = np.where(np.arange(len(whole)) < len(parts[0]), 0, whole.counts)
    return _Divided(whole, halves, last).bound()


def expected_share(later: Evidences, evidence: Evidence) -> float:
    """Share of normal sessions of another time that are to be expected to be warnings."""
    alarm = (later.nats > 0) & (evidence.levels(later.nats) >= WARNING_LEVEL)
    return float(later.counts[alarm].sum() / later.counts.sum())


def bounds_lines(bounds: Bounds, share: float, vocabulary: Vocabulary, most: int = 8) -> Iterator[str]:
    """What to tell who trains, a line each.

    Args:
        bounds: of the count profile.
        share: of `expected_share`.
        vocabulary: of the tokens.
        most: templates to list.
    """
    yield (
        f"each half of the time judged by what the other one taught, {share:.2%} of the normal sessions are warnings: "
        "expect that where the log goes on to change as it did; what neither half shows is an alarm until it is learnt"
    )
    if share > PROMISED:
        yield (
            f"that is more than the {PROMISED:.0%} that 0.7 stands for: learn from a longer time, or let the "
            "thresholds follow the stream (scoring.adaptive)"
        )
    if len(bounds.habitual):
        texts = [vocabulary.text(token) for token in bounds.habitual[:most].tolist()]
        more = f"; and {len(bounds.habitual) - most:,} more" if len(bounds.habitual) > most else ""
        yield f"no alarm rests on how often these come, which changes with the time: {'; '.join(texts)}{more}"


class _Divided:
    def __init__(self, sessions: TrainingSessions, halves: Integers, last: Integers) -> None:
        vectors = CountVectors.of_sequences(sessions.sequences)
        _, first, which = np.unique(vectors.codes, return_index=True, return_inverse=True)
        self._vectors = vectors.take(first)
        self._sequences = [sessions.sequences[row] for row in first.tolist()]
        self._all, self._last, *self._halves = (
            np.bincount(which, each).astype(np.int64) for each in (sessions.counts, last, *halves)
        )
        self._size = int(vectors.tokens.max(initial=0)) + 1
        had = np.bincount(vectors.tokens, sessions.counts[vectors.rows]).astype(np.int64)
        self._order = self._cut(*learn_order(sessions.sequences, sessions.counts, had))
        self._rng = np.random.default_rng(0)

    def _cut(self, after: Integers, before: Integers) -> tuple[Integers, Integers]:
        """Those of the tokens that some session lacks for having been cut: where none is cut, an end is no less due."""
        due = np.union1d(after[:, 0], before[:, 0])
        has = np.zeros((self._vectors.sessions, len(due)), np.bool_)
        at = np.isin(self._vectors.tokens, due)
        has[self._vectors.rows[at], np.searchsorted(due, self._vectors.tokens[at])] = True
        rows = np.flatnonzero(~has.all(1))
        excused: set[int] = set()
        broken = learn_vectors(self._vectors, self._all, after, before).broken(self._vectors.take(rows))
        for row, of_row in zip(rows.tolist(), broken, strict=True):
            excused |= set(due[~has[row]].tolist()) - {each.token for each in of_row if each.kind == "missing"}
        tokens = np.array(sorted(excused), np.int64)
        return after[np.isin(after[:, 0], tokens)], before[np.isin(before[:, 0], tokens)]

    def bound(self) -> Bounded:
        halves = self._halves
        habits = [self._habitual(learnt, judged) for learnt, judged in (halves, halves[::-1])]
        # What a half has to say of itself takes no part in how it is judged.
        later = [
            self._evidence(learnt, judged, habit)
            for (learnt, judged), habit in zip((halves, halves[::-1]), habits[::-1], strict=True)
        ]
        habitual = np.union1d(*habits)
        alike = Evidences.joined([self._evidence(self._all - fold, fold, habitual) for fold in self._folds()])
        if self._last.any():
            held_out = self._evidence(self._all - self._last, self._last, habitual)
            if _least_share(held_out) > PROMISED:
                alike = held_out
        return Bounded(self._bounds(habitual), alike, Evidences.joined(later))

    def _bounds(self, habitual: Integers) -> Bounds:
        return Bounds(habitual, *self._order)

    def _habitual(self, learnt: Integers, judged: Integers) -> Integers:
        rows = self._some(judged)
        n = int(judged[rows].sum())
        if not learnt.any() or n < 1 / PROMISED:
            return np.zeros(0, np.int64)
        times = self._profile(learnt).unusual_by_token(self._vectors.take(rows), judged[rows], self._size)
        # As many or more, were their share no greater.
        return np.flatnonzero((times > 0) & (bdtrc(np.maximum(times - 1, 0), n, PROMISED) <= 1 - CERTAINTY))

    def _evidence(self, learnt: Integers, judged: Integers, habitual: Integers) -> Evidences:
        rows = self._some(judged)
        nats: Floats = np.zeros(len(rows))
        if learnt.any() and len(rows):
            sequences = [self._sequences[row] for row in rows.tolist()]
            bounds = np.append(0, np.cumsum([len(events) for events in sequences])).astype(np.int64)
            profile = self._profile(learnt, self._bounds(habitual))
            nats = profile.judge(np.concatenate(sequences), bounds).final
        return Evidences(nats, judged[rows].astype(np.float64))

    def _profile(self, weights: Integers, bounds: Bounds | None = None) -> CountProfile:
        rows = np.flatnonzero(weights)
        return CountProfile.of(self._vectors.take(rows), weights[rows], bounds)

    def _some(self, weights: Integers) -> Integers:
        rows = np.flatnonzero(weights)
        return rows if len(rows) <= _MOST_JUDGED else np.sort(self._rng.choice(rows, _MOST_JUDGED, replace=False))

    def _folds(self) -> Sequence[Integers]:
        order = self._rng.permutation(len(self._all))
        ends = np.cumsum(self._all[order])
        folds = []
        for number in range(_FOLDS):
            fold = np.zeros(len(self._all), np.int64)
            fold[order] = np.diff((ends + number) // _FOLDS, prepend=number // _FOLDS)
            folds.append(fold)
        return folds


def _least_share(evidences: Evidences) -> float:
    """Lower bound for the share of sessions with evidence, certain by `_SURE`, whatever one kind of them does.

    Sessions with equal counts are one draw, as copies of each other, and of those with evidence the largest is left
    out: a part may hold any one kind by chance. Draws of unequal weights are worth as many equal ones as Kish (1965)
    has it; the bound is that of Clopper and Pearson for so many.
    """
    nats, counts = evidences
    some = nats > 0
    if np.count_nonzero(some) < 2:
        return 0.0
    others = np.arange(len(counts)) != np.argmax(np.where(some, counts, 0))
    weights = counts[others]
    draws = weights.sum() ** 2 / np.square(weights).sum()
    shown = draws * weights[some[others]].sum() / weights.sum()
    return float(betaincinv(shown, draws - shown + 1, 1 - _SURE))


def _halves(counts: Integers) -> Integers:
    """How many sessions of each row are in each half of the time, (2, rows).

    What lies between them is in none: that a job goes on from one half to the other shows nothing, and the middle of
    one part is not just that of another.
    """
    half, place = counts // 2, (np.cumsum(counts) - 0.5) / counts.sum()
    first, last = (
        np.where(counts > 1, each, mine)
        for each, mine in ((half, place < (1 - BETWEEN) / 2), (counts - half, place > (1 + BETWEEN) / 2))
    )
    return np.stack([first, last]).astype(np.int64)

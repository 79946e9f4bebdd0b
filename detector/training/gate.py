"""Whether a checkpoint that was adapted may take the place of the one before: on sessions old and recent.

Both score the same ones: older sessions, which both have learnt from, and recent ones, which neither has. The new one
may be no worse:

- *old, usual*: those that were no alarms are none, and its surprise by an event has not grown;
- *old, alarms*: of those that were, `FOUND_AGAIN` still are: nothing is found at the expense of what was found;
- *recent, usual*: likewise; of what is to become usual there may be fewer alarms, not more;
- *held back*: what may not become usual is still an alarm.

Shares are of sessions, and may be worse by what chance explains in as many as there are: two standard errors, of a
share of 1 % at least, which is what may be alarms of sessions that nobody has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from detector.scoring.calibration import WARNING_SCORE
from detector.scoring.scorer import Scorer
from detector.sessions_file import ANOMALOUS, UNLABELLED
from detector.training.data import TrainingSessions

FOUND_AGAIN: Final = 0.99
MORE_ALARMS: Final = 0.002
"""Of usual sessions, the share that may be alarms beyond those of before."""
MORE_SURPRISE: Final = 0.05
"""Share by which the nats of an event of usual sessions may grow; beside it 0.01 nats."""

_UNSEEN: Final = 0.01

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """One thing that is compared.

    Attributes:
        name: what of, as in ``old.alarms_found``.
        words: the same for people.
        before, after: the old checkpoint's and the new one's.
        sessions: how many it is of.
        kind: a share of sessions, or nats.
        ok: the new one's is no worse.
    """

    name: str
    words: str
    before: float
    after: float
    sessions: int
    kind: Literal["share", "nats"]
    ok: bool


def compare(
    before: Scorer, after: Scorer, old: TrainingSessions, recent: TrainingSessions, held_back: TrainingSessions
) -> list[Figure]:
    """Compare two checkpoints on sessions in the tokens of both.

    Args:
        before: scorer of the old one.
        after: of the new one.
        old: of before; what should be an alarm labels say and, where there is none, the old one.
        recent: usual ones of the recent traffic, held out.
        held_back: what was not learnt from.
    """
    figures: list[Figure] = []
    was, now = (_judged(scorer, old) for scorer in (before, after))
    alarm = np.where(old.labels == UNLABELLED, was.alarm, old.labels == ANOMALOUS)
    figures += _usual("old", "older sessions", old, was, now, ~alarm)
    figures += _found("old", "older alarms", old, was, now, alarm)
    was, now = (_judged(scorer, recent) for scorer in (before, after))
    figures += _usual("recent", "recent sessions", recent, was, now, np.ones(len(recent), np.bool_))
    was, now = (_judged(scorer, held_back) for scorer in (before, after))
    figures += _found("held_back", "held-back alarms", held_back, was, now, was.alarm)
    return figures


@dataclass(frozen=True)
class _Judged:
    alarm: Flags
    nats: Floats  # of all events of a session


def _judged(scorer: Scorer, sessions: TrainingSessions) -> _Judged:
    if not len(sessions):
        return _Judged(np.zeros(0, np.bool_), np.zeros(0))
    found = scorer.score_columns(sessions.columns, len(sessions))
    nats = np.add.reduceat(found.surprises.astype(np.float64), found.ends - sessions.lengths)
    return _Judged(found.finals >= WARNING_SCORE, nats)


def _usual(
    name: str, words: str, sessions: TrainingSessions, was: _Judged, now: _Judged, chosen: Flags
) -> list[Figure]:
    counts = sessions.counts * chosen
    n = int(counts.sum())
    if not n:
        return []
    events = int(counts @ sessions.lengths)
    alarms, more_alarms = (float(counts @ each.alarm / n) for each in (was, now))
    nats, more_nats = (float(counts @ each.nats / events) for each in (was, now))
    few = more_alarms <= alarms + MORE_ALARMS + _chance(alarms, counts)
    expected = more_nats <= nats * (1 + MORE_SURPRISE) + 0.01
    return [
        Figure(f"{name}.alarms", f"{words} that are alarms", alarms, more_alarms, n, "share", few),
        Figure(f"{name}.nats", f"{words}, nats an event", nats, more_nats, n, "nats", expected),
    ]


def _found(
    name: str, words: str, sessions: TrainingSessions, was: _Judged, now: _Judged, chosen: Flags
) -> list[Figure]:
    counts = sessions.counts * chosen
    n = int(counts.sum())
    if not n:
        return []
    found, still = (float(counts @ each.alarm / n) for each in (was, now))
    least = FOUND_AGAIN * found - _chance(FOUND_AGAIN * found, counts)
    return [Figure(f"{name}.found", f"{words} that are still found", found, still, n, "share", still >= least)]


def _chance(share: float, counts: npt.NDArray[np.int64]) -> float:
    """Two standard errors of a share of sessions; equal ones that come often say no more than one."""
    n = float(counts.sum()) ** 2 / max(float((counts.astype(np.float64) ** 2).sum()), 1.0)
    likely = min(max(share, _UNSEEN), 1 - _UNSEEN)
    return 2 * float(np.sqrt(likely * (1 - likely) / n))

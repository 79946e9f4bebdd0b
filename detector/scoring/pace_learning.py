"""Learns limits of pauses and bursts (`detector.scoring.pace`), and whether they are to be depended on.

What is *usual* is what the share `USUAL` of the sessions have at most that have the two templates in a row, the
template; at least `FEWEST` have to.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from detector.scoring import pace_loop as loop
from detector.scoring.pace import ANY, Integers, Pace, PaceKind, Timed, at_once, greatest, has_times, pairs
from detector.sessions_file import ANOMALOUS, UNLABELLED

FEWEST: Final = 100
"""Sessions that a limit is learnt from."""
USUAL: Final = 0.999
DEPENDABLE: Final = 0.005
"""Greatest share of held-out sessions beyond a limit where times can be depended on."""
JUDGING: Final = 10
"""Sessions labelled anomalous from which on it is for the labels to say which limits matter."""
PROOFS: Final = 5
PROOF: Final = 0.9

Flags = npt.NDArray[np.bool_]


def learn_pace(sessions: Timed, labels: npt.NDArray[np.int8], held_out: Flags) -> tuple[Pace | None, list[str]]:
    """Learn from sessions that are not known to be anomalous, and see how the others keep to it.

    Where more than `DEPENDABLE` of those held out are beyond a limit, the next ones will be, too: then there is none.
    Where labels take part, they say whether times tell anomalies: of pauses, of bursts, there are none unless at least
    `PROOFS` anomalous sessions are beyond a limit; and no limit stays that others are beyond as well (`PROOF`).

    Args:
        sessions: with their times.
        labels: 1 anomalous, 0 normal, -1 not known, (n,).
        held_out: which are not learnt from, (n,).

    Returns:
        The limits, None where there are none, and what is to be said of them, a line each.
    """
    anomalous = labels == ANOMALOUS
    pace = learn(sessions.select(np.flatnonzero(~anomalous & ~held_out)))
    learnt = len(pace.pauses) + len(pace.bursts)
    if not learnt:
        return None, []
    if anomalous.sum() >= JUDGING:
        known = np.flatnonzero(labels != UNLABELLED)
        pace = _borne_out(pace, sessions.select(known), anomalous[known])
        kept = len(pace.pauses) + len(pace.bursts)
        told = f"pauses and bursts: {learnt:,} limits, of which labels bear out {kept:,}; no other one is kept"
        return (pace if kept else None), [told]
    others = sessions.select(np.flatnonzero(~anomalous & held_out))
    n, beyond = len(others.spans), len(pace.unusual(others))
    told = f"pauses and bursts: {learnt:,} limits; {beyond:,} of {n:,} sessions to validate are beyond one"
    if beyond > DEPENDABLE * n:
        return None, [f"{told}, more than {DEPENDABLE:.1%}: they are left out, as times do not tell here"]
    return pace, [told]


def learn(sessions: Timed) -> Pace:
    """Learn from sessions, of which those that are known to be anomalous were left out."""
    tokens, rows, paused = sessions.tokens, sessions.rows, sessions.pauses()
    follows = np.flatnonzero((np.diff(rows, prepend=-1) == 0) & has_times(sessions)[rows])
    before, after = tokens[follows - 1], tokens[follows]
    codes = np.concatenate([pairs(after, before), pairs(after, np.full(len(after), ANY))])
    longest = greatest(np.tile(rows[follows], 2), codes, np.tile(paused[follows], 2))
    pauses = [(*divmod(code, 1 << loop.PAIR_BITS), *stated) for code, stated in _stated(longest)]
    bursts = [(token, *stated) for token, stated in _stated(at_once(sessions))]
    return Pace(np.array(pauses, np.int64).reshape(-1, 5), np.array(bursts, np.int64).reshape(-1, 4))


def _borne_out(pace: Pace, sessions: Timed, anomalous: Flags) -> Pace:
    """The limits that labels bear out: none that normal sessions break as well, and only of a kind that tells."""
    broken: dict[tuple[PaceKind, int, int], list[int]] = {}
    for row, several in pace.unusual(sessions).items():
        for each in several:
            tally = broken.setdefault((each.kind, each.token, each.previous), [0, 0])
            tally[int(anomalous[row])] += 1
    refuted = {which for which, (no, yes) in broken.items() if yes < PROOF * (yes + no)}

    def kept(kind: PaceKind, limits: list[tuple[int, int]]) -> Flags:
        proofs = sum(yes for which, (_, yes) in broken.items() if which[0] == kind and which not in refuted)
        own = [(kind, *limit) not in refuted for limit in limits]
        return np.array(own, np.bool_) & (proofs >= PROOFS)

    pauses = kept("pause", [(token, previous) for token, previous in pace.pauses[:, :2].tolist()])
    bursts = kept("burst", [(token, ANY) for token in pace.bursts[:, 0].tolist()])
    return Pace(pace.pauses[pauses], pace.bursts[bursts])


def _stated(values: Integers) -> list[tuple[int, tuple[int, int, int]]]:
    """Of each code that enough sessions have: how many, how many of them have at most the usual value, and that.

    Args:
        values: session, code, value, (k, 3).
    """
    ordered = values[np.lexsort((values[:, 2], values[:, 1]))]
    codes, starts = np.unique(ordered[:, 1], return_index=True)
    stated = []
    for code, begin, end in zip(codes.tolist(), starts, np.append(starts, len(ordered))[1:], strict=True):
        if (n := int(end - begin)) >= FEWEST:
            own = ordered[begin:end, 2]
            usual = int(own[int(np.ceil(USUAL * n)) - 1])
            stated.append((code, (n, int(np.searchsorted(own, usual, side="right")), usual)))
    return stated

"""Tolerances that are learnt anew because something has changed, and stay as they were where nothing has.

Shares change with every sample. Were all of them taken from the new one, what just so was an alarm would be none any
more, or the other way round, for nothing; and who makes one thing usual would loosen others by it. So the numbers of
before stay to the last digit, and new ones are of as many sessions.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from detector.scoring.families import Way
from detector.scoring.tolerances import Flags, Integers, Tolerances
from detector.text.vocabulary import UNK


def relearnt(before: Tolerances, learnt: Tolerances, changed: Collection[Way]) -> Tolerances:
    """Those of before for what nothing has changed, and those that were learnt for the rest.

    Args:
        before: what was learnt then; a token that it has no row for (`Tolerances.aware_of`) changes as unknown ones do.
        learnt: from sessions of before and later ones.
        changed: how later sessions break those of before and may from now on.
    """
    size = int(max(before.histogram[:, 0].max(), learnt.histogram[:, 0].max())) + 1
    touched = np.zeros(size, np.bool_)
    touched[[each.token for each in changed if not each.other]] = True
    known = np.zeros(size, np.bool_)
    known[before.histogram[:, 0]] = True
    touched |= ~known & touched[UNK]
    related = np.array([each.token * size + each.other for each in changed if each.other], np.int64)
    scale = before.sessions / learnt.sessions

    def stays(table: Integers) -> Flags:
        return ~(touched[table[:, 0]] | touched[table[:, 1]] | np.isin(table[:, 0] * size + table[:, 1], related))

    def joined(old: Integers, new: Integers, counted: slice = slice(0)) -> Integers:
        """Of pairs of tokens, those of before where they stay."""
        new = new[~stays(new)]
        new[:, counted] = np.rint(new[:, counted] * scale)
        return _ascending(np.concatenate([old[stays(old)], new]))

    kept, new = before.histogram, _scaled(learnt.histogram, scale)
    return Tolerances(
        sessions=before.sessions,
        histogram=_ascending(np.concatenate([kept[~touched[kept[:, 0]]], new[touched[new[:, 0]]]])),
        contexts=joined(before.contexts, learnt.contexts, slice(2, 3)),
        after=joined(before.after, learnt.after),
        before=joined(before.before, learnt.before),
        relations=joined(before.relations, learnt.relations, slice(4, 6)),
        set_aside=before.set_aside,
        weights=before.weights,
    )


def _scaled(histogram: Integers, scale: float) -> Integers:
    """As of other many sessions: rounded up to each row, lest what a token has in all is off by as many as its rows."""
    tokens, sums = histogram[:, 0], np.cumsum(histogram[:, 2])
    first = np.flatnonzero(np.diff(tokens, prepend=-1))
    earlier = np.repeat((sums - histogram[:, 2])[first], np.diff(np.append(first, len(tokens))))
    up_to = np.rint((sums - earlier) * scale).astype(np.int64)
    counts = np.diff(up_to, prepend=0)
    counts[first] = up_to[first]
    return np.column_stack([histogram[:, :2], counts])


def _ascending(table: Integers) -> Integers:
    found: Integers = table[np.lexsort((table[:, 1], table[:, 0]))]
    return found

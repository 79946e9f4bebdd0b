"""What recent traffic may change, and what it may not: an adaptation learns from what keeps within these bounds.

Nobody says which sessions of recent traffic are anomalies, and who repeats one all day long makes it common. So what
is common today is not yet usual:

- *A session that stands out to the checkpoint is not learnt from*, however often it comes. It stays an alarm.
- *Unless what it does has become usual*: every tolerance that it breaks was broken that way by at least `RARE` of the
  sessions on `days` different days of UTC (of fewer than 50 sessions, several together are one); what it breaks beside
  these may be what is no evidence by itself, a family taken for normal. So one day of traffic
  makes nothing usual that is an alarm today; a change of a few days does, at most `MOST_USUAL` such ways in one
  adaptation, the most frequent first. Who knows of a change, a rollout for example, says so and does not wait.
- *What the training set aside*, and whatever breaks the same and more, has to be done by more than `MOST` of the
  sessions on each of these days: what hardly any do at first may be what all do later, and an anomaly that is repeated
  so often is most of the log. Who vouches for recent traffic is asked of its last day (of the last days, where it had
  fewer than 50 sessions).
- *Never without another verdict*: what one called anomalous, and whatever breaks the same and more.
- *A session with a label* has the verdict of somebody, which decides for it alone.
- *A key* gives at most `KEY_SHARE` of what is learnt, or twice its even share where there are few keys.
- *At most `MOST_TEMPLATES` templates* are added at a time (by whoever learns them), those of the most lines.

Each template that is new is rare by itself (`Tolerances.aware_of`), lest one that becomes usual make all others usual.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.history import Change
from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Family, Way, code_of, name_of, ways
from detector.scoring.judge import Judge
from detector.scoring.reasons import in_words
from detector.scoring.tolerances import RARE, Broken
from detector.sessions_file import UNLABELLED
from detector.text.vocabulary import UNK, Vocabulary
from detector.training.data import TrainingSessions

DAYS: Final = 3
MOST: Final = 0.5
"""Whoever repeats an anomaly is more than this only once all others together are less."""
KEY_SHARE: Final = 0.01
MOST_TEMPLATES: Final = 200
MOST_USUAL: Final = 50

_DAY_SESSIONS: Final = 50  # of fewer nobody knows what is usual
_FORGOTTEN_DAYS: Final = 30
_MOST_TOLD: Final = 100  # changes and ways of each kind that are recorded

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bounded:
    """What recent traffic may teach.

    Attributes:
        sessions: to learn from, those labelled anomalous among them, as such.
        held_back: the others, but for those beyond their key's share.
        of_one_key: sessions that were beyond it.
        usual: what may become usual, the most frequent first.
        stays: what is held back, likewise, as families.
        watched: days on which ways were usual, by their names, for the next adaptation.
    """

    sessions: TrainingSessions
    held_back: TrainingSessions
    of_one_key: int
    usual: tuple[Change, ...]
    stays: tuple[Change, ...]
    watched: dict[str, tuple[str, ...]]


def bounded(
    recent: TrainingSessions,
    days: Integers,
    judge: Judge,
    vocabulary: Vocabulary,
    *,
    watched: Mapping[str, Sequence[str]],
    needed_days: int = DAYS,
    planned: bool = False,
) -> Bounded:
    """Choose what of recent traffic is learnt from.

    Args:
        recent: sessions as they came, with their keys; at least one.
        days: of each, the day it began, counted from 1970-01-01, (n,).
        judge: of the checkpoint.
        vocabulary: of the sessions, which only adds to the checkpoint's.
        watched: of the adaptation before.
        needed_days: on so many what a session does has to be usual.
        planned: somebody vouches for what is usual in this traffic: it need not have been so before.
    """
    kept = _within_their_share(recent)
    spared = int(recent.counts.sum() - kept.sum())
    recent, days = _counted(recent, kept), days[kept > 0]
    vectors = CountVectors.of_sequences(recent.sequences)
    _, first, which = np.unique(vectors.codes, return_index=True, return_inverse=True)
    broken = _Broken(vectors.take(first), judge, vocabulary)
    asked = np.ones(len(days), np.bool_)
    if planned:
        asked, days = _latest(days, recent.counts), np.full_like(days, days.max())
    usual_on = _usual_on(broken, which, recent.counts, days, asked)
    horizon = (
        date.fromordinal(date(1970, 1, 1).toordinal() + int(days.max())) - timedelta(_FORGOTTEN_DAYS)
    ).isoformat()
    known = {
        name: {day for day in (*watched.get(name, ()), *usual_on.get(name, ())) if day >= horizon}
        for name in (*usual_on, *watched)
    }
    enough = {name for name, on in known.items() if on and ((planned and name in usual_on) or len(on) >= needed_days)}
    totals = broken.sessions(which, recent.counts)
    chosen = sorted(enough & totals.keys(), key=lambda name: (-totals[name], name))[:MOST_USUAL]
    admitted = broken.admitted(set(chosen))
    mask = admitted[which] | (recent.labels != UNLABELLED)
    rows = np.flatnonzero(admitted).tolist()
    became = {name for row in rows for name in (*broken.names(row), *broken.set_aside(row))}.intersection(chosen)
    return Bounded(
        recent.select(mask),
        recent.select(~mask),
        spared,
        tuple(Change(name, broken.words[name], totals[name]) for name in chosen if name in became),
        tuple(broken.families(~admitted, which[~mask], recent.counts[~mask])),
        {
            name: tuple(sorted(on))
            for name, on in sorted(known.items(), key=lambda item: -totals.get(item[0], 0))[:_MOST_TOLD]
            if on and name not in became
        },
    )


class _Broken:
    """What distinct count vectors break, way by way.

    Attributes:
        words: of each way, by its name.
    """

    def __init__(self, vectors: CountVectors, judge: Judge, vocabulary: Vocabulary) -> None:
        self.words: dict[str, str] = {}
        self._vectors, self._judge, self._vocabulary = vectors, judge, vocabulary
        judged = judge.tolerances.judge(vectors)
        self._found: dict[int, tuple[Way, ...]] = {}
        self._harmless = np.ones(vectors.sessions, np.bool_)
        holding: defaultdict[Way, list[Family]] = defaultdict(list)
        for each in judge.families.all:
            if each.ways and each.is_evidence:
                holding[min(each.ways, key=str)].append(each)
        self._never: set[int] = set()
        self._set_aside: dict[int, list[str]] = {}
        rows = np.flatnonzero(judged.families)
        for row, found in zip(rows.tolist(), judge.tolerances.broken(vectors.take(rows)), strict=True):
            own = ways(found)
            family = judge.families.of_code(code_of(own))
            if family is not None and not family.is_evidence:
                continue
            self._harmless[row] = False
            self._found[row] = own
            self._say(row, found)
            broken = set(own)
            held = [each for way in own for each in holding.get(way, ()) if broken.issuperset(each.ways)]
            if any(each.verdict is not None for each in held):
                self._never.add(row)
            self._set_aside[row] = [name_of(each.ways) for each in held]
            self.words.update({name_of(each.ways): each.words for each in held if len(each.ways) > 1})

    def names(self, row: int) -> list[str]:
        """Of the ways in which a vector breaks tolerances that are evidence."""
        return [str(way) for way in self._found.get(row, ())]

    def set_aside(self, row: int) -> list[str]:
        """Of the families that the training set aside and a vector breaks the same as, or more than."""
        return self._set_aside.get(row, [])

    def never(self, row: int) -> bool:
        """Whether only a verdict makes a vector usual."""
        return row in self._never

    @property
    def rows(self) -> list[int]:
        """Of the vectors that stand out."""
        return list(self._found)

    def most(self, which: Integers, counts: Integers) -> set[str]:
        """What training set aside and more than `MOST` of the sessions do."""
        of_row = np.bincount(which, counts, self._vectors.sessions).astype(np.int64)
        totals: Counter[str] = Counter()
        for row, names in self._set_aside.items():
            totals.update(dict.fromkeys(names, int(of_row[row])))
        return {name for name, total in totals.items() if total > MOST * counts.sum()}

    def admitted(self, usual: set[str]) -> Flags:
        """Which vectors are learnt from if these ways are usual."""
        found = self._harmless.copy()
        for row in self._found:
            found[row] = row not in self._never and usual.issuperset(self.set_aside(row)) and self._rest(row, usual)
        return found

    def _rest(self, row: int, usual: set[str]) -> bool:
        """Whether what a vector breaks beside these ways is nothing, or no evidence by itself."""
        rest = tuple(way for way in self._found[row] if str(way) not in usual)
        family = self._judge.families.of_code(code_of(rest)) if rest else None
        return not rest or (family is not None and not family.is_evidence)

    def sessions(self, which: Integers, counts: Integers) -> dict[str, int]:
        """How many sessions break each way."""
        of_row = np.bincount(which, counts, self._vectors.sessions).astype(np.int64)
        totals: defaultdict[str, int] = defaultdict(int)
        for row in self._found:
            for name in {*self.names(row), *self.set_aside(row)}:
                totals[name] += int(of_row[row])
        return dict(totals)

    def families(self, chosen: Flags, which: Integers, counts: Integers) -> list[Change]:
        """What some of the vectors break, taken together, the most frequent first."""
        of_row = np.bincount(which, counts, self._vectors.sessions).astype(np.int64)
        totals: defaultdict[str, int] = defaultdict(int)
        words: dict[str, str] = {}
        for row in np.flatnonzero(chosen & (of_row > 0)).tolist():
            name = name_of(self._found[row])
            totals[name] += int(of_row[row])
            words.setdefault(name, " ".join(self.words[each] for each in self.names(row)[:2]))
        largest = sorted(totals, key=lambda name: (-totals[name], name))[:_MOST_TOLD]
        return [Change(name, words[name], totals[name]) for name in largest]

    def _say(self, row: int, found: list[Broken]) -> None:
        """Note the words of ways that were not met before."""
        entries = slice(*self._vectors.bounds[row : row + 2])
        tokens, counts = self._vectors.tokens[entries].tolist(), self._vectors.counts[entries].tolist()
        for each in found:
            name = str(Way(each.kind, each.token, each.other))
            if name not in self.words:
                times = {UNK: 1} | dict(zip(tokens, counts, strict=True))
                self.words[name] = in_words(each, times, self._judge.tolerances, self._vocabulary)


def _latest(days: Integers, counts: Integers) -> Flags:
    """Which sessions are of the last day, or of so many days before that they are enough, (n,)."""
    numbers, which = np.unique(days, return_inverse=True)
    until = np.cumsum(np.bincount(which, counts)[::-1])[::-1]
    found: Flags = days >= numbers[until >= _DAY_SESSIONS].max(initial=numbers[0])
    return found


def _usual_on(broken: _Broken, which: Integers, counts: Integers, days: Integers, asked: Flags) -> dict[str, list[str]]:
    """The days (ISO) on which at least `RARE` of the sessions broke a way, by its name; those of too few go on.

    Sessions that do what was set aside count where most of those that are asked do it.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    rows = [row for row in broken.rows if not broken.never(row)]
    first = 0
    for day in np.unique(days).tolist():
        today = (days >= first) & (days <= day)
        sessions = int(counts[today].sum())
        if sessions < _DAY_SESSIONS:
            continue
        first = day + 1
        of_row = np.bincount(which[today], counts[today], int(which.max()) + 1)
        most = broken.most(which, np.where(today & asked, counts, 0))
        totals: Counter[str] = Counter()
        for row in rows:
            if most.issuperset(broken.set_aside(row)):
                totals.update(dict.fromkeys({*broken.names(row), *broken.set_aside(row)}, int(of_row[row])))
        iso = date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()
        for name, total in totals.items():
            if total >= RARE * sessions:
                found[name].append(iso)
    return dict(found)


def _within_their_share(recent: TrainingSessions) -> Integers:
    """How many of each row's equal sessions are within the share of their key, (n,)."""
    if recent.keys is None:
        return recent.counts
    names, key = np.unique(np.array(recent.keys, dtype=object).astype(str), return_inverse=True)
    totals = np.bincount(key, recent.counts)
    most = max(1.0, np.floor(max(KEY_SHARE, 2 / len(names)) * totals.sum()))
    kept = recent.counts.copy()
    for over in np.flatnonzero(totals > most).tolist():
        rows = np.flatnonzero(key == over)
        kept[rows] = np.diff(np.floor(np.cumsum(recent.counts[rows]) * (most / totals[over]) + 1e-9), prepend=0)
    return kept


def _counted(sessions: TrainingSessions, counts: Integers) -> TrainingSessions:
    found = sessions.select(counts > 0)
    return TrainingSessions(found.sequences, found.labels, counts[counts > 0], found.keys)

"""What a session has in common with those that a verdict on it is also about: its pattern, as a text.

- Where tolerances were learnt and the session breaks some: which ones, and which way (its family, `breaks …`).
- Else how often it has each template (its count vector, `counts …`). Nothing less will do: of HDFS, the set of
  templates that a normal session has is also that of anomalous ones (`benchmarks/feedback.py`).

A part names a template by a hash of its text, so that a pattern means the same whatever numbers a vocabulary gives. Of
a line that no template matches only those words are known that templates have: to have seen one tells nothing of the
next. So a session has no pattern where such lines are a part of it, until a template is learnt for them. A pattern of
more than `MOST_PARTS` parts is a hash of them.

As long as a session goes on, what it has so far can only grow. So it may still become one of a pattern if that has all
of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from math import inf
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.scoring.families import Way
from detector.scoring.judge import Judge
from detector.text.vocabulary import UNK, Vocabulary

Integers = npt.NDArray[np.int64]

BREAKS: Final = "breaks"
COUNTS: Final = "counts"
MOST_PARTS: Final = 100
_UNKNOWN: Final = "?"  # in place of the hash of a template
_DIGITS: Final = 12  # of that
_MORE_DIGITS: Final = 32  # of the hash of many parts
_NAME: Final = rf"[0-9a-f]{{{_DIGITS}}}"
_PART: Final = rf"(?:[-+<>]{_NAME}|{_NAME}[<>]{_NAME}|{_NAME}(?:\*\d{{1,9}})?)"
_PATTERN: Final = re.compile(
    rf"(?:{BREAKS}|{COUNTS}) (?:#[0-9a-f]{{{_MORE_DIGITS}}}(?:\*\d{{1,9}})?|{_PART}(?: {_PART})*)"
)


class SessionPatterns:
    """Tells the patterns of sessions.

    Args:
        vocabulary: of their tokens.
        judge: what they are held to; None where nothing of the kind was learnt.
    """

    def __init__(self, vocabulary: Vocabulary, judge: Judge | None) -> None:
        self._vocabulary, self._judge = vocabulary, judge
        self._name = lru_cache(100_000)(self._name_of)

    def of(self, events: Integers) -> str | None:
        """The pattern of a complete session, by its tokens, (n,); None where unknown lines are a part of it."""
        parts, kind = self._breaks(events, Judge.ways), BREAKS
        if not parts:
            parts, kind = self._counts(events), COUNTS
        return None if any(_UNKNOWN in part for part in parts) else _text(kind, parts, MOST_PARTS)

    def so_far(self, events: Integers) -> str:
        """What is certain of the pattern of a session that goes on, as `may_become` takes it."""
        if self._judge is None:
            return _text(COUNTS, self._counts(events))
        return _text(BREAKS, self._breaks(events, Judge.ways_so_far))

    def _breaks(self, events: Integers, ways_of: Callable[[Judge, Integers], Iterable[Way]]) -> Counter[str]:
        if self._judge is None:
            return Counter()
        learned = self._vocabulary.as_learned(events)
        ways = ways_of(self._judge, learned)
        new: list[int] = []  # to tolerances all that they were not learnt from is one token
        if any(UNK in (way.token, way.other) for way in ways):
            known = self._judge.tolerances.knows
            pairs = set(zip(events.tolist(), learned.tolist(), strict=True))
            new = sorted(event for event, token in pairs if token <= UNK or not known(token))
        parts = (
            way._replace(token=token).named(self._name)
            for way in ways
            for token in (new if new and way.token == UNK else [way.token])
        )
        return Counter(dict.fromkeys(parts, 1))

    def _counts(self, events: Integers) -> Counter[str]:
        parts: Counter[str] = Counter()
        for token, count in zip(*(column.tolist() for column in np.unique(events, return_counts=True)), strict=True):
            parts[self._name(token)] += count
        return parts

    def _name_of(self, token: int) -> str:
        return _UNKNOWN if token <= UNK else sha256(self._vocabulary.text(token).encode()).hexdigest()[:_DIGITS]


def may_become(so_far: str, pattern: str) -> bool:
    """Whether a session of which this is certain so far may still be one of a pattern when it is complete."""
    kind, parts = _read(so_far)
    of_kind, wanted = _read(pattern)
    return kind == of_kind and all(wanted.get(part, 0) >= count for part, count in parts.items())


def events_of(pattern: str) -> int | None:
    """How many events each session of a pattern has; None where they may have any number."""
    kind, parts = _read(pattern)
    return sum(parts.values()) if kind == COUNTS else None


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern."""
    return _PATTERN.fullmatch(text) is not None


def _text(kind: str, parts: Mapping[str, int], most: float = inf) -> str:
    listed = " ".join(part if count == 1 else f"{part}*{count}" for part, count in sorted(parts.items()))
    if len(parts) > most:
        of_all = sha256(listed.encode()).hexdigest()[:_MORE_DIGITS]
        return f"{kind} #{of_all}*{sum(parts.values())}"
    return f"{kind} {listed}"


@lru_cache(10_000)
def _read(pattern: str) -> tuple[str, Mapping[str, int]]:
    kind, *listed = pattern.split()
    parts = (part.partition("*") for part in listed)
    return kind, {part: int(count or 1) for part, _, count in parts}

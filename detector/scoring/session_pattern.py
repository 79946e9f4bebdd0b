"""What a session has in common with those that a verdict on it is also about: its pattern, as a text.

- Where tolerances were learnt and the session breaks some: which ones, and which way (its family, `breaks …`).
- Else how often it has each template (its count vector, `counts …`). Nothing less will do: of HDFS, the set of
  templates that a normal session has is also that of anomalous ones (`benchmarks/feedback.py`).

A part names a template by a hash of its text, so that a pattern means the same whatever numbers a vocabulary gives. A
line that no template matches is named by its words, as far as they are known: to have seen one such line tells nothing
of another one. A pattern of more than `MOST_PARTS` parts is a hash of them.

As long as a session goes on, what it has so far can only grow. So it may still become one of a pattern if that has all
of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
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
_DIGITS: Final = 12  # of the hash of a template
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

    def of(self, events: Integers) -> str:
        """The pattern of a complete session; events are its tokens, (n,)."""
        if self._judge is not None:
            learned = self._vocabulary.as_learned(events)
            if ways := self._judge.ways(learned):
                return _text(BREAKS, self._breaks(ways, learned))
        return _text(COUNTS, self._counts(events))

    def so_far(self, events: Integers) -> str:
        """What is certain of the pattern of a session that goes on, as `may_become` takes it."""
        if self._judge is not None:
            learned = self._vocabulary.as_learned(events)
            return _text(BREAKS, self._breaks(self._judge.ways_so_far(learned), learned), most=None)
        return _text(COUNTS, self._counts(events), most=None)

    def _breaks(self, ways: Iterable[Way], events: Integers) -> Counter[str]:
        # Lines that no template matches are one token to tolerances.
        unknown = sorted(set(events[events < 0].tolist())) or [UNK]
        parts = (
            way._replace(token=token).named(self._name)
            for way in ways
            for token in (unknown if way.token == UNK else [way.token])
        )
        return Counter(dict.fromkeys(parts, 1))

    def _counts(self, events: Integers) -> Counter[str]:
        parts: Counter[str] = Counter()
        for token, count in zip(*(column.tolist() for column in np.unique(events, return_counts=True)), strict=True):
            parts[self._name(token)] += count
        return parts

    def _name_of(self, token: int) -> str:
        text = f"?{token}" if token < 0 else self._vocabulary.text(token)
        return sha256(text.encode()).hexdigest()[:_DIGITS]


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


def _text(kind: str, parts: Mapping[str, int], most: int | None = MOST_PARTS) -> str:
    listed = " ".join(part if count == 1 else f"{part}*{count}" for part, count in sorted(parts.items()))
    if most is not None and len(parts) > most:
        of_all = sha256(listed.encode()).hexdigest()[:_MORE_DIGITS]
        return f"{kind} #{of_all}*{sum(parts.values())}"
    return f"{kind} {listed}"


@lru_cache(10_000)
def _read(pattern: str) -> tuple[str, Mapping[str, int]]:
    kind, *listed = pattern.split()
    parts = (part.partition("*") for part in listed)
    return kind, {part: int(count or 1) for part, _, count in parts}

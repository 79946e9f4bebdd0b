"""Lines that no template matches and that say what one says in other words.

Another version of a program words its lines anew, and what told nothing in all lines that were learned from (a user, a
program, a host that never changed) is another one later. Such a line is like a template when both have the same words
that decide (severities, states, what tells of trouble, names in capitals, `key=`), and most of their other words in
common. A word weighs as much as it tells of a template: -log of the share of the templates that have it (Sparck Jones
1972). Other words tell the same values, and of the same thing: a line that has another name where the template has one,
as programs name their parts (`getVolume`) or a letter names an axis, says something else, and so does a line that has
values which the template has neither a value nor another word for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.text.lexicon import STOP_WORDS, TROUBLE, TROUBLE_ENDINGS
from detector.text.words import WILDCARD, is_fixed

LEAST: Final = 0.65
"""Share of the weight of their words (Dice 1945) that a line and a template have in common, or more."""

LEFT_OUT: Final = 0.5
"""The same where nothing but words that are left out tells the line from the template: it says nothing else."""

_STOP_WORD: Final = 0.3
"""So much of another word does a word of every sentence say."""

_UNIT: Final = 100
"""Weights are whole numbers, in parts of a nat: their sums depend on no order."""


class Told(NamedTuple):
    """What a template or a line tells.

    Attributes:
        words: of it.
        values: how many values it has; some that follow each other are one word.
        free: how many of the template's stand for words that hold no digit.
    """

    words: Sequence[str]
    values: int
    free: int = 0


class Likeness:
    """Finds the template that a line is most like.

    Args:
        templates: by token.
    """

    def __init__(self, templates: Mapping[int, Told]) -> None:
        wordings = {token: _Wording.of(told.words) for token, told in templates.items()}
        having = Counter(word for each in wordings.values() for word in {*each.deciding, *each.others})
        # A word that no template has weighs as one that one has.
        having |= Counter({WILDCARD: 1, **dict.fromkeys(STOP_WORDS, 1)})
        told = {word: math.log((len(templates) + 1) / n) for word, n in having.items()}
        self._weights = {
            word: round(_UNIT * nats * (_STOP_WORD if word in STOP_WORDS else 1)) for word, nats in told.items()
        }
        found: dict[tuple[str, ...], list[tuple[int, _Wording, Told]]] = {}
        for token, wording in wordings.items():
            found.setdefault(wording.deciding, []).append((token, wording, templates[token]))
        self._groups = {deciding: self._group(members) for deciding, members in found.items()}

    def find(self, told: Told) -> int | None:
        """Return the token of the template that a line is most like.

        None where it is like none, or as much like one as like another.

        Args:
            told: by the line.
        """
        line = _Wording.of(told.words)
        group = self._groups.get(line.deciding)
        if group is None or not line.others:
            return None
        common = np.zeros(len(group.tokens), np.int64)
        for word, times in line.others.items():
            if word in group.having:
                rows, counts = group.having[word]
                common[rows] += self._weight_of(word) * np.minimum(counts, times)
        missing = group.weights - common
        strange = np.maximum(self._weight(line.others) - common - group.free * self._weight_of(WILDCARD), 0)
        both = 2 * (common + self._weight(Counter(line.deciding)))
        likeness = both / np.maximum(both + missing + strange, 1)
        best = int(likeness.argmax())
        template = group.wordings[best]
        if likeness[best] < (LEFT_OUT if line.is_part_of(template) else LEAST):
            return None
        if np.count_nonzero(likeness == likeness[best]) > 1 or line.names_another_than(template):
            return None
        # A value of the template is one of the line, or one of its words.
        if told.values + (line.others - template.others).total() < template.words.count(WILDCARD) - group.free[best]:
            return None
        # And the other way round, where no value of the template may be anything.
        if not group.free[best] and told.values > group.values[best] + (template.others - line.others).total():
            return None
        return group.tokens[best]

    def _group(self, templates: Sequence[tuple[int, _Wording, Told]]) -> _Group:
        rows: dict[str, list[tuple[int, int]]] = {}
        for row, (_, wording, _) in enumerate(templates):
            for word, times in wording.others.items():
                rows.setdefault(word, []).append((row, times))
        columns = {word: np.array(pairs, np.int64).T for word, pairs in rows.items()}
        return _Group(
            [token for token, _, _ in templates],
            [wording for _, wording, _ in templates],
            np.array([self._weight(wording.others) for _, wording, _ in templates], np.int64),
            [told.values for *_, told in templates],
            np.array([told.free for *_, told in templates], np.int64),
            {word: (pair[0], pair[1]) for word, pair in columns.items()},
        )

    def _weight(self, words: Counter[str]) -> int:
        return sum(times * self._weight_of(word) for word, times in words.items())

    def _weight_of(self, word: str) -> int:
        return self._weights.get(word, self._weights[WILDCARD])


class _Wording(NamedTuple):
    """What a line or a template says.

    Attributes:
        words: as they are.
        deciding: in lower case, as they come (what goes from up to down does not go from down to up), `key=` last and
            in order of the alphabet.
        others: in lower case, how often each comes. Values are neither, nor what ends in digits and so names a thing
            (`blk_0`).
        names: what parts of programs are called, without digits behind them, and single letters.
    """

    words: tuple[str, ...]
    deciding: tuple[str, ...]
    others: Counter[str]
    names: frozenset[str]

    @classmethod
    def of(cls, words: Sequence[str]) -> _Wording:
        deciding: list[str] = []
        others: list[str] = []
        names: set[str] = set()
        for word in words:
            if word == WILDCARD:
                continue
            if _decides(word):
                deciding.append(word.lower())
                continue
            if word[-1] != "0":
                others.append(word)
            if _names(word):
                names.add(word.rstrip("0").lower())
        return cls(
            tuple(words),
            tuple(sorted(deciding, key=lambda word: word if word[-1] == "=" else "")),
            Counter(word.lower() for word in others),
            frozenset(names),
        )

    def is_part_of(self, other: _Wording) -> bool:
        """Whether this is the other one with words left out."""
        left = iter(other.words)
        return all(word in left for word in self.words)

    def names_another_than(self, other: _Wording) -> bool:
        """Whether each has a name that the other has not."""
        return not (self.names <= other.names or other.names <= self.names)


class _Group(NamedTuple):
    """Templates with the same words that decide.

    Attributes:
        tokens: of the templates.
        wordings: of theirs.
        weights: of all their other words, (templates,).
        values: of theirs.
        free: how many words their values stand for that hold no digit, (templates,).
        having: by word, the templates that have it, and how often each.
    """

    tokens: list[int]
    wordings: list[_Wording]
    weights: NDArray[np.int64]
    values: list[int]
    free: NDArray[np.int64]
    having: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]


def _decides(word: str) -> bool:
    lower = word.lower()
    constant = word.isupper() and len(word) > 2
    return constant or is_fixed(word) or lower in TROUBLE or lower.endswith(TROUBLE_ENDINGS)


def _names(word: str) -> bool:
    """Whether a word is a letter, or has a small letter and a capital one behind its first."""
    name = word.rstrip("0")
    if len(word) == 1:
        return word not in STOP_WORDS
    return name.isalpha() and not name.isupper() and name[1:] != name[1:].lower()

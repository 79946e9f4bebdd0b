"""The template of a shape: a tree of templates, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from detector.text.words import WILDCARD, is_fixed

MAX_STEPS = 20_000
"""Steps after which a search gives up; the line is unknown then."""


class Match(NamedTuple):
    """The number of a template, and how many words of the line each of its words took."""

    number: int
    taken: tuple[int, ...]

    def parts(self) -> list[slice]:
        """The words of the line that each word of the template took."""
        ends = accumulate(self.taken)
        return [slice(end - taken, end) for end, taken in zip(ends, self.taken, strict=True)]


class _Node:
    __slots__ = ("children", "end", "value", "width")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.value: _Node | None = None
        self.width = 1  # most words that the value which leads here may take
        self.end: int | None = None


class Matcher:
    """Finds the most specific of templates: word before value, from the left, shorter values before longer ones.

    What is found depends on the set of templates, not on their order. A word that tells events apart
    (`detector.text.words.is_fixed`) is never part of a value.
    """

    def __init__(self) -> None:
        self._root = _Node()

    def put(self, words: Sequence[str], widths: Sequence[int], number: int | None) -> None:
        """Add a template; one of the same words is replaced, and by None removed.

        Args:
            words: of the template.
            widths: how many words of a line each value may take, of other words 1.
            number: of the template.
        """
        node = self._root
        for word, width in zip(words, widths, strict=True):
            if word == WILDCARD:
                if node.value is None:
                    node.value = _Node()
                node = node.value
                node.width = max(node.width, width)
            else:
                node = node.children.setdefault(word, _Node())
        node.end = number

    def match(self, words: Sequence[str], slack: int = 0) -> Match | None:
        """Return the template of these words, or None where there is none within `MAX_STEPS`.

        Args:
            words: of a line, or of a template.
            slack: how many words more a value may take than it should.
        """
        n = len(words)
        free = [0] * (n + 1)  # how many words from here on may be part of a value
        for at in range(n - 1, -1, -1):
            free[at] = 0 if is_fixed(words[at]) else free[at + 1] + 1
        pending: list[tuple[_Node, int, _Trail]] = [(self._root, 0, None)]
        for _ in range(MAX_STEPS):
            if not pending:
                return None
            node, at, trail = pending.pop()
            if at == n:
                if node.end is not None:
                    return Match(node.end, _forward(trail))
                continue
            value = node.value
            if value is not None:
                reach = at + min(free[at], value.width + slack)
                pending.extend((value, to, (trail, to - at)) for to in range(reach, at, -1))
            child = node.children.get(words[at])
            if child is not None:
                pending.append((child, at + 1, (trail, 1)))
        return None


_Trail: TypeAlias = "tuple[_Trail, int] | None"
"""How many words each word took, the last one first."""


def _forward(trail: _Trail) -> tuple[int, ...]:
    taken = []
    while trail is not None:
        trail, last = trail
        taken.append(last)
    return tuple(reversed(taken))

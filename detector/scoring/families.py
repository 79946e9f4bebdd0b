"""Families of sessions that stand out, and what people said of them.

A family is which tolerances its sessions break, and which way. The training names those it found, F1 the largest; any
other one goes by its tolerances, as in ``<5 +9 7>8``: too few of token 5, the rare token 9, more of 7 than its relation
to 8 allows (``-`` for missing, ``>`` for too many, ``7<8`` for fewer). Such a name means the same as long as the
vocabulary does. A long pause before token 4 (``~4``) and a burst of it (``*4``) are families for themselves: what a
session breaks by its counts is another family, whatever its pace.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from detector.scoring.tolerances import KINDS, Broken, Kind, way_codes

Verdict = Literal["normal", "anomalous"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

_SIGNS: Final[dict[Kind, str]] = {"missing": "-", "rare": "+", "fewer": "<", "more": ">", "pause": "~", "burst": "*"}
_BETWEEN: Final[dict[Kind, str]] = {"below": "<", "above": ">"}
_NUMBER: Final = re.compile(r"F\d+")
_WAY: Final = re.compile(r"([-+<>~*])(\d+)|(\d+)([<>])(\d+)")


class Way(NamedTuple):
    """A tolerance and the way it is broken, as in `Broken`."""

    kind: Kind
    token: int
    other: int

    def __str__(self) -> str:
        """Return its part of a family's name."""
        return self.named(str)

    def named(self, name: Callable[[int], str]) -> str:
        """Likewise, with other names for the tokens."""
        if self.kind in _BETWEEN:
            return f"{name(self.token)}{_BETWEEN[self.kind]}{name(self.other)}"
        return f"{_SIGNS[self.kind]}{name(self.token)}"


class Example(NamedTuple):
    """A session of a family.

    Attributes:
        key: of the session; empty where it is not known.
        events: its tokens.
    """

    key: str
    events: tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Sessions that break the same tolerances the same way.

    Attributes:
        name: ``F<number>``.
        ways: ascending.
        sessions: how many the training had.
        words: what the commonest of them breaks most.
        accepted: they were too many to be set aside; what they break is no evidence.
        examples: some of its sessions, the commonest first; none of a family that training did not have.
        verdict: what was said of it.
        judged_on: ISO date of the verdict.
    """

    name: str
    ways: tuple[Way, ...]
    sessions: int
    words: str = ""
    accepted: bool = False
    examples: tuple[Example, ...] = ()
    verdict: Verdict | None = None
    judged_on: str | None = None

    @property
    def is_evidence(self) -> bool:
        """Whether to break what it breaks is any."""
        return self.verdict != "normal" and not (self.accepted and self.verdict is None)


@dataclass(frozen=True)
class Families:
    """The families that have a name.

    Attributes:
        all: the largest first.

    Raises:
        ValueError: two have the same name or break the same.
    """

    all: tuple[Family, ...] = ()

    def __post_init__(self) -> None:
        if not len(self._of_name) == len(self._of_code) == len(self.all):
            raise ValueError("two families have one name or break the same")

    @cached_property
    def _of_name(self) -> dict[str, Family]:
        return {each.name: each for each in self.all}

    @cached_property
    def _of_code(self) -> dict[int, Family]:
        return {code_of(each.ways): each for each in self.all}

    def of_code(self, code: int) -> Family | None:
        """The family of a code, as `Judged` has it; None where it has no name."""
        return self._of_code.get(code)

    @cached_property
    def harmless(self) -> dict[Way, set[int]]:
        """Of each way, which of the families that are no evidence have it."""
        found: defaultdict[Way, set[int]] = defaultdict(set)
        for number, each in enumerate(self.all):
            if not each.is_evidence:
                for way in each.ways:
                    found[way].add(number)
        return dict(found)

    def accepting(self, codes: Iterable[int]) -> Families:
        """These, where what families of these codes break is no evidence, unless a verdict on one says that it is."""
        chosen = set(map(int, codes))
        return Families(
            tuple(replace(each, accepted=each.accepted or code_of(each.ways) in chosen) for each in self.all)
        )

    def find(self, name: str) -> Family | None:
        """The family of a name, or of what it breaks; None where there is none.

        Raises:
            ValueError: the text is neither.
        """
        if _NUMBER.fullmatch(name):
            return self._of_name.get(name)
        return self.of_code(code_of(ways_of(name)))

    def judged(self, name: str, verdict: Verdict | None, on: str) -> Families:
        """These with a verdict on one of them; None takes it back. One that has no number gets one.

        Raises:
            ValueError: there is no such family, and none can have that name.
        """
        on_it: dict[str, Any] = {"verdict": verdict, "judged_on": None if verdict is None else on}
        known = self.find(name)
        if known is not None:
            return Families(tuple(replace(each, **on_it) if each is known else each for each in self.all))
        if _NUMBER.fullmatch(name):
            raise ValueError(f"there is no family {name}; there are F1 to F{len(self.all)}")
        new = Family(f"F{len(self.all) + 1}", ways_of(name), 0, **on_it)
        return Families((*self.all, new))


def ways(broken: Iterable[Broken]) -> tuple[Way, ...]:
    """What a session breaks, as a family has it."""
    return tuple(sorted(Way(each.kind, each.token, each.other) for each in broken))


def name_of(each: Iterable[Way]) -> str:
    """The name of a family that has no other one."""
    return " ".join(map(str, each))


def ways_of(name: str) -> tuple[Way, ...]:
    """What a family of this name breaks.

    Raises:
        ValueError: it is no such name.
    """
    return tuple(sorted(_ways(name)))


def _ways(name: str) -> Iterator[Way]:
    signs = {sign: kind for kind, sign in _SIGNS.items()}
    between = {sign: kind for kind, sign in _BETWEEN.items()}
    for part in name.split():
        found = _WAY.fullmatch(part)
        if found is None:
            raise ValueError(f"{name!r} is no family: {part!r} is neither F and a number nor a broken tolerance")
        sign, token, one, relation, other = found.groups()
        yield Way(signs[sign], int(token), 0) if sign else Way(between[relation], int(one), int(other))


def code_of(broken: tuple[Way, ...]) -> int:
    """The number that `Judged` has for a family."""
    kinds, tokens, others = (
        np.array([(KINDS.index(each.kind), each.token, each.other) for each in broken], np.int64).reshape(-1, 3).T
    )
    return int(way_codes(kinds, tokens, others).sum(dtype=np.uint64))

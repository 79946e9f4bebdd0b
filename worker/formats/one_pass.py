r"""Patterns that one pass over a text can match, as automata for `worker.formats.one_pass_loop`.

Most patterns of keys and times say at every byte what has to come next: in `blk_-?\d+` a digit goes on with the number,
and nothing else can. Such a pattern needs no search for the right alternative (RE2 calls it one-pass, and has the same
way to find it out: https://swtch.com/~rsc/regexp/regexp3.html). A pattern of which that cannot be said, or which has
something in it that is not known here, is None: RE2 matches it.

A pattern is read to a program of few instructions first (Pike's), for bytes of UTF-8. A state of the automaton is a
place in the program where a byte was just read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from worker.formats.one_pass_loop import (
    AFTER_MATCH,
    GROUP_BEGINS,
    GROUP_ENDS,
    NO_STEP,
    NO_WORD_BOUNDARY,
    STATE,
    TEXT_BEGINS,
    TEXT_ENDS,
    WORD_BOUNDARY,
    Automaton,
)

_MOST: Final = 1_000  # instructions
_ASCII: Final = frozenset(range(0x80))
_DIGITS: Final = frozenset(b"0123456789")
_LETTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CLASSES: Final = {"d": _DIGITS, "w": _DIGITS | _LETTERS | frozenset(b"_"), "s": frozenset(b"\t\n\f\r ")}
_CONTROLS: Final = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_CONDITIONS: Final = {
    "^": TEXT_BEGINS,
    r"\A": TEXT_BEGINS,
    "$": TEXT_ENDS,
    r"\z": TEXT_ENDS,
    r"\b": WORD_BOUNDARY,
    r"\B": NO_WORD_BOUNDARY,
}
# Bytes of the characters beyond ASCII: how many begin so many further ones.
_LEADS: Final = (frozenset(range(0xC2, 0xE0)), frozenset(range(0xE0, 0xF0)), frozenset(range(0xF0, 0xF5)))
_FURTHER: Final = frozenset(range(0x80, 0xC0))
_TIMES: Final = re.compile(r"\{([0-9]{1,3})(?:(,)([0-9]{1,3})?)?\}")
_NAME: Final = re.compile(r"\?P?<\w+>", re.ASCII)


class _Unknown(Exception):
    """Something in a pattern that is not known here."""


@dataclass(slots=True)
class _Node:
    """A part of a pattern: a set of bytes, a condition, or what is made of other parts.

    Attributes:
        kind: `bytes`, `condition`, `all` (one part after the other), `any` (one of the parts, the first best),
            `times` or `group`.
        parts: of `all` and `any`; one of `times` and `group`.
        bytes: that the part may be.
        condition: bit of a step.
        least, most: how often the part comes; None: without end.
        greedy: more often is better.
    """

    kind: str
    parts: list[_Node] = field(default_factory=list)
    bytes: frozenset[int] = frozenset()
    condition: int = 0
    least: int = 0
    most: int | None = None
    greedy: bool = True

    @property
    def nullable(self) -> bool:
        """Whether it may be nothing."""
        if self.kind == "times":
            return self.least == 0 or self.parts[0].nullable
        if self.kind == "bytes":
            return False
        return (any if self.kind == "any" else all)(part.nullable for part in self.parts)


def _characters(allowed: frozenset[int], *, beyond: bool) -> _Node:
    """One of some ASCII characters, or any character beyond ASCII."""
    ascii_only = _Node("bytes", bytes=allowed)
    if not beyond:
        return ascii_only
    others = [
        _Node("all", [_Node("bytes", bytes=lead), *[_Node("bytes", bytes=_FURTHER)] * count])
        for count, lead in enumerate(_LEADS, 1)
    ]
    return _Node("any", [ascii_only, *others])


class _Reader:
    """Reads a pattern that RE2 takes."""

    def __init__(self, pattern: str) -> None:
        self._left = pattern
        self._grouped = False  # the first group is the one that counts

    def read(self) -> _Node:
        node = self._any()
        if self._left:
            raise _Unknown
        return node if self._grouped else _Node("group", [node])

    def _next(self, *texts: str) -> str | None:
        """Pass over the first of these texts that comes next, if one does."""
        for text in texts:
            if self._left.startswith(text):
                self._left = self._left[len(text) :]
                return text
        return None

    def _character(self) -> str:
        if not self._left:
            raise _Unknown
        character, self._left = self._left[0], self._left[1:]
        return character

    def _any(self) -> _Node:
        parts = [self._all()]
        while self._next("|"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else _Node("any", parts)

    def _all(self) -> _Node:
        parts = []
        while self._left and self._left[0] not in "|)":
            parts.append(self._times(self._one()))
        return _Node("all", parts)

    def _times(self, part: _Node) -> _Node:
        counted = _TIMES.match(self._left)
        if counted is not None:
            self._left = self._left[counted.end() :]
            least = int(counted[1])
            most = least if counted[2] is None else None if counted[3] is None else int(counted[3])
        elif (sign := self._next("*", "+", "?")) is not None:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        else:
            return part
        greedy = self._next("?") is None
        if self._left.startswith(("*", "+", "?", "{")) or (most is None and part.nullable):
            raise _Unknown
        return _Node("times", [part], least=least, most=most, greedy=greedy)

    def _one(self) -> _Node:
        condition = self._next(*_CONDITIONS)
        if condition is not None:
            return _Node("condition", condition=_CONDITIONS[condition])
        character = self._character()
        if character == "(":
            return self._group()
        if character == "[":
            return self._set()
        if character == ".":
            return _characters(_ASCII - {ord("\n")}, beyond=True)
        if character == "\\":
            allowed, beyond = self._escaped()
            return _characters(allowed, beyond=beyond)
        if character in "*+?{":
            raise _Unknown
        return _Node("all", [_Node("bytes", bytes=frozenset([byte])) for byte in character.encode()])

    def _group(self) -> _Node:
        captures = self._next("?:") is None
        if captures and (name := _NAME.match(self._left)) is not None:
            self._left = self._left[name.end() :]
        if self._left.startswith("?"):
            raise _Unknown
        captures, self._grouped = captures and not self._grouped, captures or self._grouped
        node = self._any()
        if self._next(")") is None:
            raise _Unknown
        return _Node("group", [node]) if captures else node

    def _escaped(self) -> tuple[frozenset[int], bool]:
        """Of an escape the ASCII characters that it means, and whether it means all others too."""
        character = self._character()
        if character in _CLASSES:
            return _CLASSES[character], False
        if character.lower() in _CLASSES:
            return _ASCII - _CLASSES[character.lower()], True
        if character in _CONTROLS:
            return frozenset([_CONTROLS[character]]), False
        if character.isascii() and not character.isalnum():
            return frozenset([ord(character)]), False
        raise _Unknown

    def _set(self) -> _Node:
        inverted = self._next("^") is not None
        allowed: set[int] = set()
        beyond = False
        first = True
        while first or self._next("]") is None:
            first = False
            if self._left.startswith("[:"):
                raise _Unknown
            members, further = self._member()
            beyond |= further
            if self._left.startswith("-") and not self._left.startswith("-]"):
                self._character()
                last, _ = self._member()
                if len(members) != 1 or len(last) != 1:
                    raise _Unknown
                members = frozenset(range(min(members), min(last) + 1))
            allowed |= members
        if inverted:
            return _characters(_ASCII - allowed, beyond=not beyond)
        return _characters(frozenset(allowed), beyond=beyond)

    def _member(self) -> tuple[frozenset[int], bool]:
        character = self._character()
        if character == "\\":
            return self._escaped()
        if not character.isascii():
            raise _Unknown
        return frozenset([ord(character)]), False


class _Instruction(NamedTuple):
    """Of a program: `bytes` reads one, `step` adds bits to a step, and `then` follows; `split` is `then` or `other`."""

    kind: str
    bytes: frozenset[int] = frozenset()
    bits: int = 0
    then: int = 0
    other: int = 0


class _Program:
    """The instructions of a pattern; a program is made from its end to its beginning."""

    def __init__(self, node: _Node) -> None:
        self._made = [_Instruction("match")]
        self.begin = self._of(node, 0)

    def __getitem__(self, at: int) -> _Instruction:
        return self._made[at]

    def _add(self, instruction: _Instruction) -> int:
        if len(self._made) == _MOST:
            raise _Unknown
        self._made.append(instruction)
        return len(self._made) - 1

    def _split(self, then: int, other: int, *, in_order: bool) -> int:
        return self._add(_Instruction("split", then=then if in_order else other, other=other if in_order else then))

    def _of(self, node: _Node, after: int) -> int:
        """Where the instructions begin that match a node and go on with `after`."""
        if node.kind == "bytes":
            return self._add(_Instruction("bytes", bytes=node.bytes, then=after))
        if node.kind == "condition":
            return self._add(_Instruction("step", bits=node.condition, then=after))
        if node.kind == "group":
            ends = self._add(_Instruction("step", bits=GROUP_ENDS, then=after))
            return self._add(_Instruction("step", bits=GROUP_BEGINS, then=self._of(node.parts[0], ends)))
        if node.kind == "any":
            found = self._of(node.parts[-1], after)
            for part in node.parts[-2::-1]:
                found = self._split(self._of(part, after), found, in_order=True)
            return found
        if node.kind == "times":
            return self._times(node, after)
        for part in reversed(node.parts):
            after = self._of(part, after)
        return after

    def _times(self, node: _Node, after: int) -> int:
        (part,) = node.parts
        if node.most is None:
            again = self._add(_Instruction("split"))
            begin = self._of(part, again)
            then, other = (begin, after) if node.greedy else (after, begin)
            self._made[again] = _Instruction("split", then=then, other=other)
            after = again
        end = after
        for _ in range((node.most or node.least) - node.least):
            after = self._split(self._of(part, after), end, in_order=node.greedy)
        for _ in range(node.least):
            after = self._of(part, after)
        return after


class _State(NamedTuple):
    """What can come next after a byte: steps by the next byte, and what holds and is remembered if the match ends."""

    steps: dict[int, int]
    matches: int


def _states(program: _Program) -> list[_State]:
    numbers = {program.begin: 0}
    states: list[_State] = []
    for begin in _while_growing(numbers):
        steps: dict[int, int] = {}
        matches, seen = NO_STEP, set()
        left = [(begin, 0)]  # the best is last
        while left:
            at, bits = left.pop()
            if at in seen:
                raise _Unknown
            seen.add(at)
            instruction = program[at]
            if instruction.kind == "match":
                matches = bits
            elif instruction.kind == "split":
                left += [(instruction.other, bits), (instruction.then, bits)]
            elif instruction.kind == "step":
                left.append((instruction.then, bits | instruction.bits))
            else:
                number = numbers.setdefault(instruction.then, len(numbers))
                step = number << STATE | bits | (AFTER_MATCH if matches != NO_STEP else 0)
                if any(steps.setdefault(byte, step) != step for byte in instruction.bytes):
                    raise _Unknown
        states.append(_State(steps, matches))
    return states


def _while_growing(numbers: dict[int, int]) -> Iterator[int]:
    """The keys of a dictionary in the order in which they came, those that come meanwhile too."""
    done = 0
    while done < len(numbers):
        yield list(numbers)[done]
        done += 1


def _needle(states: list[_State]) -> tuple[int, int]:
    """The rarest of the bytes that every match has at the same place, and that place; (-1, 0) where there is none."""
    found: list[tuple[int, int]] = []
    state, place = states[0], 0
    while state.matches == NO_STEP and place < len(states):  # a longer way goes round in a circle
        if len(state.steps) == 1:
            found.append((next(iter(state.steps)), place))
        then = {step >> STATE for step in state.steps.values()}
        if len(then) != 1:
            break
        state, place = states[then.pop()], place + 1
    return min(found, key=lambda each: _commonness(chr(each[0])), default=(-1, 0))


def _commonness(character: str) -> int:
    """Of a character in logs, by and large."""
    tests = (str.isspace, str.isdigit, str.islower, str.isupper)
    return next((4 - number for number, test in enumerate(tests) if test(character)), 0)


def automaton_of(pattern: str) -> Automaton | None:
    """The automaton of a pattern that RE2 takes.

    Returns:
        None where it is not known that one pass can match it, or where it would be tried nearly everywhere in a text.
    """
    try:
        states = _states(_Program(_Reader(pattern).read()))
    except (_Unknown, RecursionError):
        return None
    columns = [tuple(state.steps.get(byte, NO_STEP) for state in states) for byte in range(256)]
    kinds = {column: kind for kind, column in enumerate(dict.fromkeys(columns), 1)}
    steps = np.array([[state.matches for state in states], *kinds], np.int64).T
    # A state's number in the loop is the place of its row.
    bits = steps[:, 1:] & ((1 << STATE) - 1)
    steps[:, 1:] = np.where(steps[:, 1:] == NO_STEP, NO_STEP, (steps[:, 1:] >> STATE) * steps.shape[1] << STATE | bits)
    first = states[0]
    needle, needle_at = _needle(states)
    begins = [*first.steps.values(), *([] if first.matches == NO_STEP else [first.matches])]
    anchored = all(step & TEXT_BEGINS for step in begins)
    if needle < 0 and not anchored:
        return None
    return Automaton(
        kinds=np.array([kinds[column] for column in columns], np.uint8),
        steps=np.ascontiguousarray(steps).ravel(),
        needle=needle,
        needle_at=needle_at,
        anchored=anchored,
    )

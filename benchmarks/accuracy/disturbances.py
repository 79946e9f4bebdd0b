"""Logs that are not stable, after the recipe of LogRobust (Zhang et al. 2019).

Of some sessions of a test part, lines are worded otherwise (words inserted, removed, replaced by others of their
meaning), or events come twice, change places or do not come at all. What is disturbed is unimportant, as there: words
that are neither severities, states nor negations, events whose coming or not decides nothing about the session's
label. The disturbances with `any` in their names leave that out: there a log no longer means what it meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.datasets import Integers
from detector.text.lexicon import DECISIVE

EVENTS_SHARE = 0.3
"""Of a session's lines, so many are worded otherwise, and at least one."""

WORDS_SHARE = 0.2
"""Of a line's words, so many, and at least one."""

_WORD = re.compile(r"(?<!\S)[A-Za-z]{2,}(?=[:;,.]?(?!\S))")
_IMPORTANT = DECISIVE | {"not", "cannot", "never", "without", "exception"}
_MIXED = ("inserted", "removed", "replaced")

_HEAD = re.compile(r"[\d ]+(?=[A-Z]+ )")  # time and process, before the severity
_PATH = re.compile(r"(?<!\S)/[a-z]\S+")
_NUMBER = re.compile(r"(?<=[./:_ ])\d+(?=[.:\s]|$)")
_ERRORS = (
    "ERROR dfs.DataNode: No space left on device, volume taken out of service",
    "FATAL dfs.DataNode$DataXceiver: checksum mismatch in replica, quarantined",
    "ERROR dfs.FSNamesystem: lease expired for a writer that still holds it",
    "WARN dfs.DataBlockScanner: slow disk, scan of the volume took hours",
    "ERROR kernel: Out of memory: killed process by the oom reaper",
    "FATAL dfs.FSNamesystem: edit log corrupt, safe mode entered",
)

_FILLERS = [
    "the",
    "a",
    "this",
    "that",
    "now",
    "currently",
    "again",
    "also",
    "just",
    "its",
    "of",
    "from",
    "at",
    "our",
    "internal",
    "local",
    "remote",
    "node",
    "system",
    "data",
    "request",
    "process",
    "service",
    "component",
    "module",
    "item",
    "object",
    "entry",
    "value",
    "count",
    "step",
    "phase",
    "note",
    "please",
    "see",
    "next",
    "last",
    "given",
    "certain",
]

_SYNONYMS = {
    word: group
    for group in (
        line.split()
        for line in """
        block chunk piece
        src source origin
        dest destination target
        size length bytes
        from of via
        to towards into
        for concerning regarding
        file document path
        packet datagram message
        request query call
        stream channel flow
        thread task worker
        transfer copy move
        replicate mirror copy
        error fault problem
        while during when
        serving delivering providing
        belong pertain relate
        any some whatever
        could might can
        machine computer host
        because since as
        usable functional operational
        caught got trapped
        client consumer user
        card board module
        node machine unit
        register latch cell
        detected noticed observed
        interrupt signal irq
        temperature heat warmth
        operation action activity
        executing performing doing
        volt voltage tension
        communication exchange traffic
        broken defective damaged
        command instruction order
        program application software
        corrected fixed repaired
        check test inspection
        address location place
        image picture snapshot
        service daemon facility
        data information content
        limit bound maximum
        directory folder catalogue
        number count amount
        power supply energy
        link line connection
        status condition situation
        socket endpoint port
        is was remains
        has had got
        """.strip().splitlines()
    )
    for word in group[:1]
}


class Session(NamedTuple):
    """A test session before it is disturbed.

    Attributes:
        lines: its events as raw lines.
        tokens: of these, undisturbed.
        anomalous: its label.
    """

    lines: Sequence[str]
    tokens: Integers
    anomalous: bool


Keeps = Callable[[Integers, Session], bool]
"""Whether a session would keep its label with these tokens."""

Disturb = Callable[[Session, Keeps, np.random.Generator], list[str]]


def reworded(*ways: str, any_word: bool = False) -> Disturb:
    """Some of the lines worded otherwise, each in one of these ways: `inserted`, `removed`, `replaced`."""

    def disturb(session: Session, _keeps: Keeps, rng: np.random.Generator) -> list[str]:
        lines = list(session.lines)
        chosen = np.flatnonzero(rng.random(len(lines)) < EVENTS_SHARE)
        for at in chosen.tolist() or [int(rng.integers(len(lines)))]:
            lines[at] = _reworded(lines[at], ways[rng.integers(len(ways))], rng, any_word=any_word)
        return lines

    return disturb


def rearranged(*ways: str, any_event: bool = False) -> Disturb:
    """One or two events `duplicated`, `dropped` or, with the next one, `swapped`."""

    def disturb(session: Session, keeps: Keeps, rng: np.random.Generator) -> list[str]:
        order = list(range(len(session.lines)))
        for _ in range(int(rng.integers(1, 3))):
            way = ways[rng.integers(len(ways))]
            for at in rng.permutation(len(order)).tolist():
                if way == "swapped":
                    other = [*order[:at], *order[at : at + 2][::-1], *order[at + 2 :]]
                else:
                    times = 2 if way == "duplicated" else 0
                    other = [*order[:at], *[order[at]] * times, *order[at + 1 :]]
                if other and (any_event or keeps(session.tokens[other], session)):
                    order = other
                    break
        return [session.lines[at] for at in order]

    return disturb


def with_an_error(session: Session, _keeps: Keeps, rng: np.random.Generator) -> list[str]:
    """One line more, that tells of trouble which the data do not know, behind the head of another line."""
    at = int(rng.integers(len(session.lines) + 1))
    head = _HEAD.match(session.lines[max(at - 1, 0)])
    new = f"{'' if head is None else head[0]}{_ERRORS[rng.integers(len(_ERRORS))]}"
    return [*session.lines[:at], new, *session.lines[at:]]


def with_new_values(session: Session, _keeps: Keeps, rng: np.random.Generator) -> list[str]:
    """All addresses, paths and numbers other ones."""

    def number(_match: re.Match[str]) -> str:
        return str(rng.integers(1, 255))

    def path(match: re.Match[str]) -> str:
        return re.sub("[a-z]+", lambda _name: "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)), match[0])

    return [_PATH.sub(path, _NUMBER.sub(number, line)) for line in session.lines]


DISTURBANCES: dict[str, Disturb] = {
    **{f"words {way}": reworded(way) for way in _MIXED},
    "words of all three": reworded(*_MIXED),
    "words of all three, any word": reworded(*_MIXED, any_word=True),
    "events duplicated": rearranged("duplicated"),
    "events dropped": rearranged("dropped"),
    "events swapped": rearranged("swapped"),
    "events of all three": rearranged("duplicated", "dropped", "swapped"),
    "events of all three, any event": rearranged("duplicated", "dropped", "swapped", any_event=True),
}


def _reworded(line: str, way: str, rng: np.random.Generator, *, any_word: bool) -> str:
    found = [match for match in _WORD.finditer(line) if any_word or match[0].lower() not in _IMPORTANT]
    if way == "replaced":
        found = [match for match in found if match[0].lower() in _SYNONYMS]
    if not found or (way == "removed" and len(found) == 1):
        way, found = "inserted", list(_WORD.finditer(line))
        if not found:
            return line
    number = max(1, round(WORDS_SHARE * len(found)))
    for at in sorted(rng.permutation(len(found))[:number].tolist(), reverse=True):
        start, end = found[at].span()
        word = line[start:end]
        if way == "inserted":
            new = f"{_FILLERS[rng.integers(len(_FILLERS))]} {word}"
        elif way == "removed":
            new, end = "", re.compile(r"\S*\s?").match(line, end).end()  # type: ignore[union-attr]
        else:
            group = _SYNONYMS[word.lower()]
            new = group[rng.integers(1, len(group))]
        line = line[:start] + new + line[end:]
    return line

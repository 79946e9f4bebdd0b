"""What was learnt after the training, adaptation after adaptation: a part of a checkpoint's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_KEPT: Final = 50
"""Adaptations that a manifest lists, the latest."""


@dataclass(frozen=True)
class Change:
    """Something that sessions do and that is an alarm, or was one.

    Attributes:
        name: of a family or of a part of one, as `logmamba verdicts` takes it; it means the same in all later versions.
        words: the same for people.
        sessions: of the recent traffic, how many do it.
    """

    name: str
    words: str
    sessions: int


@dataclass(frozen=True)
class Adaptation:
    """One adaptation.

    Attributes:
        at: ISO 8601 time, UTC.
        parent: digest of the checkpoint that it began from.
        sessions: of the recent traffic.
        replayed: sessions of before that were learnt from again, counts included.
        templates: texts of those that were added to the vocabulary.
        usual: what is no alarm any more.
        held_back: what is still one, and was not learnt from.
        watched: what has been usual for some days, by its name, with these days (ISO dates); it is an alarm until they
            are enough.
        figures: of before and after, by name.
    """

    at: str
    parent: str
    sessions: int
    replayed: int
    templates: tuple[str, ...]
    usual: tuple[Change, ...]
    held_back: tuple[Change, ...]
    watched: dict[str, tuple[str, ...]]
    figures: dict[str, float]

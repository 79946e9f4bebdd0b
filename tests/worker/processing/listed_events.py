"""Events with lists in the place of columns, for tests that compare or join them."""

from __future__ import annotations

from dataclasses import dataclass

from worker.processing.decoder import Events
from worker.processing.lines import DeadLetter


@dataclass
class ListedEvents:
    """What `worker.processing.decoder.Events` holds."""

    keys: list[str]
    tokens: list[int]
    times: list[int]
    offsets: list[int]
    dead_letters: list[DeadLetter]
    cut: int
    ignored: int
    skipped: int = 0


def listed(events: Events) -> ListedEvents:
    """The same events."""
    columns = (events.keys, events.tokens, events.times, events.offsets)
    return ListedEvents(
        *(column.tolist() for column in columns), events.dead_letters, events.cut, events.ignored, events.skipped
    )

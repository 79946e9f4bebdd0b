"""Progress where there is no terminal for a live bar: a line when a stage begins and ends, and every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 10.0


class StageLines:
    """Says how far work has come, a stage after the other.

    Args:
        say: gets the lines.
        clock: monotonic seconds.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._stage: str | None = None
        self._last, self._said = "", ""
        self._next = 0.0

    def at(self, stage: str, state: str) -> None:
        """A stage is in this state; the first call of a stage begins it, and ends the one before."""
        begins = stage != self._stage
        if begins:
            self.end()
            self._stage = stage
        self._last = f"{stage}: {state}"
        if begins or self._clock() >= self._next:
            self._tell()

    def end(self) -> None:
        """The stage is over: its last state is said, if it was not."""
        if self._stage is not None and self._last != self._said:
            self._tell()
        self._stage = None

    def _tell(self) -> None:
        self._said = self._last
        self._next = self._clock() + EVERY_S
        self._say(self._last)

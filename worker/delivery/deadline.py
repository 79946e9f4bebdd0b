"""How much time several blocking calls have together: each takes what the ones before it have left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Deadline:
    """A moment of the monotonic clock that is handed down through calls.

    Args:
        seconds: from now on.
        clock: monotonic seconds.
        within: deadlines that this one never outlasts.
        margin_s: how long before those it passes.
    """

    def __init__(
        self,
        seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        *,
        within: tuple[Deadline, ...] = (),
        margin_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._at = clock() + seconds
        self._within = within
        self._margin_s = margin_s

    @property
    def left_s(self) -> float:
        """Seconds until it passes; 0 afterwards, infinite for one that never does."""
        own = self._at - self._clock()
        return max(0.0, min([own, *(each.left_s - self._margin_s for each in self._within)]))

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s <= 0.0

    def part(self, share: float) -> Deadline:
        """A share of what is left now: the rest stays for what comes after."""
        return Deadline(share * self.left_s, self._clock, within=(self,))

    def earlier(self, seconds: float) -> Deadline:
        """One that passes so long before this one, whenever that is."""
        return Deadline(clock=self._clock, within=(self,), margin_s=seconds)


class StopDeadline(Deadline):
    """Begins when the worker is told to stop; until then it never passes.

    Args:
        stopping: whether the worker was told to.
        seconds: what the stop may take.
        clock: monotonic seconds.
    """

    def __init__(
        self, stopping: Callable[[], bool], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(math.inf, clock)
        self._stopping = stopping
        self._seconds = seconds
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether the worker was told to stop."""
        if not self._begun and self._stopping():
            self.begin()
        return self._begun

    def begin(self) -> None:
        """The stop begins now, unless it has."""
        if not self._begun:
            self._begun = True
            self._at = self._clock() + self._seconds

    @property
    def left_s(self) -> float:
        """Seconds until the stop must be over; infinite before it began."""
        return super().left_s if self.begun else math.inf

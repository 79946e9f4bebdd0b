"""A value that takes a while to get, for pages that must not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock, Thread
from typing import Generic, NamedTuple, TypeVar

_Value = TypeVar("_Value")


class Seen(NamedTuple, Generic[_Value]):
    """What is known of it: the latest value, None before the first one, and why the latest look gave none."""

    value: _Value | None
    failure: str


class SlowLook(Generic[_Value]):
    """Gets a value in a thread of its own, and only while somebody asks.

    Args:
        get: the value; what it raises is why there is none.
        every_s: how old a value may become.
        clock: monotonic seconds.
    """

    def __init__(self, get: Callable[[], _Value], every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._get, self._every_s, self._clock = get, every_s, clock
        self._seen: Seen[_Value] = Seen(None, "")
        self._looked_at: float | None = None
        self._thread: Thread | None = None
        self._lock = Lock()

    def latest(self) -> Seen[_Value]:
        """What is known by now, at once; a new look begins where that is old."""
        with self._lock:
            idle = self._thread is None or not self._thread.is_alive()
            old = self._looked_at is None or self._clock() - self._looked_at >= self._every_s
            if idle and old:
                self._looked_at = self._clock()
                self._thread = Thread(target=self._look, name="logmamba-slow-look", daemon=True)
                self._thread.start()
        return self._seen

    def _look(self) -> None:
        try:
            self._seen = Seen(self._get(), "")
        except Exception as error:
            self._seen = Seen(self._seen.value, str(error))

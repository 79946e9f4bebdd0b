"""Sessions event by event, for a page: read and scored in a thread of their own, one at a time and within a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, NamedTuple

from worker.errors import RunError

_LIMIT_S = 10.0
_KEPT = 8


class Explanation(NamedTuple):
    """A session event by event.

    Attributes:
        session: an object of the schema `logmamba.explanation/1`, with the lines of its events.
        notes: what does not quite fit, a line each.
    """

    session: Mapping[str, Any]
    notes: Sequence[str]


Explain = Callable[[bytes, float], Explanation]
"""Explains the session of a score record (JSON) within so many seconds; raises a RunError that says why it cannot."""


class Explanations:
    """Explains sessions for whoever asks, each request for itself; whatever that takes, nobody else waits for it.

    Args:
        explain: reads the session's lines and scores it. It may be called in any thread, by one at a time.
        limit_s: how long an answer may take.
    """

    def __init__(self, explain: Explain, limit_s: float = _LIMIT_S) -> None:
        self._explain, self._limit_s = explain, limit_s
        self._kept: OrderedDict[bytes, Explanation] = OrderedDict()
        self._one = Lock()

    def of(self, record: bytes) -> Explanation:
        """The session of a score record.

        Raises:
            RunError: there is none in time, and why.
        """
        if (known := self._kept.get(record)) is not None:
            return known
        if not self._one.acquire(timeout=self._limit_s):
            raise RunError("another session is being read; try again in a moment")
        answer: Future[Explanation] = Future()

        def work() -> None:
            try:
                answer.set_result(self._explain(record, self._limit_s))
            except BaseException as error:
                answer.set_exception(error)
            finally:
                self._one.release()

        Thread(target=work, name="logmamba-explain", daemon=True).start()
        try:
            found = answer.result(self._limit_s)
        except TimeoutError:
            raise RunError(f"the session's lines were not there within {self._limit_s:g} s") from None
        self._kept[record] = found
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

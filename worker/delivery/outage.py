"""Whether the broker answers, as far as those who talk to it know.

A worker that runs waits for its broker, however long that takes: it is alive but not ready, and goes on with what is
committed once the broker is back. (When a worker starts, a broker that does not answer is an error.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

_LOG_EVERY_S = 60.0

_log = structlog.get_logger(__name__)


class Outage:
    """What the parts of a worker know together of a broker that does not answer.

    Args:
        clock: monotonic seconds.

    Attributes:
        while_away: called by `wait`; what it raises ends the wait.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._logged_at = 0.0
        self._times = 0
        self.while_away: Callable[[], None] = lambda: None

    @property
    def lasts(self) -> bool:
        """Whether the broker was last found not to answer."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 while the broker answers."""
        return 0.0 if self._since is None else self._clock() - self._since

    def noticed(self, reason: str) -> None:
        """The broker was asked and did not answer; it is logged once a minute."""
        now = self._clock()
        self._times += 1
        if self._since is None:
            self._since = now
        elif now - self._logged_at < _LOG_EVERY_S:
            return
        self._logged_at = now
        _log.warning("broker_away", reason=reason, seconds=round(now - self._since, 1), unanswered=self._times)

    def wait(self, reason: str) -> None:
        """The broker did not answer and will be asked again: to be called every few seconds until it does."""
        self.noticed(reason)
        self.while_away()

    def over(self) -> None:
        """The broker has answered."""
        if self._since is not None:
            seconds = round(self._clock() - self._since, 1)
            _log.info("broker_back", seconds=seconds, unanswered=self._times)
            self._since, self._times = None, 0

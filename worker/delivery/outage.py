"""Whether the broker answers, as far as those who talk to it know.

A worker that runs waits for its broker, however long that takes: it is alive but not ready, and goes on with what is
committed once the broker is back. (When a worker starts, a broker that does not answer is an error.)

One that is gone closes its connections, which the client tells. One that hangs, or is behind a network that swallows
everything, does not: the client waits for it `socket.timeout.ms` (a minute unless set) and longer. So a broker that
nothing was heard of for some seconds is asked whether it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from worker.errors import RunError

_LOG_EVERY_S = 60.0
_SILENT_S = 3.0
PATIENCE_S = 30.0

_log = structlog.get_logger(__name__)


class Outage:
    """What the parts of a worker know together of a broker that does not answer.

    Args:
        clock: monotonic seconds.

    Attributes:
        while_away: called by `wait`; what it raises ends the wait.
        ask: asks any broker for an answer, for about a second; returns why there was none, or None.
        changed: called when the broker is found not to answer, and when it answers again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._logged_at = 0.0
        self._times = 0
        self._heard_at = clock()
        self._suspicion: str | None = None  # why no broker may be there
        self.while_away: Callable[[], None] = lambda: None
        self.ask: Callable[[], str | None] = lambda: None
        self.changed: Callable[[], None] = lambda: None

    @property
    def lasts(self) -> bool:
        """Whether the broker was last found not to answer."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 while the broker answers."""
        return 0.0 if self._since is None else self._clock() - self._since

    def suspect(self, reason: str) -> None:
        """No broker may be there: the next `look` asks."""
        self._suspicion = reason

    def look(self) -> None:
        """Ask the broker whether it is there where that is in doubt; to be called again and again by whoever waits.

        It is while an outage lasts, when one is suspected, and when nothing was heard for some seconds. Silence alone
        is asked about twice before it is an outage.
        """
        silent = self._clock() - self._heard_at >= _SILENT_S
        if not (silent or self._suspicion or self.lasts):
            return
        reason = self.ask()
        if reason is None:
            self.over()
        elif self._suspicion or self.lasts:
            self.noticed(self._suspicion or reason)
        else:
            self.suspect(reason)

    def noticed(self, reason: str) -> None:
        """The broker was asked and did not answer; it is logged once a minute."""
        now = self._clock()
        self._times += 1
        began = self._since is None
        if self._since is None:
            self._since = now
        if began or now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            _log.warning("broker_away", reason=reason, seconds=round(now - self._since, 1), unanswered=self._times)
        if began:
            self.changed()

    def wait(self, reason: str) -> None:
        """The broker did not answer and will be asked again: to be called every few seconds until it does."""
        self.noticed(reason)
        self.while_away()

    def over(self) -> None:
        """The broker has answered."""
        self._heard_at, self._suspicion = self._clock(), None
        if self._since is not None:
            seconds = round(self._clock() - self._since, 1)
            _log.info("broker_back", seconds=seconds, unanswered=self._times)
            self._since, self._times = None, 0
            self.changed()


def outage_of_a_command(patience_s: float = PATIENCE_S) -> Outage:
    """For what people wait for: `wait` raises a RunError after so long without any answer of the brokers."""
    outage = Outage()

    def give_up() -> None:
        if outage.seconds > patience_s:
            raise RunError(f"no Kafka broker has answered for {patience_s:.0f} s")

    outage.while_away = give_up
    return outage

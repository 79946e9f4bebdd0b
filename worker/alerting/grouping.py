"""How many messages people get: what waits to be told, put together, within a limit a minute."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from worker.alerting.alerts import Alert, Notification
from worker.alerting.memory import Change
from worker.processing.records import Partition
from worker.processing.score_records import RANKS

_MOST_WAITING = 10_000  # alerts that are kept whole, about 1 KB each; further ones are counted
_MOST_LISTED = 100  # in one message
_MOST_RESOLVED = 1_000  # likewise; all of them are listed, since each may be open somewhere
_MINUTE_S = 60.0


class Waiting:
    """Changes that a receiver is still to be told of.

    A session that is taken back before anybody was told of it goes without a message.
    """

    def __init__(self) -> None:
        self._firing: dict[str, Alert] = {}
        self._resolved: dict[str, Alert] = {}
        self._partitions: dict[str, Partition] = {}  # where each was read
        self._uncounted: Counter[Partition] = Counter()  # beyond those that are kept

    def __bool__(self) -> bool:
        return bool(self._firing or self._resolved)

    def add(self, partition: Partition, change: Change) -> None:
        """One more, from a partition."""
        identity = change.alert.id
        if change.firing and len(self._firing) >= _MOST_WAITING:
            self._uncounted[partition] += 1
            return
        if change.firing:
            self._firing[identity] = change.alert
        elif self._firing.pop(identity, None) is not None:
            return
        else:
            self._resolved[identity] = change.alert
        self._partitions[identity] = partition

    def drop(self, partition: Partition) -> None:
        """Who has the partition now tells of it."""
        for identity in [each for each, place in self._partitions.items() if place == partition]:
            self._firing.pop(identity, None)
            self._resolved.pop(identity, None)
            del self._partitions[identity]
        del self._uncounted[partition]

    @property
    def full(self) -> bool:
        """Whether nothing more should be added: alerts are counted at worst, what is taken back must not be lost."""
        return len(self._resolved) >= _MOST_WAITING

    def take(self, *, by_session: bool, most: int) -> list[Notification]:
        """What waits as messages, the worst first; it waits no more.

        Args:
            by_session: one message for each session rather than for each reason. What is taken back wakes nobody then
                and is not limited; else it is one more message.
            most: how many messages. Sessions that there is no message left for are put together in the last one.
        """
        made = self._take_firing(most, by_session=by_session)
        while self._resolved and (by_session or len(made) < most):
            some = [*self._resolved][:_MOST_RESOLVED]
            made.append(Notification("resolved", tuple(self._resolved.pop(identity) for identity in some)))
        if not self:
            self._partitions.clear()
        return made

    def _take_firing(self, most: int, *, by_session: bool) -> list[Notification]:
        if not self._firing or most <= 0:
            return []
        groups: dict[str, list[Alert]] = {}
        for alert in sorted(self._firing.values(), key=_badness, reverse=True):
            groups.setdefault(alert.id if by_session else alert.group, []).append(alert)
        found = sorted(groups.values(), key=lambda group: (RANKS[group[0].severity], len(group)), reverse=True)
        uncounted = self._uncounted.total()
        whole = len(found) - bool(uncounted)  # what was only counted goes with the last one
        if whole + bool(uncounted) > most:
            whole = most - 1
        made = [_notification(group) for group in found[:whole]]
        if rest := sorted((alert for group in found[whole:] for alert in group), key=_badness, reverse=True):
            made.append(_notification(rest, uncounted, mixed=True))
        self._firing.clear()
        self._uncounted.clear()
        return made


class Budget:
    """At most so many messages in any minute.

    Args:
        most: of them.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._sent: deque[float] = deque(maxlen=most)
        self._most = most
        self._clock = clock

    @property
    def left(self) -> int:
        """How many may be sent now."""
        now = self._clock()
        return self._most - sum(now - at < _MINUTE_S for at in self._sent)

    def spend(self) -> None:
        """One is sent."""
        self._sent.append(self._clock())


def _badness(alert: Alert) -> tuple[int, float]:
    return RANKS[alert.severity], alert.score


def _notification(alerts: Sequence[Alert], uncounted: int = 0, *, mixed: bool = False) -> Notification:
    listed = tuple(alerts[:_MOST_LISTED])
    return Notification("firing", listed, len(alerts) - len(listed) + uncounted, mixed)

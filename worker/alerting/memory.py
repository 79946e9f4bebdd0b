"""What one partition of the score topic has made known to a receiver: of which session it was told, and what is open.

A session has early records, a final one, and all of them again when a worker replays. The first that reaches the
receiver's severity is told; a final one that falls below it after an early one takes that back. So it does where it
says that it retracts one which the memory has let go of since. What a memory knows is a function of the records alone,
so that a restart gets it back from the topic: it reads again from `read_from`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from worker.alerting.alerts import Alert, ScoreRecord, alert_of, session_id
from worker.formats.patterns import matches
from worker.processing.score_records import RANKS, Severity
from worker.settings.alerts import MuteSettings

_MOST_SESSIONS = 100_000  # of each kind, in a partition: about 1 KB each that is open, 0.3 KB each that is done
# How far back a restart looks for sessions that are done. Who replays has lost what it did in the last moments; what is
# open is looked for as far back as it lies.
_DONE_RECORDS = 10_000


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Mutes:
    """Which sessions nobody is told of."""

    settings: Sequence[MuteSettings]

    def cover(self, record: ScoreRecord, alert: Alert, time_ms: int) -> bool:
        """Whether a record that was written at this time is muted; a pattern is looked for in the whole key."""
        return any(
            time_ms < mute.until.timestamp() * 1000
            and (mute.session is None or matches(mute.session, record.session))
            and (mute.reason is None or matches(mute.reason, alert.reason))
            for mute in self.settings
        )


class Change(NamedTuple):
    """What a record changes for people: a session is to be told of, or what was told of it taken back."""

    alert: Alert
    firing: bool


class _Done(NamedTuple):
    offset: int
    time_ms: int


class _Open(NamedTuple):
    alert: Alert
    offset: int
    time_ms: int
    told: bool


class Memory:
    """Of one partition.

    Args:
        application: its id.
        least: severity from which the receiver is told.
        mutes: what it is spared.
        remember_ms: for how long a session is remembered, by the timestamps of the records.
    """

    def __init__(self, application: str, *, least: Severity, mutes: Mutes, remember_ms: int) -> None:
        self._application = application
        self._least = RANKS[least]
        self._mutes = mutes
        self._remember_ms = remember_ms
        # Those with early records alone, and those with a final one; each in the order of these records.
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._done: OrderedDict[str, _Done] = OrderedDict()

    def read_from(self, position: int) -> int:
        """Offset of the oldest record that a restart at a position has to read again; the position for none."""
        found = max(_first(self._done).offset, position - _DONE_RECORDS) if self._done else position
        return min(found, _first(self._open).offset) if self._open else found

    def take(self, record: ScoreRecord, offset: int, time_ms: int, *, again: bool = False) -> Change | None:
        """A record, in the order of offsets; returns what it changes.

        Args:
            record: of the partition.
            offset: its place.
            time_ms: when it was written.
            again: it was taken before a restart; what it changed then is known to the receiver.
        """
        self._forget(time_ms)
        identity = session_id(self._application, record)
        before = self._open.get(identity)
        if RANKS[record.severity] < self._least:
            retracts = any(RANKS[each.severity] >= self._least for each in record.retracts)
            if record.kind == "early" or (before is None and not again and not retracts):
                return None
            # Read again, it may have taken back an alert whose own record lies further back than is read.
            self._open.pop(identity, None)
            known = self._done.pop(identity, None) is not None
            self._done[identity] = _Done(offset, time_ms)
            if before is not None:
                return Change(before.alert, firing=False)
            alert = alert_of(self._application, record)
            if not retracts or known or self._mutes.cover(record, alert, time_ms):
                return None
            return Change(alert, firing=False)
        if identity in self._done:
            return None
        if before is not None and before.told:
            if record.kind == "final":
                del self._open[identity]
                self._done[identity] = _Done(offset, time_ms)
            return None
        alert = alert_of(self._application, record)
        muted = self._mutes.cover(record, alert, time_ms)
        if record.kind == "final":
            self._open.pop(identity, None)
            if not muted:
                self._done[identity] = _Done(offset, time_ms)
        elif not muted:
            self._open[identity] = _Open(alert, offset, time_ms, told=True)
        elif again:
            # The mute may be newer than the alert. To take back what was never told does no harm, and if the session's
            # final record is not muted it is told of as if it had never been.
            self._open[identity] = _Open(alert, offset, time_ms, told=False)
        return None if muted else Change(alert, firing=True)

    def _forget(self, now_ms: int) -> None:
        """Let go of what is older than it has to be remembered, or beyond what there is room for."""
        oldest = now_ms - self._remember_ms
        while self._open and (len(self._open) > _MOST_SESSIONS or _first(self._open).time_ms < oldest):
            self._open.popitem(last=False)
        while self._done and (len(self._done) > _MOST_SESSIONS or _first(self._done).time_ms < oldest):
            self._done.popitem(last=False)


def _first(entries: OrderedDict[str, _Value]) -> _Value:
    return next(iter(entries.values()))

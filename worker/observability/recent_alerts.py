"""The latest alerts of a worker, for the status page: what was published, and only that."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, Protocol

import orjson

MOST_SESSIONS = 200


_Records = OrderedDict[Hashable, tuple[bytes, ...]]


class Told(Protocol):
    """A record that alerts or takes an alert back (`worker.processing.outputs.SessionAlert`)."""

    @property
    def session(self) -> Hashable:
        """What tells the session from every other one."""

    @property
    def record(self) -> bytes:
        """The score record, as JSON."""


class Written(Protocol):
    """A record that the worker writes (`worker.processing.outputs.Output`)."""

    @property
    def alert(self) -> Told | None:
        """None for what neither alerts nor takes an alert back."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A session that was a warning or critical.

    Attributes:
        record: its latest score record.
        value: that record, JSON.
        ids: of all its records.
        severity: the highest that it has had.
        published_at: when, in seconds since 1970.
        taken_back: whether its final record says that it is normal after all.
    """

    record: Mapping[str, Any]
    value: bytes
    ids: Sequence[str]
    severity: str
    published_at: float
    taken_back: bool


class Published(NamedTuple):
    """The records of a session that alerted.

    Attributes:
        records: its alerts and what takes them back, JSON, in their order.
        at: when the last of them was published, in seconds since 1970.
    """

    records: Sequence[bytes]
    at: float


class PublishedAlerts(ABC):
    """The sessions that alerted last; to be read in any thread."""

    @abstractmethod
    def published(self) -> Sequence[Published]:
        """What was published of them, the latest first."""

    def latest(self) -> list[Alert]:
        """The sessions that alerted, the latest first."""
        return [_alert(*each) for each in self.published()]

    def find(self, record_id: str) -> Alert | None:
        """The session that has this record, while it is kept."""
        return next((alert for alert in self.latest() if record_id in alert.ids), None)


class RecentAlerts(PublishedAlerts):
    """Keeps the score records of the sessions that alerted last; one thread writes, others read.

    The writer pays a look at each output: a record is read from JSON when somebody asks.

    Args:
        most: sessions that are kept; the one that alerted first goes first.
        wall_clock: seconds since 1970.
    """

    def __init__(self, most: int = MOST_SESSIONS, wall_clock: Callable[[], float] = time.time) -> None:
        self._most, self._wall_clock = most, wall_clock
        # By session its alerts, and then the record that takes them back; the one that alerted last is the last.
        self._open: _Records = OrderedDict()  # of the open transaction
        self._published: _Records = OrderedDict()
        self._published_at: dict[Hashable, float] = {}
        self._lock = Lock()

    def sent(self, outputs: Iterable[Written]) -> None:
        """These are in the open transaction."""
        for out in outputs:
            if out.alert is not None:
                self._keep(self._open, out.alert.session, (out.alert.record,))

    def committed(self) -> None:
        """The open transaction was committed."""
        if self._open:
            now = self._wall_clock()
            with self._lock:
                for session, records in self._open.items():
                    self._keep(self._published, session, records)
                    self._published_at[session] = now
                self._published_at = {session: self._published_at[session] for session in self._published}
            self._open.clear()

    def aborted(self) -> None:
        """The open transaction was given up."""
        self._open.clear()

    def published(self) -> list[Published]:
        """What was published of them, the latest first."""
        with self._lock:
            kept = [Published(records, self._published_at[session]) for session, records in self._published.items()]
        return kept[::-1]

    def _keep(self, kept: _Records, session: Hashable, records: tuple[bytes, ...]) -> None:
        kept[session] = kept.pop(session, ()) + records
        if len(kept) > self._most:
            kept.popitem(last=False)


def _alert(values: Sequence[bytes], published_at: float) -> Alert:
    """What a session's records, in order, come to."""
    records = [orjson.loads(value) for value in values]
    severity = "critical" if any(record["severity"] == "critical" for record in records) else "warning"
    return Alert(
        records[-1],
        values[-1],
        tuple(record["id"] for record in records),
        severity,
        published_at,
        taken_back=records[-1]["severity"] == "normal",
    )

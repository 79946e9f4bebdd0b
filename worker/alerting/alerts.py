"""A score record as what people are told of it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker.formats.printable import cut
from worker.processing.score_records import Kind, ReadScoreRecord, Retracted, Severity

# Of what comes from logs, in a message to people: a template may have thousands of characters.
_MOST_KEY = 200
_MOST_REASON = 400
_MOST_TEMPLATES = 3
_MOST_LINES, _MOST_LINE = 3, 200

Status = Literal["firing", "resolved", "test"]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _TopEvent(_Section):
    template: str
    text: str | None = None


class _Reason(_Section):
    text: str
    family: str | None = None


class _Source(_Section):
    topic: str
    partition: int
    first_offset: int
    last_offset: int


class ScoreRecord(ReadScoreRecord):
    """What is used of a score record here."""

    severity: Severity
    first_event_time: str | None
    last_event_time: str | None
    top_events: tuple[_TopEvent, ...]
    source: _Source
    reason: str | _Reason | None = None
    pattern: str | None = None
    retracts: tuple[Retracted, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """A session that someone is to be told of.

    Attributes:
        id: names the session in every message about it: a pure function of the application, of where the session
            began and of its key, so it is the same for its early and final records, after a restart and in a replay.
        application: its id.
        session: the key, cut where it is very long.
        severity, score, kind, events, first_event_time, last_event_time: of the score record.
        reason: in words: the record's, else the templates of its most surprising events.
        lines: the beginnings of its most surprising lines, where the record has texts.
        group: what sessions that belong together have in common: the record's family of reasons, else the reason.
        topic, partition, first_offset, last_offset: where its events are.
        pattern: what a verdict on it would be about; None where the record names none.
    """

    id: str
    application: str
    session: str
    severity: Severity
    score: float
    kind: Kind
    events: int
    first_event_time: str | None
    last_event_time: str | None
    reason: str
    lines: tuple[str, ...]
    group: str
    topic: str
    partition: int
    first_offset: int
    last_offset: int
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Notification:
    """One message: some alerts that have the same status.

    Attributes:
        status: of all of them.
        alerts: the worst first; at least one.
        unlisted: how many more there are that are not listed.
        mixed: whether they have several reasons, since messages are limited.
    """

    status: Status
    alerts: tuple[Alert, ...]
    unlisted: int = 0
    mixed: bool = False

    @property
    def sessions(self) -> int:
        """How many sessions it is about."""
        return len(self.alerts) + self.unlisted


def session_id(application: str, record: ScoreRecord) -> str:
    """Name of a record's session in every message about it: 32 hexadecimal digits."""
    source = record.source
    place = f"{application}\n{source.topic}\n{source.partition}\n{source.first_offset}\n{record.session}"
    return sha256(place.encode()).hexdigest()[:32]


def alert_of(application: str, record: ScoreRecord) -> Alert:
    """What people are told of a record."""
    source, told = record.source, record.reason
    group = told.family if isinstance(told, _Reason) else None
    reason = told.text if isinstance(told, _Reason) else told
    if not reason:
        templates = dict.fromkeys(each.template for each in record.top_events)
        reason = "; ".join([*templates][:_MOST_TEMPLATES]) or "no event is listed"
    reason = cut(reason, _MOST_REASON)
    return Alert(
        id=session_id(application, record),
        application=application,
        session=cut(record.session, _MOST_KEY),
        severity=record.severity,
        score=record.score,
        kind=record.kind,
        events=record.events,
        first_event_time=record.first_event_time,
        last_event_time=record.last_event_time,
        reason=reason,
        lines=tuple(cut(each.text, _MOST_LINE) for each in record.top_events[:_MOST_LINES] if each.text),
        group=group or reason,
        topic=source.topic,
        partition=source.partition,
        first_offset=source.first_offset,
        last_offset=source.last_offset,
        pattern=record.pattern,
    )

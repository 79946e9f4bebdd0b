"""The score records that the worker writes (schema `logmamba.score/1`).

`config/score-record.schema.json` describes the value of a score record, `config/score-record.avsc` the same in Avro.
The value depends on the input, the checkpoint and, where it says so, what operators said of the session's pattern; who
made it and when are headers.

The id of a record depends on nothing but its place: it is the same whoever made it, after a crash, in a replay, with
another checkpoint. It is the first 32 hexadecimal digits of the SHA-256 of these, in UTF-8, with a line feed after each
but the last: topic, partition and first offset of the session, its number among the sessions of its key that the record
at this offset both opened and closed (0 for one that was open for longer), the record's kind, the severity of an early
one (else nothing), the session's key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from math import fsum
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from detector.scoring.families import Verdict
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from worker.processing.clock import NO_TIME
from worker.processing.feedback import Applied
from worker.processing.origins import EVENT_BITS, Origins
from worker.processing.records import Partition
from worker.processing.scorer import EventScores, Reason
from worker.processing.session_columns import ClosedBy
from worker.processing.session_state import FIELDS, Session

SchemaName = Literal["logmamba.score/1"]
SCHEMA: Final[SchemaName] = "logmamba.score/1"

Kind = Literal["early", "final"]
Severity = Literal["normal", "warning", "critical"]
RANKS: Final[dict[Severity, int]] = {"normal": 0, "warning": 1, "critical": 2}
Headers = list[tuple[str, bytes]]
Serialize = Callable[[dict[str, Any]], bytes]

MOST_LINES: Final = 10_000  # events of a session whose offsets a record lists
DECIMALS: Final = 6  # that a record shows of scores and surprises: a float32 has seven digits

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Room that a message needs besides key, value and headers: lengths, and the frame of a batch of one.
MESSAGE_OVERHEAD_BYTES: Final = 512

_ID_DIGITS: Final = 32

_GAP: Final = b"\0"  # which no JSON has
_HOLE: Final = orjson.Fragment(_GAP)


def iso_time(milliseconds: int | None) -> str | None:
    """A time as `2008-11-09T20:36:15.000Z`; None for None and for times beyond the years 1 to 9999."""
    if milliseconds is None:
        return None
    minutes, rest = divmod(milliseconds, 60_000)
    minute = _iso_minute(minutes)
    return minute and f"{minute}{rest // 1000:02d}.{rest % 1000:03d}Z"


def iso_now() -> str:
    """The time of day, likewise."""
    return iso_time(time.time_ns() // 1_000_000) or ""


@lru_cache(4_096)  # sessions that close together began and ended at like times
def _iso_minute(minutes: int) -> str | None:
    try:
        return (_EPOCH + timedelta(minutes=minutes)).isoformat()[:-8]
    except OverflowError:
        return None


class ReadScoreRecord(BaseModel):
    """What every reader of score records takes of one; each adds what else it needs. `model_validate_json` reads it."""

    model_config = ConfigDict(strict=True, frozen=True)

    schema_: SchemaName = Field(alias="schema")
    id: str | None = None  # records of version 0.1 have none
    session: str
    kind: Kind
    score: float
    events: int


class ReadVerdict(BaseModel):
    """What a record that was read says of an operator's verdict, and of the severity that its score alone gives."""

    model_config = ConfigDict(strict=True)

    verdict: Verdict
    scored: Severity


class Retracted(BaseModel):
    """What a reader takes of an early record that a final one takes back."""

    model_config = ConfigDict(strict=True, frozen=True)

    severity: Severity


class Thresholds(NamedTuple):
    """The scores from which on a session is a warning and critical; `warning` is not above `critical`."""

    warning: float
    critical: float

    def severity(self, score: float) -> Severity:
        """The severity of a score, judged by the digits that a record shows of it."""
        shown = round(score, DECIMALS)
        if shown >= self.critical:
            return "critical"
        return "warning" if shown >= self.warning else "normal"


def record_id(partition: Partition, first_offset: int, nth: int, key: str, kind: Kind, severity: Severity) -> str:
    """The id of a record: 32 hexadecimal digits, as the module's text defines them."""
    before, behind = id_parts(partition, kind, severity)
    return sha256(before + f"{first_offset}\n{nth}".encode() + behind + key.encode()).hexdigest()[:_ID_DIGITS]


def id_parts(partition: Partition, kind: Kind, severity: Severity) -> tuple[bytes, bytes]:
    """What stands before and behind the numbers of a session in what an id is of."""
    told = severity if kind == "early" else ""
    return f"{partition.topic}\n{partition.partition}\n".encode(), f"\n{kind}\n{told}\n".encode()


def why_members(reason: Reason | None, applied: Applied | None) -> dict[str, Any]:
    """The members that say why a session stands out, or does not; none where nothing is to be said."""
    members = {} if reason is None else {"reason": {"text": reason.text, "family": reason.family}}
    return members if applied is None else members | applied.members()


def retracts_member(
    partition: Partition, first_offset: int, nth: int, key: str, severities: Sequence[Severity]
) -> dict[str, Any]:
    """The member that names the early records of a session that are taken back; none where none are."""
    if not severities:
        return {}
    ids = (record_id(partition, first_offset, nth, key, "early", each) for each in severities)
    return {"retracts": [{"id": each, "severity": severity} for each, severity in zip(ids, severities, strict=True)]}


class Encoded(NamedTuple):
    """A score record.

    Attributes:
        value: in the format that is written.
        severity: of it.
        headers: its own, beside those of `ScoreEncoder.headers`.
        shown: the record as JSON, where it alerts or takes an alert back.
    """

    value: bytes
    severity: Severity
    headers: Headers
    shown: bytes | None


class ScoreEncoder:
    """Makes score records.

    Args:
        vocabulary: gives the templates' texts.
        checkpoint: digest of the checkpoint, "sha256:…".
        top_events: how many of the most surprising events a record lists at most.
        worker: name of this worker, for the headers.
        max_message_bytes: the largest message that can be written. A record that would be larger has no texts, then
            lists no `lines`, and then fewer of its events, the most surprising ones.
        cloud_events: of which application the records are CloudEvents; None: they are none.
        serialize: makes the value of a record; None: JSON.
        feedback: version of the verdicts that severities are judged by, for the headers; None: there are none.

    Attributes:
        vocabulary, top_events: that it was given.
        is_json: whether values are JSON.
        cloud_events: whether records are CloudEvents.
        most_bytes: that a value and `key_copies` keys may have together.
    """

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        checkpoint: str,
        top_events: int,
        worker: str,
        max_message_bytes: int,
        cloud_events: str | None = None,
        serialize: Serialize | None = None,
        feedback: int | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.top_events = top_events
        self.is_json = serialize is None
        self.cloud_events = cloud_events is not None
        self.key_copies = 1 + self.cloud_events  # an event's subject is one
        self._worker = worker.encode()
        self._feedback = [] if feedback is None else [("logmamba-feedback", str(feedback).encode())]
        self._serialize: Serialize = serialize or orjson.dumps
        model = {"checkpoint": checkpoint, "vocabulary": vocabulary.sha256}
        self._model = orjson.Fragment(orjson.dumps(model)) if self.is_json else model
        self._attributes: dict[Kind, Headers] = {}
        if cloud_events is not None:
            source = f"urn:logmamba:{cloud_events}".encode()
            self._attributes = {kind: self._fixed_attributes(kind, source) for kind in get_args(Kind)}
        headers = [*self.headers(), *self.cloud_event("final", b"0" * _ID_DIGITS, b"", iso_time(0))]
        self.most_bytes = max_message_bytes - MESSAGE_OVERHEAD_BYTES - headers_size(headers)

    def encode(
        self,
        partition: Partition,
        session: Session,
        scores: EventScores,
        *,
        kind: Kind,
        closed_by: ClosedBy | None,
        cause_offset: int,
        events: int,
        score: float,
        thresholds: Thresholds,
        reason: Reason | None = None,
        applied: Applied | None = None,
        retracts: Sequence[Severity] = (),
        nth: int = 0,
        start: int = 0,
        texts: Sequence[bytes | None] | None = None,
        origins: Origins | None = None,
    ) -> Encoded:
        """A score record.

        Args:
            partition: where the session's events came from.
            session: the session; it may have got more events since.
            scores: of the session's events, at least the first `events`.
            kind: an early record is about the events up to its cause.
            closed_by: what ended the session; None for an early record.
            cause_offset: offset of the record that caused this one.
            events: how many events the score is about, at least one.
            score: in [0, 1].
            thresholds: in force when the cause was processed.
            reason: why the session stands out; None where nothing is to be said.
            applied: what is said of the session's pattern; a verdict on it decides about the severity.
            retracts: severities of the early records that this one takes back.
            nth: of the session (`worker.processing.sessions.ClosedSession`); 0 while it is open.
            start: what every offset is less in the record.
            texts: in UTF-8, of the session's events, at least the first `events`, those that have one; None: none has.
            origins: of the events; then their offsets and the cause are numbers of events of token records.
        """
        surprise = scores.surprises[:events].tolist()
        key, first, last = session.key, FIELDS - 1, FIELDS * events - 1  # of the event times
        tokens, offsets = session.tokens[:events].tolist(), session.offsets[:events].tolist()
        if start:
            offsets = [offset - start for offset in offsets]
        top = sorted(range(events), key=surprise.__getitem__, reverse=True)[: self.top_events]
        severity = thresholds.severity(score) if applied is None else applied.severity
        begun = offsets[0]
        identity = record_id(partition, begun, nth, key, kind, severity)
        if origins is not None:
            offsets, cause_offset = [each >> EVENT_BITS for each in offsets], cause_offset >> EVENT_BITS
        listed = [_event(offsets[at], self.vocabulary.text(tokens[at]), round(surprise[at], DECIMALS)) for at in top]
        if texts is not None:
            for event, at in zip(listed, top, strict=True):
                if text := texts[at]:
                    event["text"] = text.decode()
        last_event_time = event_time(session.events[last])
        record = self._record(
            partition,
            identity=identity,
            key=key,
            kind=kind,
            score=round(score, DECIMALS),
            severity=severity,
            thresholds=thresholds,
            # An exact sum, so that the mean does not depend on how a sum is vectorised.
            surprise=round(fsum(surprise) / events, DECIMALS),
            events=events,
            unknown_events=sum(map(N_SPECIAL.__gt__, tokens)),
            times=(event_time(session.events[first]), last_event_time),
            closed_by=closed_by,
            extras=why_members(reason, applied) | retracts_member(partition, begun, nth, key, retracts),
            top_events=listed,
            lines=offsets if events <= MOST_LINES else None,
            offsets=(offsets[0], offsets[events - 1], cause_offset - start),
        )
        if origins is not None:
            if kind == "early" or severity != "normal" or retracts:
                origins.select(np.array(top, np.int64)).tell(listed)
            if events <= MOST_LINES:
                record["origins"] = origins.grouped()
        value = self._serialize(record)
        key_bytes = key.encode()
        room = self.most_bytes - self.key_copies * len(key_bytes)
        if texts is not None and len(value) > room:
            record["top_events"] = [{name: each[name] for name in each if name != "text"} for each in listed]
            value = self._serialize(record)
        if len(value) > room:
            record["lines"] = None
            record.pop("origins", None)
            value = self._serialize(record)
        while len(value) > room and record["top_events"]:
            record["top_events"] = record["top_events"][: len(record["top_events"]) // 2]
            value = self._serialize(record)
        shown = None
        if retracts or severity != "normal":
            shown = value if self.is_json else orjson.dumps(record)
        headers = self.cloud_event(kind, identity.encode(), key_bytes, last_event_time)
        return Encoded(value, severity, headers, shown)

    def pieces(self, partition: Partition, thresholds: Thresholds, kind: Kind, severity: Severity) -> list[bytes]:
        """What stands between the holes of a JSON record, which has what its session has for itself in them."""
        record = self._record(
            partition,
            identity=_HOLE,
            key=_HOLE,
            kind=kind,
            score=_HOLE,
            severity=severity,
            thresholds=thresholds,
            surprise=_HOLE,
            events=_HOLE,
            unknown_events=_HOLE,
            times=(_HOLE, _HOLE),
            closed_by=_HOLE,
            extras={},
            top_events=_HOLE,
            lines=_HOLE,
            offsets=(_HOLE, _HOLE, _HOLE),
        )
        return orjson.dumps(record).split(_GAP)

    @staticmethod
    def event_pieces() -> list[bytes]:
        """Likewise of an event that a record lists."""
        return orjson.dumps(_event(_HOLE, _HOLE, _HOLE)).split(_GAP)

    def _record(
        self,
        partition: Partition,
        *,
        identity: Any,
        key: Any,
        kind: Kind,
        score: Any,
        severity: Severity,
        thresholds: Thresholds,
        surprise: Any,
        events: Any,
        unknown_events: Any,
        times: tuple[Any, Any],
        closed_by: Any,
        extras: Mapping[str, Any],
        top_events: Any,
        lines: Any,
        offsets: tuple[Any, Any, Any],
    ) -> dict[str, Any]:
        """A record, or one with holes; `times` are of its first and last event, `offsets` likewise and of its cause."""
        first_offset, last_offset, cause_offset = offsets
        return {
            "schema": SCHEMA,
            "id": identity,
            "session": key,
            "kind": kind,
            "score": score,
            "severity": severity,
            "thresholds": _written(thresholds) if self.is_json else thresholds._asdict(),
            "surprise": surprise,
            "events": events,
            "unknown_events": unknown_events,
            "first_event_time": times[0],
            "last_event_time": times[1],
            "closed_by": closed_by,
            **extras,
            "top_events": top_events,
            "lines": lines,
            "source": {
                "topic": partition.topic,
                "partition": partition.partition,
                "first_offset": first_offset,
                "last_offset": last_offset,
                "cause_offset": cause_offset,
            },
            "model": self._model,
        }

    def headers(self) -> Headers:
        """Who scored, that it was now, and which verdicts were known."""
        return [("logmamba-worker", self._worker), ("logmamba-scored-at", iso_now().encode()), *self._feedback]

    def cloud_event(self, kind: Kind, identity: bytes, key: bytes, time: str | None) -> Headers:
        """Attributes of a record as a CloudEvent 1.0 in binary mode (Kafka protocol binding, 3.2); none if it is none.

        Args:
            kind: of the record.
            identity: its id.
            key: of its session.
            time: of the session's last event.
        """
        if not self.cloud_events:
            return []
        version, source, of_kind, schema, content = self._attributes[kind]
        headers = [version, ("ce_id", identity), source, of_kind, ("ce_subject", key), schema, content]
        if time is not None:
            headers.append(("ce_time", time.encode()))
        return headers

    def _fixed_attributes(self, kind: Kind, source: bytes) -> Headers:
        """Those that the records of a kind have in common."""
        return [
            ("ce_specversion", b"1.0"),
            ("ce_source", source),
            ("ce_type", b"logmamba.score." + kind.encode()),
            ("ce_dataschema", b"urn:logmamba:score:1"),
            ("content-type", b"application/json" if self.is_json else b"application/avro"),
        ]


def _event(offset: Any, template: Any, surprise: Any) -> dict[str, Any]:
    """An event that a record lists."""
    return {"offset": offset, "template": template, "surprise": surprise}


@lru_cache(16)
def _written(thresholds: Thresholds) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(thresholds._asdict()))


def event_time(milliseconds: int) -> str | None:
    """The time of an event, as `iso_time`."""
    return None if milliseconds == NO_TIME else iso_time(milliseconds)


def headers_size(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """What headers take of a message, at most."""
    return sum(len(name) + len(value or b"") + 10 for name, value in headers)

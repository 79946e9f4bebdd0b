"""The score records that the worker writes (schema `logmamba.score/1`).

`config/score-record.schema.json` describes the value of a score record, `config/score-record.avsc` the same in Avro.
The value depends on the input and the checkpoint alone; who made it and when are headers.

The id of a record depends on nothing but its place: it is the same whoever made it, after a crash, in a replay, with
another checkpoint. It is the first 32 hexadecimal digits of the SHA-256 of these, in UTF-8, with a line feed after each
but the last: topic, partition and first offset of the session, its number among the sessions of its key that the record
at this offset both opened and closed (0 for one that was open for longer), the record's kind, the severity of an early
one (else nothing), the session's key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from hashlib import sha256
from math import fsum
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from detector.scoring.scores import Scores
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary
from worker.processing import record_loop as loop
from worker.processing.clock import NO_TIME
from worker.processing.origins import EVENT_BITS, Origins
from worker.processing.records import Partition
from worker.processing.scorer import EventScores, Reason
from worker.processing.session_columns import CLOSED_BY, ClosedBy, ClosedSessions
from worker.processing.session_state import FIELDS, Column, Session

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

# For records that are made at once; one that is larger is made alone.
_BUFFER_BYTES: Final = 1 << 18
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
    told = severity if kind == "early" else ""
    return _digest(_place(partition), first_offset, nth, f"{kind}\n{told}".encode(), key.encode()).hex()


def _place(partition: Partition) -> bytes:
    return f"{partition.topic}\n{partition.partition}".encode()


def _digest(place: bytes, first_offset: int, nth: int, kind: bytes, key: bytes) -> bytes:
    return sha256(b"%b\n%d\n%d\n%b\n%b" % (place, first_offset, nth, kind, key)).digest()[: loop.ID_BYTES]


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
        max_message_bytes: the largest message that can be written. A record that would be larger lists no `lines`, and
            then fewer of its events, the most surprising ones.
        cloud_events: of which application the records are CloudEvents; None: they are none.
        serialize: makes the value of a record; None: JSON.
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
    ) -> None:
        self._vocabulary = vocabulary
        self._top_events = top_events
        self._worker = worker.encode()
        self._json = serialize is None
        self._serialize: Serialize = serialize or orjson.dumps
        model = {"checkpoint": checkpoint, "vocabulary": vocabulary.sha256}
        self._model = orjson.Fragment(orjson.dumps(model)) if self._json else model
        self._source = None if cloud_events is None else f"urn:logmamba:{cloud_events}".encode()
        headers = [*self.headers(), *self._cloud_event("0" * 32, "final", "", iso_time(0))]
        self._max_value_bytes = max_message_bytes - MESSAGE_OVERHEAD_BYTES - headers_size(headers)
        self._form = lru_cache(1_024)(self._find_form)
        self._buffer = np.empty(_BUFFER_BYTES, np.uint8)

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
        retracts: Sequence[Severity] = (),
        nth: int = 0,
        start: int = 0,
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
            retracts: severities of the early records that this one takes back.
            nth: of the session (`worker.processing.sessions.ClosedSession`); 0 while it is open.
            start: what every offset is less in the record.
            origins: of the events; then their offsets and the cause are numbers of events of token records.
        """
        surprise = scores.surprises[:events].tolist()
        key, first, last = session.key, FIELDS - 1, FIELDS * events - 1  # of the event times
        tokens, offsets = session.tokens[:events].tolist(), session.offsets[:events].tolist()
        if start:
            offsets = [offset - start for offset in offsets]
        top = sorted(range(events), key=surprise.__getitem__, reverse=True)[: self._top_events]
        severity = thresholds.severity(score)
        begun = offsets[0]
        identity = record_id(partition, begun, nth, key, kind, severity)
        if origins is not None:
            offsets, cause_offset = [each >> EVENT_BITS for each in offsets], cause_offset >> EVENT_BITS
        last_event_time = _event_time(session.events[last])
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
            times=(_event_time(session.events[first]), last_event_time),
            closed_by=closed_by,
            reason=reason,
            retracts=[(record_id(partition, begun, nth, key, "early", each), each) for each in retracts],
            top_events=[
                _event(offsets[at], self._vocabulary.text(tokens[at]), round(surprise[at], DECIMALS)) for at in top
            ],
            lines=offsets if events <= MOST_LINES else None,
            offsets=(offsets[0], offsets[events - 1], cause_offset - start),
        )
        if origins is not None:
            if kind == "early" or severity != "normal" or retracts:
                origins.select(np.array(top, np.int64)).tell(record["top_events"])
            if events <= MOST_LINES:
                record["origins"] = origins.grouped()
        value = self._serialize(record)
        key_bytes = len(key.encode())
        room = self._max_value_bytes - (key_bytes if self._source is None else 2 * key_bytes)
        if len(value) > room:
            record["lines"] = None
            record.pop("origins", None)
            value = self._serialize(record)
        while len(value) > room and record["top_events"]:
            record["top_events"] = record["top_events"][: len(record["top_events"]) // 2]
            value = self._serialize(record)
        shown = None
        if retracts or severity != "normal":
            shown = value if self._json else orjson.dumps(record)
        return Encoded(value, severity, self._cloud_event(identity, kind, key, last_event_time), shown)

    def encode_normal(
        self,
        closed: ClosedSessions,
        scores: Scores,
        rows: Column,
        forms: Sequence[tuple[Partition, Thresholds]],
        form_of: Column,
        origins: Origins | None = None,
    ) -> list[bytes | None]:
        """The final records of sessions that are normal and take nothing back: the values that `encode` makes.

        Args:
            closed: sessions.
            scores: of each of them.
            rows: which of them are meant, (n,).
            forms: partitions that events came from, and thresholds that were in force.
            form_of: to which of these each session belongs, by their numbers, (n,).
            origins: of the events of all sessions, as for `encode`.

        Returns:
            A value for each of the rows; None for a record that has to be made by `encode`, since it is too large, is
            a CloudEvent or is not written as JSON.
        """
        values: list[bytes | None] = []
        if not self._json or self._source is not None or not len(rows):
            return [None] * len(rows)
        sessions, keys = closed.sessions, closed.sessions.keys_as_bytes()
        tokens, offsets, times = sessions.events
        bits = 0 if origins is None else EVENT_BITS
        surprises = scores.surprises.astype(np.float64)
        if len(surprises) != len(tokens):
            raise ValueError(f"{len(surprises)} surprises of {len(tokens)} events")
        places, kind = [_place(partition) for partition, _ in forms], b"final\n"
        columns = rows, form_of, sessions.first_offsets[rows], closed.nth[rows]
        ids = bytearray().join(
            [
                _digest(places[form], first_offset, nth, kind, keys[row])
                for row, form, first_offset, nth in zip(*(column.tolist() for column in columns), strict=True)
            ]
        )
        scored = loop.Scored(
            keys=loop.Texts(sessions.keys, sessions.key_ends),
            tokens=tokens,
            offsets=offsets >> bits,
            times=times,
            surprises=surprises,
            ends=sessions.ends,
            scores=scores.finals,
            causes=closed.causes >> bits,
            closed_by=closed.closed_by,
        )
        frame = self._frame._replace(forms=_texts(piece for form in forms for piece in self._form(*form)))
        numbers, ends = np.stack([rows, form_of], axis=1), np.empty(len(rows), np.int64)
        while (first := len(values)) < len(rows):
            stop = loop.write(frame, scored, numbers, np.frombuffer(ids, np.uint8), first, self._buffer, ends)
            written = ends[first:stop].tolist()
            data, begin = self._buffer[: written[-1]].tobytes(), 0
            for end in written:
                values.append(data[begin:end] or None)
                begin = end
        if origins is not None:
            most = [self._max_value_bytes - len(keys[row]) for row in rows.tolist()]
            origins.add_to(values, (sessions.ends - sessions.lengths)[rows], sessions.ends[rows], most, MOST_LINES)
        return values

    @cached_property
    def _frame(self) -> loop.Frame:
        """What all records have that are made at once, but for the forms."""
        return loop.Frame(
            forms=_texts([]),
            event=_texts(_pieces(_event(_HOLE, _HOLE, _HOLE))),
            templates=_texts(orjson.dumps(self._vocabulary.text(token)) for token in range(len(self._vocabulary))),
            closed_by=_texts(map(orjson.dumps, CLOSED_BY)),
            unknown=UNK,
            specials=N_SPECIAL,
            top_events=self._top_events,
            most_lines=MOST_LINES,
            most_bytes=self._max_value_bytes,
        )

    def _find_form(self, partition: Partition, thresholds: Thresholds) -> list[bytes]:
        """The pieces of a record of `encode_normal` between what each session has for itself."""
        record = self._record(
            partition,
            identity=_HOLE,
            key=_HOLE,
            kind="final",
            score=_HOLE,
            severity="normal",
            thresholds=thresholds,
            surprise=_HOLE,
            events=_HOLE,
            unknown_events=_HOLE,
            times=(_HOLE, _HOLE),
            closed_by=_HOLE,
            reason=None,
            retracts=(),
            top_events=_HOLE,
            lines=_HOLE,
            offsets=(_HOLE, _HOLE, _HOLE),
        )
        return _pieces(record)

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
        reason: Reason | None,
        retracts: Sequence[tuple[str, Severity]],
        top_events: Any,
        lines: Any,
        offsets: tuple[Any, Any, Any],
    ) -> dict[str, Any]:
        """A record, or one with holes; `times` are of its first and last event, `offsets` likewise and of its cause."""
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "id": identity,
            "session": key,
            "kind": kind,
            "score": score,
            "severity": severity,
            "thresholds": _written(thresholds) if self._json else thresholds._asdict(),
            "surprise": surprise,
            "events": events,
            "unknown_events": unknown_events,
            "first_event_time": times[0],
            "last_event_time": times[1],
            "closed_by": closed_by,
        }
        if reason is not None:
            record["reason"] = {"text": reason.text, "family": reason.family}
        if retracts:
            record["retracts"] = [{"id": identity, "severity": severity} for identity, severity in retracts]
        first_offset, last_offset, cause_offset = offsets
        return record | {
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
        """Who scored, and that it was now."""
        return [("logmamba-worker", self._worker), ("logmamba-scored-at", iso_now().encode())]

    def _cloud_event(self, identity: str, kind: Kind, key: str, time: str | None) -> Headers:
        """Attributes of a record as a CloudEvent 1.0 in binary mode (Kafka protocol binding, 3.2)."""
        if self._source is None:
            return []
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", identity.encode()),
            ("ce_source", self._source),
            ("ce_type", b"logmamba.score." + kind.encode()),
            ("ce_subject", key.encode()),
            ("ce_dataschema", b"urn:logmamba:score:1"),
            ("content-type", b"application/json" if self._json else b"application/avro"),
        ]
        if time is not None:
            headers.append(("ce_time", time.encode()))
        return headers


def _event(offset: Any, template: Any, surprise: Any) -> dict[str, Any]:
    """An event that a record lists."""
    return {"offset": offset, "template": template, "surprise": surprise}


def _pieces(document: dict[str, Any]) -> list[bytes]:
    """What stands between the holes of a document."""
    return orjson.dumps(document).split(_GAP)


def _texts(texts: Iterable[bytes]) -> loop.Texts:
    """As the compiled loop takes them."""
    texts = list(texts)
    data = np.frombuffer(bytearray().join(texts), np.uint8)
    return loop.Texts(data, np.cumsum([len(text) for text in texts], dtype=np.int64))


@lru_cache(16)
def _written(thresholds: Thresholds) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(thresholds._asdict()))


def _event_time(milliseconds: int) -> str | None:
    return None if milliseconds == NO_TIME else iso_time(milliseconds)


def headers_size(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """What headers take of a message, at most."""
    return sum(len(name) + len(value or b"") + 10 for name, value in headers)

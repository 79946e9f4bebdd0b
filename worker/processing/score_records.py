"""The records that the worker writes: scores (schema `logmamba.score/1`) and dead letters.

`config/score-record.schema.json` describes the value of a score record. The value depends on the input and
the checkpoint alone; who made it and when are headers.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import fsum
from typing import Any, Final, Literal, NamedTuple

import orjson

from detector.text.vocabulary import N_SPECIAL, Vocabulary
from worker.processing.clock import NO_TIME
from worker.processing.lines import DeadLetter
from worker.processing.records import Partition, Records
from worker.processing.scorer import EventScores
from worker.processing.session_state import Session
from worker.processing.sessions import ClosedBy

SCHEMA = "logmamba.score/1"

Kind = Literal["early", "final"]
Severity = Literal["normal", "warning", "critical"]
Headers = list[tuple[str, bytes]]

DECIMALS: Final = 6  # that a record shows of scores and surprises: a float32 has seven digits

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Room that a message needs besides key, value and headers: lengths, and the frame of a batch of one.
_MESSAGE_OVERHEAD_BYTES = 512


def iso_time(milliseconds: int | None) -> str | None:
    """A time as `2008-11-09T20:36:15.000Z`; None for None and for times beyond the years 1 to 9999."""
    if milliseconds is None:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    second = _iso_second(seconds)
    return second and f"{second}.{rest:03d}Z"


@lru_cache(4_096)  # sessions that close together began and ended at like times
def _iso_second(seconds: int) -> str | None:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:-6]
    except OverflowError:
        return None


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


class ScoreEncoder:
    """Makes the values of score records.

    Args:
        vocabulary: gives the templates' texts.
        checkpoint: digest of the checkpoint, "sha256:…".
        top_events: how many of the most surprising events a record lists at most.
        worker: name of this worker, for the headers.
        max_message_bytes: the largest message that can be written. A record that its events' templates would make
            larger lists fewer of them, the most surprising ones.
    """

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        checkpoint: str,
        top_events: int,
        worker: str,
        max_message_bytes: int,
    ) -> None:
        self._vocabulary = vocabulary
        self._top_events = top_events
        self._worker = worker.encode()
        self._max_value_bytes = max_message_bytes - _MESSAGE_OVERHEAD_BYTES - _size(self.headers())
        self._model = orjson.Fragment(orjson.dumps({"checkpoint": checkpoint, "vocabulary": vocabulary.sha256}))

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
    ) -> tuple[bytes, Severity]:
        """The value of a score record and its severity.

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
        """
        surprise = scores.surprises[:events].tolist()
        tokens, offsets, times = session.tokens, session.offsets, session.times
        top = sorted(range(events), key=surprise.__getitem__, reverse=True)[: self._top_events]
        severity = thresholds.severity(score)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "session": session.key,
            "kind": kind,
            "score": round(score, DECIMALS),
            "severity": severity,
            "thresholds": _written(thresholds),
            # An exact sum, so that the mean does not depend on how a sum is vectorised.
            "surprise": round(fsum(surprise) / events, DECIMALS),
            "events": events,
            "unknown_events": sum(token < N_SPECIAL for token in tokens[:events]),
            "first_event_time": _event_time(times[0]),
            "last_event_time": _event_time(times[events - 1]),
            "closed_by": closed_by,
            "top_events": [
                {
                    "offset": offsets[at],
                    "template": self._vocabulary.text(tokens[at]),
                    "surprise": round(surprise[at], DECIMALS),
                }
                for at in top
            ],
            "source": {
                "topic": partition.topic,
                "partition": partition.partition,
                "first_offset": offsets[0],
                "last_offset": offsets[events - 1],
                "cause_offset": cause_offset,
            },
            "model": self._model,
        }
        value = orjson.dumps(record)
        room = self._max_value_bytes - len(session.key.encode())
        while len(value) > room and record["top_events"]:
            record["top_events"] = record["top_events"][: len(record["top_events"]) // 2]
            value = orjson.dumps(record)
        return value, severity

    def headers(self) -> Headers:
        """Who scored, and that it was now."""
        now = iso_time(time.time_ns() // 1_000_000) or ""
        return [("logmamba-worker", self._worker), ("logmamba-scored-at", now.encode())]


@lru_cache(16)
def _written(thresholds: Thresholds) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(thresholds._asdict()))


def dead_letter(
    records: Records, letter: DeadLetter, max_message_bytes: int
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of a record that could not be decoded.

    Key and value are as they came, the value of an event among several of a record with nothing in it but that event,
    cut where the message would be larger than `max_message_bytes`; the text in
    the headers says so then.
    """
    row = letter.index
    key = None if records.keys is None else records.keys[row]
    value = records.values[row] if letter.item is None else letter.item
    timestamp = None if records.timestamps is None else records.timestamps[row]

    def headers(message: str) -> Headers:
        return [
            ("logmamba-error-reason", letter.reason.encode()),
            ("logmamba-error-message", message.encode(errors="replace")),
            ("logmamba-error-topic", records.topic.encode()),
            ("logmamba-error-partition", str(records.partition).encode()),
            ("logmamba-error-offset", str(records.offsets[row]).encode()),
            ("logmamba-error-timestamp", (iso_time(timestamp) or "").encode()),
        ]

    plain = headers(letter.message)
    room = max_message_bytes - _size(plain) - _MESSAGE_OVERHEAD_BYTES
    if len(key or b"") + len(value or b"") <= room:
        return key, value, plain
    told = headers(f"{letter.message} (key of {len(key or b'')} and value of {len(value or b'')} bytes cut)")
    room = max(0, max_message_bytes - _size(told) - _MESSAGE_OVERHEAD_BYTES)
    key = None if key is None else key[:room]
    return key, None if value is None else value[: room - len(key or b"")], told


def _event_time(milliseconds: int) -> str | None:
    return None if milliseconds == NO_TIME else iso_time(milliseconds)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 10 for name, value in headers)

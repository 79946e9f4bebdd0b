"""Score records made many at once, byte for byte as `ScoreEncoder.encode` makes each.

What differs from record to record is written by a compiled loop (`worker.processing.record_loop`) into a form, which is
cut from a record of the encoder. So a burst of anomalies costs no more a record than quiet days do.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from detector.scoring.scores import Scores
from detector.text.vocabulary import N_SPECIAL, UNK
from worker.processing import record_loop as loop
from worker.processing.feedback import Applied
from worker.processing.origins import EVENT_BITS, Origins
from worker.processing.records import Partition
from worker.processing.score_records import (
    MOST_LINES,
    Headers,
    Kind,
    ScoreEncoder,
    Severity,
    Thresholds,
    event_time,
    id_parts,
    retracts_member,
    why_members,
)
from worker.processing.scorer import Reason
from worker.processing.session_columns import CLOSED_BY, SessionColumns
from worker.processing.session_state import Column
from worker.processing.sha256_loop import DIGEST_BYTES, digests

#: What closed a session that goes on, by number behind those of `CLOSED_BY`.
NOT_CLOSED: Final = len(CLOSED_BY)
#: Severities by the bits of `Session.alerted`.
BY_BITS: Final[Sequence[tuple[Severity, ...]]] = ((), ("warning",), ("critical",), ("warning", "critical"))

#: By number: whether a record is an early one.
KINDS: Final[tuple[Kind, Kind]] = ("final", "early")

_BUFFER_BYTES: Final = 1 << 18  # a record that is larger is made alone
_NUMBER_BYTES: Final = 21  # and a line feed


class Form(NamedTuple):
    """What many records have in common: where their events came from, and how they were judged."""

    partition: Partition
    thresholds: Thresholds
    kind: Kind
    severity: Severity


class Told(NamedTuple):
    """Records as columns of equal length."""

    sessions: Column  # of which session each is, by number
    events: Column  # how many of its events the record is about, at least one
    scores: NDArray[np.float64]
    causes: Column  # offset of the record that caused each
    closed_by: Column  # by number of `CLOSED_BY`; NOT_CLOSED for an early record
    nth: Column  # of `ClosedSession`
    starts: Column  # what every offset is less in the record
    forms: Column  # by number
    reasons: Column  # by number
    retracts: Column  # severities of the early records that it takes back, as `BY_BITS` has them


class RecordColumns:
    """Makes score records of many sessions at once.

    Args:
        encoder: makes a record by itself.
    """

    def __init__(self, encoder: ScoreEncoder) -> None:
        self._encoder = encoder
        self._parts = lru_cache(1_024)(self._parts_of)
        self._buffer = np.empty(_BUFFER_BYTES, np.uint8)
        self._top = np.empty(encoder.top_events, np.int64)

    def encode(
        self,
        sessions: SessionColumns,
        scores: Scores,
        told: Told,
        forms: Sequence[Form],
        reasons: Sequence[Reason | None],
        origins: Origins | None = None,
        applied: Sequence[Applied | None] = (),
    ) -> tuple[list[bytes | None], list[Headers]]:
        """Values of records, and the headers that each has of its own; no headers at all where none has any.

        Args:
            sessions: that records are about.
            scores: of each of them.
            told: the records.
            forms: of them.
            reasons: of them.
            origins: of the events of all sessions; then their offsets and the causes are numbers of events of token
                records.
            applied: what is said of the session's pattern, beside each of the reasons; nothing where it is empty.

        Returns:
            The value is None of a record that has to be made by the encoder: it is too large, or is not JSON, or it
            alerts or takes an alert back, and its events have origins.
        """
        n = len(told.sessions)
        if not n or not self._encoder.is_json:
            return [None] * n, []
        tokens, offsets, times = sessions.events
        surprises = scores.surprises.astype(np.float64)
        if len(surprises) != len(tokens):
            raise ValueError(f"{len(surprises)} surprises of {len(tokens)} events")
        keys = loop.texts_in([sessions.keys.tobytes()], sessions.key_ends)
        events = loop.Events(keys, tokens, offsets, times, surprises, sessions.ends)
        extra_of, extras = self._extras(
            sessions, told, forms, list(map(why_members, reasons, applied or [None] * len(reasons)))
        )
        pieces, lengths, before, behind = zip(*map(self._parts, forms), strict=True)
        frame = self._frame._replace(
            forms=loop.texts_in(pieces, np.cumsum(np.concatenate(lengths))),
            before=loop.texts_of(before),
            behind=loop.texts_of(behind),
            extras=loop.texts_of(extras),
        )
        rows = loop.Told(
            sessions=told.sessions,
            events=told.events,
            nth=told.nth,
            scores=told.scores,
            causes=told.causes,
            starts=told.starts,
            closed_by=told.closed_by,
            forms=told.forms,
            extras=extra_of,
            endings=loop.texts_in([], np.zeros(n, np.int64)),
        )
        ids = _ids(frame, events, rows)  # which have the numbers of events
        alone: list[int] = []
        if origins is not None:
            events = events._replace(offsets=offsets >> EVENT_BITS)
            endings, alone = self._origins(sessions, told, forms, origins)
            rows = rows._replace(causes=told.causes >> EVENT_BITS, endings=endings)
        values: list[bytes | None] = []
        ends = np.empty(n, np.int64)
        while (first := len(values)) < n:
            stop = loop.write(frame, events, rows, ids, first, self._buffer, ends, self._top)
            bounds = [0, *ends[first:stop].tolist()]
            data = self._buffer[: bounds[-1]].tobytes()
            values += [data[begin:end] or None for begin, end in pairwise(bounds)]
        for row in alone:
            values[row] = None
        return values, self._headers(sessions, told, forms, ids)

    def _parts_of(self, form: Form) -> tuple[bytes, Column, bytes, bytes]:
        """The pieces of a form, and how long each is; what ids have before and behind a session's numbers."""
        pieces = self._encoder.pieces(*form)
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        return b"".join(pieces), lengths, *id_parts(form.partition, form.kind, form.severity)

    @cached_property
    def _frame(self) -> loop.Frame:
        """What all records have that are made at once, but for what their forms say."""
        encoder = self._encoder
        none, vocabulary = loop.texts_of([]), encoder.vocabulary
        return loop.Frame(
            forms=none,
            before=none,
            behind=none,
            extras=none,
            event=loop.texts_of(encoder.event_pieces()),
            templates=loop.texts_of(orjson.dumps(vocabulary.text(token)) for token in range(len(vocabulary))),
            closed_by=loop.texts_of(map(orjson.dumps, (*CLOSED_BY, None))),
            unknown=UNK,
            specials=N_SPECIAL,
            most_lines=MOST_LINES,
            most_bytes=encoder.most_bytes,
            key_copies=encoder.key_copies,
        )

    def _extras(
        self, sessions: SessionColumns, told: Told, forms: Sequence[Form], whys: Iterable[dict[str, Any]]
    ) -> tuple[Column, list[bytes]]:
        """What some records have besides the others, by number, and the number of each; that of a reason is its own."""
        extras = list(map(_members, whys))
        taking_back = np.flatnonzero(told.retracts)
        if not len(taking_back):
            return told.reasons, extras
        numbers = told.reasons.copy()
        first_offsets, keys = sessions.first_offsets, sessions.key_texts
        for row in taking_back.tolist():
            number = int(told.sessions[row])
            retracts = retracts_member(
                forms[told.forms[row]].partition,
                int(first_offsets[number] - told.starts[row]),
                int(told.nth[row]),
                keys[number].as_py(),
                BY_BITS[told.retracts[row]],
            )
            numbers[row] = len(extras)
            extras.append(extras[told.reasons[row]] + _members(retracts))
        return numbers, extras

    def _origins(
        self, sessions: SessionColumns, told: Told, forms: Sequence[Form], origins: Origins
    ) -> tuple[loop.Texts, list[int]]:
        """Endings that say where events came from; and the records that tell of them one by one, which have none."""
        loud = np.array([form.severity != "normal" for form in forms], np.bool_)[told.forms] | (told.retracts != 0)
        begins = (sessions.ends - sessions.lengths)[told.sessions]
        wanted = ~loud & (told.events <= MOST_LINES)
        return origins.endings(begins, begins + told.events, wanted), np.flatnonzero(loud).tolist()

    def _headers(
        self, sessions: SessionColumns, told: Told, forms: Sequence[Form], ids: NDArray[np.uint8]
    ) -> list[Headers]:
        """The headers of records that are CloudEvents."""
        if not self._encoder.cloud_events:
            return []
        lasts = (sessions.ends - sessions.lengths)[told.sessions] + told.events - 1
        digits, keys = hexlify(ids.tobytes()), sessions.keys_as_bytes()
        columns = told.forms.tolist(), told.sessions.tolist(), sessions.events[2, lasts].tolist()
        return [
            self._encoder.cloud_event(
                forms[form].kind, digits[at : at + 2 * loop.ID_BYTES], keys[number], event_time(time)
            )
            for at, form, number, time in zip(range(0, len(digits), 2 * loop.ID_BYTES), *columns, strict=True)
        ]


def _ids(frame: loop.Frame, events: loop.Events, told: loop.Told) -> NDArray[np.uint8]:
    """The ids of records, ID_BYTES each."""
    n = len(told.sessions)
    key_bytes = np.diff(events.keys.ends, prepend=0)[told.sessions].sum()
    room = n * (frame.before.longest + frame.behind.longest + 2 * _NUMBER_BYTES) + key_bytes + loop.BEHIND
    texts, ends, found = np.empty(room, np.uint8), np.empty(n, np.int64), np.empty(n * DIGEST_BYTES, np.uint8)
    loop.write_identities(frame, events, told, texts, ends)
    digests(texts, ends, found)
    return found.reshape(n, DIGEST_BYTES)[:, : loop.ID_BYTES].ravel()


def _members(members: dict[str, Any]) -> bytes:
    """Members of a JSON object behind others."""
    return b"," + orjson.dumps(members)[1:-1] if members else b""

"""`logmamba explain --record`: a session event by event, its lines read from Kafka by the offsets of its score record.

Between its first and its last offset a session is open all the time, so every event there that has its key is one of
its events.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detector.text.tokenizer import Tokenizer
from worker.commands.explain import ExplainedSession, Found, explained, explaining_pipeline
from worker.commands.explain_tokens import read_tokens, texts_of
from worker.delivery.deadline import Deadline
from worker.delivery.outage import PATIENCE_S, outage_of_a_command
from worker.errors import RunError
from worker.kafka.avro import score_reader
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaReader
from worker.kafka.topics import Topics
from worker.pages.explanations import Explanation
from worker.processing.decoder import Decoder
from worker.processing.line_texts import TextKeeper
from worker.processing.origins import EVENT_BITS, NumberedOrigins
from worker.processing.outputs import RAISED
from worker.processing.records import Partition
from worker.processing.score_records import ReadScoreRecord, ReadVerdict, Retracted, Severity
from worker.processing.scorer import load_scorer
from worker.processing.session_columns import RANK_EXPIRED, ClosedBy, ClosedSession
from worker.processing.session_state import Session
from worker.processing.token_decoder import TokenDecoder
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.scoring.scorer import Scorer

_LAST_DIGITS = 1e-4  # of a score, in which another device or precision differs

_Offset = Annotated[int, Field(ge=0)]


class _Source(BaseModel):
    model_config = ConfigDict(strict=True)

    topic: str
    partition: _Offset
    first_offset: _Offset
    last_offset: _Offset
    cause_offset: _Offset


class _Origin(BaseModel):
    model_config = ConfigDict(strict=True)

    topic: str
    partition: _Offset
    offsets: tuple[_Offset, ...]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)

    checkpoint: str


class _Reason(BaseModel):
    model_config = ConfigDict(strict=True)

    text: str


class _TopEvent(BaseModel):
    model_config = ConfigDict(strict=True)

    template: str


class ScoreRecord(ReadScoreRecord):
    """What is needed of a score record."""

    severity: Severity
    pattern: str | None = None
    feedback: ReadVerdict | None = None
    reason: _Reason | None = None
    top_events: tuple[_TopEvent, ...] = ()
    retracts: tuple[Retracted, ...] = ()
    closed_by: ClosedBy | None
    source: _Source
    model: _Model
    origins: tuple[_Origin, ...] | None = None

    @property
    def why(self) -> str:
        """What stands out: the record's reason, else its most surprising events."""
        if self.reason is not None:
            return self.reason.text
        return "; ".join(dict.fromkeys(each.template for each in self.top_events))


def read_score_record(settings: Settings, value: bytes) -> ScoreRecord:
    """The score record that a value is, as its topic and `logmamba score` have it.

    Raises:
        RunError: it is none; the first thing that is wrong is named. Or the schema registry cannot be used.
    """
    with score_reader(settings) as as_json:
        return score_record(as_json(value) or b"")


def score_record(text: bytes) -> ScoreRecord:
    """The score record that a JSON text is.

    Raises:
        RunError: it is none; the first thing that is wrong is named.
    """
    try:
        return ScoreRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"not one score record (logmamba.score/1): {where and where + ': '}{first['msg']}") from None


def explain_record(
    settings: Settings,
    scorer: Scorer,
    record: ScoreRecord,
    tell: Callable[[str], object] = lambda _line: None,
    limit_s: float = math.inf,
) -> ExplainedSession:
    """The session of a score record; nothing is committed and no group joined.

    Args:
        settings: of the application.
        scorer: should have the checkpoint that the record names.
        record: of a worker.
        tell: told what does not quite fit, a line each.
        limit_s: how long reading may take.

    Raises:
        RunError: no broker answers, or not in time, or the session's lines are not, or no longer, in the topic.
        SettingsError: settings that do not fit the checkpoint.
    """
    pipeline = explaining_pipeline(settings, scorer)
    for note in pipeline.misfits:
        tell(note)
    if record.model.checkpoint != scorer.checkpoint:
        tell(f"the record was scored with {record.model.checkpoint}, this is {scorer.checkpoint}")
    if record.kind == "early":
        tell("an early record: the session went on; it is explained as if it had ended there")
    if record.feedback is not None:
        tell(
            f"an operator judged its pattern {record.feedback.verdict}, so it is {record.severity}; its score alone "
            f"makes it {record.feedback.scored}"
        )
    found = _found(settings, scorer, record, Deadline(limit_s))
    result = explained(pipeline, scorer, found, adaptive=settings.scoring.adaptive is not None)
    if record.kind == "final" and abs(result.record["score"] - record.score) > _LAST_DIGITS:
        tell(f"the record says {record.score}, these events give {result.record['score']}")
    return result


def tokens_of_session(settings: Settings, scorer: Scorer, record: ScoreRecord) -> bytes:
    """The tokens of a record's session, as a scorer takes them, of its lines in Kafka.

    Raises:
        RunError: as `explain_record`.
    """
    return _found(settings, scorer, record, Deadline()).closed.session.tokens.tobytes()


def explain_for_a_page(settings: Settings, record: bytes, limit_s: float) -> Explanation:
    """The session of a worker's own score record, beside the worker.

    The worker's model is its loop's alone, and a GPU that captures a graph must not be called from elsewhere. So the
    checkpoint is read anew, for the processor.

    Args:
        settings: of the worker.
        record: JSON.
        limit_s: how long reading may take.

    Raises:
        RunError: as `explain_record`.
        SettingsError: likewise.
    """
    on_cpu = settings.model.model_copy(update={"device": "cpu", "precision": "auto", "kernels": "auto"})
    notes: list[str] = []
    scorer = load_scorer(settings.model_copy(update={"model": on_cpu}))
    explained = explain_record(settings, scorer, score_record(record), notes.append, limit_s)
    return Explanation(orjson.loads(explained.to_json()), notes)


def _found(settings: Settings, scorer: Scorer, record: ScoreRecord, deadline: Deadline) -> Found:
    source = record.source
    partition = Partition(source.topic, source.partition)
    # Events that waited for the clock come later in the session than in the topic.
    first, last = sorted((source.first_offset, source.last_offset))
    properties = ClientProperties(settings)
    Topics(properties.admin(), settings)  # says so when no broker answers
    batch, headers = settings.worker.batch_records, settings.headers_needed
    outage = outage_of_a_command(min(PATIENCE_S, deadline.left_s))
    reader = KafkaReader(properties.reader(), outage, batch_records=batch, with_headers=headers)
    try:
        if source.partition not in reader.partitions(source.topic):
            raise RunError(f"{partition}: there is none at {settings.kafka['bootstrap.servers']}")
        oldest, end = reader.watermarks(partition)
        if first < oldest or last >= end:
            raise RunError(
                f"{partition}: the session's lines, offsets {first} to {last}, are not in the topic, which holds "
                f"{oldest} to {end - 1}"
            )
        offsets, read = range(first, last + 1), _read_tokens if settings.input.tokens else _read_lines
        events = read(settings, scorer, record, reader, offsets, deadline)
    finally:
        reader.close()
    if len(events.texts) != record.events:
        raise RunError(
            f"{partition}, offsets {first} to {last}: {len(events.texts)} events of session {record.session!r}, and "
            f"the record says {record.events}; are input and sessions as they were, and is nothing of it deleted?"
        )
    session = Session.from_columns(
        record.session,
        tokens=events.tokens,
        offsets=events.offsets,
        times=events.times,
        opened_at=events.times[0],
        last_at=events.times[-1],
        order=0,
        alerted=sum(RAISED[each.severity] for each in record.retracts),
    )
    closed_by = record.closed_by or "end_of_input"
    cause, within = source.cause_offset, int(source.first_offset == source.cause_offset)
    if events.origins is not None:
        # Numbers of events: of those that the cause holds, the last one may have been the session's own.
        at_once = source.last_offset == cause and closed_by in ("end_event", "max_events")
        cause = events.offsets[-1] if at_once else cause << EVENT_BITS
        within = int(at_once and len(events.offsets) == 1)
    return Found(
        partition, ClosedSession(session, cause, closed_by, RANK_EXPIRED, within), events.texts, events.origins
    )


@dataclass(frozen=True, slots=True)
class _Events:
    """The session's events."""

    tokens: array[int]
    times: array[int]
    offsets: array[int]
    texts: list[str]
    origins: NumberedOrigins | None = None


def _read_lines(
    settings: Settings, scorer: Scorer, record: ScoreRecord, reader: KafkaReader, offsets: range, deadline: Deadline
) -> _Events:
    partition = Partition(record.source.topic, record.source.partition)
    keeper = TextKeeper(Tokenizer(scorer.vocabulary, unknown=settings.tokenizer.unknown))
    decoder = Decoder(settings.input, settings.sessions, keeper)
    found = _Events(array("q"), array("q"), array("q"), [])
    for records in reader.read(partition, offsets.start, offsets.stop):
        (events,) = decoder.decode([records])
        for row, (key, token, at, offset) in enumerate(events.rows()):
            if key == record.session:
                found.tokens.append(token)
                found.times.append(at)
                found.offsets.append(offset)
                found.texts.append(keeper.lines[row].as_py())
        if deadline.passed and records.last_offset < offsets.stop - 1:
            raise RunError(
                f"{partition}: the {len(offsets):,} records from the session's first to its last take too long to "
                f"read; those up to {records.last_offset} were read in time"
            )
    return found


def _read_tokens(
    settings: Settings, scorer: Scorer, record: ScoreRecord, reader: KafkaReader, offsets: range, deadline: Deadline
) -> _Events:
    partition = Partition(record.source.topic, record.source.partition)
    lines = None
    if record.origins is not None:
        lines = frozenset((Partition(each.topic, each.partition), at) for each in record.origins for at in each.offsets)
    decoder = TokenDecoder(scorer.vocabulary, settings.tokenizer.unknown)
    found = read_tokens(reader, decoder, partition, offsets, record.session, lines, deadline)
    tokens, times, events = (array("q", each.tobytes()) for each in (found.tokens, found.times, found.origins.events))
    return _Events(tokens, times, events, [*texts_of(reader, found.origins.origins, deadline)], found.origins)

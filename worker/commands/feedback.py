"""`logmamba feedback`: what operators say of sessions, in the topic that workers read it from.

A verdict is about the pattern of a session, which its score record names. Where a record names none (the session was
normal, or the record is from before), the session's lines are read again from Kafka.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from pydantic import ValidationError

from detector.errors import InputFileError
from detector.scoring.families import Verdict
from detector.scoring.session_pattern import is_pattern
from worker.commands.explain_record import ScoreRecord, score_record, tokens_of_session
from worker.commands.tail import require_score_topic
from worker.delivery.outage import outage_of_a_command
from worker.errors import RunError, SettingsError
from worker.files.answer_files import read_rows
from worker.formats.printable import printable
from worker.kafka.avro import score_reader
from worker.kafka.clients import ClientProperties
from worker.kafka.feedback import feedback_topic, write_feedback
from worker.kafka.source import KafkaReader
from worker.kafka.topics import Topics
from worker.processing.feedback import SCHEMA, VERDICTS, Feedback, FeedbackRecord, JudgedSession, read_record
from worker.processing.records import Partition
from worker.processing.score_records import SCHEMA as SCORES
from worker.processing.score_records import iso_now
from worker.processing.scorer import load_scorer
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.scoring.scorer import Scorer

_TAKEN_BACK = "none"
_NAMED_BY = ("id", "session", "pattern")  # what an answer may name its session by, the most exact first
_MOST_REASON = 2_000
_MOST_ABSENT = 5  # that an error names
_ID, _ID_DIGITS = b'"id":"', 32

_Change = tuple[str, FeedbackRecord | None]


class Answer(NamedTuple):
    """What was said of a session; None takes what was said of its pattern back.

    Attributes:
        by: what names it: the `id` of a score record of it, the `session` key, or its `pattern`.
        name: that.
        verdict: on it.
        note: why, for those who list verdicts.
        where: it was said, for errors.
        record: final score record of the session, where that was given with the answer.
    """

    by: str
    name: str
    verdict: Verdict | None
    note: str | None = None
    where: str = ""
    record: ScoreRecord | None = None


class Done(NamedTuple):
    """What came of answers: how many verdicts were given, and taken back."""

    given: int
    taken_back: int


def require_feedback_topic(settings: Settings) -> None:
    """See that the topic of verdicts is there, before a broker makes one that forgets them.

    Raises:
        SettingsError: the settings name none.
        RunError: it is not there, or no broker answers.
    """
    topic = settings.feedback.topic
    if topic is None:
        raise SettingsError(["feedback.topic: null; allowed: the compacted topic that holds verdicts"])
    [found] = [each for each in Topics(_admin(settings), settings).outputs() if each.use == "feedback"]
    if not found.partitions:
        servers = settings.kafka["bootstrap.servers"]
        raise RunError(f"feedback.topic: {topic} does not exist at {servers}; run and check --create-topics make it")


def verdicts_of(settings: Settings) -> Feedback:
    """The verdicts that hold now.

    Raises:
        SettingsError: the settings name no topic of verdicts.
        RunError: it cannot be read, or is not there.
    """
    require_feedback_topic(settings)
    reader = feedback_topic(settings)
    assert reader is not None, "there is a topic"
    return reader.look()


def give(
    settings: Settings, answers: Sequence[Answer | FeedbackRecord], by: str, tell: Callable[[str], object]
) -> Done:
    """Write what was said; all of it is found before anything is written.

    Args:
        settings: of the application.
        answers: of two on one pattern the later counts. Records are written as they are.
        by: who says so.
        tell: told what takes time.

    Raises:
        SettingsError, RunError: as `verdicts_of`; a session has no final record, or its pattern cannot be told.
    """
    verdicts_of(settings)
    told = [each for each in answers if isinstance(each, Answer) and each.by != "pattern" and each.record is None]
    found = _records_of(settings, told, tell) if told else {}
    patterns = _Patterns(settings, tell)
    changes: dict[str, FeedbackRecord | None] = {}
    for each in answers:
        pattern, record = _change(each, found, patterns, by)
        changes.pop(pattern, None)
        changes[pattern] = record
    write_feedback(settings, changes.items())
    given = sum(record is not None for record in changes.values())
    return Done(given, len(changes) - given)


def forget(settings: Settings, names: Sequence[str]) -> int:
    """Take verdicts back by the names that the list has, or by patterns; returns how many.

    Raises:
        SettingsError, RunError: as `verdicts_of`; or there is no such verdict: then none is taken back.
    """
    known = verdicts_of(settings)
    of_name = {each.name: pattern for pattern, each in known.records.items()} | {each: each for each in known.records}
    if absent := [name for name in names if name not in of_name]:
        raise RunError(f"there is no verdict {', '.join(absent)}; logmamba feedback --list names those that hold")
    return write_feedback(settings, ((of_name[name], None) for name in names))


def as_json(feedback: Feedback) -> Iterator[str]:
    """The verdicts, a line each: a file that `--answers`, `adapt` and `score` read."""
    return (each.to_json().decode() for each in feedback.records.values())


def as_lines(feedback: Feedback) -> Iterator[str]:
    """The verdicts for a terminal: what was said, and below it why and what stands out."""
    for each in feedback.records.values():
        session = "" if each.session is None else f", of session {printable(each.session.key)}"
        by = f" by {printable(each.by)}" if each.by else ""
        yield f"{each.name}  {each.verdict} since {each.at[:19].replace('T', ' ')}{by}{session}"
        yield from (f"  {printable(text)}" for text in (each.note, each.reason) if text)


def read_answers(path: Path, verdict: Verdict | None = None) -> list[Answer | FeedbackRecord]:
    """Answers of a file: CSV with a header line, or a JSON object a line.

    Each names a session by `id` (of a score record), `session` (its key) or `pattern`, and has a `verdict`: normal,
    anomalous, or none to take one back; `note` may say why. Score records are such objects, to which `verdict` is
    given, and so are those of `logmamba feedback --list --json`. Without a verdict a line is no answer.

    Args:
        path: of the file.
        verdict: for the lines that have none.

    Raises:
        InputFileError: naming the line that is no answer.
    """
    found = (_answer(f"{path}, line {number}", row, verdict) for number, row in read_rows(path, _lacking))
    return [each for each in found if each is not None]


def _lacking(columns: Collection[str]) -> str | None:
    none = set(columns).isdisjoint(_NAMED_BY)
    return "no column session, id or pattern; allowed: one of them and verdict" if none else None


def _answer(where: str, row: Mapping[str, Any], otherwise: Verdict | None) -> Answer | FeedbackRecord | None:
    if row.get("schema") == SCHEMA:
        try:
            return read_record(orjson.dumps(row))
        except ValueError as error:
            raise InputFileError(f"{where}: no record of {SCHEMA}: {error}") from None
    verdict = row.get("verdict") or otherwise
    if verdict is None:
        return None
    if verdict not in (*VERDICTS, _TAKEN_BACK):
        raise InputFileError(f"{where}: verdict {verdict!r}; allowed: {', '.join(VERDICTS)}, {_TAKEN_BACK}")
    by = next((each for each in _NAMED_BY if row.get(each)), None)
    if by is None or not isinstance(row[by], str):
        raise InputFileError(f"{where}: names no session; allowed: session, id or pattern")
    if by == "pattern" and not is_pattern(row[by]):
        raise InputFileError(f"{where}: {row[by]!r} is no pattern of a score record")
    note = row.get("note") or None
    if note is not None and not isinstance(note, str):
        raise InputFileError(f"{where}: note is not a text")
    record = None
    if row.get("schema") == SCORES:
        try:
            record = score_record(orjson.dumps(row))
        except RunError as error:
            raise InputFileError(f"{where}: {error}") from None
    final = record if record is not None and record.kind == "final" else None
    return Answer(by, row[by], None if verdict == _TAKEN_BACK else verdict, note, where, final)


class _Patterns:
    """Tells the patterns of sessions; the checkpoint is loaded only where a record does not name one."""

    def __init__(self, settings: Settings, tell: Callable[[str], object]) -> None:
        self._settings, self._tell = settings, tell
        self._scorer: Scorer | None = None

    def of(self, record: ScoreRecord) -> str:
        if record.pattern is not None:
            return record.pattern
        if self._scorer is None:
            self._tell(f"the score record of {record.session} names no pattern; reading its lines")
            self._scorer = load_scorer(self._settings)
        pattern = self._scorer.pattern(tokens_of_session(self._settings, self._scorer, record))
        if pattern is None:
            raise RunError(
                f"session {record.session}: it has lines that no template matches, and a verdict would be about every "
                "such line; teach the checkpoint their templates first (logmamba adapt, or vocabulary learn and merge)"
            )
        return pattern


def _change(each: Answer | FeedbackRecord, found: Mapping[str, ScoreRecord], patterns: _Patterns, by: str) -> _Change:
    if isinstance(each, FeedbackRecord):
        return each.pattern, each
    if each.by == "pattern":
        pattern, session, reason, checkpoint = each.name, None, None, None
    else:
        record = each.record or found[each.name]
        pattern, source, checkpoint = patterns.of(record), record.source, record.model.checkpoint
        session = JudgedSession(
            key=record.session, topic=source.topic, partition=source.partition, first_offset=source.first_offset
        )
        reason = record.why[:_MOST_REASON] or None
    if each.verdict is None:
        return pattern, None
    try:
        said = FeedbackRecord(
            pattern=pattern,
            verdict=each.verdict,
            at=iso_now(),
            by=by,
            note=each.note,
            reason=reason,
            session=session,
            checkpoint=checkpoint,
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError([f"{each.where and each.where + ': '}{wrong['loc'][0]}: {wrong['msg']}"]) from None
    return pattern, said


def _records_of(settings: Settings, answers: Sequence[Answer], tell: Callable[[str], object]) -> dict[str, ScoreRecord]:
    """The final record of each session, by what it is named by; of several sessions with one key the latest.

    Raises:
        RunError: naming those that have none.
    """
    topic, partitions = settings.output.topic, require_score_topic(settings)
    tell(f"looking for {len(answers):,} {'session' if len(answers) == 1 else 'sessions'} in {topic}")
    keys = {each.name.encode() for each in answers if each.by == "session"}
    ids = {each.name.encode() for each in answers if each.by == "id"}
    found: dict[str, ScoreRecord] = {}
    open_of: dict[bytes, str] = {}  # by key, the id of an early record that was asked for
    reader = KafkaReader(ClientProperties(settings).reader(), outage_of_a_command(), batch_records=10_000)
    try:
        with score_reader(settings) as json_of:
            for number in range(partitions):
                place = Partition(topic, number)
                for records in reader.read(place, *reader.watermarks(place)):
                    for named, value in zip(records.keys or (), records.values, strict=True):
                        key = named or b""
                        if not (ids or key in keys):
                            continue
                        text = json_of(value) or b""
                        identity = _id_of(text)
                        if identity not in ids and key not in keys and key not in open_of:
                            continue
                        record = score_record(text)
                        if record.kind == "early":
                            if identity in ids:
                                open_of[key] = identity.decode()
                            continue
                        names = [record.session] if key in keys else []
                        names += [identity.decode()] if identity in ids else []
                        names += [open_of.pop(key)] if key in open_of else []
                        found |= dict.fromkeys(names, record)
    finally:
        reader.close()
    if absent := [each for each in answers if each.name not in found]:
        still = "still open, or" if set(open_of.values()) & {each.name for each in absent} else "not there:"
        listed = "; ".join(f"{each.where and each.where + ': '}{each.by} {each.name}" for each in absent[:_MOST_ABSENT])
        more = f" and {len(absent) - _MOST_ABSENT:,} more" if len(absent) > _MOST_ABSENT else ""
        raise RunError(f"no final score record in {topic}, {still} deleted: {listed}{more}; nothing was written")
    return found


def _id_of(text: bytes) -> bytes:
    """The id of a score record without reading all of it."""
    at = text.find(_ID)
    return text[at + len(_ID) : at + len(_ID) + _ID_DIGITS] if at >= 0 else b""


def _admin(settings: Settings) -> dict[str, Any]:
    return ClientProperties(settings).admin() | {"log_level": 0}  # it is said in a line of our own

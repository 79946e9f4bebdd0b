"""From records to score records: decode, sessions, scores, in the same way for Kafka and for files.

Every output has one cause, a record, and is made if and only if the cause's offset is at or past the offset from which
its partition is live. That one rule makes the replay after a restart silent. Severities are judged in the order of the
outputs: with adaptive thresholds, each final score has its part in what the next one is judged by.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import structlog

from detector.text.tokenizer import Tokenizer
from worker.errors import RunError
from worker.observability.metrics import Metrics
from worker.processing.adaptive import LOWEST, AdaptiveState, AdaptiveThresholds
from worker.processing.clock import Move
from worker.processing.decoder import Decoder, Events
from worker.processing.fit import check_fit
from worker.processing.records import Partition, Records
from worker.processing.score_records import Headers, Kind, ScoreEncoder, Severity, Thresholds, dead_letter
from worker.processing.scorer import EventScores, Scorer
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import Session, SessionsState
from worker.processing.sessions import ClosedBy, ClosedSession, Sessions, SharedCause
from worker.processing.unknown_events import UnknownEvents
from worker.settings.document import Settings

Stage = Literal["decode", "sessions", "score", "encode"]

# Between the sessions that expired before an event joined its own (0) and those that the event ended (2, 3).
_RANK_EARLY = 1
_WARNED, _ALARMED = 1, 2
_RAISED: Mapping[Severity, int] = {"normal": 0, "warning": _WARNED, "critical": _ALARMED}
# A severity is judged by the digits that are shown; further than this below a threshold no score is rounded up to it.
_ROUNDING = 1e-6

_CALL_EVERY_S = 2.0

_log = structlog.get_logger(__name__)


class Output(NamedTuple):
    """A score record, or a dead letter (which has no severity), before it has a topic."""

    severity: Severity | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass(slots=True)
class _Open:
    """A partition that the pipeline works on."""

    sessions: Sessions
    position: int  # offset after the last record that was processed
    live_from: int  # outputs with an earlier cause are already published
    replay_from: int
    opened_at: float  # monotonic seconds
    adaptive: AdaptiveThresholds | None
    late_events: int = 0  # of those of the sessions, what is counted already
    skewed_events: int = 0


@dataclass(slots=True)
class _Job:
    """What one partition's records give to score."""

    partition: Partition
    opened: _Open
    closed: list[ClosedSession]
    touched: list[Session] = field(default_factory=list)  # open ones with new events that may cross a threshold
    # By offset and time, the events of which several have the same record as their cause: it ended a wait. Events that
    # have both in common share the cause, too.
    shared: dict[tuple[int, int], SharedCause] = field(default_factory=dict)


# What may become a score record: a closed session, or an event that may take an open one across a threshold.
# Cause, rank, number and how many of the session's events it is about are its place in the partition's output, which no
# two share; then the session, its scores and what closed it, None for an open one.
_Row = tuple[int, int, int, int, Session, EventScores, ClosedBy | None]


class Pipeline:
    """Turns records into outputs; holds the open sessions of every partition it was given.

    Args:
        settings: of the application.
        scorer: scores event sequences; its vocabulary makes the tokens.
        metrics: what is counted.
        parsed: the sessions are parsed ones, for `score_closed`, instead of those of raw lines.
        times: the records or their lines have times, as records of Kafka always do.

    Attributes:
        misfits: what differs from the checkpoint's training and shifts scores, a line each (`worker.processing.fit`).
        while_scoring: called every few seconds while sessions are scored, between two forward passes of the model. What
            it raises ends `process` or `flush`, after which partitions have to be opened anew.
        when_decoded: called with the records of each partition and the events in them.
        time_moved: told of each jump and fall of a partition's stream time, but for those that are only replayed.

    Raises:
        SettingsError: the settings cannot fit the checkpoint.
    """

    def __init__(
        self, settings: Settings, scorer: Scorer, metrics: Metrics, *, parsed: bool = False, times: bool = True
    ) -> None:
        vocabulary = scorer.vocabulary
        self.misfits = check_fit(settings, vocabulary, scorer.reading, parsed=parsed, times=times)
        self._scorer = scorer
        self._metrics = metrics
        metrics.expect(
            stages=get_args(Stage), closed_by=get_args(ClosedBy), kinds=get_args(Kind), severities=get_args(Severity)
        )
        self._tokenizer = Tokenizer(vocabulary, unknown=settings.tokenizer.unknown)
        self._unknown = UnknownEvents()
        self.decoder = Decoder(settings.input, settings.sessions, self._tokenizer)
        self._rules = SessionRules.of(settings.sessions, vocabulary)
        self._early = settings.scoring.early
        self._fixed = Thresholds(settings.scoring.warning, settings.scoring.critical)
        self._adaptive = settings.scoring.adaptive
        self._least_alert = (
            self._fixed.warning if self._adaptive is None else min(self._fixed.warning, LOWEST)
        ) - _ROUNDING
        self._alerts_only = settings.output.include == "alerts"
        self._max_value_bytes = settings.message_max_bytes
        self._encoder = ScoreEncoder(
            vocabulary=vocabulary,
            checkpoint=scorer.checkpoint,
            top_events=settings.output.top_events,
            worker=settings.instance,
            max_message_bytes=settings.message_max_bytes,
        )
        self._open: dict[Partition, _Open] = {}
        self.while_scoring: Callable[[], None] = lambda: None
        self.when_decoded: Callable[[Records, Events], None] = lambda _records, _events: None
        self.time_moved: Callable[[Partition, Move], None] = lambda _partition, _move: None

    # -- partitions ------------------------------------------------------------------------------------------------

    def open(
        self,
        partition: Partition,
        position: int = 0,
        live_from: int = 0,
        sessions: SessionsState | None = None,
        thresholds: AdaptiveState | None = None,
    ) -> None:
        """Begin, or begin again, with a partition, whose outputs start at `live_from`.

        `sessions` were open at `position`, and `thresholds` is what its adaptive thresholds had learnt by then.
        """
        adaptive = None
        if self._adaptive is not None:
            adaptive = AdaptiveThresholds(self._fixed, self._adaptive.target_rate, self._scorer.checkpoint, thresholds)
        now = time.monotonic()
        self._open[partition] = _Open(Sessions(self._rules, sessions), position, live_from, position, now, adaptive)

    def drop(self, partition: Partition) -> None:
        """Forget a partition and its sessions."""
        self._open.pop(partition, None)
        self._metrics.forget(*partition)

    def position(self, partition: Partition) -> int:
        """Offset after the last record that was processed."""
        return self._open[partition].position

    def replaying(self, partition: Partition) -> bool:
        """Whether the partition is still before the offset from which it is live."""
        opened = self._open[partition]
        return opened.position < opened.live_from

    def open_sessions(self, partition: Partition) -> int:
        """How many sessions of the partition are open."""
        return len(self._open[partition].sessions)

    @property
    def unknown_share(self) -> float | None:
        """Share of unknown ones among the latest thousand events or more; None before the first thousand."""
        return self._unknown.share

    def unfinished(self, partition: Partition) -> bool:
        """Whether `flush` would have anything to close: an open session, or an event that waits."""
        sessions = self._open[partition].sessions
        return bool(len(sessions) or sessions.clock.waiting)

    def state(self, partition: Partition) -> tuple[SessionsState, AdaptiveState | None]:
        """What a snapshot of the partition at its position holds: `open` goes on from it."""
        opened = self._open[partition]
        return opened.sessions.state(), None if opened.adaptive is None else opened.adaptive.state()

    def reached_end(self, partition: Partition, end: int) -> None:
        """Nothing is left before `end`: a replay whose last records no longer exist is over."""
        opened = self._open[partition]
        if opened.position < opened.live_from <= end:
            self._advance(partition, opened, opened.live_from)

    # -- records in, outputs out -----------------------------------------------------------------------------------

    def process(self, batch: Sequence[Records]) -> list[Output]:
        """Outputs that these records cause, in the order of their causes within each partition.

        Args:
            batch: records that follow the partitions' positions, at most one `Records` a partition.

        Raises:
            RunError: records that do not; scoring them again would break what was promised.
        """
        with self._metrics.stage("decode"):
            decoded = self._decoder_events(batch)
        outputs: list[Output] = []
        jobs = []
        with self._metrics.stage("sessions"):
            for records, events in zip(batch, decoded, strict=True):
                self.when_decoded(records, events)
                partition = Partition(records.topic, records.partition)
                opened = self._open[partition]
                if records.offsets[0] < opened.position:
                    raise RunError(f"{partition}: offset {records.offsets[0]} came again after {opened.position - 1}")
                closed = opened.sessions.process(events.keys, events.tokens, events.times, events.offsets)
                self._advance(partition, opened, records.offsets[-1] + 1)
                if opened.position <= opened.live_from:
                    self._metrics.replayed(len(records.offsets))
                    if opened.adaptive is None:
                        continue
                else:
                    self._count(partition, opened, closed)
                outputs += self._dead_letters(records, events, opened.live_from)
                jobs.append(self._job(partition, opened, closed, events.keys))
        return outputs + self._outputs(jobs)

    def flush(self, partition: Partition, end: int, closed_by: Literal["idle", "end_of_input"]) -> list[Output]:
        """Close every session of a fully consumed partition; the end offset is their cause and the new position."""
        opened = self._open[partition]
        opened.position = max(opened.position, end)
        closed = opened.sessions.flush(end, closed_by)
        self._count(partition, opened, closed)
        return self._outputs([self._job(partition, opened, closed, ())])

    def score_closed(self, partition: Partition, closed: Sequence[ClosedSession]) -> list[Output]:
        """Outputs of an open partition's sessions that were formed elsewhere (parsed sessions)."""
        return self._outputs([_Job(partition, self._open[partition], list(closed))])

    @staticmethod
    def _advance(partition: Partition, opened: _Open, position: int) -> None:
        if opened.position < opened.live_from <= position:
            took = round(time.monotonic() - opened.opened_at, 3)
            _log.info(
                "partition_live", partition=str(partition), replayed=opened.live_from - opened.replay_from, seconds=took
            )
        opened.position = position

    def _decoder_events(self, batch: Sequence[Records]) -> list[Events]:
        unknown = self._tokenizer.unknown_lines
        decoded: list[Events] = self.decoder.decode(batch)
        lines, unknown = sum(len(events.keys) for events in decoded), self._tokenizer.unknown_lines - unknown
        self._unknown.count(lines, unknown)
        if self._unknown.share is not None:
            self._metrics.unknown_share(self._unknown.share)
        self._metrics.decoded(
            records=sum(len(records.offsets) for records in batch),
            events=lines,
            unknown=unknown,
            cut=sum(events.cut for events in decoded),
            ignored=sum(events.ignored for events in decoded),
            skipped=sum(events.skipped for events in decoded),
            dead_letters=Counter(letter.reason for events in decoded for letter in events.dead_letters),
        )
        return decoded

    def _count(self, partition: Partition, opened: _Open, closed: Sequence[ClosedSession]) -> None:
        sessions, clock = opened.sessions, opened.sessions.clock
        moves = [move for move in clock.moves if move.cause_offset >= opened.live_from]
        for move in moves:
            self.time_moved(partition, move)
        self._metrics.sessions(
            *partition,
            open_sessions=len(sessions),
            waiting=clock.waiting,
            closed=Counter(each.closed_by for each in closed),
            late=clock.late_events - opened.late_events,
            skewed=clock.skewed_events - opened.skewed_events,
            jumps=sum(move.jumped for move in moves),
            falls=sum(not move.jumped for move in moves),
        )
        opened.late_events, opened.skewed_events = clock.late_events, clock.skewed_events

    def _job(self, partition: Partition, opened: _Open, closed: list[ClosedSession], keys: Iterable[str]) -> _Job:
        all_closed = len(closed)
        if opened.adaptive is None:  # else what is already published counts too
            closed = [each for each in closed if each.cause_offset >= opened.live_from]
        job = _Job(partition, opened, closed)
        if self._early:
            shared = opened.sessions.shared_causes
            for each in shared:
                place = each._replace(after=each.after - all_closed + len(closed))
                job.shared.setdefault((each.offset, each.time), place)
            for session in map(opened.sessions.get, dict.fromkeys((*keys, *(each.key for each in shared)))):
                if session is None:
                    continue
                if session.alerted & _ALARMED:
                    session.evaluated = len(session)  # nothing more can come of it before it closes
                else:
                    job.touched.append(session)
        return job

    def _dead_letters(self, records: Records, events: Events, live_from: int) -> Iterator[Output]:
        for letter in events.dead_letters:
            if records.offsets[letter.index] >= live_from:
                yield Output(None, *dead_letter(records, letter, self._max_value_bytes))

    def _outputs(self, jobs: Sequence[_Job]) -> list[Output]:
        """Score what the jobs hold, all partitions in one call, and put each partition's records in order."""
        closed = [each.session.tokens.tobytes() for job in jobs for each in job.closed]
        touched = [session.tokens.tobytes() for job in jobs for session in job.touched]
        if not closed and not touched:
            return []
        with self._metrics.stage("score"):
            scores = self._scorer.score(closed, touched, self._between_passes())
        of_closed, of_touched = iter(scores[: len(closed)]), iter(scores[len(closed) :])
        with self._metrics.stage("encode"):
            headers = self._encoder.headers()
            outputs: list[Output] = []
            for job in jobs:
                rows: list[_Row] = []
                shared = {each.cause_offset for each in job.shared.values()}
                for number, (session, cause, closed_by, rank) in enumerate(job.closed):
                    each = next(of_closed)
                    if self._early:
                        rows += self._crossings(session, each, job.shared)
                    # Of several events with one cause, some may come before what the cause closed and some after it.
                    place = 2 * number + 1 if cause in shared else rank
                    rows.append((cause, place, number, len(session), session, each, closed_by))
                for session in job.touched:
                    rows += self._crossings(session, next(of_touched), job.shared)
                rows.sort()
                judged = (self._judged(job.partition, job.opened, row, headers) for row in rows)
                outputs += [output for output in judged if output is not None]
        return outputs

    def _between_passes(self) -> Callable[[], None]:
        """What the scorer calls: one record may close every session of its partition, and scoring them take minutes."""
        called = time.monotonic()

        def passed() -> None:
            nonlocal called
            if time.monotonic() - called >= _CALL_EVERY_S:
                self.while_scoring()
                called = time.monotonic()

        return passed

    def _crossings(
        self, session: Session, scores: EventScores, shared: Mapping[tuple[int, int], SharedCause]
    ) -> list[_Row]:
        """The events not looked at before that may take an open session across a threshold."""
        begun, session.evaluated = session.evaluated, len(session)
        new = scores.scores[begun:]
        if session.alerted & _ALARMED or not new.size or new.max() < self._least_alert:
            return []
        offsets, times = session.offsets, session.times
        rows: list[_Row] = []
        for at, score in enumerate(new.tolist(), begun):
            if score >= self._least_alert:
                cause, place = offsets[at], _RANK_EARLY
                if (waited := shared.get((cause, times[at]))) is not None:
                    cause, place = waited.cause_offset, 2 * waited.after
                rows.append((cause, place, session.order, at + 1, session, scores, None))
        return rows

    def _judged(self, partition: Partition, opened: _Open, row: _Row, headers: Headers) -> Output | None:
        """The record that a row gives, if any; the rows come in the order of a partition's outputs."""
        cause, _, _, events, session, scores, closed_by = row
        adaptive = opened.adaptive
        # What was not looked at before the snapshot comes from a time without adaptive thresholds.
        thresholds = self._fixed if adaptive is None or cause < opened.replay_from else adaptive.in_force
        kind: Kind
        if closed_by is None:
            kind, score = "early", float(scores.scores[events - 1])
            raised = _RAISED[thresholds.severity(score)]
            if raised <= session.alerted:
                return None
            # An event that crosses both thresholds at once gives one record, of the higher severity.
            session.alerted |= raised
        else:
            kind, score = "final", scores.final
            if adaptive is not None:
                adaptive.learn(score)
            if self._alerts_only and thresholds.severity(score) == "normal":
                return None
        if cause < opened.live_from:
            return None
        value, severity = self._encoder.encode(
            partition,
            session,
            scores,
            kind=kind,
            closed_by=closed_by,
            cause_offset=cause,
            events=events,
            score=score,
            thresholds=thresholds,
        )
        self._metrics.scored(kind, severity)
        return Output(severity, session.key.encode(), value, headers)

"""From records to score records: decode, sessions, scores, in the same way for Kafka and for files.

Every output has one cause, a record, and is made if and only if the cause's offset is at or past the offset from which
its partition is live. That one rule makes the replay after a restart silent. Severities are judged in the order of the
outputs: with adaptive thresholds, each final score has its part in what the next one is judged by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import structlog

from detector.scoring.pace import Timed
from detector.scoring.scores import LONG, Growth, Sequences
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import Vocabulary
from worker.errors import RunError
from worker.observability.metrics import Metrics
from worker.observability.status import DriftStatus
from worker.processing.adaptive import AdaptiveState, AdaptiveThresholds
from worker.processing.clock import Move
from worker.processing.counted_decoder import CountedDecoder
from worker.processing.dead_letters import dead_letter
from worker.processing.decoder import Decoder, Events, LineEncoder
from worker.processing.drift import DriftWatch
from worker.processing.early_told import EarlyTold
from worker.processing.feedback import Feedback
from worker.processing.fit import check_fit
from worker.processing.jobs import Job, OpenPartition
from worker.processing.line_texts import LineTexts, TextKeeper, shown_texts
from worker.processing.lines import Reason
from worker.processing.origins import OriginsOfOpen
from worker.processing.outputs import ALARMED, Origin, Output, OutputMaker
from worker.processing.records import Partition, Records
from worker.processing.score_records import Kind, ScoreEncoder, Serialize, Severity
from worker.processing.scorer import Scorer
from worker.processing.session_columns import CLOSED_BY, ClosedSession, ClosedSessions, Image, SessionColumns
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import Column, SessionsState
from worker.processing.sessions import Sessions
from worker.processing.token_decoder import AnyDecoder, TokenDecoder
from worker.settings.document import Settings

Stage = Literal["decode", "sessions", "score", "drift", "encode"]

_CALL_EVERY_S = 2.0

_log = structlog.get_logger(__name__)


class Pipeline:
    """Turns records into outputs; holds the open sessions of every partition it was given.

    Args:
        settings: of the application.
        scorer: scores event sequences; its vocabulary makes the tokens.
        metrics: what is counted.
        parsed: the sessions are parsed ones, for `score_closed`, instead of those of raw lines.
        times: the records or their lines have times, as records of Kafka always do.
        serialize: makes the values of score records; None: JSON.
        feedback: what operators said of patterns; None where records say nothing of them.

    Attributes:
        scorer, feedback: that it was given.
        misfits: what differs from the checkpoint's training and shifts scores, a line each (`worker.processing.fit`).
        while_scoring: called every few seconds while sessions are scored, between two forward passes of the model. What
            it raises ends `process` or `flush`, after which partitions have to be opened anew.
        origin: where a session begins by its partition and first offset: the partition that its record names, and what
            its offsets are less there; None: where they say.
        when_decoded: called with the records of each partition and the events in them.
        time_moved: told of each jump and fall of a partition's stream time, but for those that are only replayed.
        drifted: told of each new verdict on the drift of a topic, and of the one before it.

    Raises:
        SettingsError: the settings cannot fit the checkpoint.
    """

    def __init__(
        self,
        settings: Settings,
        scorer: Scorer,
        metrics: Metrics,
        *,
        parsed: bool = False,
        times: bool = True,
        serialize: Serialize | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        vocabulary = scorer.vocabulary
        self.misfits = check_fit(settings, vocabulary, scorer.reading, parsed=parsed, times=times)
        self.scorer, self.feedback = scorer, feedback
        self._metrics = metrics
        metrics.expect(
            stages=get_args(Stage),
            closed_by=CLOSED_BY,
            kinds=get_args(Kind),
            severities=get_args(Severity),
            dead_letters=get_args(Reason),
        )
        self._tokens = settings.input.tokens
        self._most_text = settings.output.line_text
        self._keeper = TextKeeper(Tokenizer(vocabulary, unknown=settings.tokenizer.unknown))
        self.decoder = decoder_of(settings, vocabulary, self._keeper if self._most_text else None)
        self._counted = CountedDecoder(self.decoder, metrics)
        self._rules = SessionRules.of(settings.sessions, vocabulary)
        self._early = settings.scoring.early
        self._keeps_states = settings.model.growing_sessions > 0
        self._adaptive = settings.scoring.adaptive
        self._max_value_bytes = settings.message_max_bytes
        records = ScoreEncoder(
            vocabulary=vocabulary,
            checkpoint=scorer.checkpoint,
            top_events=settings.output.top_events,
            worker=settings.instance,
            max_message_bytes=settings.message_max_bytes,
            cloud_events=settings.application_id if settings.output.cloud_events else None,
            serialize=serialize,
            feedback=self.feedback_version,
        )
        self._outputs = OutputMaker(settings, scorer, records, metrics, feedback)
        self._drift = DriftWatch(
            scorer.fingerprint,
            vocabulary,
            timed=times and not parsed,
            changed=self._told_of_drift,
        )
        self._open: dict[Partition, OpenPartition] = {}
        self.while_scoring: Callable[[], None] = lambda: None
        self.origin: Origin | None = None
        self.when_decoded: Callable[[Records, Events], None] = lambda _records, _events: None
        self.time_moved: Callable[[Partition, Move], None] = lambda _partition, _move: None
        self.drifted: Callable[[DriftStatus, str], None] = lambda _drift, _before: None

    def _told_of_drift(self, drift: DriftStatus, before: str) -> None:
        self.drifted(drift, before)

    # -- partitions ------------------------------------------------------------------------------------------------

    def open(
        self,
        partition: Partition,
        position: int = 0,
        live_from: int = 0,
        sessions: SessionsState | None = None,
        thresholds: AdaptiveState | None = None,
        texts: pa.RecordBatch | None = None,
        feedback: int | None = None,
        told: str | None = "",
    ) -> None:
        """Begin, or begin again, with a partition, whose outputs start at `live_from`.

        `sessions` were open at `position`, `thresholds` is what its adaptive thresholds had learnt by then, `texts` are
        those of the sessions' lines, `feedback` is the version of the verdicts that the outputs from there to
        `live_from` were judged by, and `told` is what `told` said of them; None where nobody did.

        Raises:
            RunError: the sessions are of lines, and token records are read, or the reverse.
        """
        if sessions is not None and len(sessions.event_offsets()) and (sessions.origins is not None) != self._tokens:
            raise RunError(
                f"{partition}: its open sessions are of {'lines' if self._tokens else 'token records'}, which "
                "input.format does not read; allowed: a format that does, or another application_id"
            )
        adaptive = None
        if self._adaptive is not None:
            fixed, rate = self._outputs.fixed, self._adaptive.target_rate
            adaptive = AdaptiveThresholds(fixed, rate, self.scorer.checkpoint, thresholds)
        now = time.monotonic()
        kept = LineTexts(texts) if self._most_text else None
        before = EarlyTold(told, position)
        opened = OpenPartition(
            Sessions(self._rules, sessions), position, live_from, position, now, adaptive, kept, before
        )
        opened.same_feedback = feedback == self.feedback_version
        if self._tokens:
            opened.origins = OriginsOfOpen(None if sessions is None else sessions.origins)
        self._open[partition] = opened
        self._count(partition, opened, None)

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

    def newest_ms(self, partition: Partition) -> int | None:
        """Kafka timestamp of the latest record that was processed, in ms; None where that is not known."""
        return self._open[partition].newest_ms

    @property
    def feedback_version(self) -> int | None:
        """Of the verdicts that it judges by; None where records say nothing of patterns."""
        return None if self.feedback is None else self.feedback.version

    @property
    def unknown_share(self) -> float | None:
        """As of `CountedDecoder`."""
        return self._counted.unknown_share

    def drift(self) -> tuple[DriftStatus, ...] | None:
        """Of each topic; None where the checkpoint has no fingerprint of its training."""
        return self._drift.status()

    def unfinished(self, partition: Partition) -> bool:
        """Whether `flush` would have anything to close: an open session, or an event that waits."""
        sessions = self._open[partition].sessions
        return bool(len(sessions) or sessions.clock.waiting)

    def state(self, partition: Partition) -> tuple[SessionsState, AdaptiveState | None, pa.RecordBatch | None]:
        """What a snapshot of the partition at its position holds: `open` goes on from it."""
        opened = self._open[partition]
        return opened.sessions.state().with_origins(opened.origins), *self._beside_sessions(partition)

    def image(self, partition: Partition) -> tuple[Image, AdaptiveState | None, pa.RecordBatch | None]:
        """A copy of what `state` is made of, in a fraction of its time; `Image.state` makes the rest of it anywhere."""
        opened = self._open[partition]
        origins = None if opened.origins is None else opened.origins.image()
        return replace(opened.sessions.image(), origins=origins), *self._beside_sessions(partition)

    def _beside_sessions(self, partition: Partition) -> tuple[AdaptiveState | None, pa.RecordBatch | None]:
        opened = self._open[partition]
        return (
            None if opened.adaptive is None else opened.adaptive.state(),
            None if opened.texts is None else opened.texts.state(),
        )

    def told(self, partition: Partition, position: int) -> str | None:
        """What early records told since a snapshot of this position, for `open`; None where that is not known."""
        return self._open[partition].told.text(position)

    def look_back(self, partition: Partition) -> bool:
        """Find out what was told early of a live partition's open sessions before it was live, if nobody said it.

        Their final records take it back where they do not bear it out; another checkpoint could not know it. Returns
        whether there was anything to find out, which earlier snapshots do not know.
        """
        opened = self._open[partition]
        if not (self._early and opened.looks_back):
            return False
        told = self._scored([self._job(partition, opened, ClosedSessions.of(()))])
        assert not told, f"{partition}: only what is replayed is left to look at"
        return True

    @property
    def holds(self) -> bool:
        """Whether `process` may have outputs without new records: never."""
        return False

    def reached_end(self, partition: Partition, end: int) -> None:
        """Nothing is left before `end`: a replay whose last records no longer exist is over."""
        opened = self._open[partition]
        if opened.position < opened.live_from <= end:
            self._advance(partition, opened, opened.live_from, ClosedSessions.of(()))

    # -- records in, outputs out -----------------------------------------------------------------------------------

    def process(self, batch: Sequence[Records]) -> list[Output]:
        """Outputs that these records cause, in the order of their causes within each partition.

        Args:
            batch: records that follow the partitions' positions, at most one `Records` a partition.

        Raises:
            RunError: records that do not; scoring them again would break what was promised.
        """
        with self._metrics.stage("decode"):
            decoded = self._counted.decode(batch)
        outputs: list[Output] = []
        jobs = []
        with self._metrics.stage("sessions"):
            texts = self._texts_of(decoded)
            for records, events in zip(batch, decoded, strict=True):
                self.when_decoded(records, events)
                partition = Partition(records.topic, records.partition)
                opened = self._open[partition]
                if records.first_offset < opened.position:
                    raise RunError(f"{partition}: offset {records.first_offset} came again after {opened.position - 1}")
                if opened.origins is not None:
                    self._take_origins(opened.origins, opened.sessions, events)
                closed = opened.sessions.process(events.keys, events.tokens, events.times, events.offsets)
                if opened.texts is not None:
                    opened.texts.add(events, next(texts))
                    opened.texts.take(closed)
                self._advance(partition, opened, records.last_offset + 1, closed)
                opened.newest_ms = records.last_ms
                if opened.position <= opened.live_from:
                    self._metrics.replayed(len(records.offsets))
                    if opened.adaptive is None:
                        continue
                else:
                    self._count(partition, opened, closed)
                outputs += self._dead_letters(records, events, opened.live_from)
                jobs.append(self._job(partition, opened, closed, records))
        return outputs + self._scored(jobs)

    def flush(self, partition: Partition, end: int, closed_by: Literal["idle", "end_of_input"]) -> list[Output]:
        """Close every session of a fully consumed partition; the end offset is their cause and the new position."""
        opened = self._open[partition]
        opened.position = max(opened.position, end)
        closed = opened.sessions.flush(end << opened.event_bits, closed_by)
        if opened.texts is not None:
            opened.texts.take(closed)
        self._count(partition, opened, closed)
        return self._scored([self._job(partition, opened, closed)])

    def score_closed(self, partition: Partition, closed: Sequence[ClosedSession]) -> list[Output]:
        """Outputs of an open partition's sessions that were formed elsewhere (parsed sessions)."""
        return self._scored([Job(partition, self._open[partition], ClosedSessions.of(closed))])

    @staticmethod
    def _take_origins(origins: OriginsOfOpen, sessions: Sessions, events: Events) -> None:
        if origins.many:
            origins.keep(sessions.state().event_offsets())
        if events.origins is not None:
            origins.add(events.offsets, events.origins)

    @staticmethod
    def _advance(partition: Partition, opened: OpenPartition, position: int, closed: ClosedSessions) -> None:
        if opened.position < opened.live_from <= position:
            # Known from here on. Of these sessions nothing is scored again that came before.
            begun = opened.sessions.begun_at(opened.told.first_offsets)
            opened.told.add_to(begun)
            opened.sessions.note(begun)
            opened.told.add_to(closed.sessions)
            took = round(time.monotonic() - opened.opened_at, 3)
            _log.info(
                "partition_live", partition=str(partition), replayed=opened.live_from - opened.replay_from, seconds=took
            )
        opened.position = position

    def _texts_of(self, decoded: Sequence[Events]) -> Iterator[pa.StringArray]:
        """What records show of the lines of these events, which the tokenizer has just seen in this order."""
        lines = shown_texts(self._keeper.lines, self.scorer.vocabulary.masks, self._most_text)
        begin = 0
        for events in decoded:
            yield lines.slice(begin, len(events))
            begin += len(events)

    def _count(self, partition: Partition, opened: OpenPartition, closed: ClosedSessions | None) -> None:
        sessions, clock = opened.sessions, opened.sessions.clock
        moves = [move for move in clock.moves if move.cause_offset >= opened.live_cause]
        for move in moves:
            self.time_moved(partition, move)
        self._metrics.sessions(
            *partition,
            open_sessions=len(sessions),
            waiting=clock.waiting,
            closed={} if closed is None else closed.reasons(),
            late=clock.late_events - opened.late_events,
            skewed=clock.skewed_events - opened.skewed_events,
            jumps=sum(move.jumped for move in moves),
            falls=sum(not move.jumped for move in moves),
        )
        opened.late_events, opened.skewed_events = clock.late_events, clock.skewed_events

    def _job(
        self, partition: Partition, opened: OpenPartition, closed: ClosedSessions, records: Records | None = None
    ) -> Job:
        all_closed = len(closed)
        live = closed.causes >= opened.live_cause
        if opened.adaptive is None and not live.all():  # else what is already published counts too
            closed = closed.select(np.flatnonzero(live))
        job = Job(partition, opened, closed, records)
        if self._early:
            for each in opened.sessions.shared_causes:
                place = each._replace(after=each.after - all_closed + len(closed))
                job.shared.setdefault((each.offset, each.time), place)
            if opened.looks_back:
                job.touched = opened.sessions.behind()
                if not len(job.touched):
                    opened.told.since = opened.position
                return job
            job.grown = opened.sessions.grown(LONG, ALARMED, self.scorer.known_events)
            job.touched = opened.sessions.touched(LONG)
            alarmed = (job.touched.alerted & ALARMED) != 0
            if alarmed.any():
                done = job.touched.select(np.flatnonzero(alarmed))
                done.evaluated[:] = done.lengths  # nothing more can come of them before they close
                opened.sessions.note(done)
                job.touched = job.touched.select(np.flatnonzero(~alarmed))
        return job

    def _dead_letters(self, records: Records, events: Events, live_from: int) -> Iterator[Output]:
        for letter in events.dead_letters:
            if records.offsets[letter.index] >= live_from:
                yield Output(None, *dead_letter(records, letter, self._max_value_bytes))

    def _scored(self, jobs: Sequence[Job]) -> list[Output]:
        """Score what the jobs hold, all partitions in one call, and make their outputs."""
        passed = self._between_passes()
        if any(job.grown is not None and len(job.grown.slots) for job in jobs):
            with self._metrics.stage("score"):
                self._go_on(jobs, passed)
        closed = [job.closed.sessions for job in jobs]
        touched = [job.touched for job in jobs if job.touched is not None]
        complete = sum(map(len, closed))
        if not complete and not any(map(len, touched)):
            return []
        with self._metrics.stage("score"):
            sequences = Sequences.joined([each.sequences() for each in (*closed, *touched)])
            scores = self.scorer.score_columns(sequences, complete, passed, self._numbers(jobs))
            paced = self.scorer.paced(Timed.joined([each.timed() for each in closed])) if complete else {}
        with self._metrics.stage("drift"):
            self._drift.ended([job.partition.topic for job in jobs], closed, scores.finals[:complete])
        with self._metrics.stage("encode"):
            return self._outputs.of(jobs, scores, paced, self.origin)

    def _go_on(self, jobs: Sequence[Job], passed: Callable[[], None]) -> None:
        """Score the new events of long sessions; those that something may be told of come to `Job.touched` as a whole.

        All others are done with: of them no record is made, so that nothing but what is new of them is looked at.
        """
        grown = [job.grown for job in jobs if job.grown is not None]
        scores = self.scorer.go_on(Growth.joined([each.growth for each in grown]), passed)
        begin = 0
        for job in jobs:
            if job.grown is None:
                continue
            slots, alerted, growth, started_over = job.grown
            if self._keeps_states:
                self._metrics.long_sessions(len(slots), started_over)
            of_events = np.repeat(np.arange(len(slots)), np.diff(growth.sequences.bounds))
            own = scores[begin : begin + len(of_events)]
            begin += len(own)
            may_tell = np.zeros(len(slots), np.bool_)
            may_tell[of_events[own >= self._outputs.least_told(job)[alerted[of_events]]]] = True
            job.opened.sessions.looked_at(slots[~may_tell])
            if may_tell.any() and job.touched is not None:
                job.touched = SessionColumns.joined([job.touched, job.opened.sessions.at(slots[may_tell])])

    def _numbers(self, jobs: Sequence[Job]) -> Column | None:
        """Of the sessions, those that closed and those touched; None where no states of open ones are kept."""
        if not (self._early and self._keeps_states):
            return None
        closed = [job.opened.sessions.numbers(job.closed.sessions.order) for job in jobs]
        touched = [job.opened.sessions.numbers(job.touched.order) for job in jobs if job.touched is not None]
        return np.concatenate([*closed, *touched])

    def _between_passes(self) -> Callable[[], None]:
        """What the scorer calls: one record may close every session of its partition, and scoring them take minutes."""
        called = time.monotonic()

        def passed() -> None:
            nonlocal called
            if time.monotonic() - called >= _CALL_EVERY_S:
                self.while_scoring()
                called = time.monotonic()

        return passed


def decoder_of(settings: Settings, vocabulary: Vocabulary, encoder: LineEncoder | None = None) -> AnyDecoder:
    """What reads the records of `input`; `encoder` makes tokens of lines, as a tokenizer does unless it is given."""
    if settings.input.tokens:
        return TokenDecoder(vocabulary, settings.tokenizer.unknown)
    encoder = encoder or Tokenizer(vocabulary, unknown=settings.tokenizer.unknown)
    return Decoder(settings.input, settings.sessions, encoder)

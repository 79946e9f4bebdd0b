"""A `Pipeline` that judges and encodes every score alone, by a session of objects: the oracle of that by columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from detector.scoring.session_pattern import may_become
from worker.observability.metrics import Metrics
from worker.processing.adaptive import LOWEST
from worker.processing.feedback import Applied, Feedback
from worker.processing.jobs import OpenPartition
from worker.processing.outputs import ALARMED, RAISED, Output, SessionAlert
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.score_records import Headers, Kind, ScoreEncoder, Serialize, Severity, Thresholds
from worker.processing.scorer import EventScores, Scorer
from worker.processing.session_columns import ClosedBy, ClosedSession, SessionColumns
from worker.processing.session_state import Session
from worker.processing.sessions import SharedCause
from worker.settings.document import Settings

_RANK_EARLY = 1
_ROUNDING = 1e-6


@dataclass(slots=True)
class _Job:
    partition: Partition
    opened: OpenPartition
    closed: list[ClosedSession]
    records: Records | None = None
    touched: list[Session] = field(default_factory=list)
    shared: dict[tuple[int, int], SharedCause] = field(default_factory=dict)


# Cause, rank, number and how many of the session's events it is about; then the session, its scores, what closed it
# (None for an open one) and its number.
_Row = tuple[int, int, int, int, Session, EventScores, ClosedBy | None, int]


class PipelineOfObjects(Pipeline):
    """Gives the outputs of a `Pipeline`."""

    def __init__(
        self,
        settings: Settings,
        scorer: Scorer,
        metrics: Metrics,
        *,
        serialize: Serialize | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        super().__init__(settings, scorer, metrics, serialize=serialize, feedback=feedback)
        self._fixed = Thresholds(settings.scoring.warning, settings.scoring.critical)
        least = self._fixed.warning if self._adaptive is None else min(self._fixed.warning, LOWEST)
        self._least_alert = least - _ROUNDING
        self._alerts_only = settings.output.include == "alerts"
        self._encoder = ScoreEncoder(
            vocabulary=scorer.vocabulary,
            checkpoint=scorer.checkpoint,
            top_events=settings.output.top_events,
            worker=settings.instance,
            max_message_bytes=settings.message_max_bytes,
            cloud_events=settings.application_id if settings.output.cloud_events else None,
            serialize=serialize,
            feedback=self.feedback_version,
        )

    def _job(  # type: ignore[override]
        self,
        partition: Partition,
        opened: OpenPartition,
        closed: Sequence[ClosedSession],
        records: Records | None = None,
    ) -> _Job:
        all_closed = len(closed)
        closed = list(closed)
        if opened.adaptive is None:
            closed = [each for each in closed if each.cause_offset >= opened.live_from]
        job = _Job(partition, opened, closed, records)
        if self._early:
            for each in opened.sessions.shared_causes:
                place = each._replace(after=each.after - all_closed + len(closed))
                job.shared.setdefault((each.offset, each.time), place)
            alarmed = []
            for session in opened.sessions.touched():
                if session.alerted & ALARMED:
                    session.evaluated = len(session)
                    alarmed.append(session)
                else:
                    job.touched.append(session)
            opened.sessions.note(SessionColumns.of(alarmed))
        return job

    def _scored(self, jobs: Sequence[_Job]) -> list[Output]:  # type: ignore[override]
        closed = [each.session.tokens.tobytes() for job in jobs for each in job.closed]
        touched = [session.tokens.tobytes() for job in jobs for session in job.touched or ()]
        if not closed and not touched:
            return []
        scores = self.scorer.score(closed, touched)
        of_closed, of_touched = iter(scores[: len(closed)]), iter(scores[len(closed) :])
        headers = self._encoder.headers()
        outputs: list[Output] = []
        made: Counter[tuple[str, str]] = Counter()
        for job in jobs:
            rows: list[_Row] = []
            shared = {each.cause_offset for each in job.shared.values()}
            for number, (session, cause, closed_by, rank, nth) in enumerate(job.closed):
                each = next(of_closed)
                if self._early:
                    rows += self._crossings(session, each, job.shared, nth)
                place = 2 * number + 1 if cause in shared else rank
                rows.append((cause, place, number, len(session), session, each, closed_by, nth))
            sessions = list(job.touched or ())
            for session in sessions:
                rows += self._crossings(session, next(of_touched), job.shared)
            rows.sort(key=lambda row: row[:4])
            live_from = job.opened.live_from
            self._metrics.final_scores([row[5].final for row in rows if row[6] and row[0] >= live_from])
            judged = (self._judged(job, row, headers, made) for row in rows)
            outputs += [output for output in judged if output is not None]
            job.opened.sessions.note(SessionColumns.of(sessions))
        self._metrics.scored(made)
        return outputs

    def _crossings(
        self, session: Session, scores: EventScores, shared: Mapping[tuple[int, int], SharedCause], nth: int = 0
    ) -> list[_Row]:
        begun, session.evaluated = session.evaluated, len(session)
        new = scores.scores[begun:]
        if session.alerted & ALARMED or not new.size or new.max() < self._least_alert:
            return []
        offsets, times = session.offsets, session.times
        rows: list[_Row] = []
        for at, score in enumerate(new.tolist(), begun):
            if score >= self._least_alert:
                cause, place = offsets[at], _RANK_EARLY
                if (waited := shared.get((cause, times[at]))) is not None:
                    cause, place = waited.cause_offset, 2 * waited.after
                rows.append((cause, place, session.order, at + 1, session, scores, None, nth))
        return rows

    def _judged(self, job: _Job, row: _Row, headers: Headers, made: Counter[tuple[str, str]]) -> Output | None:
        cause, _, _, events, session, scores, closed_by, nth = row
        opened, adaptive = job.opened, job.opened.adaptive
        thresholds = self._fixed if adaptive is None or cause < opened.replay_from else adaptive.in_force
        kind: Kind
        retracts: list[Severity] = []
        applied = None
        if closed_by is None:
            if cause < opened.live_from and opened.told.since is not None:
                return None
            kind, score = "early", float(scores.scores[events - 1])
            raised = RAISED[thresholds.severity(score)]
            if raised <= session.alerted:
                return None
            known = cause >= opened.live_from or opened.same_feedback
            if self.feedback is not None and known:
                so_far = self.scorer.pattern_so_far(session.tokens[:events].tobytes())
                muted = (each.pattern for each in self.feedback.records.values() if each.verdict == "normal")
                if any(may_become(so_far, pattern) for pattern in muted):
                    return None
            session.alerted |= raised
        else:
            kind, score = "final", scores.final
            if adaptive is not None:
                adaptive.learn(score)
            scored = thresholds.severity(score)
            raised = RAISED[scored]
            if self.feedback is not None:
                pattern = self.scorer.pattern(session.tokens.tobytes())
                said = None if pattern is None else Applied(pattern, self.feedback.verdict(pattern), scored)
                if said is not None and (scored, said.severity) != ("normal", "normal"):
                    applied = said
                    raised = RAISED[applied.severity]
            if self._alerts_only and not raised and not session.alerted and applied is None:
                return None
            if session.alerted > raised:
                retracts = [each for each, bit in RAISED.items() if bit > raised and bit & session.alerted]
        if cause < opened.live_from:
            return None
        reason = None
        if kind == "final" and raised:
            reason = self.scorer.reason(session.tokens.tobytes())
        place, start = (job.partition, 0) if self.origin is None else self.origin(job.partition, session.first_offset)
        value, severity, own, shown = self._encoder.encode(
            place,
            session,
            scores,
            kind=kind,
            closed_by=closed_by,
            cause_offset=cause,
            events=events,
            score=score,
            thresholds=thresholds,
            reason=reason,
            applied=applied,
            retracts=retracts,
            nth=nth,
            start=start,
            texts=opened.texts.of(session) if raised and opened.texts is not None else None,
        )
        made[kind, severity] += 1
        caused_at_ms = None if job.records is None else job.records.timestamps_at([cause])[0]
        alert = None
        if shown is not None:
            alert = SessionAlert((place, session.first_offset - start, nth, session.key), shown)
        return Output(severity, session.key.encode(), value, headers + own if own else headers, caused_at_ms, alert)

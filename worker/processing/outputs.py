"""From scored sessions to outputs: which scores are told, by which severity, in the order of their causes.

Nearly all sessions that close are *quiet*: they stay below every threshold, and nothing was told of them before. What
is written of one depends on no other, so all records of quiet sessions are made at once. The others are judged one by
one, in the order of the outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.scores import Scores
from worker.observability.metrics import Metrics
from worker.processing.adaptive import LOWEST, AdaptiveThresholds
from worker.processing.origins import EVENT_BITS, Origins, OriginsOfOpen
from worker.processing.records import Partition, Records
from worker.processing.score_records import Kind, ScoreEncoder, Severity, Thresholds
from worker.processing.scorer import EventScores, Scorer
from worker.processing.session_columns import ClosedBy, ClosedSession, ClosedSessions, Item, Rows, SessionColumns
from worker.processing.session_state import Column, Session
from worker.processing.sessions import Sessions, SharedCause
from worker.settings.document import Settings

# Between the sessions that expired before an event joined its own (0) and those that the event ended (2, 3).
_RANK_EARLY = 1
_WARNED, ALARMED = 1, 2
#: By severity, the bit of `Session.alerted` that an early record of it leaves.
RAISED: Mapping[Severity, int] = {"normal": 0, "warning": _WARNED, "critical": ALARMED}
_NONE = np.empty(0, np.int64)
# A severity is judged by the digits that are shown; further than this below a threshold no score is rounded up to it.
_ROUNDING = 1e-6

Origin = Callable[[Partition, int], tuple[Partition, int]]


class SessionAlert(NamedTuple):
    """A record that alerts or takes an alert back: what tells its session from every other one, and it, as JSON."""

    session: Hashable
    record: bytes


class Output(NamedTuple):
    """A score record or a token record, or a dead letter (which has no severity), before it has a topic.

    `caused_at_ms` is the Kafka timestamp of the record that caused a score; None where a quiet partition did, or where
    the time is not known. `alert` is there where a record alerts, or takes an alert back. `partition` is the one that a
    token record has to go to; None lets the producer choose by key.
    """

    severity: Severity | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    caused_at_ms: int | None = None
    alert: SessionAlert | None = None
    partition: int | None = None


@dataclass(slots=True)
class OpenPartition:
    """A partition that the pipeline works on."""

    sessions: Sessions
    position: int  # offset after the last record that was processed
    live_from: int  # outputs with an earlier cause are already published
    replay_from: int
    opened_at: float  # monotonic seconds
    adaptive: AdaptiveThresholds | None
    newest_ms: int | None = None  # Kafka timestamp of the latest record
    late_events: int = 0  # of those of the sessions, what is counted already
    skewed_events: int = 0
    origins: OriginsOfOpen | None = None  # of events of token records, whose offsets and causes are numbers of events

    @property
    def event_bits(self) -> int:
        """By how many bits an event's offset, and a cause's, is greater than the record's."""
        return 0 if self.origins is None else EVENT_BITS

    @property
    def live_cause(self) -> int:
        """The least cause whose outputs are not published already."""
        return self.live_from << self.event_bits

    @property
    def replay_cause(self) -> int:
        """The least cause that is not from before the snapshot."""
        return self.replay_from << self.event_bits


@dataclass(slots=True)
class Job:
    """What one partition's records give to score."""

    partition: Partition
    opened: OpenPartition
    closed: ClosedSessions
    records: Records | None = None  # those that caused it, where records did
    touched: SessionColumns | None = None  # open ones with new events that may cross a threshold
    # By offset and time, the events of which several have the same record as their cause: it ended a wait. Events that
    # have both in common share the cause, too.
    shared: dict[tuple[int, int], SharedCause] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Closed:
    """The closed sessions of all jobs."""

    sessions: ClosedSessions
    jobs: Column  # the number of the job of each
    scores: Scores
    wanted: NDArray[np.bool_]  # whether the output of each is not published already


class _Row(NamedTuple):
    """What may become a score record: a closed session, or an event that may take an open one across a threshold.

    The first five are its place in the output, which no two share.
    """

    job: int
    cause: int
    place: int
    number: int  # of a closed session, or `Session.order`
    events: int  # how many of the session's events it is about
    session: Session
    scores: EventScores
    closed_by: ClosedBy | None  # None for an open one
    nth: int  # of `ClosedSession`


class OutputMaker:
    """Makes outputs of scored sessions.

    Args:
        settings: of the application.
        scorer: gives the reasons.
        encoder: makes the records.
        metrics: what is counted.

    Attributes:
        fixed: the thresholds where none have adapted.
    """

    def __init__(self, settings: Settings, scorer: Scorer, encoder: ScoreEncoder, metrics: Metrics) -> None:
        self.fixed = Thresholds(settings.scoring.warning, settings.scoring.critical)
        self._scorer = scorer
        self._encoder = encoder
        self._metrics = metrics
        self._early = settings.scoring.early
        self._alerts_only = settings.output.include == "alerts"
        self._adaptive = settings.scoring.adaptive is not None
        least = self.fixed.warning if settings.scoring.adaptive is None else min(self.fixed.warning, LOWEST)
        self._least_alert = least - _ROUNDING

    def of(self, jobs: Sequence[Job], scores: Scores, origin: Origin | None = None) -> list[Output]:
        """Outputs of the jobs, those of each in the order of its causes.

        Args:
            jobs: what was scored.
            scores: of the closed sessions of all jobs, then of those touched.
            origin: as of `Pipeline`.
        """
        maker = _Maker(jobs, self._encoder, self._scorer, origin)
        closed = _closed(jobs, scores)
        early: list[_Row] = []
        noted: list[tuple[SessionColumns, int, Session]] = []
        at = len(closed.jobs)
        for number, job in enumerate(jobs):
            if job.touched is not None:
                of_touched = scores.part(at, at + len(job.touched))
                at += len(job.touched)
                for row, session in _items(job.touched, self._crossing(job.touched, of_touched)):
                    early += self._crossings(number, job, session, of_touched[row])
                    noted.append((job.touched, row, session))
        outputs = self._judged(jobs, closed, early, maker)
        for touched, row, session in noted:
            touched.alerted[row] = session.alerted
        for job in jobs:
            if job.touched is not None:
                job.touched.evaluated[:] = job.touched.lengths
                job.opened.sessions.note(job.touched)
        self._metrics.final_scores(closed.scores.finals[closed.wanted])
        self._metrics.scored(maker.made)
        return outputs

    def _judged(self, jobs: Sequence[Job], closed: _Closed, early: list[_Row], maker: _Maker) -> list[Output]:
        """The outputs of closed sessions and of rows of open ones; rows of the closed ones are added to these."""
        sessions, n = closed.sessions, len(closed.jobs)
        quiet = (closed.scores.finals < self._least_alert) & (sessions.sessions.alerted == 0)
        crossing = self._crossing(sessions.sessions, closed.scores) if self._early else _NONE
        quiet[crossing] = False
        loud = dict(_items(sessions, np.flatnonzero(~quiet)))
        for number in crossing.tolist():
            job = int(closed.jobs[number])
            early += self._crossings(job, jobs[job], loud[number].session, closed.scores[number], loud[number].nth)
        order = _order(jobs, closed, early)
        quiet = np.append(quiet, np.zeros(len(early), np.bool_))[order]

        outputs: list[Output | None] = [None] * len(order)
        forms = [(job.partition, self.fixed) for job in jobs]
        form_of = closed.jobs.copy()
        alone = np.arange(len(order)) if self._adaptive else np.flatnonzero(~quiet)
        for at, number, is_quiet in zip(alone.tolist(), order[alone].tolist(), quiet[alone].tolist(), strict=True):
            if not is_quiet:
                row = early[number - n] if number >= n else _final_row(loud[number], number, closed)
                outputs[at] = self._told(row, jobs[row.job], maker)
                continue
            job = jobs[closed.jobs[number]]
            form = (
                job.partition,
                self._learnt(job.opened, int(sessions.causes[number]), float(closed.scores.finals[number])),
            )
            if form != forms[-1]:
                forms.append(form)
            form_of[number] = len(forms) - 1

        if not self._alerts_only:
            places = np.flatnonzero(quiet)
            places = places[closed.wanted[order[places]]]
            found = maker.quiet(closed, order[places], forms, form_of)
            for at, output in zip(places.tolist(), found, strict=True):
                outputs[at] = output
        return [output for output in outputs if output is not None]

    def _crossing(self, sessions: SessionColumns, scores: Scores) -> Column:
        """Which of the sessions have events, not looked at before, that may take them across a threshold."""
        if not len(sessions):
            return _NONE
        events = np.flatnonzero(scores.scores >= self._least_alert)
        rows = np.searchsorted(sessions.ends, events, side="right")
        places = events - (sessions.ends - sessions.lengths)[rows]
        new = (places >= sessions.evaluated[rows]) & ((sessions.alerted[rows] & ALARMED) == 0)
        return np.unique(rows[new])

    def _crossings(self, number: int, job: Job, session: Session, scores: EventScores, nth: int = 0) -> Iterator[_Row]:
        """The events not looked at before that may take a session of a job across a threshold."""
        begun, session.evaluated = session.evaluated, len(session)
        offsets, times = session.offsets, session.times
        for at, score in enumerate(scores.scores[begun:].tolist(), begun):
            if score >= self._least_alert:
                cause, place = offsets[at], _RANK_EARLY
                if (waited := job.shared.get((cause, times[at]))) is not None:
                    cause, place = waited.cause_offset, 2 * waited.after
                yield _Row(number, cause, place, session.order, at + 1, session, scores, None, nth)

    def _in_force(self, opened: OpenPartition, cause: int) -> Thresholds:
        # What was not looked at before the snapshot comes from a time without adaptive thresholds.
        if opened.adaptive is None or cause < opened.replay_cause:
            return self.fixed
        return opened.adaptive.in_force

    def _learnt(self, opened: OpenPartition, cause: int, final: float) -> Thresholds:
        """The thresholds for a final score, which has its part in those that come after it."""
        thresholds = self._in_force(opened, cause)
        if opened.adaptive is not None:
            opened.adaptive.learn(final)
        return thresholds

    def _told(self, row: _Row, job: Job, maker: _Maker) -> Output | None:
        """The output that a row gives, if any; the rows come in the order of outputs."""
        session, opened = row.session, job.opened
        kind: Kind
        retracts: list[Severity] = []
        if row.closed_by is None:
            kind, score = "early", float(row.scores.scores[row.events - 1])
            thresholds = self._in_force(opened, row.cause)
            raised = RAISED[thresholds.severity(score)]
            if raised <= session.alerted:
                return None
            # An event that crosses both thresholds at once gives one record, of the higher severity.
            session.alerted |= raised
        else:
            kind, score = "final", row.scores.final
            thresholds = self._learnt(opened, row.cause, score)
            raised = RAISED[thresholds.severity(score)]
            # A final record that takes an early alert back is for whoever had that.
            if self._alerts_only and not raised and not session.alerted:
                return None
            if session.alerted > raised:
                retracts = [each for each, bit in RAISED.items() if bit > raised and bit & session.alerted]
        if row.cause < opened.live_cause:
            return None
        return maker.alone(row, kind, score, thresholds, retracts)


class _Maker:
    """Makes the outputs of some jobs.

    Attributes:
        made: how many, by kind and severity.
    """

    def __init__(self, jobs: Sequence[Job], encoder: ScoreEncoder, scorer: Scorer, origin: Origin | None) -> None:
        self.made: Counter[tuple[str, str]] = Counter()
        self._jobs = jobs
        self._encoder = encoder
        self._scorer = scorer
        self._origin = origin
        self._headers = encoder.headers()

    def quiet(
        self, closed: _Closed, rows: Column, forms: Sequence[tuple[Partition, Thresholds]], form_of: Column
    ) -> list[Output]:
        """Outputs of these of the closed sessions, all quiet, which come job by job and cause by cause.

        Args:
            closed: the sessions.
            rows: which of them are meant.
            forms: partitions, and thresholds that were in force.
            form_of: by the number of a session, that of its form.
        """
        sessions, headers = closed.sessions, self._headers
        values: list[bytes | None] = [None] * len(rows)
        if self._origin is None:
            values = self._encoder.encode_normal(
                sessions, closed.scores, rows, forms, form_of[rows], self._origins_of(closed)
            )
        keys, causes, jobs = sessions.sessions.keys_as_bytes(), sessions.causes[rows], closed.jobs[rows]
        changes = np.append(True, (np.diff(causes) != 0) | (np.diff(jobs) != 0))[: len(rows)]
        caused_at = list(map(self._caused_at, jobs[changes].tolist(), causes[changes].tolist()))
        outputs = [
            Output("normal", keys[number], value, headers, caused_at[cause])
            for number, value, cause in zip(rows.tolist(), values, (np.cumsum(changes) - 1).tolist(), strict=True)
        ]
        left_out = [at for at, value in enumerate(values) if value is None]
        for at, (number, each) in zip(left_out, _items(sessions, rows[left_out]), strict=True):
            row = _final_row(each, number, closed)
            outputs[at] = self.alone(row, "final", row.scores.final, forms[form_of[number]][1], ())
        self.made["final", "normal"] += len(rows) - len(left_out)
        return outputs

    def alone(
        self, row: _Row, kind: Kind, score: float, thresholds: Thresholds, retracts: Sequence[Severity]
    ) -> Output:
        """The output of a row."""
        session, place, start = row.session, self._jobs[row.job].partition, 0
        if self._origin is not None:
            place, start = self._origin(place, session.first_offset)
        reason = None
        if kind == "final" and thresholds.severity(score) != "normal":
            reason = self._scorer.reason(session.tokens.tobytes())
        value, severity, own, shown = self._encoder.encode(
            place,
            session,
            row.scores,
            kind=kind,
            closed_by=row.closed_by,
            cause_offset=row.cause,
            events=row.events,
            score=score,
            thresholds=thresholds,
            reason=reason,
            retracts=retracts,
            nth=row.nth,
            start=start,
            origins=self._origins_of_open(row.job, np.asarray(session.offsets[: row.events], np.int64)),
        )
        self.made[kind, severity] += 1
        alert = None
        if shown is not None:
            alert = SessionAlert((place, session.first_offset - start, row.nth, session.key), shown)
        headers = self._headers + own if own else self._headers
        return Output(severity, session.key.encode(), value, headers, self._caused_at(row.job, row.cause), alert)

    def _origins_of(self, closed: _Closed) -> Origins | None:
        """Of all events of the closed sessions; None where they come from no token records."""
        sessions, parts = closed.sessions.sessions, []
        stops = np.append(0, sessions.ends)[np.searchsorted(closed.jobs, np.arange(len(self._jobs)), side="right")]
        for number, (begin, end) in enumerate(pairwise([0, *stops.tolist()])):
            found = self._origins_of_open(number, sessions.events[1, begin:end])
            if found is None:
                return None
            parts.append(found)
        return Origins.joined(parts)

    def _origins_of_open(self, job: int, events: Column) -> Origins | None:
        known = self._jobs[job].opened.origins
        return None if known is None else known.of(events).origins

    def _caused_at(self, job: int, cause: int) -> int | None:
        records, bits = self._jobs[job].records, self._jobs[job].opened.event_bits
        return None if records is None else records.timestamp_at(cause >> bits)


def _closed(jobs: Sequence[Job], scores: Scores) -> _Closed:
    """What closed of all jobs; its scores come first."""
    sessions = ClosedSessions.joined([job.closed for job in jobs])
    of = np.repeat(np.arange(len(jobs)), [len(job.closed) for job in jobs])
    live_from = np.array([job.opened.live_cause for job in jobs], np.int64)
    return _Closed(sessions, of, scores.part(0, len(sessions)), sessions.causes >= live_from[of])


def _items(columns: Rows[Item], rows: Column) -> Iterable[tuple[int, Item]]:
    """These rows, each with its number."""
    return zip(rows.tolist(), columns.select(rows), strict=True) if len(rows) else ()


def _final_row(each: ClosedSession, number: int, closed: _Closed) -> _Row:
    session, cause, closed_by, _, nth = each
    scores = closed.scores[number]
    return _Row(int(closed.jobs[number]), cause, 0, number, len(session), session, scores, closed_by, nth)


def _order(jobs: Sequence[Job], closed: _Closed, early: Sequence[_Row]) -> NDArray[np.intp]:
    """The order of the outputs, by number: the closed sessions, then the early rows."""
    sessions, numbers = closed.sessions, np.arange(len(closed.jobs))
    places = sessions.ranks
    for job, begin in zip(jobs, np.searchsorted(closed.jobs, np.arange(len(jobs))).tolist(), strict=True):
        if job.shared:
            # Of several events with one cause, some may come before what the cause closed and some after it.
            mine = slice(begin, begin + len(job.closed))
            with_others = np.isin(job.closed.causes, [each.cause_offset for each in job.shared.values()])
            places[mine] = np.where(with_others, 2 * np.arange(len(job.closed)) + 1, places[mine])
    rows = np.array([row[:5] for row in early], np.int64).reshape(-1, 5)
    columns = (closed.jobs, sessions.causes, places, numbers, sessions.sessions.lengths)
    keys = [np.concatenate([column, rows[:, at]]) for at, column in enumerate(columns)]
    return np.lexsort(keys[::-1])

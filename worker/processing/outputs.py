"""From scored sessions to outputs: which scores are told, by which severity, in the order of their causes.

What may become a record is a row of columns: each session that closed, and each event that may have taken an open one
across a threshold. The rows are put in the order of the outputs, judged in it and written all at once
(`worker.processing.record_columns`); a record that cannot be written so is made by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise, repeat
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.scores import Scores
from worker.observability.metrics import Metrics
from worker.processing import severity_loop as loop
from worker.processing.adaptive import LOWEST
from worker.processing.early_told import names
from worker.processing.feedback import Applied, Feedback
from worker.processing.jobs import Job, OpenPartition
from worker.processing.origins import Origins
from worker.processing.paced import both_reasons, raised
from worker.processing.record_columns import BY_BITS, KINDS, NOT_CLOSED, Form, RecordColumns, Told
from worker.processing.record_loop import round_all
from worker.processing.records import Partition, Records
from worker.processing.score_records import ScoreEncoder, Severity, Thresholds
from worker.processing.scorer import Paced, Reason, Scorer
from worker.processing.session_columns import CLOSED_BY, ClosedSessions, SessionColumns
from worker.processing.session_state import Column
from worker.processing.verdict_rows import Judged, VerdictRows
from worker.settings.document import Settings

# Between the sessions that expired before an event joined its own (0) and those that the event ended (2, 3).
_RANK_EARLY = 1
ALARMED: Final = loop.ALARMED
#: By severity, the bit of `Session.alerted` that an early record of it leaves.
RAISED: Final[Mapping[Severity, int]] = {"normal": 0, "warning": loop.WARNED, "critical": ALARMED}
_SEVERITIES: Final = tuple(RAISED)  # by number
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


class _Subjects(NamedTuple):
    """The sessions that rows are about: those that closed, then the open ones that may cross a threshold."""

    sessions: SessionColumns
    scores: Scores
    jobs: Column  # the number of the job of each
    nth: Column  # of `ClosedSession`; 0 for an open one
    paced: Mapping[int, Paced]  # those that stand out by their pace, all of them closed


class _Rows(NamedTuple):
    """What may become score records; the first five tell the place in the output, which no two share."""

    jobs: Column
    causes: Column
    places: Column
    numbers: Column  # of closed sessions, or `Session.order`
    events: Column  # how many of the session's events it is about
    subjects: Column
    closed_by: Column  # NOT_CLOSED for a session that goes on
    scores: NDArray[np.float64]

    def select(self, rows: NDArray[np.intp]) -> _Rows:
        """These rows, in this order."""
        return _Rows._make(column[rows] for column in self)


class OutputMaker:
    """Makes outputs of scored sessions.

    Args:
        settings: of the application.
        scorer: gives the reasons.
        encoder: makes the records.
        metrics: what is counted.
        feedback: what operators said; None where records say nothing of patterns.

    Attributes:
        fixed: the thresholds where none have adapted.
    """

    def __init__(
        self,
        settings: Settings,
        scorer: Scorer,
        encoder: ScoreEncoder,
        metrics: Metrics,
        feedback: Feedback | None = None,
    ) -> None:
        self.fixed = Thresholds(settings.scoring.warning, settings.scoring.critical)
        self._scorer = scorer
        self._encoder = encoder
        self._columns = RecordColumns(encoder)
        self._metrics = metrics
        self._verdicts = None if feedback is None else VerdictRows(feedback, scorer)
        self._early = settings.scoring.early
        self._alerts_only = settings.output.include == "alerts"
        self._adaptive = settings.scoring.adaptive is not None
        least = self.fixed.warning if settings.scoring.adaptive is None else min(self.fixed.warning, LOWEST)
        self._least_alert = least - _ROUNDING

    def of(
        self, jobs: Sequence[Job], scores: Scores, paced: Mapping[int, Paced], origin: Origin | None = None
    ) -> list[Output]:
        """Outputs of the jobs, those of each in the order of its causes.

        Args:
            jobs: what was scored.
            scores: of the closed sessions of all jobs, then of those touched.
            paced: of the closed sessions by number, those that stand out by their pace.
            origin: as of `Pipeline`.
        """
        closed, crossing = ClosedSessions.joined([job.closed for job in jobs]), []
        of_subjects, end = [raised(scores.part(0, len(closed)), paced)], len(closed)
        high = np.searchsorted(scores.ends, np.flatnonzero(scores.scores >= self._least_alert), side="right")
        for number, job in enumerate(jobs):
            if job.touched is not None:
                begin, end = end, end + len(job.touched)
                first, last = np.searchsorted(high, (begin, end)).tolist()
                if first == last:  # as most often: no session of the partition is near a threshold
                    continue
                of_touched = scores.part(begin, end)
                rows = np.unique(self._crossing(job.touched, of_touched)[0])
                if len(rows):
                    crossing.append((number, job.touched, rows))
                    of_subjects.append(of_touched.select(rows))
        subjects = _Subjects(
            SessionColumns.joined([closed.sessions, *(touched.select(rows) for _, touched, rows in crossing)]),
            Scores.joined(of_subjects),
            np.repeat(
                [*range(len(jobs)), *(number for number, _, _ in crossing)],
                [*(len(job.closed) for job in jobs), *(len(rows) for _, _, rows in crossing)],
            ),
            np.append(closed.nth, np.zeros(sum(map(len, of_subjects[1:])), np.int64)),
            paced,
        )
        alerted = subjects.sessions.alerted.copy()
        outputs = self._outputs(jobs, closed, subjects, alerted, origin)
        at = len(closed)
        _forget_closed(jobs, closed, subjects, alerted)
        for number, touched, rows in crossing:
            now = alerted[at : at + len(rows)]
            _remember(jobs[number].opened, touched, rows, now)
            touched.alerted[rows] = now
            at += len(rows)
        for job in jobs:
            if job.touched is not None:
                job.touched.evaluated[:] = job.touched.lengths
                job.opened.sessions.note(job.touched)
                if job.opened.looks_back:
                    job.opened.told.since = job.opened.position
        return outputs

    def least_told(self, job: Job) -> NDArray[np.float64]:
        """The least early score that may be told of, by what has been told early of its session (`Session.alerted`)."""
        adaptive, fixed = job.opened.adaptive, self.fixed
        least = fixed
        if adaptive is not None:
            in_force = adaptive.in_force if adaptive.holds_for(len(job.closed)) else Thresholds(LOWEST, LOWEST)
            least = Thresholds(*map(min, fixed, in_force))
        return np.array([least.warning, least.critical, np.inf, np.inf]) - _ROUNDING

    def _outputs(
        self, jobs: Sequence[Job], closed: ClosedSessions, subjects: _Subjects, alerted: Column, origin: Origin | None
    ) -> list[Output]:
        """The outputs; what has been told early of each of the subjects is in `alerted`, and added to it."""
        rows = self._rows(jobs, closed, subjects)
        thresholds, which = self._thresholds(jobs, rows)
        warnings, criticals = (np.array(column, np.float64)[which] for column in zip(*thresholds, strict=True))
        early = rows.closed_by == NOT_CLOSED
        shown = np.empty(len(which), np.float64)
        round_all(rows.scores, shown)
        live = rows.causes >= np.array([job.opened.live_cause for job in jobs], np.int64)[rows.jobs]
        verdicts = np.zeros(len(which), np.int64)
        if self._verdicts is not None:
            as_told = ~live & ~np.array([job.opened.same_feedback for job in jobs], np.bool_)[rows.jobs]
            by_pace = np.isin(rows.subjects, np.fromiter(subjects.paced, np.int64))
            looked_at = Judged(rows.subjects, rows.events, early, shown >= warnings, as_told, by_pace)
            verdicts = self._verdicts.of(subjects.sessions, looked_at)
        judged = loop.Judged(*(np.empty(len(which), np.int64) for _ in loop.Judged._fields))
        scored = loop.Scored(rows.subjects, shown, warnings, criticals, early.astype(np.int64), verdicts)
        loop.judge(scored, alerted, judged)

        self._metrics.final_scores(rows.scores[live & ~early])
        wanted = live & (judged.told != 0)
        if self._alerts_only:
            # A final record that takes an early alert back is for whoever had that, one that is muted says so.
            wanted &= (judged.severities != loop.NORMAL) | (judged.before != 0) | (judged.scored != loop.NORMAL)
        if not wanted.all():
            kept = np.flatnonzero(wanted)
            rows, which, early = rows.select(kept), which[kept], early[kept]
            judged = loop.Judged(*(column[kept] for column in judged))
        self._count(early, judged)

        reasons, applied, reason_of = self._whys(subjects, rows, judged)
        partitions, of, starts = _places(jobs, subjects, rows, origin)
        shape = len(partitions), len(thresholds), len(KINDS), len(_SEVERITIES)
        codes = np.ravel_multi_index((of, which, early.astype(np.int64), judged.severities), shape)
        found, form_of = np.unique(codes, return_inverse=True)
        forms = [
            Form(partitions[place], thresholds[threshold], KINDS[is_early], _SEVERITIES[severity])
            for place, threshold, is_early, severity in zip(*np.unravel_index(found, shape), strict=True)
        ]
        told = Told(
            sessions=rows.subjects,
            events=rows.events,
            scores=rows.scores,
            causes=rows.causes,
            closed_by=rows.closed_by,
            nth=subjects.nth[rows.subjects],
            starts=starts,
            forms=form_of,
            reasons=reason_of,
            retracts=judged.retracts,
        )
        return self._made(jobs, subjects, rows, told, forms, reasons, applied)

    def _rows(self, jobs: Sequence[Job], closed: ClosedSessions, subjects: _Subjects) -> _Rows:
        """What may become records, in the order of the outputs."""
        n, numbers = len(closed), np.arange(len(closed))
        places = closed.ranks
        for job, begin in zip(jobs, np.searchsorted(subjects.jobs[:n], np.arange(len(jobs))).tolist(), strict=True):
            if job.shared:
                # Of several events with one cause, some may come before what the cause closed and some after it.
                mine = slice(begin, begin + len(job.closed))
                with_others = np.isin(job.closed.causes, [each.cause_offset for each in job.shared.values()])
                places[mine] = np.where(with_others, 2 * np.arange(len(job.closed)) + 1, places[mine])
        finals = subjects.scores.finals[:n]
        lengths = closed.sessions.lengths
        rows = _Rows(subjects.jobs[:n], closed.causes, places, numbers, lengths, numbers, closed.closed_by, finals)
        if self._early:
            early = self._early_rows(jobs, subjects)
            if len(early.jobs):
                rows = _Rows._make(map(np.concatenate, zip(rows, early, strict=True)))
        return rows.select(np.lexsort(rows[4::-1]))

    def _early_rows(self, jobs: Sequence[Job], subjects: _Subjects) -> _Rows:
        """The events not looked at before that may take their sessions across a threshold."""
        sessions = subjects.sessions
        of, events = self._crossing(sessions, subjects.scores)
        at = (sessions.ends - sessions.lengths)[of] + events
        numbers, causes, places = subjects.jobs[of], sessions.events[1, at], np.full(len(of), _RANK_EARLY)
        for number, job in enumerate(jobs):
            for row in np.flatnonzero(numbers == number).tolist() if job.shared else ():
                waited = job.shared.get((int(causes[row]), int(sessions.events[2, at[row]])))
                if waited is not None:
                    causes[row], places[row] = waited.cause_offset, 2 * waited.after
        scores = subjects.scores.scores[at].astype(np.float64)
        closed_by, order = np.full(len(of), NOT_CLOSED), sessions.order[of]
        rows = _Rows(numbers, causes, places, order, events + 1, of, closed_by, scores)
        # Of what is published already whoever published it has said which early records there are, if it is known.
        known = [0 if job.opened.told.since is None else job.opened.live_cause for job in jobs]
        return rows.select(np.flatnonzero(causes >= np.array(known, np.int64)[numbers]))

    def _crossing(self, sessions: SessionColumns, scores: Scores) -> tuple[Column, Column]:
        """The events, not looked at before, that may take their sessions across a threshold, by session and number."""
        if not len(sessions):
            return _NONE, _NONE
        events = np.flatnonzero(scores.scores >= self._least_alert)
        of = np.searchsorted(sessions.ends, events, side="right")
        events -= (sessions.ends - sessions.lengths)[of]
        new = (events >= sessions.evaluated[of]) & ((sessions.alerted[of] & ALARMED) == 0)
        return of[new], events[new]

    def _thresholds(self, jobs: Sequence[Job], rows: _Rows) -> tuple[list[Thresholds], Column]:
        """Thresholds, and which of them are in force for each row; a final score has its part in those after it."""
        if not self._adaptive:
            return [self.fixed], np.zeros(len(rows.jobs), np.int64)
        found: dict[Thresholds, int] = {self.fixed: 0}
        which = []
        columns = rows.jobs.tolist(), rows.causes.tolist(), rows.closed_by.tolist(), rows.scores.tolist()
        for number, cause, closed_by, score in zip(*columns, strict=True):
            opened, thresholds = jobs[number].opened, self.fixed
            if opened.adaptive is not None:
                # What was not looked at before the snapshot comes from a time without adaptive thresholds.
                if cause >= opened.replay_cause:
                    thresholds = opened.adaptive.in_force
                if closed_by != NOT_CLOSED:
                    opened.adaptive.learn(score)
            which.append(found.setdefault(thresholds, len(found)))
        return list(found), np.array(which, np.int64)

    def _whys(
        self, subjects: _Subjects, rows: _Rows, judged: loop.Judged
    ) -> tuple[list[Reason | None], list[Applied | None], Column]:
        """Reasons, what is said of patterns, and which of them each row has; most have the first, which says nothing.

        Final records have one that alert, or would by their scores alone.
        """
        reasons: list[Reason | None] = [None]
        applied: list[Applied | None] = [None]
        which = np.zeros(len(judged.scored), np.int64)
        loud = np.flatnonzero(((judged.severities | judged.scored) != loop.NORMAL) & (rows.closed_by != NOT_CLOSED))
        sessions, known = subjects.sessions, dict[tuple[bytes, int], int]()
        numbers = rows.subjects[loud]
        columns = (
            loud,
            numbers,
            sessions.ends[numbers],
            rows.events[loud],
            judged.severities[loud],
            judged.scored[loud],
        )
        for row, number, end, events, severity, scored in zip(*(column.tolist() for column in columns), strict=True):
            sequence = sessions.events[0, end - events : end].tobytes()
            if (at := known.get((sequence, scored))) is None:
                at = known[sequence, scored] = len(reasons)
                reasons.append(None if severity == loop.NORMAL else self._scorer.reason(sequence))
                verdicts = self._verdicts
                applied.append(None if verdicts is None else verdicts.applied(sequence, _SEVERITIES[scored]))
            if number in subjects.paced:
                reasons.append(both_reasons(reasons[at], subjects.paced[number].reason))
                applied.append(None)  # a pattern is of events, whatever their times
                at = len(reasons) - 1
            which[row] = at
        return reasons, applied, which

    def _count(self, early: NDArray[np.bool_], judged: loop.Judged) -> None:
        codes = early * len(_SEVERITIES) + judged.severities
        counts = np.bincount(codes, minlength=len(KINDS) * len(_SEVERITIES)).tolist()
        names = [(kind, severity) for kind in KINDS for severity in _SEVERITIES]
        self._metrics.scored({name: count for name, count in zip(names, counts, strict=True) if count})
        for by_score, now in zip(
            *(column[judged.scored != judged.severities].tolist() for column in (judged.scored, judged.severities)),
            strict=True,
        ):
            self._metrics.judged(_SEVERITIES[by_score], _SEVERITIES[now])

    def _made(
        self,
        jobs: Sequence[Job],
        subjects: _Subjects,
        rows: _Rows,
        told: Told,
        forms: Sequence[Form],
        reasons: Sequence[Reason | None],
        applied: Sequence[Applied | None],
    ) -> list[Output]:
        """The outputs of rows, of which each becomes a record."""
        sessions, shared = subjects.sessions, self._encoder.headers()
        origins, begins = _origins(jobs, subjects), sessions.ends - sessions.lengths
        values, own = self._columns.encode(sessions, subjects.scores, told, forms, reasons, origins, applied)
        headers = [shared + each for each in own] if own else [shared] * len(values)
        keys, form_of = sessions.keys_as_bytes(), told.forms.tolist()

        is_loud = np.array([form.severity != "normal" for form in forms], np.bool_)[told.forms]
        texts = [job.opened.texts for job in jobs]
        shown: dict[int, bytes] = {}  # records as JSON that are not written so
        # Texts of lines are put into a record by itself; few sessions are told of.
        alone = is_loud if any(each is not None for each in texts) else np.zeros(len(values), np.bool_)
        left_out = []
        if alone.any() or not all(values):
            left_out = [at for at, value in enumerate(values) if value is None or alone[at]]
        for at, session in zip(left_out, sessions.select(told.sessions[left_out]) if left_out else (), strict=True):
            form, closed_by, own_texts = forms[form_of[at]], int(told.closed_by[at]), texts[rows.jobs[at]]
            begin, events = int(begins[told.sessions[at]]), int(told.events[at])
            made = self._encoder.encode(
                form.partition,
                session,
                subjects.scores[told.sessions[at]],
                kind=form.kind,
                closed_by=None if closed_by == NOT_CLOSED else CLOSED_BY[closed_by],
                cause_offset=int(told.causes[at]),
                events=events,
                score=float(told.scores[at]),
                thresholds=form.thresholds,
                reason=reasons[told.reasons[at]],
                applied=applied[told.reasons[at]],
                retracts=BY_BITS[told.retracts[at]],
                nth=int(told.nth[at]),
                start=int(told.starts[at]),
                origins=None if origins is None else origins.select(slice(begin, begin + events)),
                texts=own_texts.of(session) if own_texts is not None and is_loud[at] else None,
            )
            values[at] = made.value
            if made.headers:
                headers[at] = shared + made.headers
            if made.shown is not None:
                shown[at] = made.shown

        alerts: list[SessionAlert | None] = [None] * len(values)
        loud = np.flatnonzero(is_loud | (told.retracts != 0))
        first_offsets = sessions.first_offsets[told.sessions[loud]] - told.starts[loud]
        columns = loud, told.sessions[loud], first_offsets, told.nth[loud]
        for at, number, first_offset, nth in zip(*(column.tolist() for column in columns), strict=True):
            session_of = forms[form_of[at]].partition, first_offset, nth, keys[number].decode()
            record = shown.get(at, values[at])
            assert record is not None
            alerts[at] = SessionAlert(session_of, record)
        severities = [form.severity for form in forms]
        outputs = zip(
            map(severities.__getitem__, form_of),
            map(keys.__getitem__, told.sessions.tolist()),
            values,
            headers,
            _caused_at(jobs, rows),
            alerts,
            repeat(None, len(values)),
            strict=True,
        )
        return list(map(tuple.__new__, repeat(Output), outputs))  # as `Output._make`, without a call of Python's


def _places(
    jobs: Sequence[Job], subjects: _Subjects, rows: _Rows, origin: Origin | None
) -> tuple[list[Partition], Column, Column]:
    """Partitions that records name, which of them each row has, and what its offsets are less there."""
    if origin is None:
        return [job.partition for job in jobs], rows.jobs, np.zeros(len(rows.jobs), np.int64)
    found: dict[Partition, int] = {}
    which, starts = [], []
    first_offsets = subjects.sessions.first_offsets[rows.subjects].tolist()
    for number, first_offset in zip(rows.jobs.tolist(), first_offsets, strict=True):
        place, start = origin(jobs[number].partition, first_offset)
        which.append(found.setdefault(place, len(found)))
        starts.append(start)
    return list(found), np.array(which, np.int64), np.array(starts, np.int64)


def _forget_closed(jobs: Sequence[Job], closed: ClosedSessions, subjects: _Subjects, alerted: Column) -> None:
    """What early records told of sessions that closed need not be known once their final ones are published."""
    rows = np.flatnonzero(alerted[: len(closed)])
    if not len(rows):
        return
    of_jobs, causes = subjects.jobs[rows].tolist(), closed.causes[rows].tolist()
    for number, cause, place in zip(of_jobs, causes, names(closed.sessions, rows), strict=True):
        if cause >= jobs[number].opened.live_cause:
            jobs[number].opened.told.closed(*place)


def _remember(opened: OpenPartition, sessions: SessionColumns, rows: Column, alerted: Column) -> None:
    """What early records have told by now of those open sessions of which they had not."""
    new = np.flatnonzero(alerted != sessions.alerted[rows])
    if len(new):
        for place, bits in zip(names(sessions, rows[new]), alerted[new].tolist(), strict=True):
            opened.told.tell(*place, opened.position - 1, bits)


def _origins(jobs: Sequence[Job], subjects: _Subjects) -> Origins | None:
    """Of all events of the subjects; None where they come from no token records."""
    if any(job.opened.origins is None for job in jobs):
        return None
    sessions = subjects.sessions
    of_events, parts = np.repeat(subjects.jobs, sessions.lengths), []
    for begin, end in pairwise([0, *(np.flatnonzero(np.diff(of_events)) + 1).tolist(), len(of_events)]):
        known = jobs[of_events[begin]].opened.origins if begin < end else None
        if known is not None:
            parts.append(known.of(sessions.events[1, begin:end]).origins)
    return Origins.joined(parts)


def _caused_at(jobs: Sequence[Job], rows: _Rows) -> list[int | None]:
    """Kafka's timestamp of the cause of each row; rows come job by job and cause by cause."""
    changes = np.append(True, (np.diff(rows.causes) != 0) | (np.diff(rows.jobs) != 0))[: len(rows.jobs)]
    found: list[int | None] = []
    causes, ends = rows.causes[changes], np.searchsorted(rows.jobs[changes], np.arange(len(jobs)), side="right")
    begin = 0
    for job, end in zip(jobs, ends.tolist(), strict=True):
        found += _timestamps(job.records, causes[begin:end] >> job.opened.event_bits)
        begin = end
    return list(map(found.__getitem__, (np.cumsum(changes) - 1).tolist()))


def _timestamps(records: Records | None, offsets: Column) -> list[int | None]:
    return [None] * len(offsets) if records is None else records.timestamps_at(offsets)

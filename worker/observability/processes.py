"""The processes of one worker as one: what each tells about once a second, and what that comes to together.

Counts go on over a restart: what the processes before it counted is added to what a process counts. Of one that is not
there only its counts are shown.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

from detector.scoring.score_histogram import score_histogram
from worker.observability.metrics import Observed
from worker.observability.recent_alerts import MOST_SESSIONS, Published, PublishedAlerts
from worker.observability.repeated import repeated
from worker.observability.status import DriftStatus, ProcessState, ProcessStatus, WorkerStatus

_INTERVAL_S = 1.0
_VERDICTS = (None, "ok", "watch", "retrain")  # of drift, the worst last
_COUNTED = {"counter", "histogram"}  # types of metrics whose samples are counts


class ProcessReport(NamedTuple):
    """What a process tells of its worker.

    Attributes:
        status: of it.
        heartbeat_age_s: since its loop last came round.
        metrics: all of its registry.
        score_histogram: as of `Metrics`.
        alerts: the sessions that alerted last; None where they are what it told before.
    """

    status: WorkerStatus
    heartbeat_age_s: float
    metrics: Sequence[Metric]
    score_histogram: npt.NDArray[np.float64]
    alerts: Sequence[Published] | None


@contextmanager
def reporting(
    send: Callable[[ProcessReport], object],
    metrics: Observed,
    status: Callable[[], WorkerStatus],
    alerts: PublishedAlerts,
) -> Iterator[None]:
    """Tell of a worker at the beginning of a `with` block and about every second within it.

    Where nobody listens any more (`send` raises an `OSError`), the process asks itself to stop.
    """
    told: Sequence[Published] = ()

    def tell() -> None:
        nonlocal told
        before, told = told, alerts.published()
        news = None if told == before else told
        families = list(metrics.registry.collect())
        try:
            send(ProcessReport(status(), metrics.heartbeat_age_s(), families, metrics.score_histogram, news))
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)

    tell()
    with repeated(tell, _INTERVAL_S, "logmamba-report"):
        yield


class JoinedProcesses(PublishedAlerts):
    """The processes of a worker, as its endpoint and its pages ask for them (`worker.observability.metrics.Observed`).

    One thread tells it of them, others read.

    Args:
        whole: the status of the worker before a process has told its own.
        names: of its processes.
        clock: monotonic seconds.

    Attributes:
        registry: the metrics of all processes, with the label `process`: its number, from 0.
    """

    def __init__(self, whole: WorkerStatus, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._whole, self._clock = whole, clock
        self._processes = [_Process(name) for name in names]
        self._lock = Lock()
        self.registry: CollectorRegistry = _Registry(self._collect)

    def started(self, number: int, pid: int) -> None:
        """A process is there, for the first time or again."""
        process = self._processes[number]
        with self._lock:
            restarts = process.status.restarts + (process.status.state == "restarting")
            process.status = replace(process.status, state="starting", pid=pid, restarts=restarts)

    def told(self, number: int, report: ProcessReport) -> None:
        """What a process told of itself."""
        with self._lock:
            self._processes[number].tell(report, self._clock())

    def ended(self, number: int, reason: str, *, given_up: bool) -> None:
        """A process is no longer there."""
        with self._lock:
            self._processes[number].end(reason, "given_up" if given_up else "restarting")

    @property
    def score_histogram(self) -> npt.NDArray[np.float64]:
        """Of the final scores of all processes so far."""
        with self._lock:
            return sum((process.scores for process in self._processes), score_histogram([]))

    def heartbeat_age_s(self) -> float:
        """The longest time since the loop of a process came round, of those that are there."""
        now = self._clock()
        with self._lock:
            ages = [now - each.at + each.report.heartbeat_age_s for each in self._processes if each.report is not None]
        return max(ages, default=0.0)

    def published(self) -> list[Published]:
        """The sessions that alerted last in any process, the latest first."""
        with self._lock:
            kept = [alert for process in self._processes for alert in process.alerts]
        return sorted(kept, key=lambda alert: alert.at, reverse=True)[:MOST_SESSIONS]

    def status(self) -> WorkerStatus:
        """Of all processes together."""
        with self._lock:
            processes = tuple(process.status for process in self._processes)
            told = [process.report.status for process in self._processes if process.report is not None]
            totals = sum((process.totals for process in self._processes), Counter[str]())
        shares = [each.unknown_share for each in told if each.unknown_share is not None]
        return replace(
            self._whole,
            checkpoint=_together(each.checkpoint for each in told),
            vocabulary=_together(each.vocabulary for each in told),
            trained_score_shares=told[0].trained_score_shares if told else None,
            joined=len(told) == len(processes) and all(each.joined for each in told),
            broker_away=any(each.broker_away for each in told),
            missing_topics=tuple(sorted({topic for each in told for topic in each.missing_topics})),
            partitions=tuple(
                sorted((place for each in told for place in each.partitions), key=lambda at: (at.topic, at.partition))
            ),
            totals=dict(totals),
            unknown_share=max(shares, default=None),
            drift=_worst_drift([each.drift for each in told]),
            reload=max((each.reload for each in told if each.reload), key=lambda reload: reload.at, default=None),
            processes=processes,
        )

    def _collect(self) -> Iterator[Metric]:
        with self._lock:
            told = [list(process.metrics()) for process in self._processes]
            states = Counter(process.status.state for process in self._processes)
            restarts = sum(process.status.restarts for process in self._processes)
        families: dict[str, Metric] = {}
        for number, metrics in enumerate(told):
            for each in metrics:
                family = families.setdefault(each.name, Metric(each.name, each.documentation, each.type))
                family.samples += [_labelled(sample, number) for sample in each.samples]
        yield from families.values()
        by_state = GaugeMetricFamily("logmamba_processes", "Processes of the worker, by state", labels=["state"])
        for state in get_args(ProcessState):
            by_state.add_metric([state], states[state])
        yield by_state
        yield CounterMetricFamily("logmamba_process_restarts", "Processes that were started again", value=restarts)


class _Process:
    """What is known of one process and of those that were there before it."""

    def __init__(self, name: str) -> None:
        self.status = ProcessStatus(name, None, "starting")
        self.report: ProcessReport | None = None  # of the one that is there
        self.at = 0.0  # when it told that
        self.alerts: Sequence[Published] = ()
        self._old_alerts: Sequence[Published] = ()
        self._old_counts: Mapping[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._old_totals: Counter[str] = Counter()
        self._old_scores = score_histogram([])
        self._left: Sequence[Metric] = ()  # counts of the one before, while none is there

    @property
    def totals(self) -> Counter[str]:
        """Counts since the start."""
        return self._old_totals + Counter(self.report.status.totals if self.report else {})

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Histogram of the final scores since the start."""
        return self._old_scores + self.report.score_histogram if self.report else self._old_scores

    def tell(self, report: ProcessReport, at: float) -> None:
        self.report, self.at = report, at
        if report.alerts is not None:
            self.alerts = [*report.alerts, *self._old_alerts][:MOST_SESSIONS]
        self.status = replace(self.status, state="running", partitions=len(report.status.partitions))

    def end(self, reason: str, state: ProcessState) -> None:
        self._left = [each for each in self.metrics() if each.type in _COUNTED]
        self._old_totals, self._old_scores, self._old_alerts = self.totals, self.scores, self.alerts
        self._old_counts = {
            _place(sample): sample.value
            for each in self._left
            for sample in each.samples
            if not sample.name.endswith("_created")  # a time
        }
        self.report = None
        self.status = replace(self.status, state=state, reason=reason, pid=None, partitions=0)

    def metrics(self) -> Iterable[Metric]:
        """Its metrics, counts since the start."""
        if self.report is None:
            yield from self._left
            return
        for each in self.report.metrics:
            family = Metric(each.name, each.documentation, each.type)
            family.samples = [
                sample._replace(value=sample.value + self._old_counts.get(_place(sample), 0.0))
                for sample in each.samples
            ]
            yield family


class _Registry(CollectorRegistry):
    """Metrics that come from one function."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        super().__init__()
        self._all = collect

    def collect(self) -> Iterator[Metric]:
        """All there are."""
        return self._all()

    def restricted_registry(self, _: Iterable[str]) -> _Registry:  # type: ignore[override]
        """The same: what is asked for by name is among them."""
        return self


def _worst_drift(told: Sequence[tuple[DriftStatus, ...] | None]) -> tuple[DriftStatus, ...] | None:
    """Of each topic what the process says that has seen the most drift: each judges the partitions that it has."""
    if all(each is None for each in told):
        return None
    worst: dict[str, DriftStatus] = {}
    for each in (status for statuses in told for status in statuses or ()):
        known = worst.setdefault(each.topic, each)
        if (_VERDICTS.index(each.verdict), each.sessions) > (_VERDICTS.index(known.verdict), known.sessions):
            worst[each.topic] = each
    return tuple(worst[topic] for topic in sorted(worst))


def _place(sample: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    """What tells a count from every other one."""
    return sample.name, frozenset(sample.labels.items())


def _labelled(sample: Sample, process: int) -> Sample:
    return sample._replace(labels={**sample.labels, "process": str(process)})


def _together(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))

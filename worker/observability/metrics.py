"""What a worker tells about itself: its log and its metrics. `worker.observability.http_server` serves them.

There are no globals: metrics live in the registry of their `Metrics` object, and only `configure_logging` touches
the process.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.typing import Processor

from worker.processing.decoder import Events
from worker.processing.records import Partition, Records
from worker.processing.score_records import Kind, Severity
from worker.processing.sessions import ClosedBy, ClosedSession, Sessions

Stage = Literal["decode", "sessions", "score", "encode"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BYTES = tuple(1024.0 * 4**power for power in range(10))  # 1 KiB to 256 MiB


def configure_logging(
    level: Literal["debug", "info", "warning", "error"], log_format: Literal["auto", "console", "json"]
) -> None:
    """Send the process's log, the libraries' included, to stderr: one event a line, times in UTC.

    Args:
        level: the least severe level that is written.
        log_format: `console` is for people, `json` for machines, `auto` the first on a terminal.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = (
        # Its own way of showing an exception shows what local variables hold: raw lines, or a password.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if for_people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _json(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()


class Metrics:
    """Counts what a worker does, in Prometheus's terms. Its methods may be called from any thread.

    Args:
        registry: where the metrics are registered; a new one by default.
        clock: monotonic seconds.
    """

    def __init__(self, registry: CollectorRegistry | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._clock = clock
        self._beat_at = clock()
        self._seen: dict[Partition, tuple[Sessions, int, int]] = {}
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"logmamba_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"logmamba_{name}_seconds", text, labels, registry=registry, buckets=_SECONDS)

        self._records = counter("records", "Raw records read")
        self._events = counter("events", "Events (log lines) that joined a session")
        self._dead_letters = counter("dead_letters", "Records that could not be decoded", "reason")
        self._cut = counter("lines_cut", "Lines longer than input.max_line_bytes")
        self._ignored = counter("events_ignored", "Events without a session key that were ignored")
        self._unknown = counter("unknown_lines", "Lines that no template matches")
        self._late = counter("late_events", "Events older than the stream time of their partition")
        self._skewed = counter("skewed_events", "Events too far in the future to move stream time")
        self._closed = counter("sessions_closed", "Sessions closed, by what closed them", "closed_by")
        self._scores = counter("scores", "Score records made", "kind", "severity")
        self._replayed = counter("replayed_records", "Records read again after a restart or an abort")
        self._transactions = counter("transactions", "Transactions, by how they ended", "result")
        self._stages = seconds("stage", "Time a batch spends in each stage of the pipeline", "stage")
        self._commits = seconds("commit", "Time of a commit, snapshots included")
        self._snapshots = seconds("snapshot", "Time to write a partition's snapshot")
        self._snapshot_bytes = Histogram(
            "logmamba_snapshot_bytes", "Size of a partition's snapshot", registry=registry, buckets=_BYTES
        )
        partition = ("topic", "partition")
        self._open = Gauge("logmamba_open_sessions", "Open sessions", partition, registry=registry)
        self._lag = Gauge(
            "logmamba_consumer_lag", "Records of a partition still to be read", partition, registry=registry
        )
        self._shown = {
            "records": self._records,
            "events": self._events,
            "unknown_lines": self._unknown,
            "dead_letters": self._dead_letters,
            "late_events": self._late,
            "sessions_closed": self._closed,
            "score_records": self._scores,
            "replayed_records": self._replayed,
            "transactions_committed": self._transactions.labels("committed"),
            "transactions_aborted": self._transactions.labels("aborted"),
        }
        # A series that exists from the start can be alerted on before the first such event.
        self._by_closing = {each: self._closed.labels(each) for each in get_args(ClosedBy)}
        self._by_stage = {each: self._stages.labels(each) for each in get_args(Stage)}
        self._by_score = {
            (kind, severity): self._scores.labels(kind, severity)
            for kind in get_args(Kind)
            for severity in get_args(Severity)
        }
        self._committed = self._transactions.labels("committed")
        self._aborted = self._transactions.labels("aborted")

    def heartbeat(self) -> None:
        """The loop has come round once more."""
        self._beat_at = self._clock()

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last came round, or since this object was made."""
        return self._clock() - self._beat_at

    def stage(self, stage: Stage) -> AbstractContextManager[object]:
        """Measures a stage of one batch: `with metrics.stage("score"): …`."""
        return self._by_stage[stage].time()

    def decoded(self, batch: Sequence[Records], events: Sequence[Events], unknown_lines: int) -> None:
        """Records were decoded, `unknown_lines` of their lines to no known template."""
        self._records.inc(sum(len(records.offsets) for records in batch))
        self._unknown.inc(unknown_lines)
        for each in events:
            self._events.inc(len(each.keys))
            self._cut.inc(each.cut)
            self._ignored.inc(each.ignored)
            for letter in each.dead_letters:
                self._dead_letters.labels(letter.reason).inc()

    def sessions(self, partition: Partition, sessions: Sessions, closed: Sequence[ClosedSession]) -> None:
        """Events joined a partition's sessions, which closed some."""
        self._open.labels(*partition).set(len(sessions))
        for each in closed:
            self._by_closing[each.closed_by].inc()
        counted, late, skewed = self._seen.get(partition, (sessions, 0, 0))
        if counted is not sessions:  # the partition was restored, and its sessions count from zero again
            late = skewed = 0
        self._late.inc(sessions.late_events - late)
        self._skewed.inc(sessions.skewed_events - skewed)
        self._seen[partition] = sessions, sessions.late_events, sessions.skewed_events

    def scored(self, kind: Kind, severity: Severity) -> None:
        """A score record was made."""
        self._by_score[kind, severity].inc()

    def replayed(self, records: int) -> None:
        """Records were read again, without output."""
        self._replayed.inc(records)

    def committed(self, seconds: float) -> None:
        """A transaction was committed."""
        self._committed.inc()
        self._commits.observe(seconds)

    def aborted(self) -> None:
        """A transaction was aborted."""
        self._aborted.inc()

    def snapshot(self, size_bytes: int, seconds: float) -> None:
        """A partition's snapshot was written."""
        self._snapshot_bytes.observe(size_bytes)
        self._snapshots.observe(seconds)

    def lag(self, partition: Partition, records: int) -> None:
        """How many records of a partition are still to be read."""
        self._lag.labels(*partition).set(records)

    def forget(self, partition: Partition) -> None:
        """A partition is another worker's now."""
        self._seen.pop(partition, None)
        for gauge in (self._open, self._lag):
            gauge.remove_by_labels({"topic": partition.topic, "partition": str(partition.partition)})

    def totals(self) -> dict[str, int]:
        """Counts since the start by what they count, for `/status`."""
        totals = {}
        for name, counter in self._shown.items():
            [family] = counter.collect()
            totals[name] = int(sum(each.value for each in family.samples if each.name.endswith("_total")))
        return totals

    def watch_score_cache(self, hits: Callable[[], int], misses: Callable[[], int]) -> None:
        """Report these running totals of the scorer's cache whenever the metrics are read."""
        self.registry.register(_ScoreCache(hits, misses))

    def watch_batches_split(self, total: Callable[[], int]) -> None:
        """Report this running total of the scorer whenever the metrics are read."""
        self.registry.register(_BatchesSplit(total))


class _ScoreCache(Collector):
    def __init__(self, hits: Callable[[], int], misses: Callable[[], int]) -> None:
        self._totals = {"hit": hits, "miss": misses}

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("logmamba_score_cache", "Sequences looked up", labels=["result"])
        for result, total in self._totals.items():
            family.add_metric([result], total())
        yield family


class _BatchesSplit(Collector):
    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "logmamba_batches_split", "Batches that did not fit the device's memory", value=self._total()
        )

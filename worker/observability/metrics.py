"""What a worker counts, in Prometheus's terms. `worker.observability.http_server` serves it.

There are no globals: metrics live in the registry of their `Metrics` object. It takes plain numbers and texts, and
knows nothing of what they are about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BYTES = tuple(1024.0 * 4**power for power in range(10))  # 1 KiB to 256 MiB


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
        self._skipped = counter("records_skipped", "Records, and events within one, that input.only leaves to others")
        self._unknown = counter("unknown_lines", "Lines that no template matches")
        self._unknown_share = Gauge(
            "logmamba_unknown_event_share", "Share of the latest events that no template matches", registry=registry
        )
        self._late = counter("late_events", "Events older than the stream time of their partition")
        self._skewed = counter("skewed_events", "Events that waited, too far in the future, and were contradicted")
        self._jumps = counter("stream_time_jumps", "Jumps of stream time over a pause")
        self._falls = counter("stream_time_falls", "Falls of stream time, from a wrong clock that had been believed")
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
        self._waiting = Gauge(
            "logmamba_waiting_events", "Events too far in the future to be processed yet", partition, registry=registry
        )
        self._lag = Gauge(
            "logmamba_consumer_lag", "Records of a partition still to be read", partition, registry=registry
        )
        self._committed = self._transactions.labels("committed")
        self._aborted = self._transactions.labels("aborted")

    def expect(
        self, *, stages: Sequence[str], closed_by: Sequence[str], kinds: Sequence[str], severities: Sequence[str]
    ) -> None:
        """Make the series of these labels, so that each can be alerted on before the first such event."""
        for stage in stages:
            self._stages.labels(stage)
        for each in closed_by:
            self._closed.labels(each)
        for kind in kinds:
            for severity in severities:
                self._scores.labels(kind, severity)

    def heartbeat(self) -> None:
        """The loop has come round once more."""
        self._beat_at = self._clock()

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last came round, or since this object was made."""
        return self._clock() - self._beat_at

    def stage(self, stage: str) -> AbstractContextManager[object]:
        """Measures a stage of one batch: `with metrics.stage("score"): …`."""
        return self._stages.labels(stage).time()

    def decoded(
        self,
        *,
        records: int,
        events: int,
        unknown: int,
        cut: int,
        ignored: int,
        skipped: int = 0,
        dead_letters: Mapping[str, int],
    ) -> None:
        """Records were decoded.

        Args:
            records: how many.
            events: lines of theirs that have a key and a time.
            unknown: of these, lines that no template matches.
            cut: of these, lines longer than `input.max_line_bytes`.
            ignored: lines without a key that were left out.
            skipped: records, and events within one, that are another application's.
            dead_letters: records, and events within one, that could not be read, by reason.
        """
        self._records.inc(records)
        self._events.inc(events)
        self._unknown.inc(unknown)
        self._cut.inc(cut)
        self._ignored.inc(ignored)
        self._skipped.inc(skipped)
        for reason, count in dead_letters.items():
            self._dead_letters.labels(reason).inc(count)

    def sessions(
        self,
        topic: str,
        partition: int,
        *,
        open_sessions: int,
        waiting: int,
        closed: Mapping[str, int],
        late: int,
        skewed: int,
        jumps: int,
        falls: int,
    ) -> None:
        """Events joined a partition's sessions.

        Args:
            topic: of the partition.
            partition: its number.
            open_sessions: how many there are now.
            waiting: events that wait now, since they are too far in the future.
            closed: those that closed, by what closed them.
            late: events older than stream time.
            skewed: events that waited and were contradicted.
            jumps: of stream time, over a pause.
            falls: of stream time, from a wrong clock that had been believed.
        """
        self._open.labels(topic, partition).set(open_sessions)
        self._waiting.labels(topic, partition).set(waiting)
        for closed_by, count in closed.items():
            self._closed.labels(closed_by).inc(count)
        self._late.inc(late)
        self._skewed.inc(skewed)
        self._jumps.inc(jumps)
        self._falls.inc(falls)

    def scored(self, kind: str, severity: str) -> None:
        """A score record was made."""
        self._scores.labels(kind, severity).inc()

    def unknown_share(self, share: float) -> None:
        """Of the latest thousand events or more, the share that no template matches."""
        self._unknown_share.set(share)

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

    def lag(self, topic: str, partition: int, records: int) -> None:
        """How many records of a partition are still to be read."""
        self._lag.labels(topic, partition).set(records)

    def forget(self, topic: str, partition: int) -> None:
        """A partition is another worker's now."""
        for gauge in (self._open, self._waiting, self._lag):
            gauge.remove_by_labels({"topic": topic, "partition": str(partition)})

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

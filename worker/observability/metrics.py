"""What a worker counts, in Prometheus's terms. `worker.observability.http_server` serves it.

There are no globals: metrics live in the registry of their `Metrics` object. It takes plain numbers and texts, and
knows nothing of what they are about. docs/metrics.md lists them, config/monitoring has the dashboard and the alerts.

A series is there before anything of its kind has happened, so that it can be alerted on. A gauge whose value is not
known is NaN, which no comparison is true of.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from detector.scoring.score_histogram import score_histogram
from worker.observability.collectors import Delays, Gpu, GpuUsage
from worker.observability.status import DriftStatus, WorkerStatus

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# Finer below a tenth of a second, which is where a worker is that keeps up.
DELAY_BOUNDS = (
    *(0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
_BYTES = tuple(1024.0 * 4**power for power in range(10))  # 1 KiB to 256 MiB


class Observed(Protocol):
    """What the endpoint and the pages ask of a worker's metrics."""

    @property
    def registry(self) -> CollectorRegistry:
        """Where they are."""

    @property
    def score_histogram(self) -> npt.NDArray[np.float64]:
        """Of the final scores so far (`detector.scoring.score_histogram`); another array after each change."""

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last came round."""


class Metrics:
    """Counts what a worker does, in Prometheus's terms. Its methods may be called from any thread.

    Args:
        registry: where the metrics are registered; a new one by default.
        clock: monotonic seconds.
        wall_clock: seconds since 1970.

    Attributes:
        registry: where they are.
        score_histogram: of the final scores so far (`detector.scoring.score_histogram`), for the status page; another
            array after each change.
        judged_sessions: how many sessions verdicts have muted, and raised to critical.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._clock = clock
        self._wall_clock = wall_clock
        self._beat_at = clock()
        self.score_histogram = score_histogram([])
        self.judged_sessions = {"muted": 0, "raised": 0}
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"logmamba_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"logmamba_{name}_seconds", text, labels, registry=registry, buckets=_SECONDS)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"logmamba_{name}", text, labels, registry=registry)

        of_topic = ("topic", "of")
        self._build = gauge("build_info", "1; what the worker is made of", "version", "confluent_kafka", "torch")
        self._model = gauge("model_info", "1; the checkpoint that it scores with", "checkpoint", "vocabulary")
        self._reloads = counter("reloads", "Settings or checkpoint read again, by what came of it", "result")
        self._worker = gauge("worker_info", "1; who it is", "application", "worker")
        self._ready = gauge("ready", "1 where /readyz says ok: the broker answers, every partition is live")
        gauge("heartbeat_age_seconds", "Time since the loop last came round").set_function(self.heartbeat_age_s)
        self._partitions = gauge("partitions", "Partitions that the worker holds, by state", "state")
        self._rebalances = counter("rebalances", "Times that the group gave partitions, or took them", "event")
        self._connected = gauge("broker_connected", "1 unless no broker answers")
        self._brokers = gauge("brokers", "Brokers that the consumer needs, by whether it reaches them", "state")
        self._records = counter("records", "Raw records read")
        self._events = counter("events", "Events (log lines) that joined a session")
        self._dead_letters = counter("dead_letters", "Records that could not be decoded", "reason")
        self._cut = counter("lines_cut", "Lines longer than input.max_line_bytes")
        self._ignored = counter("events_ignored", "Events without a session key that were ignored")
        self._skipped = counter("records_skipped", "Records, and events within one, that input.only leaves to others")
        self._unknown = counter("unknown_lines", "Lines that no template matches")
        self._unknown_share = gauge("unknown_event_share", "Share of the latest events that no template matches")
        self._new_templates = counter(
            "new_templates", "Kinds of line that no template matches and that had not come before"
        )
        self._drift_verdict = gauge("drift_verdict", "1 for what is said of a topic's drift", "topic", "verdict")
        self._drift_sessions = gauge("drift_sessions", "Sessions that the figures of drift are of", "topic")
        self._drift_share = gauge(
            "drift_share", "Share of sessions with unknown and new lines, and of templates that came or went", *of_topic
        )
        self._drift_divergence = gauge(
            "drift_divergence", "Jensen-Shannon divergence of the latest sessions from the training's", *of_topic
        )
        self._drift_moved = gauge(
            "drift_moved", "By how much the share of sessions with a template has moved", "topic", "template"
        )
        self._late = counter("late_events", "Events older than the stream time of their partition")
        self._skewed = counter("skewed_events", "Events that waited, too far in the future, and were contradicted")
        self._jumps = counter("stream_time_jumps", "Jumps of stream time over a pause")
        self._falls = counter("stream_time_falls", "Falls of stream time, from a wrong clock that had been believed")
        self._closed = counter("sessions_closed", "Sessions closed, by what closed them", "closed_by")
        self._scores = counter("scores", "Score records made", "kind", "severity")
        self._long = counter(
            "long_sessions_scored",
            "Times that a long open session was scored, by whether all its events were again, as its state was gone",
            "started_over",
        )
        self._muted = counter("muted", "Sessions that a verdict of an operator took for normal", "severity")
        self._raised = counter("raised", "Sessions that a verdict of an operator made critical", "severity")
        self._judged = gauge("judged_patterns", "Patterns that have a verdict of an operator", "verdict")
        self._replayed = counter("replayed_records", "Records read again after a restart or an abort")
        self._transactions = counter("transactions", "Transactions, by how they ended", "result")
        self._commit_failures = counter("commit_failures", "Transactions that were aborted, by why", "cause")
        self._stages = seconds("stage", "Time of a stage of the loop; _sum is what it has taken in all", "stage")
        self._commits = seconds("commit", "Time of a commit, snapshots included")
        self._delays = Delays(
            "logmamba_end_to_end_seconds",
            "From the Kafka timestamp of the record that caused a score to the commit of the score",
            DELAY_BOUNDS,
        )
        registry.register(self._delays)
        self._ages = Histogram(
            "logmamba_batch_age_seconds",
            "Age of the oldest record of a batch by its Kafka timestamp, when it had got so far",
            ("when",),
            registry=registry,
            buckets=DELAY_BOUNDS,
        )
        self._snapshots = seconds("snapshot", "Time to write a partition's snapshot")
        self._snapshot_bytes = Histogram(
            "logmamba_snapshot_bytes", "Size of a partition's snapshot", registry=registry, buckets=_BYTES
        )
        partition = ("topic", "partition")
        self._open = gauge("open_sessions", "Open sessions", *partition)
        self._waiting = gauge("waiting_events", "Events too far in the future to be processed yet", *partition)
        self._lag = gauge("consumer_lag", "Records of a partition still to be read", *partition)
        self._lag_seconds = gauge(
            "consumer_lag_seconds", "Time since the oldest record still to be read came, at most", *partition
        )
        self._missing_topics = gauge("input_topics_missing", "Input topics that are not there; 1 for a pattern")
        self._committed = self._transactions.labels("committed")
        self._aborted = self._transactions.labels("aborted")
        self._status: WorkerStatus | None = None
        self._gpu: Gpu | None = None
        self._drifted: Sequence[DriftStatus] = ()
        self._unknown_share.set(math.nan)
        self.brokers(up=0, down=0)
        self.feedback({"normal": 0, "anomalous": 0})
        self.long_sessions(0, 0)
        for event in ("assigned", "revoked", "lost"):
            self._rebalances.labels(event)
        for result in ("taken", "refused"):
            self._reloads.labels(result)

    def expect(
        self,
        *,
        stages: Sequence[str] = (),
        closed_by: Sequence[str] = (),
        kinds: Sequence[str] = (),
        severities: Sequence[str] = (),
        dead_letters: Sequence[str] = (),
        causes: Sequence[str] = (),
        ages: Sequence[str] = (),
    ) -> None:
        """Make the series of these labels, so that each can be alerted on before the first such event."""
        for counted, labels in (
            (self._stages, stages),
            (self._closed, closed_by),
            (self._dead_letters, dead_letters),
            (self._commit_failures, causes),
            (self._ages, ages),
        ):
            for label in labels:
                counted.labels(label)
        for severity in severities:
            for kind in kinds:
                self._scores.labels(kind, severity)
        for severity in severities[1:]:
            self._muted.labels(severity)
        for severity in severities[:-1]:
            self._raised.labels(severity)

    def heartbeat(self) -> None:
        """The loop has come round once more."""
        self._beat_at = self._clock()

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last came round, or since this object was made."""
        return self._clock() - self._beat_at

    def stage(self, stage: str) -> AbstractContextManager[object]:
        """Measures a stage once: `with metrics.stage("score"): …`."""
        return self._stages.labels(stage).time()

    def show(self, status: WorkerStatus) -> None:
        """The worker's state, now; to be called by the thread that scores."""
        if self._gpu is not None:
            self._gpu.look()
        before, self._status = self._status, status
        if before is None:
            names = ("logmamba", "confluent-kafka", "torch")
            self._build.labels(*(status.versions.get(name, "") for name in names)).set(1)
            self._worker.labels(status.application_id, status.instance).set(1)
        if before is None or before.checkpoint != status.checkpoint:
            self._model.clear()
            self._model.labels(status.checkpoint, status.vocabulary).set(1)
        self._ready.set(status.ready)
        self._connected.set(not status.broker_away)
        self._missing_topics.set(len(status.missing_topics))
        self.drift(status.drift or ())
        for state in ("live", "replaying"):
            self._partitions.labels(state).set(sum(each.state == state for each in status.partitions))
        for each in status.partitions:
            place = each.topic, each.partition
            self._lag.labels(*place).set(math.nan if each.lag is None else each.lag)
            self._lag_seconds.labels(*place).set(math.nan if each.lag_seconds is None else each.lag_seconds)

    def drift(self, topics: Sequence[DriftStatus]) -> None:
        """How far each topic has drifted, now."""
        if topics == self._drifted:
            return
        self._drifted = topics
        for gauge in (self._drift_verdict, self._drift_sessions, self._drift_share, self._drift_divergence):
            gauge.clear()
        self._drift_moved.clear()
        for each in topics:
            for verdict in ("ok", "watch", "retrain"):
                self._drift_verdict.labels(each.topic, verdict).set(each.verdict == verdict)
            self._drift_sessions.labels(each.topic).set(each.sessions)
            for of in ("unknown", "new", "churn"):
                self._drift_share.labels(each.topic, of).set(getattr(each, of))
            for feature, divergence in each.divergence.items():
                self._drift_divergence.labels(each.topic, feature).set(divergence)
            for moved in each.moved:
                self._drift_moved.labels(each.topic, moved.template).set(moved.now - moved.before)

    def brokers(self, up: int, down: int) -> None:
        """How many brokers the client is connected to, and how many it fails to reach."""
        self._brokers.labels("up").set(up)
        self._brokers.labels("down").set(down)

    def rebalanced(self, event: str) -> None:
        """Partitions were `assigned`, `revoked` or `lost`."""
        self._rebalances.labels(event).inc()

    def reloaded(self, result: str) -> None:
        """Settings or checkpoint were read again, and `taken` or `refused`."""
        self._reloads.labels(result).inc()

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

    def long_sessions(self, scored: int, started_over: int) -> None:
        """So many long open sessions were scored, some of them again from their start, as nothing was kept of them."""
        self._long.labels("no").inc(scored - started_over)
        self._long.labels("yes").inc(started_over)

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
        for counter, count in ((self._late, late), (self._skewed, skewed), (self._jumps, jumps), (self._falls, falls)):
            if count:  # hardly ever, and there may be many partitions
                counter.inc(count)

    def scored(self, records: Mapping[tuple[str, str], int]) -> None:
        """So many score records were made of each kind and severity."""
        for (kind, severity), count in records.items():
            self._scores.labels(kind, severity).inc(count)

    def judged(self, scored: str, severity: str) -> None:
        """A verdict gave a session another severity than its score alone does."""
        muted = severity == "normal"
        (self._muted if muted else self._raised).labels(scored).inc()
        self.judged_sessions["muted" if muted else "raised"] += 1

    def feedback(self, verdicts: Mapping[str, int]) -> None:
        """So many patterns have each verdict."""
        for verdict, count in verdicts.items():
            self._judged.labels(verdict).set(count)

    def final_scores(self, scores: npt.ArrayLike) -> None:
        """Sessions were scored to their ends: in [0, 1], those among them that no record is written of."""
        self.score_histogram = self.score_histogram + score_histogram(scores)

    def unknown_share(self, share: float) -> None:
        """Of the latest thousand events or more, the share that no template matches."""
        self._unknown_share.set(share)

    def new_templates(self, kinds: int) -> None:
        """So many kinds of line came for the first time that no template matches."""
        self._new_templates.inc(kinds)

    def replayed(self, records: int) -> None:
        """Records were read again, without output."""
        self._replayed.inc(records)

    def committed(self, seconds: float, caused_at_ms: Iterable[int] = ()) -> None:
        """A transaction was committed.

        Args:
            seconds: that it took.
            caused_at_ms: for each score in it, when the record that caused it came, in ms since 1970.
        """
        self._committed.inc()
        self._commits.observe(seconds)
        now_ms = self._wall_clock() * 1000
        self._delays.observe([(now_ms - caused_at) / 1000 for caused_at in caused_at_ms])

    def batch_age(self, when: str, oldest_ms: int) -> None:
        """A batch, whose oldest record came at `oldest_ms` since 1970, has got as far as `when` says."""
        self._ages.labels(when).observe(max(0.0, self._wall_clock() - oldest_ms / 1000))

    def aborted(self, cause: str) -> None:
        """A transaction was aborted."""
        self._aborted.inc()
        self._commit_failures.labels(cause).inc()

    def snapshot(self, size_bytes: int, seconds: float) -> None:
        """A partition's snapshot was written."""
        self._snapshot_bytes.observe(size_bytes)
        self._snapshots.observe(seconds)

    def forget(self, topic: str, partition: int) -> None:
        """A partition is another worker's now."""
        for gauge in (self._open, self._waiting, self._lag, self._lag_seconds):
            gauge.remove_by_labels({"topic": topic, "partition": str(partition)})

    def watch_score_cache(self, hits: Callable[[], int], misses: Callable[[], int]) -> None:
        """Report these running totals of the scorer's cache whenever the metrics are read."""
        self.registry.register(_ScoreCache(hits, misses))

    def watch_batches_split(self, total: Callable[[], int]) -> None:
        """Report this running total of the scorer whenever the metrics are read."""
        self.registry.register(_BatchesSplit(total))

    def watch_gpu(self, usage: Callable[[], GpuUsage | None]) -> None:
        """Report the use of the GPU that the model runs on, asked for by `show`; None where there is none."""
        self._gpu = Gpu(usage)
        self.registry.register(self._gpu)


class _ScoreCache(Collector):
    def __init__(self, hits: Callable[[], int], misses: Callable[[], int]) -> None:
        self._totals = {"hit": hits, "miss": misses}

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "logmamba_score_cache", "Event sequences to score, by whether memory had their scores", labels=["result"]
        )
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

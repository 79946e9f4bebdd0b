"""What the loop tells of itself: totals, metrics, and the status that other threads read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal, get_args

import structlog

from worker.delivery.outage import Outage
from worker.delivery.protocols import Reloads, Source
from worker.errors import AbortCause
from worker.observability.metrics import Metrics
from worker.observability.recent_alerts import RecentAlerts
from worker.observability.status import DriftStatus, PartitionStatus, WorkerStatus
from worker.processing.clock import Move
from worker.processing.outputs import Output
from worker.processing.records import Partition, Records
from worker.processing.rekeying import AnyPipeline
from worker.processing.score_records import iso_time

_log = structlog.get_logger(__name__)

_INTERVAL_S = 1.0

Stage = Literal["poll", "send", "commit"]
"""The stages of the loop that are not the pipeline's."""

Age = Literal["polled", "sent", "committed"]
"""How far a batch has got: it is in hand, its outputs are in the open transaction, they are visible."""


class Report:
    """Counts for the loop, and looks at its parts about once a second.

    Args:
        status: what does not change of it.
        partitions: those that the worker holds, as they are at any time.
        source, pipeline, outage: asked for where they are.
        metrics: what is counted.
        reloads: asked for the latest one.
        clock: monotonic seconds.
        wall_clock: seconds since 1970.

    Attributes:
        status: the state as of the latest look.
        totals: counts since the start.
        joined: whether the group has given the worker its share.
        pipeline: the one that the worker goes on with.
        alerts: those that were published last.
    """

    def __init__(
        self,
        status: WorkerStatus,
        *,
        partitions: Collection[Partition],
        source: Source,
        pipeline: AnyPipeline,
        outage: Outage,
        metrics: Metrics,
        clock: Callable[[], float],
        reloads: Reloads,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.totals = {"records": 0, "scores": 0, "dead_letters": 0, "commits": 0, "aborts": 0}
        self.joined = False
        self.alerts = RecentAlerts()
        self.status = replace(status, totals=dict(self.totals))
        self.pipeline = pipeline
        self._partitions, self._source, self._outage, self._reloads = partitions, source, outage, reloads
        self._metrics = metrics
        self._clock, self._wall_clock = clock, wall_clock
        self._published_at = clock()
        self._caught_up_at: dict[Partition, float] = {}  # when nothing was left to read, in seconds since 1970
        self._causes_ms: list[int] = []  # of the scores in the open transaction
        self._batch_ms: int | None = None  # when the first records came of the latest batch
        self._uncommitted_ms: list[int] = []  # likewise, of each batch with outputs in the open transaction
        metrics.expect(stages=get_args(Stage), causes=get_args(AbortCause), ages=get_args(Age))
        metrics.show(self.status)

    def beat(self) -> None:
        """The loop has come round, or waits and is well."""
        self._metrics.heartbeat()
        if self._clock() - self._published_at >= _INTERVAL_S:
            self.publish()

    def polled(self, batch: Sequence[Records]) -> None:
        """Records were polled."""
        self.totals["records"] += sum(len(records.offsets) for records in batch)
        self._batch_ms = min((each for records in batch if (each := records.first_ms) is not None), default=None)
        if self._batch_ms is not None:
            self._metrics.batch_age("polled", self._batch_ms)

    def sent(self, outputs: Sequence[Output]) -> None:
        """Outputs are in the open transaction."""
        for out in outputs:
            self.totals["dead_letters" if out.severity is None else "scores"] += 1
        self.alerts.sent(outputs)
        self._causes_ms += [out.caused_at_ms for out in outputs if out.caused_at_ms is not None]
        if self._batch_ms is not None:
            self._metrics.batch_age("sent", self._batch_ms)
            self._uncommitted_ms.append(self._batch_ms)

    def committed(self, seconds: float) -> None:
        """The open transaction was committed, which took so long."""
        self.totals["commits"] += 1
        self._metrics.committed(seconds, self._causes_ms)
        if self._uncommitted_ms:
            self._metrics.batch_age("committed", min(self._uncommitted_ms))
        self.alerts.committed()
        self._causes_ms, self._uncommitted_ms = [], []

    def aborted(self, cause: AbortCause) -> None:
        """The open transaction was given up."""
        self.totals["aborts"] += 1
        self._metrics.aborted(cause)
        self.alerts.aborted()
        self._causes_ms, self._uncommitted_ms = [], []

    def publish(self) -> None:
        """Look, and show what there is to see."""
        self._published_at = self._clock()
        self._caught_up_at = {each: at for each, at in self._caught_up_at.items() if each in self._partitions}
        self.status = replace(
            self.status,
            checkpoint=self.pipeline.scorer.checkpoint,
            vocabulary=self.pipeline.scorer.vocabulary.sha256,
            trained_score_shares=self.pipeline.scorer.trained_score_shares,
            joined=self.joined,
            broker_away=self._outage.lasts,
            missing_topics=tuple(self._source.missing_topics()),
            partitions=tuple(map(self._partition, sorted(self._partitions))),
            totals=self.totals | self._metrics.judged_sessions,
            unknown_share=self.pipeline.unknown_share,
            drift=self.pipeline.drift(),
            reload=self._reloads.latest,
        )
        self._metrics.show(self.status)

    def _partition(self, partition: Partition) -> PartitionStatus:
        position = self.pipeline.position(partition)
        # While no broker answers, the end that was heard last says nothing.
        end = None if self._outage.lasts else self._source.end_offset(partition)
        lag = None if end is None else max(0, end - position)
        return PartitionStatus(
            *partition,
            "replaying" if self.pipeline.replaying(partition) else "live",
            position,
            lag,
            self.pipeline.open_sessions(partition),
            self._lag_seconds(partition, lag),
        )

    def _lag_seconds(self, partition: Partition, lag: int | None) -> float | None:
        """How long ago the oldest record that is still to be read came, at most.

        It came after the newest one that was processed, and after the partition was last seen without a lag: without
        the latter, the first record after a quiet night would show as a night's lag.
        """
        now = self._wall_clock()
        if lag == 0:
            self._caught_up_at[partition] = now
            return 0.0
        newest_ms = self.pipeline.newest_ms(partition)
        if lag is None or (newest_ms is None and partition not in self._caught_up_at):
            return None
        return max(0.0, now - max((newest_ms or 0) / 1000, self._caught_up_at.get(partition, 0.0)))


def log_move(partition: Partition, move: Move) -> None:
    """Say that a partition's stream time jumped or fell."""
    event = "stream_time_jumped" if move.jumped else "stream_time_fell"
    _log.info(event, partition=str(partition), **{"from": iso_time(move.before), "to": iso_time(move.after)})


def log_drift(drift: DriftStatus, before: str) -> None:
    """Say that the verdict on a topic's drift is another one than before."""
    told = {
        "topic": drift.topic,
        "verdict": drift.verdict,
        "before": before,
        "since": drift.since,
        "because": list(drift.because),
        "unknown": round(drift.unknown, 3),
        "moved": [f"{each.before:.0%} to {each.now:.0%} of sessions: {each.template}" for each in drift.moved],
        "pauses": [f"{each.before_ms:.0f} to {each.now_ms:.0f} ms before: {each.template}" for each in drift.pauses],
    }
    if drift.verdict == "ok":
        _log.info("drift_over", **told)
    else:
        _log.warning("drift", **told)

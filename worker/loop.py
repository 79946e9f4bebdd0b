"""The exactly-once loop: poll, process, send, commit; and what it does when partitions come, go or an abort strikes.

Everything happens in one thread. Rebalance callbacks run inside `Source.poll`, at the top of the loop, where every
record polled so far is processed and its outputs are in the open transaction: so a revoke can commit at once.

Time between two polls is bounded, so the group never takes a busy worker for a dead one: a batch is shrunk until it
takes about `_BATCH_TARGET_S`, and waiting for the producer's queue, a snapshot or a commit gives up after
`transaction.timeout.ms` each, which the settings keep at a quarter of `max.poll.interval.ms` or less. While the loop
waits nothing is polled, so the client's bounded queue fills and fetching stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from worker.errors import TransactionAborted
from worker.observability import Metrics
from worker.pipeline import Output, Pipeline
from worker.protocols import Committed, Message, Partition, Sink, Source
from worker.restore import StateStore
from worker.settings import Settings
from worker.snapshots import SnapshotPointer
from worker.status import PartitionStatus, WorkerStatus

_BATCH_TARGET_S = 1.0
_MIN_BATCH = 100
_LONGEST_BACKOFF_S = 5.0
_STATUS_INTERVAL_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Progress:
    """What is committed of a partition."""

    committed: int | None
    pointer: SnapshotPointer | None  # the newest committed snapshot; None when the next commit must write one
    snapshot_at: float  # monotonic seconds
    quiet_since: float  # monotonic seconds of the latest record


class Worker:
    """Runs the loop until told to stop (`worker.protocols.Rebalance` is its other half).

    Args:
        settings: of the application.
        source, sink, store, pipeline: the parts it drives.
        metrics: what it counts.
        status: what does not change of the worker's status.
        revoke_budget_s: time for everything a revoke must finish; past it the transaction is aborted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        source: Source,
        sink: Sink,
        store: StateStore,
        pipeline: Pipeline,
        metrics: Metrics,
        status: WorkerStatus,
        revoke_budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._source = source
        self._sink = sink
        self._store = store
        self._pipeline = pipeline
        self._metrics = metrics
        self._totals = {"records": 0, "scores": 0, "dead_letters": 0, "commits": 0, "aborts": 0}
        self._status = replace(status, totals=dict(self._totals))
        self._revoke_budget_s = revoke_budget_s
        self._clock = clock
        self._progress: dict[Partition, _Progress] = {}
        self._unsent_commit = False  # outputs are in the open transaction
        self._rebuild_needed = False
        self._joined = False
        self._batch_records = settings.worker.batch_records
        self._committed_at = self._published_at = clock()

    def status(self) -> WorkerStatus:
        """The state as of about a second ago; safe to call from other threads."""
        return self._status

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until `stopping()`; then commit, leave the group and return.

        Raises:
            RunError: the worker cannot go on; nothing that is not committed was published.
        """
        self._source.subscribe(self)
        aborts = 0
        while not stopping():
            try:
                self._turn()
                aborts = 0
            except TransactionAborted as error:
                aborts += 1
                _log.warning("transaction_aborted", reason=str(error), in_a_row=aborts)
                self._abort()
                if aborts > 1:
                    time.sleep(min(0.1 * 2**aborts, _LONGEST_BACKOFF_S))
        self._commit(snapshots=tuple(self._progress), timeout_s=self._settings.worker.shutdown_timeout_ms / 1000)
        self._source.close()
        self._sink.close()

    # -- one turn of the loop --------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._metrics.heartbeat()
        if self._clock() - self._published_at >= _STATUS_INTERVAL_S:
            self._publish_status()
        if self._rebuild_needed:
            self._rebuild()
        batch = self._source.poll(self._batch_records, self._settings.worker.linger_ms / 1000)
        if self._rebuild_needed:
            return  # a revoke aborted: what was polled will be polled again from the committed positions
        # A rebalance within the poll may leave records behind of a partition that is another worker's now.
        batch = [records for records in batch if Partition(records.topic, records.partition) in self._progress]
        if batch:
            began = self._clock()
            self._send(self._pipeline.process(batch))
            polled = sum(len(records.offsets) for records in batch)
            self._totals["records"] += polled
            self._adapt(polled, self._clock() - began)
            for records in batch:
                self._progress[Partition(records.topic, records.partition)].quiet_since = began
        self._look_at_ends()
        if self._clock() - self._committed_at >= self._settings.worker.commit_interval_ms / 1000:
            self._commit()

    def _adapt(self, records: int, took_s: float) -> None:
        """Take smaller batches from here on when the scorer is behind, larger ones when it has caught up."""
        if took_s > _BATCH_TARGET_S:
            self._batch_records = max(_MIN_BATCH, int(records * _BATCH_TARGET_S / took_s))
        elif took_s < _BATCH_TARGET_S / 2 and records >= self._batch_records:
            self._batch_records = min(self._settings.worker.batch_records, self._batch_records * 2)

    def _look_at_ends(self) -> None:
        """Close the sessions of partitions that are fully consumed and have been quiet for `idle_flush`."""
        idle_flush_ms = self._settings.sessions.idle_flush_ms
        now = self._clock()
        for partition, end in self._source.fully_consumed().items():
            progress = self._progress.get(partition)
            if progress is None:
                continue
            self._pipeline.reached_end(partition, end)
            if (
                idle_flush_ms is not None
                and now - progress.quiet_since >= idle_flush_ms / 1000
                and self._pipeline.open_sessions(partition)
            ):
                self._send(self._pipeline.flush(partition, end, "idle"))
                progress.pointer = None  # the position may be the old snapshot's, its sessions are not
                self._commit()

    def _send(self, outputs: Sequence[Output]) -> None:
        topics = self._settings.output
        for out in outputs:
            self._totals["dead_letters" if out.severity is None else "scores"] += 1
        messages = [
            Message(topics.dead_letter_topic if out.severity is None else topics.topic, out.key, out.value, out.headers)
            for out in outputs
        ]
        if messages:
            self._sink.send(messages)
            self._unsent_commit = True

    def _commit(self, snapshots: Collection[Partition] = (), timeout_s: float | None = None) -> None:
        """Commit every live partition's position, with a snapshot of those named and of those whose turn it is."""
        if self._rebuild_needed:
            return  # after an abort the positions are ahead of what was published
        began = self._clock()
        offsets: dict[Partition, Committed] = {}
        pointers: dict[Partition, SnapshotPointer] = {}
        for partition, progress in self._progress.items():
            if self._pipeline.replaying(partition):
                continue
            position = self._pipeline.position(partition)
            pointer = progress.pointer
            due = (
                partition in snapshots
                or began - progress.snapshot_at >= self._settings.state.snapshot_interval_ms / 1000
            )
            if pointer is None or (due and pointer.position != position):
                pointer = pointers[partition] = self._write_snapshot(partition, position)
            if position != progress.committed or partition in pointers:
                offsets[partition] = Committed(position, pointer.to_metadata())
        if offsets or self._unsent_commit:
            self._sink.commit(offsets, self._source.group_metadata, timeout_s)
            self._unsent_commit = False
            self._totals["commits"] += 1
            self._metrics.committed(self._clock() - began)
        self._committed_at = self._clock()
        for partition, committed in offsets.items():
            self._progress[partition].committed = committed.offset
        for partition, pointer in pointers.items():
            self._progress[partition].pointer = pointer
            self._progress[partition].snapshot_at = self._committed_at

    def _write_snapshot(self, partition: Partition, position: int) -> SnapshotPointer:
        began = self._clock()
        parts = self._store.messages(partition, position, self._pipeline.state(partition))
        first = self._sink.send_snapshot(parts)
        self._sink.send(self._store.stale_parts(partition, len(parts)))
        self._unsent_commit = True
        self._metrics.snapshot(sum(len(part.value or b"") for part in parts), self._clock() - began)
        return self._store.pointer(partition, position, first, len(parts))

    def _publish_status(self) -> None:
        self._published_at = self._clock()
        partitions = []
        for partition in sorted(self._progress):
            position, end = self._pipeline.position(partition), self._source.end_offset(partition)
            lag = None if end is None else max(0, end - position)
            if lag is not None:
                self._metrics.lag(partition, lag)
            state: Literal["live", "replaying"] = "replaying" if self._pipeline.replaying(partition) else "live"
            opened = self._pipeline.open_sessions(partition)
            partitions.append(PartitionStatus(*partition, state, position, lag, opened))
        self._status = replace(
            self._status, joined=self._joined, partitions=tuple(partitions), totals=dict(self._totals)
        )

    # -- partitions come and go ------------------------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Restore and start newly assigned partitions."""
        self._joined = True
        self._source.start(self._restore(partitions))
        self._publish_status()

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Commit what is done, then let the partitions go; past the budget, abort."""
        try:
            self._commit(snapshots=partitions, timeout_s=self._revoke_budget_s)
        except TransactionAborted as error:
            _log.warning("revoke_aborted", reason=str(error))
            self._abort()
        self._drop(partitions)
        _log.info("partitions_revoked", partitions=[str(each) for each in partitions])

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Give up everything since the last commit: part of it belongs to another worker now."""
        _log.warning("partitions_lost", partitions=[str(each) for each in partitions])
        self._abort()
        self._drop(partitions)

    def _abort(self) -> None:
        self._sink.abort()
        self._totals["aborts"] += 1
        self._metrics.aborted()
        self._unsent_commit = False
        self._rebuild_needed = True

    def _rebuild(self) -> None:
        """After an abort: every partition goes back to what is committed."""
        self._source.seek(self._restore(tuple(self._progress)))
        self._rebuild_needed = False

    def _restore(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Read what is committed and open the partitions there; returns the offsets to read from."""
        if not partitions:
            return {}
        offsets = {}
        now = self._clock()
        for partition, committed in self._source.committed(partitions).items():
            start = self._store.start(partition, committed)
            self._pipeline.open(partition, start.position, start.live_from, start.state)
            self._progress[partition] = _Progress(
                committed=None if start.pointer is None else start.live_from,
                pointer=start.pointer,
                snapshot_at=now,
                quiet_since=now,
            )
            offsets[partition] = start.position
        return offsets

    def _drop(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._pipeline.drop(partition)
            self._progress.pop(partition, None)
        self._source.forget(partitions)

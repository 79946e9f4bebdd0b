"""The exactly-once loop: poll, process, send, commit; and what it does when partitions come, go or an abort strikes.

Everything happens in one thread, but that another makes snapshots (`worker.delivery.snapshot_writer`). Rebalance
callbacks run inside `Source.poll`, at the top of the loop, where every record polled so far is processed and its
outputs are in the open transaction: so a revoke can commit at once.

The group never takes a busy worker for a dead one. When the scorer is behind, batches shrink until one takes about a
second. While sessions are scored, after each forward pass of the model, and while the broker is slow to take the
outputs, `_keep_alive` is called: partitions are paused and polling goes on. Partitions that go away in such a poll do
so amid a batch, some of whose outputs are sent and some not, so everything since the last commit is given up.

Outputs do not wait for a batch that takes long to score, nor does their transaction grow old: what is in it is of the
records before that batch, so it is committed, with the positions from before the batch and the snapshots that those
already have. A restart then replays the batch from there.

Whatever may block takes its time from a `Deadline`: a revoke has one for snapshots, commit and abort together, a stop
has `worker.shutdown_timeout` for the rest of the batch, its outputs, snapshots, commit, abort, leaving the group and
closing, from the moment it was asked for. The sink bounds every commit by the transaction's own longest life. Past a
deadline the transaction is aborted; that is never a reason to stop.

A broker that does not answer is waited for (`worker.delivery.outage`), without end and without being ready, except when
the worker is told to stop. What is left between two polls besides are a commit (3/4 of `transaction.timeout.ms`, which
the settings keep at a quarter of `max.poll.interval.ms` or less) and an abort (the same share of it as a revoke).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import structlog

from worker.delivery.batch_size import BatchSize
from worker.delivery.commit_pace import CommitPace
from worker.delivery.deadline import Deadline, StopDeadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import NO_RELOADS, Committed, Reloads, Sink, Source, messages_of
from worker.delivery.report import Report, log_drift, log_move
from worker.delivery.restore import StateStore
from worker.delivery.snapshot_writer import SnapshotWriter
from worker.delivery.snapshots import SnapshotPointer
from worker.errors import AbortCause, SnapshotError, TransactionAborted
from worker.observability.metrics import Metrics
from worker.observability.status import WorkerStatus
from worker.processing.outputs import Output
from worker.processing.records import Partition
from worker.processing.rekeying import AnyPipeline, Tokens
from worker.processing.scorer import Scorer
from worker.settings.document import Settings

_LONGEST_BACKOFF_S = 2.0
_COMMIT_SHARE = 0.7  # of a revoke's time: the rest is for aborting when there is no commit
# Shares of a stop's time for a batch polled before, the last commit, and an abort without one; then it closes.
_BATCH_BY, _COMMIT_BY, _ABORT_BY = 0.3, 0.6, 0.8
_LEAVE_SHARE = 0.7  # of what is then left of a stop; the rest is for closing the producer

_log = structlog.get_logger(__name__)

# Whether rebalance callbacks can come: not while working; from a poll between two batches; from a poll amid one.
_Doing = Literal["working", "polling", "waiting", "leaving"]


@dataclass(slots=True)
class _Progress:
    """What is committed of a partition."""

    committed: int | None
    pointer: SnapshotPointer | None  # the newest committed snapshot; None when the next commit must write one
    snapshot_at: float  # monotonic seconds
    quiet_since: float  # monotonic seconds of the latest record
    asked_for_end: bool = False  # after it was quiet for `idle_flush`


class Worker:
    """Runs the loop until told to stop (`worker.delivery.protocols.Rebalance` is its other half).

    Args:
        settings: of the application.
        source, sink, store, pipeline: the parts it drives.
        metrics: what it counts.
        status: what does not change of the worker's status.
        outage: what is known of a broker that does not answer.
        revoke_budget_s: time for everything a revoke must finish; past it the transaction is aborted.
        clock, sleep: monotonic seconds, and what lets them pass.
        reloads: where pipelines come from that it goes over to.
        background: makes snapshots while the worker goes on.

    Attributes:
        alerts: those that were published last; to be read in any thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        source: Source,
        sink: Sink,
        store: StateStore,
        pipeline: AnyPipeline,
        metrics: Metrics,
        status: WorkerStatus,
        outage: Outage,
        revoke_budget_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        reloads: Reloads = NO_RELOADS,
        background: Executor | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._sink = sink
        self._store = store
        self._snapshots = SnapshotWriter(store, sink, metrics, settings.state.snapshot_interval_ms, clock, background)
        self._reloads = reloads
        self._metrics = metrics
        self._revoke_budget_s = revoke_budget_s
        self._clock, self._sleep = clock, sleep
        self._progress: dict[Partition, _Progress] = {}
        self._report = Report(
            status,
            partitions=self._progress.keys(),
            source=source,
            pipeline=pipeline,
            outage=outage,
            metrics=metrics,
            clock=clock,
            reloads=reloads,
        )
        self.alerts = self._report.alerts
        self._unsent_commit = False  # outputs are in the open transaction
        self._rebuild_needed = False
        self._doing: _Doing = "working"
        self._stop = self._batch_by = self._commit_by = self._abort_by = Deadline()
        # Up to where every output is in the open transaction, as of before what is being scored.
        self._sent: dict[Partition, int] = {}
        self._batch_size = BatchSize(settings.worker.batch_records, many_events=settings.input.tokens)
        self._commit_pace = CommitPace(settings.worker.commit_interval_ms / 1000, clock)
        sink.while_waiting = self._keep_alive
        outage.while_away, outage.changed = self._while_away, self._report.publish
        self._outage = outage
        self._use(pipeline)

    def scorer(self) -> Scorer | Tokens:
        """What scores now; only for the thread that works."""
        return self._pipeline.scorer

    def status(self) -> WorkerStatus:
        """The state as of about a second ago; safe to call from other threads."""
        return self._report.status

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until `stopping()`; then commit, leave the group and return.

        Raises:
            RunError: the worker cannot go on; nothing that is not committed was published.
        """
        stop_s = self._settings.worker.shutdown_timeout_ms / 1000
        self._stop = stop = StopDeadline(stopping, stop_s, self._clock)
        self._batch_by, self._commit_by, self._abort_by = (
            stop.earlier((1 - share) * stop_s) for share in (_BATCH_BY, _COMMIT_BY, _ABORT_BY)
        )
        try:
            self._work(stop)
        except Exception:
            # The group need not wait for the session to time out, and nobody's transaction for ours.
            self._rebuild_needed = True  # nothing more is committed
            stop.begin()
            try:
                self._leave()
            except Exception as error:
                _log.warning("leaving_failed", reason=str(error))
            raise
        self._leave()

    def _work(self, stop: StopDeadline) -> None:
        self._source.subscribe(self)
        aborts = commits = 0
        while not stop.begun:
            try:
                self._turn()
            except TransactionAborted as error:
                aborts = aborts + 1 if self._report.totals["commits"] == commits else 1
                commits = self._report.totals["commits"]
                _log.warning("transaction_aborted", reason=str(error), in_a_row=aborts)
                self._abort(Deadline(self._revoke_budget_s, self._clock, within=(self._abort_by,)), error.cause)
                if aborts > 1:
                    self._sleep(min(0.1 * 2**aborts, _LONGEST_BACKOFF_S))
        try:
            self._commit(snapshots=tuple(self._progress))
        except TransactionAborted as error:
            # As after a crash: the next worker goes on from what is committed.
            _log.warning("last_commit_aborted", reason=str(error))
            self._abort(self._abort_by, error.cause)

    def _leave(self) -> None:
        with self._while_doing("leaving"):
            self._source.close(self._stop.part(_LEAVE_SHARE))
        self._sink.close(self._stop)
        self._snapshots.close()

    # -- one turn of the loop --------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._report.beat()
        with self._while_doing("polling"), self._metrics.stage("poll"):
            asked = self._batch_size.records
            batch = self._source.poll(asked, self._settings.worker.linger_ms / 1000)
        if self._rebuild_needed:
            self._rebuild()
            return  # what was polled will be polled again from the committed positions
        polled = sum(len(records.offsets) for records in batch)
        self._commit_pace.fullness = polled / asked
        # A rebalance within the poll may leave records behind of a partition that is another worker's now.
        batch = [records for records in batch if Partition(records.topic, records.partition) in self._progress]
        began = self._clock()
        if batch:
            self._report.polled(batch)
        if batch or self._pipeline.holds:
            self._sent = self._positions()
            self._send(self._pipeline.process(batch))
        if batch:
            self._batch_size.adapt(polled, self._clock() - began)
            for records in batch:
                progress = self._progress[Partition(records.topic, records.partition)]
                progress.quiet_since, progress.asked_for_end = began, False
        self._look_at_ends()
        pipeline = self._reloads.due()
        if pipeline is not None and not any(map(self._pipeline.replaying, self._progress)):
            self._go_over_to(pipeline)
        elif self._commit_pace.due(outputs=self._unsent_commit):
            self._commit()

    def _keep_alive(self) -> None:
        """Called while outputs wait for the broker, or many sessions for the scorer.

        Raises:
            TransactionAborted: partitions have gone away; the outputs must not be committed.
        """
        self._outage.look()
        if self._doing != "working":
            return  # a revoke commits from within a poll
        self._metrics.heartbeat()
        with self._while_doing("waiting"):
            self._source.keep_alive()
        if self._rebuild_needed:
            raise TransactionAborted("partitions went away in the middle of a batch", "rebalance")

    def _while_scoring(self) -> None:
        """Called between two forward passes when a batch takes long to score.

        Raises:
            TransactionAborted: partitions have gone away, or a stop cannot wait for the batch.
        """
        self._keep_alive()
        if self._unsent_commit and self._commit_pace.due(outputs=True):
            unsaved = [str(each) for each in self._sent if self._progress[each].pointer is None]
            if unsaved:  # amid a batch there is no state to take a first snapshot of
                reason = f"a batch takes long and {', '.join(unsaved)} has no snapshot yet"
                raise TransactionAborted(reason, "slow_batch")
            self._commit_at(self._sent, {}, self._commit_by, self._clock())
        if self._batch_by.passed:
            raise TransactionAborted("told to stop while a batch was scored", "stop")

    def _while_away(self) -> None:
        """Called while a call waits for a broker that does not answer.

        Raises:
            TransactionAborted: the worker was told to stop.
        """
        self._report.beat()
        if self._told_to_stop():
            raise TransactionAborted("told to stop while no broker answered", "stop")

    @contextmanager
    def _while_doing(self, doing: _Doing) -> Iterator[None]:
        before, self._doing = self._doing, doing
        try:
            yield
        finally:
            self._doing = before

    def _look_at_ends(self) -> None:
        """Close the sessions of partitions that are fully consumed and have been quiet for `idle_flush`."""
        for partition, end in tuple(self._source.fully_consumed().items()):
            if partition not in self._progress:
                continue
            self._pipeline.reached_end(partition, end)
            if self._pipeline.unfinished(partition) and self._is_idle(partition, end):
                self._sent = self._positions()
                self._send(self._pipeline.flush(partition, end, "idle"))
                self._progress[partition].pointer = None  # the position may be the old snapshot's, its sessions are not
                self._commit()

    def _is_idle(self, partition: Partition, end: int) -> bool:
        """Whether nothing has come to a partition for `idle_flush`.

        How long ago its end was told is not known: records may lie behind those of other partitions since, or in the
        topic while this worker was busy. So the broker is asked once more, after the time has passed.
        """
        idle_flush_ms, progress = self._settings.sessions.idle_flush_ms, self._progress[partition]
        if idle_flush_ms is None or self._clock() - progress.quiet_since < idle_flush_ms / 1000:
            return False
        if self._source.end_offset(partition) != end:
            return False  # more is fetched already, or in a transaction that is still open
        if not progress.asked_for_end:
            progress.asked_for_end = True
            self._source.ask_for_end(partition)
            return False
        return True

    def _send(self, outputs: Sequence[Output]) -> None:
        if outputs:
            with self._metrics.stage("send"):
                topics = self._settings.output
                self._sink.send(messages_of(outputs, topics.topic, topics.dead_letter_topic), self._batch_by)
            self._unsent_commit = True
            self._report.sent(outputs)

    def _positions(self) -> dict[Partition, int]:
        """Where each live partition is."""
        return {
            partition: self._pipeline.position(partition)
            for partition in self._progress
            if not self._pipeline.replaying(partition)
        }

    def _commit(self, snapshots: Collection[Partition] = (), deadline: Deadline | None = None) -> None:
        """Commit every live partition's position, with a snapshot of those named and of those whose turn it is."""
        if self._rebuild_needed:
            return  # after an abort the positions are ahead of what was published
        with self._metrics.stage("commit"):
            self._commit_all(snapshots, deadline or self._commit_by)

    def _commit_all(self, snapshots: Collection[Partition], deadline: Deadline) -> None:
        began, snapshot_interval_s = self._clock(), self._snapshots.interval_s(self._progress)
        positions = self._positions()
        now: list[Partition] = []
        due: list[Partition] = []
        for partition, position in positions.items():
            progress = self._progress[partition]
            if progress.pointer is None or (partition in snapshots and progress.pointer.position != position):
                now.append(partition)
                progress.snapshot_at = began
            elif began - progress.snapshot_at >= snapshot_interval_s and progress.pointer.position != position:
                due.append(partition)
                progress.snapshot_at = began
        pointers = self._snapshots.write(self._pipeline, now, positions, deadline)
        self._commit_at(positions, pointers, deadline, began)
        for partition in due:
            self._snapshots.begin(self._pipeline, partition, positions[partition])

    def _commit_at(
        self,
        positions: Mapping[Partition, int],
        pointers: Mapping[Partition, SnapshotPointer],
        deadline: Deadline,
        began: float,
    ) -> None:
        """Commit these positions, with snapshots that are in the open transaction."""
        offsets: dict[Partition, Committed] = {}
        for partition, position in positions.items():
            progress = self._progress[partition]
            pointer = pointers.get(partition, progress.pointer)
            if pointer is not None and (position != progress.committed or partition in pointers):
                pointer = replace(pointer, told=self._pipeline.told(partition, pointer.position))
                offsets[partition] = Committed(position, pointer.to_metadata(self._settings.instance))
        if offsets or self._unsent_commit:
            self._sink.commit(offsets, self._source.group_metadata, deadline)
            self._unsent_commit = False
            self._report.committed(self._clock() - began)
        self._commit_pace.committed()
        for partition, committed in offsets.items():
            self._progress[partition].committed = committed.offset
        for partition, pointer in pointers.items():
            self._progress[partition].pointer = pointer

    # -- another checkpoint, other settings ------------------------------------------------------------------------

    def _use(self, pipeline: AnyPipeline) -> None:
        pipeline.while_scoring = self._while_scoring
        pipeline.time_moved, pipeline.drifted = log_move, log_drift
        self._pipeline = self._report.pipeline = pipeline

    def _go_over_to(self, pipeline: AnyPipeline) -> None:
        """Commit what was made so far, with snapshots, and go on with another pipeline from there.

        Each partition's snapshot is then as of its committed position: whoever restores it replays nothing that another
        checkpoint has scored. A partition that still replays has none there, so all have to be live. Whatever goes
        wrong leaves the pipeline as it was.

        Raises:
            TransactionAborted: not committed, partitions came or went meanwhile, or the worker was told to stop.
        """
        partitions, began = tuple(self._progress), self._clock()
        for partition in partitions:
            if self._pipeline.look_back(partition):
                self._progress[partition].pointer = None  # that snapshot does not know it
        self._commit(snapshots=partitions)
        self._snapshots.give_up(partitions)  # of an older vocabulary, and of before what was committed last
        try:
            self._store.hand_over(self._pipeline, pipeline, partitions, partial(self._while_rereading, partitions))
        except SnapshotError as error:
            self._reloads.refused(error)
            return
        self._use(pipeline)
        self._reloads.taken(self._clock() - began)
        self._report.publish()

    def _while_rereading(self, partitions: tuple[Partition, ...]) -> None:
        self._keep_alive()
        if tuple(self._progress) != partitions:
            raise TransactionAborted("partitions came while records were read again", "rebalance")
        if self._told_to_stop():
            raise TransactionAborted("told to stop while records were read again", "stop")

    # -- partitions come and go ------------------------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Restore and start newly assigned partitions; those that come while the worker leaves go back as they are."""
        if self._doing == "leaving":
            return
        self._report.joined = True
        self._metrics.rebalanced("assigned")
        self._source.start(self._restore(partitions))
        self._report.publish()

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Commit what is done, then let the partitions go; past the budget, or amid a batch, abort."""
        self._metrics.rebalanced("revoked")
        began, budget = self._clock(), Deadline(self._revoke_budget_s, self._clock, within=(self._abort_by,))
        try:
            if self._doing == "waiting":
                raise TransactionAborted("outputs of a batch are still to be sent", "rebalance")
            self._commit(partitions, budget.part(_COMMIT_SHARE))
        except TransactionAborted as error:
            _log.warning("revoke_aborted", reason=str(error))
            self._abort(budget, error.cause)
        self._drop(partitions)
        took_s = round(self._clock() - began, 3)
        _log.info("partitions_revoked", partitions=[str(each) for each in partitions], seconds=took_s)

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Give up everything since the last commit: part of it belongs to another worker now."""
        _log.warning("partitions_lost", partitions=[str(each) for each in partitions])
        self._report.joined = False
        self._metrics.rebalanced("lost")
        self._sink.lost()
        self._abort(Deadline(self._revoke_budget_s, self._clock, within=(self._abort_by,)), "rebalance")
        self._drop(partitions)

    def _abort(self, deadline: Deadline, cause: AbortCause) -> None:
        if self._rebuild_needed:
            return  # nothing was sent since the last one
        self._sink.abort(deadline)
        self._snapshots.give_up(self._progress)
        self._report.aborted(cause)
        self._unsent_commit = False
        self._rebuild_needed = True

    def _rebuild(self) -> None:
        """After an abort: every partition goes back to what is committed."""
        self._sink.settle()
        self._source.seek(self._restore(tuple(self._progress)))
        self._rebuild_needed = False

    def _restore(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Read what is committed and open the partitions there; returns the offsets to read from."""
        if not partitions:
            return {}
        # What an abort could not end might still be committed after it was asked for.
        self._sink.settle(assigned=True)
        offsets = {}
        now = self._clock()
        for partition, committed in self._source.committed(partitions, self._told_to_stop).items():
            start = self._store.start(partition, committed)
            self._pipeline.open(partition, start.position, start.live_from, *start.state)
            self._progress[partition] = _Progress(
                committed=None if start.pointer is None else start.live_from,
                pointer=start.pointer,
                snapshot_at=now,
                quiet_since=now,
            )
            offsets[partition] = start.position
        return offsets

    def _told_to_stop(self) -> bool:
        return self._stop.left_s < math.inf

    def _drop(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._pipeline.drop(partition)
            self._progress.pop(partition, None)
        self._snapshots.forget(partitions)
        self._source.forget(partitions)

"""Writes partitions' snapshots, and says how often: what they cost the running worker is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from worker.delivery.deadline import Deadline
from worker.delivery.protocols import Message, Sink
from worker.delivery.restore import StateStore
from worker.delivery.snapshots import SnapshotPointer
from worker.observability.metrics import Metrics
from worker.processing.records import Partition
from worker.processing.rekeying import AnyPipeline

_SHARE = 0.05  # of the worker's time; snapshots that would take more come less often than asked


class SnapshotWriter:
    """Writes snapshots into the open transaction.

    Args:
        store: makes them.
        sink: takes them.
        metrics: what is counted.
        interval_ms: how often each partition is to be saved.
        clock: monotonic seconds.
    """

    def __init__(
        self, store: StateStore, sink: Sink, metrics: Metrics, interval_ms: int, clock: Callable[[], float]
    ) -> None:
        self._store, self._sink, self._metrics, self._clock = store, sink, metrics, clock
        self._interval_s = interval_ms / 1000
        self._took: dict[Partition, tuple[float, float]] = {}  # seconds, the two latest

    def interval_s(self, partitions: Iterable[Partition]) -> float:
        """How often each of these is saved: as often as asked, unless all together would then cost too much.

        Of the two latest snapshots of a partition the quicker one counts: one that had to wait for a broker's restart
        says nothing of the next.
        """
        cost_s = sum(min(self._took.get(each, (0.0,))) for each in partitions)
        return max(self._interval_s, cost_s / _SHARE)

    def write(
        self,
        pipeline: AnyPipeline,
        partitions: Sequence[Partition],
        positions: Mapping[Partition, int],
        deadline: Deadline,
    ) -> dict[Partition, SnapshotPointer]:
        """Write snapshots with one wait for the broker; each partition counts with its share of the time.

        Raises:
            TransactionAborted, RunError: as for `Sink.send_snapshots`.
        """
        began = self._clock()
        sizes: list[int] = []
        parts: list[int] = []

        def encoded() -> Iterator[list[Message]]:
            for partition in partitions:
                messages = self._store.messages(partition, positions[partition], *pipeline.state(partition))
                sizes.append(sum(len(part.value or b"") for part in messages))
                parts.append(len(messages))
                yield messages + self._store.stale_parts(partition, len(messages))

        firsts = self._sink.send_snapshots(encoded(), deadline)
        took = (self._clock() - began) / len(partitions)
        for partition, size in zip(partitions, sizes, strict=True):
            self._took[partition] = (self._took.get(partition, (0.0, 0.0))[1], took)
            self._metrics.snapshot(size, took)
        return {
            partition: self._store.pointer(partition, positions[partition], first, count)
            for partition, first, count in zip(partitions, firsts, parts, strict=True)
        }

    def forget(self, partition: Partition) -> None:
        """It is another worker's now."""
        self._took.pop(partition, None)

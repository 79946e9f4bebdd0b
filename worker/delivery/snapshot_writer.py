"""Writes partitions' snapshots, and says how often: what they cost the running worker is bounded.

A snapshot that is only due is made while the worker goes on: its thread copies the columns of the open sessions,
another one makes messages of the copy, and the first commit after that carries them. The snapshot's position lies
before the committed one then, as it does at every commit without a snapshot; a restart reads again what is between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

from worker.delivery.deadline import Deadline
from worker.delivery.protocols import Message, Sink
from worker.delivery.restore import StateStore
from worker.delivery.snapshots import SnapshotPointer
from worker.observability.metrics import Metrics
from worker.processing.records import Partition
from worker.processing.rekeying import AnyPipeline

_SHARE = 0.05  # of the worker's time; snapshots that would take more come less often than asked


class _Made(NamedTuple):
    position: int
    messages: list[Message]
    took_s: float


class SnapshotWriter:
    """Writes snapshots into the open transaction.

    Args:
        store: makes them.
        sink: takes them.
        metrics: what is counted.
        interval_ms: how often each partition is to be saved.
        clock: monotonic seconds.
        background: makes the messages of snapshots that are only due; a thread unless said otherwise.
    """

    def __init__(
        self,
        store: StateStore,
        sink: Sink,
        metrics: Metrics,
        interval_ms: int,
        clock: Callable[[], float],
        background: Executor | None = None,
    ) -> None:
        self._store, self._sink, self._metrics, self._clock = store, sink, metrics, clock
        self._background = background or ThreadPoolExecutor(1, "snapshots")
        self._interval_s = interval_ms / 1000
        self._took: dict[Partition, tuple[float, float]] = {}  # seconds, the two latest
        self._begun: dict[Partition, Future[_Made]] = {}

    def close(self) -> None:
        """End the thread that makes snapshots."""
        self._background.shutdown(cancel_futures=True)

    def interval_s(self, partitions: Iterable[Partition]) -> float:
        """How often each of these is saved: as often as asked, unless all together would then cost too much.

        Of the two latest snapshots of a partition the quicker one counts: one that had to wait for a broker's restart
        says nothing of the next.
        """
        cost_s = sum(min(self._took.get(each, (0.0,))) for each in partitions)
        return max(self._interval_s, cost_s / _SHARE)

    def begin(self, pipeline: AnyPipeline, partition: Partition, position: int) -> None:
        """Begin a snapshot of where a partition is, unless one of it is being made.

        The position has to be committed: nothing that an abort could take back may be in a snapshot of a later commit.
        """
        if partition in self._begun:
            return
        began = self._clock()
        messages = self._store.maker(partition, position)
        image, *others = pipeline.image(partition)
        images = [image]
        del image

        def make() -> _Made:
            state = images.pop().state()  # the copy, as large as the open sessions, is let go at once
            return _Made(position, messages(state, *others), self._clock() - began)

        self._begun[partition] = self._background.submit(make)

    def write(
        self,
        pipeline: AnyPipeline,
        partitions: Collection[Partition],
        positions: Mapping[Partition, int],
        deadline: Deadline,
    ) -> dict[Partition, SnapshotPointer]:
        """Write snapshots of where these partitions are, and those that were begun and are made.

        There is one wait for the broker; each partition counts with its share of the time.

        Raises:
            TransactionAborted, RunError: as for `Sink.send_snapshots`.
        """
        began = self._clock()
        self.give_up(partitions)
        made = {each: self._begun.pop(each).result() for each, future in tuple(self._begun.items()) if future.done()}
        taken_at = {
            **{each: positions[each] for each in partitions},
            **{each: one.position for each, one in made.items()},
        }
        if not taken_at:
            return {}
        parts: dict[Partition, list[Message]] = {}

        def encoded() -> Iterator[list[Message]]:
            for partition, position in taken_at.items():
                if partition in made:
                    messages = made[partition].messages
                else:
                    messages = self._store.maker(partition, position)(*pipeline.state(partition))
                parts[partition] = messages
                yield messages + self._store.stale_parts(partition, len(messages))

        firsts = self._sink.send_snapshots(encoded(), deadline)
        share = (self._clock() - began) / len(parts)
        for partition, messages in parts.items():
            took = share + (made[partition].took_s if partition in made else 0)
            self._took[partition] = (self._took.get(partition, (0.0, 0.0))[1], took)
            self._metrics.snapshot(sum(len(part.value or b"") for part in messages), took)
        return {
            partition: self._store.pointer(partition, taken_at[partition], first, len(messages))
            for (partition, messages), first in zip(parts.items(), firsts, strict=True)
        }

    def forget(self, partitions: Iterable[Partition]) -> None:
        """They are another worker's now."""
        self.give_up(partitions)
        for partition in partitions:
            self._took.pop(partition, None)

    def give_up(self, partitions: Iterable[Partition]) -> None:
        """What was begun of these must not be written: it is of a state that is not theirs any more."""
        for partition in partitions:
            if (begun := self._begun.pop(partition, None)) is not None:
                begun.cancel()

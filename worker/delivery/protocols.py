"""The seams of exactly once: where records come from and where outputs go.

`worker.kafka.source` and `worker.kafka.sink` speak Kafka, `worker.delivery.memory` is the in-memory version of both;
the loop knows only what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple, Protocol

from worker.delivery.deadline import Deadline
from worker.observability.status import ReloadStatus
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records


class Committed(NamedTuple):
    """What a consumer group has committed for a partition: the next offset and the metadata beside it."""

    offset: int
    metadata: str


class Message(NamedTuple):
    """A record to be written. `partition` None lets the producer choose by key, `timestamp_ms` None means now."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    partition: int | None = None
    timestamp_ms: int | None = None


def messages_of(outputs: Sequence[Output], topic: str, dead_letter_topic: str) -> list[Message]:
    """What is to be written of outputs."""
    if not outputs:
        return []
    severities, keys, values, headers, _, _, partitions = zip(*outputs, strict=True)
    topics = [dead_letter_topic if severity is None else topic for severity in severities]
    columns = zip(topics, keys, values, headers, partitions, repeat(None), strict=False)
    return list(map(tuple.__new__, repeat(Message), columns))  # as `Message` of each, without a call of Python's


class Reloads(Protocol):
    """Where pipelines come from that a running worker is to go over to; asked between two turns of the loop."""

    @property
    def latest(self) -> ReloadStatus | None:
        """What became of the latest reload."""

    def due(self) -> Pipeline | None:
        """The pipeline to go over to now, if any; the same again until `taken` or `refused`, or a later one."""

    def taken(self, seconds: float) -> None:
        """What was due is what the worker goes on with; the change took so long."""

    def refused(self, error: Exception) -> None:
        """The worker goes on with what it had."""


class NoReloads:
    """For a worker that goes on with the pipeline that it began with."""

    latest = None

    def due(self) -> None:
        """None."""

    def taken(self, seconds: float) -> None:
        """Never called."""

    def refused(self, error: Exception) -> None:
        """Never called."""


NO_RELOADS: Final[Reloads] = NoReloads()


class Rebalance(Protocol):
    """What a source tells about its partitions, from within `poll`, `keep_alive` or `close`."""

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """These partitions are ours now; `Source.start` must be called for them."""

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """These are about to move to another worker; they are still ours during the call."""

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """These are another worker's already: nothing may be committed for them."""


class TopicReader(Protocol):
    """Reads what is already in a topic, outside the consumer group; waits while the broker is away."""

    def partitions(self, topic: str) -> list[int]:
        """Numbers of the topic's partitions; empty when there is no such topic."""

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        """(offset of the oldest record, offset after the newest)."""

    def read(self, partition: Partition, start: int, end: int, *, committed: bool = True) -> Iterable[Records]:
        """The records in [start, end) in order, in batches; stops at the end of the partition.

        With `committed`, what an aborted transaction wrote is left out, and an open one counts as the end.
        """


class Source(Protocol):
    """A member of a consumer group."""

    def subscribe(self, listener: Rebalance) -> None:
        """Join the group; partitions come and go through `listener`."""

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        """At most `max_records` records, at most one `Records` a partition, after at most `timeout_s`."""

    def keep_alive(self) -> None:
        """Poll without taking records, which keeps the membership and serves rebalances.

        The partitions are paused until the next `poll`.
        """

    def fully_consumed(self) -> Mapping[Partition, int]:
        """End offsets of the partitions that `poll` has reached the end of.

        Records may have come since. What was said of a partition is forgotten when it delivers records or is paused.
        """

    def ask_for_end(self, partition: Partition) -> None:
        """Forget the partition's end; it is there again when the broker has said so anew."""

    def missing_topics(self) -> Sequence[str]:
        """Input topics that are not there, as far as is known; a pattern where it matches none."""

    def end_offset(self, partition: Partition) -> int | None:
        """Offset after the partition's newest record as last heard, without asking; None when not heard yet."""

    def committed(
        self, partitions: Sequence[Partition], stopping: Callable[[], bool]
    ) -> dict[Partition, Committed | None]:
        """What the group has committed, once no transaction that may change it is open.

        Raises:
            TransactionAborted: `stopping()` while it waited for one, or for the broker.
        """

    def start(self, offsets: Mapping[Partition, int]) -> None:
        """Begin to deliver newly assigned partitions, from these offsets."""

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Deliver partitions that are already started from these offsets next.

        Raises:
            TransactionAborted: it cannot be done now; it can be tried again after the next `poll`.
        """

    def forget(self, partitions: Sequence[Partition]) -> None:
        """Stop delivering partitions that were revoked or lost."""

    def group_metadata(self) -> object:
        """The group's identity for `Sink.commit`; to be taken fresh for each commit."""

    def close(self, deadline: Deadline) -> None:
        """Leave the group; past the deadline without its knowledge."""


class Sink(Protocol):
    """Writes messages and the offsets that caused them, atomically.

    A transaction has a longest life of its own, counted from its first message: what is not committed well before its
    end is given up, whatever the deadlines.

    Attributes:
        while_waiting: called about every second while messages wait to be written. What it raises ends the call.
    """

    while_waiting: Callable[[], None]

    def send(self, messages: Iterable[Message], deadline: Deadline) -> None:
        """Add messages to the open transaction (one is begun when none is open).

        Raises:
            TransactionAborted: the broker takes none, or not all of what was sent before.
            RunError: as for `commit`.
        """

    def send_snapshots(self, snapshots: Iterable[Sequence[Message]], deadline: Deadline) -> list[int]:
        """Write snapshots; returns the offset of the first part of each.

        Args:
            snapshots: the parts of each, in order and all to one partition; asked for one after the other.
            deadline: for all of them.

        Raises:
            TransactionAborted, RunError: as for `commit`.
        """

    def commit(
        self, offsets: Mapping[Partition, Committed], group_metadata: Callable[[], object], deadline: Deadline
    ) -> None:
        """Commit what was sent together with the input offsets.

        Raises:
            TransactionAborted: not committed as far as is known; the caller calls `abort` and, after `settle`, restores
                from what is committed.
            RunError: the worker must stop (fenced by another instance, not allowed).
        """

    def abort(self, deadline: Deadline) -> None:
        """Give up what was sent since the last commit, as far as the broker answers in time; `settle` does the rest."""

    def lost(self) -> None:
        """The group has given our partitions away, and may take us for dead; `abort` and `settle` follow.

        Who has the partitions now may have ended what we had open.
        """

    def settle(self, *, assigned: bool = False) -> None:
        """Make sure that nothing that was given up can be committed any more; waits while the broker is away.

        Args:
            assigned: we have partitions, so that nobody takes us for dead any more.
        """

    def close(self, deadline: Deadline) -> None:
        """Release the connection; what was not committed is given up."""

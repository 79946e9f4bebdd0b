"""A broker in memory, with its source, sink and reader: the loop runs on it in tests as it does on Kafka.

It keeps what matters to the loop: offsets, transactions that are visible whole or not at all, a group's committed
positions, and rebalances that the caller stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from worker.delivery.deadline import Deadline
from worker.delivery.protocols import Committed, Message, Rebalance
from worker.errors import RunError, TransactionAborted
from worker.processing.records import Partition, Records


@dataclass(slots=True)
class _Stored:
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes | None]]
    committed: bool | None  # None while its transaction is open


class MemoryBroker:
    """Topics, and one consumer group's committed positions.

    Args:
        topics: number of partitions of each topic.
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        self._logs: dict[Partition, list[_Stored]] = {
            Partition(topic, number): [] for topic, count in topics.items() for number in range(count)
        }
        self._low: dict[Partition, int] = {}
        self.committed: dict[Partition, Committed] = {}

    def append(
        self,
        partition: Partition,
        value: bytes | None,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Sequence[tuple[str, bytes | None]] = (),
        *,
        committed: bool = True,
    ) -> int:
        """Write one record, or one of a transaction that never commits; returns its offset."""
        return self.store(partition, _Stored(key, value, timestamp, [*headers], committed))

    def visible(self, topic: str) -> list[Message]:
        """What a reader of committed records sees, partition after partition."""
        return [
            Message(topic, stored.key, stored.value, stored.headers, partition.partition)
            for partition, log in self._logs.items()
            if partition.topic == topic
            for stored in log
            if stored.committed
        ]

    def delete_before(self, partition: Partition, offset: int) -> None:
        """Delete records as retention does: the low watermark moves."""
        self._low[partition] = offset

    def partitions(self, topic: str) -> list[int]:
        """Numbers of the topic's partitions."""
        return sorted(each.partition for each in self._logs if each.topic == topic)

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        """(offset of the oldest record, offset after the newest)."""
        return self._low.get(partition, 0), len(self._logs[partition])

    def read(self, partition: Partition, start: int, end: int, *, committed: bool = True) -> Iterator[Records]:
        """The records in [start, end), with or without those of open and aborted transactions."""
        records = self.slice(partition, start, end, committed=committed)
        if len(records.offsets):
            yield records

    def slice(self, partition: Partition, start: int, end: int, *, committed: bool = True) -> Records:
        """The records in [start, end) as columns."""
        found = [
            (offset, row)
            for offset, row in enumerate(self._logs[partition][start:end], start)
            if row.committed or not committed
        ]
        rows = [row for _, row in found]
        return Records(
            topic=partition.topic,
            partition=partition.partition,
            offsets=[offset for offset, _ in found],
            values=[row.value for row in rows],
            keys=[row.key for row in rows],
            timestamps=[row.timestamp for row in rows],
            headers=None,
            headers_of=lambda number: rows[number].headers,
        )

    def store(self, partition: Partition, stored: _Stored) -> int:
        """Append a record whose transaction may be open; returns its offset."""
        log = self._logs[partition]
        log.append(stored)
        return len(log) - 1


@dataclass
class MemorySource:
    """A group member that owns the partitions the test gives it (`worker.delivery.protocols.Source`).

    As with Kafka's client, what it knows of a partition's end is as of the last `poll` that came to the partition: one
    that is full of the records of those before it does not.

    Attributes:
        assign_next, revoke_next, lose_next: what the next `poll` or `keep_alive` tells the listener.
    """

    broker: MemoryBroker
    assign_next: list[Partition] = field(default_factory=list)
    revoke_next: list[Partition] = field(default_factory=list)
    lose_next: list[Partition] = field(default_factory=list)
    _positions: dict[Partition, int] = field(default_factory=dict)
    _ends: dict[Partition, int] = field(default_factory=dict)  # of those that are fully consumed, as far as is known
    _heard: dict[Partition, int] = field(default_factory=dict)
    _listener: Rebalance | None = None

    def subscribe(self, listener: Rebalance) -> None:
        self._listener = listener

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:  # noqa: ARG002  nothing to wait for
        self._rebalance()
        batch = []
        for partition, position in self._positions.items():
            if max_records == 0:
                break
            records = self.broker.slice(partition, position, position + max_records)
            if len(records.offsets):
                max_records -= len(records.offsets)
                self._positions[partition] = records.last_offset + 1
                self._ends.pop(partition, None)
                batch.append(records)
            self._heard[partition] = self.broker.watermarks(partition)[1]
            if self._positions[partition] == self._heard[partition]:
                self._ends[partition] = self._heard[partition]
        return batch

    def keep_alive(self) -> None:
        self._ends.clear()
        self._rebalance()

    def _rebalance(self) -> None:
        assert self._listener is not None, "poll before subscribe"
        for staged, tell in (
            (self.lose_next, self._listener.on_lost),
            (self.revoke_next, self._listener.on_revoked),
            (self.assign_next, self._listener.on_assigned),
        ):
            if staged:
                partitions = tuple(staged)
                staged.clear()
                tell(partitions)

    def fully_consumed(self) -> Mapping[Partition, int]:
        return self._ends

    def ask_for_end(self, partition: Partition) -> None:
        self._ends.pop(partition, None)

    def missing_topics(self) -> Sequence[str]:
        return ()

    def end_offset(self, partition: Partition) -> int | None:
        return self._heard.get(partition)

    def committed(
        self,
        partitions: Sequence[Partition],
        stopping: Callable[[], bool],  # noqa: ARG002  nothing to wait for
    ) -> dict[Partition, Committed | None]:
        return {partition: self.broker.committed.get(partition) for partition in partitions}

    def start(self, offsets: Mapping[Partition, int]) -> None:
        self._positions.update(offsets)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        self._positions.update(offsets)
        for partition in offsets:
            self._ends.pop(partition, None)

    def forget(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            del self._positions[partition]
            self._ends.pop(partition, None)

    def group_metadata(self) -> object:
        return None

    def close(self, deadline: Deadline) -> None:  # noqa: ARG002  nothing to wait for
        self._rebalance()  # what was under way still comes
        if self._positions and self._listener is not None:
            self._listener.on_revoked(tuple(self._positions))


Operation = Literal["flush", "send_offsets", "commit", "abort", "settle"]


class MemorySink:
    """Writes to a `MemoryBroker` in transactions (`worker.delivery.protocols.Sink`).

    Args:
        broker: where to.
        clock: monotonic seconds; a transaction's life is counted with it.
        sleep: lets that many seconds pass on the clock.
        transaction_timeout_s: a transaction's longest life. Whoever asks for anything of an older one is fenced, as by
            Kafka's coordinator.

    Attributes:
        takes_s: how long the broker takes to answer each operation; 0 for those that are not there.
        fail_next_commit: raised by the next commit, once, before anything becomes visible.
        stalls: how many of the next messages have to wait before they are written.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        transaction_timeout_s: float = 60.0,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._sleep = sleep
        self._longest_s = transaction_timeout_s
        self._open: list[_Stored] = []
        self._begun_at = 0.0
        self._given_up: list[_Stored] = []  # neither committed nor aborted yet
        self.takes_s: dict[Operation, float] = {}
        self.fail_next_commit: Exception | None = None
        self.stalls = 0
        self.while_waiting: Callable[[], None] = lambda: None

    def send(self, messages: Iterable[Message], deadline: Deadline) -> None:  # noqa: ARG002  there is always room
        for message in messages:
            self._store(message)

    def send_snapshots(self, snapshots: Iterable[Sequence[Message]], deadline: Deadline) -> list[int]:
        firsts = []
        for parts in snapshots:
            first, *_ = [self._store(part) for part in parts]
            firsts.append(first)
        self._wait("flush", self._commit_by(deadline))
        return firsts

    def commit(
        self,
        offsets: Mapping[Partition, Committed],
        group_metadata: Callable[[], object],  # noqa: ARG002  there is one group
        deadline: Deadline,
    ) -> None:
        if self.fail_next_commit is not None:
            error, self.fail_next_commit = self.fail_next_commit, None
            raise error
        self._begin()
        deadline = self._commit_by(deadline)
        for operation in _COMMIT:
            self._wait(operation, deadline)
        self._end(committed=True)
        self._broker.committed.update(offsets)

    def abort(self, deadline: Deadline) -> None:
        try:
            if self._open:
                self._wait("abort", deadline)
        except TransactionAborted:
            self._given_up += self._open
            self._open.clear()
        else:
            self._end(committed=False)

    def lost(self) -> None:
        self._given_up += self._open
        self._open.clear()

    def settle(self, *, assigned: bool = False) -> None:  # noqa: ARG002  nobody else ends what it has open
        if self._given_up:
            self._sleep(self.takes_s.get("settle", 0.0))
            self._open, self._given_up = self._given_up, []
            self._end(committed=False)

    def close(self, deadline: Deadline) -> None:
        self.abort(deadline)

    def _commit_by(self, deadline: Deadline) -> Deadline:
        """What the transaction's age leaves of a deadline."""
        left_s = 0.75 * self._longest_s - (self._clock() - self._begun_at) if self._open else math.inf
        return Deadline(left_s, self._clock, within=(deadline,))

    def _wait(self, operation: Operation, deadline: Deadline) -> None:
        takes_s = self.takes_s.get(operation, 0.0)
        if takes_s:
            left_s = deadline.left_s
            self._sleep(min(takes_s, left_s))
            if takes_s > left_s:
                raise TransactionAborted(f"no answer in time: {operation}", "no_answer")
        if self._open and self._clock() - self._begun_at > self._longest_s:
            raise RunError(f"fenced: the transaction was too old: {operation}")

    def _begin(self) -> None:
        if not self._open:
            self._begun_at = self._clock()

    def _store(self, message: Message) -> int:
        self._begin()
        if self.stalls:
            self.stalls -= 1
            self.while_waiting()
        stored = _Stored(message.key, message.value, 0, list(message.headers), None)
        self._open.append(stored)
        return self._broker.store(Partition(message.topic, message.partition or 0), stored)

    def _end(self, *, committed: bool) -> None:
        for stored in self._open:
            stored.committed = committed
        self._open.clear()


_COMMIT: tuple[Operation, ...] = ("send_offsets", "flush", "commit")

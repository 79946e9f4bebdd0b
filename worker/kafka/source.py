"""The Kafka source: a member of a consumer group, and a reader of single partitions beside the group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import TopicMetadata

from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed, Rebalance
from worker.errors import RunError, TransactionAborted
from worker.kafka.calls import Hung, within
from worker.kafka.client_log import ClientErrorLog
from worker.kafka.dead_workers import DeadWorkers
from worker.kafka.errors import AWAY, UNKNOWN, error_of, not_committed
from worker.kafka.messages import by_partition
from worker.kafka.missing_topics import MissingTopics
from worker.processing.records import Partition, Records

_SLICE_S = 2.0  # of a wait for an answer: in between, the worker may be told to stop
_PROBE_S = 1.0
_SILENT_S = 5.0
_BACKOFF_S = 0.1
_IDLE_S, _LEAST_LINGER_S = 0.02, 0.001  # of a poll that finds nothing, and of each of its looks
_UNKNOWN_S = 30.0  # a broker that has just come back may not know its partitions yet
_READ_LINGER_S = 0.02  # a restart waits that long once more after the last part of each partition's snapshot

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class KafkaSource:
    """A consumer of the input topics (`worker.delivery.protocols.Source`).

    Args:
        properties: librdkafka properties, `group.id` among them.
        topics: names, or one regular expression that begins with ^.
        outage: is told when no broker answers.
        with_headers: whether records carry their headers (only a session key of kind `header` needs them).
        dead_workers: ends what they left open of newly assigned partitions; None where there are no transactions.
        prepare: called once, when there are partitions and before the listener hears of them.
    """

    def __init__(
        self,
        properties: Mapping[str, object],
        topics: Sequence[str],
        outage: Outage,
        *,
        with_headers: bool = False,
        dead_workers: DeadWorkers | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._topics = list(topics)
        self._outage = outage
        outage.ask = self._unreachable
        self._log_error = ClientErrorLog("consumer")
        self._dead_workers = dead_workers
        self._with_headers = with_headers
        self._prepare = prepare
        self.consumer = Consumer(
            {
                **properties,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.partition.eof": True,
                "error_cb": self._hear,
            }
        )
        self._asking = {name: value for name, value in properties.items() if name != "stats_cb"}
        self._missing = MissingTopics(self._topics, self._known)
        self._ends: dict[Partition, int] = {}
        self._paused = False
        self._rebalancing = False  # a callback of the client runs, which leaves other threads' calls waiting
        self._left = False  # the group, to join it anew once the partitions are handed back

    def subscribe(self, listener: Rebalance) -> None:
        def assigned(partitions: Sequence[Partition]) -> None:
            self._missing.suspect()
            if partitions and self._prepare is not None:
                self._prepare()
                self._prepare = None
            listener.on_assigned(partitions)

        def forward(tell: Callable[[Sequence[Partition]], None]) -> Callable[[Consumer, list[TopicPartition]], None]:
            def told(_consumer: Consumer, partitions: list[TopicPartition]) -> None:
                self._rebalancing = True
                try:
                    tell([Partition(p.topic, p.partition) for p in partitions])
                finally:
                    self._rebalancing = False

            return told

        self._join = partial(
            self.consumer.subscribe,
            self._topics,
            on_assign=forward(assigned),
            on_revoke=forward(listener.on_revoked),
            on_lost=forward(listener.on_lost),
        )
        self._join()

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        if self._left and not self.consumer.assignment():
            self._left = False
            self._join()
        if self._paused:
            self._paused = False
            self.consumer.resume(self.consumer.assignment())
            _log.info("input_resumed")
        # `consume` takes all of its time unless it finds as many as it may: that is how long a record waits for others.
        # While there is none, asking again costs less than a turn of the loop.
        idle = Deadline(_IDLE_S)
        linger_s = max(timeout_s, _LEAST_LINGER_S)
        while not (messages := self._consume(max_records, linger_s)) and not idle.passed:
            pass
        self._missing.look()
        if not messages:
            self._outage.look()
            return []
        self._outage.over()
        batch = by_partition(messages, self._with_headers)
        if self._ends:
            for records in batch:
                partition = Partition(records.topic, records.partition)
                if self._ends.get(partition, 0) <= records.last_offset:
                    self._ends.pop(partition, None)
        return batch

    def keep_alive(self) -> None:
        if not self._paused:
            self._paused = True
            self._ends.clear()  # told again after the pause, as they are then
            self.consumer.pause(self.consumer.assignment())
            _log.info("input_paused")
        if self._consume(1, 0.0):
            raise TransactionAborted("a paused partition delivered a record, which has to be polled again", "position")

    def fully_consumed(self) -> Mapping[Partition, int]:
        return self._ends

    def ask_for_end(self, partition: Partition) -> None:
        self._ends.pop(partition, None)
        if not self._paused:
            # The client tells an end once. A partition that is resumed is fetched anew from where its last record was
            # taken, and what was under way before, records and ends, is dropped.
            place = [TopicPartition(*partition)]
            self.consumer.pause(place)
            self.consumer.resume(place)

    def missing_topics(self) -> Sequence[str]:
        return self._missing.names

    def end_offset(self, partition: Partition) -> int | None:
        marks = self.consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return None if marks is None or marks[1] < 0 else marks[1]

    def committed(
        self, partitions: Sequence[Partition], stopping: Callable[[], bool]
    ) -> dict[Partition, Committed | None]:
        request = [TopicPartition(*partition) for partition in partitions]
        undecided = ended = False
        while True:
            if not self._outage.lasts:
                self._end_transactions(partitions)  # again while undecided: a worker may die only now
                ended = True
            try:
                answer = self.consumer.committed(request, timeout=_SLICE_S)
                error = next((each.error for each in answer if each.error is not None), None)
            except KafkaException as exception:
                error = error_of(exception)
            if error is None:
                break
            # The client asks again by itself while they are undecided, until its time is up.
            asked_in_vain = error.code() == KafkaError._TIMED_OUT and self._unreachable() is None
            if error.code() == KafkaError.UNSTABLE_OFFSET_COMMIT or asked_in_vain:
                # A live worker's commit, or a dead one's that could not be ended: at worst for transaction.timeout.ms.
                self._outage.over()
                if stopping():
                    raise TransactionAborted("told to stop while the committed offsets were undecided", "stop")
                if not undecided:
                    undecided = True
                    _log.info("committed_offsets_undecided", reason=error.str())
            elif error.code() in AWAY:
                ended = False
                self._outage.wait(f"the committed offsets cannot be read: {error.str()}")
            else:
                raise RunError(f"the committed offsets cannot be read: {error.str()}")
            time.sleep(_BACKOFF_S)
        self._outage.over()
        if not ended:
            self._end_transactions(partitions)
        return {
            Partition(each.topic, each.partition): (
                None if each.offset == OFFSET_INVALID else Committed(each.offset, each.metadata or "")
            )
            for each in answer
        }

    def commit(self, positions: list[TopicPartition], deadline: Deadline) -> None:
        """Commit positions outside any transaction.

        Raises:
            TransactionAborted: they are not committed, or not in time.
            RunError: they may not be.
        """
        try:
            if self._rebalancing:
                self.consumer.commit(offsets=positions, asynchronous=True)
                while not self._are_committed(positions, deadline):
                    if deadline.passed:
                        raise TransactionAborted("the offsets were not committed in time", "no_answer")
                    time.sleep(min(_BACKOFF_S, deadline.left_s))
            else:
                commit = partial(self.consumer.commit, offsets=positions, asynchronous=False)
                within(deadline, commit, "committing", self._outage.look)
        except KafkaException as error:
            raise not_committed(error) from error

    def _are_committed(self, positions: list[TopicPartition], deadline: Deadline) -> bool:
        asked = [TopicPartition(each.topic, each.partition) for each in positions]
        try:
            found = self.consumer.committed(asked, timeout=min(_SLICE_S, deadline.left_s))
        except KafkaException as error:
            if error_of(error).code() in AWAY:
                return False
            raise
        wanted = {(each.topic, each.partition): (each.offset, each.metadata) for each in positions}
        return all(wanted[each.topic, each.partition] == (each.offset, each.metadata) for each in found)

    def start(self, offsets: Mapping[Partition, int]) -> None:
        partitions = [TopicPartition(*each, offset) for each, offset in offsets.items()]
        self.consumer.incremental_assign(partitions)
        # The client remembers that a partition was paused while it was away.
        (self.consumer.pause if self._paused else self.consumer.resume)(partitions)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        for each, offset in offsets.items():
            self._ends.pop(each, None)
            try:
                self.consumer.seek(TopicPartition(*each, offset))
            except KafkaException as exception:
                error = exception.args[0]
                if error.code() != KafkaError._STATE:
                    raise RunError(f"{each}: cannot go back to offset {offset}: {error.str()}") from exception
                # The client has stopped fetching the partition, because its position is gone from the topic or seems
                # so after a broker's crash. Only an assignment starts it again, and only the group may assign.
                self.consumer.unsubscribe()
                self._left = True
                reason = f"{each}: fetching had stopped, so the group is joined anew"
                raise TransactionAborted(reason, "position") from exception

    def forget(self, partitions: Sequence[Partition]) -> None:
        for each in partitions:
            self._ends.pop(each, None)
        self.consumer.incremental_unassign([TopicPartition(*each) for each in partitions])

    def group_metadata(self) -> object:
        return self.consumer.consumer_group_metadata()

    def close(self, deadline: Deadline) -> None:
        try:
            within(deadline, self.consumer.close, "leaving the group")
        except Hung as error:
            # The group finds out by itself, within the session's time-out.
            _log.warning("group_not_left", reason=str(error))

    def _end_transactions(self, partitions: Sequence[Partition]) -> None:
        """End what dead workers left open of those partitions that are new to us."""
        ours = {Partition(each.topic, each.partition) for each in self.consumer.assignment()}
        new = [partition for partition in partitions if partition not in ours]
        if new and self._dead_workers is not None:
            self._dead_workers.end_transactions(new)

    def _hear(self, error: KafkaError) -> None:
        self._log_error(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._outage.suspect(error.str())  # perhaps it has only closed connections that were idle for long

    def _unreachable(self) -> str | None:
        """Why no broker answers; None when one does. Of several the client asks the one that it asked last.

        Within a callback it is another client that asks: `list_topics` makes confluent-kafka forget the call that it is
        in, and the next callback of that call would end the process.
        """
        topic = self._topics[0]
        client = Consumer(self._asking) if self._rebalancing else self.consumer
        try:
            client.list_topics("" if topic.startswith("^") else topic, timeout=_PROBE_S)
        except KafkaException as exception:
            return error_of(exception).str()
        finally:
            if client is not self.consumer:
                client.close()
        return None

    def _known(self, topic: str | None) -> Mapping[str, TopicMetadata]:
        metadata = self.consumer.list_topics(**({} if topic is None else {"topic": topic}), timeout=_PROBE_S)
        topics: Mapping[str, TopicMetadata] = metadata.topics
        return topics

    def _consume(self, max_records: int, timeout_s: float) -> list[Message]:
        """Records; errors among them are dealt with."""
        try:
            messages = self.consumer.consume(max_records, timeout_s)
        except KafkaException as error:
            raise RunError(f"Kafka: {error.args[0]}") from error
        failed = [message for message in messages if message.error() is not None]
        if failed:
            for message in failed:
                self._handle_error(message)
            messages = [message for message in messages if message.error() is None]
        return messages

    def _handle_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        partition = Partition(message.topic() or "", message.partition() or 0)
        if error.code() == KafkaError._PARTITION_EOF:
            self._ends[partition] = message.offset() or 0
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            # Retention has passed the position while the worker was running: the same decision as at a start.
            raise TransactionAborted(f"{partition}: the position is no longer in the topic: {error.str()}", "position")
        elif error.code() in UNKNOWN:
            self._missing.suspect()
        elif error.code() in {KafkaError._MAX_POLL_EXCEEDED, *AWAY}:
            _log.warning("kafka_consumer_error", partition=str(partition), code=error.name(), reason=error.str())
        else:
            raise RunError(f"Kafka: {partition}: {error.str()} ({error.name()})")


class KafkaReader:
    """Reads single partitions beside the group (`worker.delivery.protocols.TopicReader`).

    What a committed offset names may be read uncommitted: an unrelated worker's open transaction then does not hold a
    restart up. A broker that does not answer is waited for.

    Args:
        properties: librdkafka properties.
        outage: told when no broker answers.
        batch_records: most records in hand at once.
        with_headers: whether records carry their headers.
    """

    def __init__(
        self, properties: Mapping[str, object], outage: Outage, *, batch_records: int, with_headers: bool = False
    ) -> None:
        self._batch_records = batch_records
        self._with_headers = with_headers
        self._outage = outage
        self._properties = {
            **properties,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "error_cb": ClientErrorLog("reader"),
        }
        self._consumers: dict[str, Consumer] = {}  # by isolation level

    def partitions(self, topic: str) -> list[int]:
        def ask(limit_s: float) -> TopicMetadata:
            found: TopicMetadata = self._open().list_topics(topic, timeout=limit_s).topics[topic]
            return found

        found = self._answered(ask, f"the partitions of {topic} cannot be listed")
        return sorted(found.partitions) if found.error is None else []

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        def ask(limit_s: float) -> tuple[int, int] | None:
            return self._open().get_watermark_offsets(TopicPartition(*partition), timeout=limit_s)

        return self._answered(ask, f"{partition}: its first and last offsets cannot be read")

    def offset_at(self, partition: Partition, time_ms: int, end: int) -> int:
        """Offset of the first record whose Kafka timestamp is at or after a time; `end` where there is none.

        Raises:
            RunError: the brokers do not say.
        """

        def ask(limit_s: float) -> TopicPartition:
            (found,) = self._open().offsets_for_times([TopicPartition(*partition, time_ms)], timeout=limit_s)
            return found

        found = self._answered(ask, f"{partition}: its offsets cannot be found by time")
        return end if found.offset < 0 else min(found.offset, end)

    def read(self, partition: Partition, start: int, end: int, *, committed: bool = True) -> Iterator[Records]:
        if start >= end:
            return
        consumer = self._open("read_committed" if committed else "read_uncommitted")
        consumer.assign([TopicPartition(*partition, start)])
        silent = Deadline(_SILENT_S)
        try:
            while True:
                messages = consumer.consume(self._batch_records, _READ_LINGER_S)
                at_end = False
                for message in messages:
                    error = message.error()
                    if error is not None and error.code() == KafkaError._PARTITION_EOF:
                        at_end = True
                    elif error is not None and error.code() not in AWAY:
                        raise RunError(f"{partition}: offset {start} cannot be read: {error.str()}")
                good = [m for m in messages if m.error() is None and (m.offset() or 0) < end]
                at_end = at_end or any(m.error() is None and (m.offset() or 0) >= end - 1 for m in messages)
                yield from by_partition(good, self._with_headers)
                if at_end:
                    return
                if good:
                    silent = Deadline(_SILENT_S)
                    self._outage.over()
                elif silent.passed:
                    silent = Deadline(_SLICE_S)
                    self._outage.wait(f"{partition}: nothing can be read")
        finally:
            consumer.unassign()

    def close(self) -> None:
        """Drop the connections; the next call makes a new one."""
        while self._consumers:
            self._consumers.popitem()[1].close()

    def _answered(self, ask: Callable[[float], _Answer | None], what: str) -> _Answer:
        unknown_until = Deadline(_UNKNOWN_S)
        while True:
            reason = "no answer"
            try:
                answer = ask(_SLICE_S)
            except KafkaException as exception:
                error = error_of(exception)
                if error.code() not in AWAY and (error.code() not in UNKNOWN or unknown_until.passed):
                    raise RunError(f"{what}: {error.str()}") from exception
                reason = error.str()
            else:
                if answer is not None:
                    self._outage.over()
                    return answer
            self._outage.wait(f"{what}: {reason}")
            time.sleep(_BACKOFF_S)

    def _open(self, isolation: str = "read_uncommitted") -> Consumer:
        if isolation not in self._consumers:
            self._consumers[isolation] = Consumer({**self._properties, "isolation.level": isolation})
        return self._consumers[isolation]

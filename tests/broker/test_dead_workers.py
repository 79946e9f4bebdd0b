"""Who is taken for dead, and what becomes of the transaction that it left open."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from structlog.testing import capture_logs

from tests.broker.harness import create_topic, read_all
from tests.broker.kafka import KafkaBroker
from worker.delivery.snapshots import SnapshotPointer
from worker.kafka.clients import ClientProperties
from worker.kafka.dead_workers import DeadWorkers
from worker.processing.records import Partition
from worker.settings.document import load_settings

POINTER = SnapshotPointer(position=0, state_partition=0, first_offset=0, parts=1)
_numbers = itertools.count(1)


class Group:
    """An application of which only the clients are there, with one input partition and one topic of scores."""

    def __init__(self, bootstrap: str, running: ExitStack) -> None:
        self.name = f"dead{next(_numbers)}"
        self.bootstrap, self._running = bootstrap, running
        self.input, self.scores = Partition(f"{self.name}-raw", 0), f"{self.name}-scores"
        create_topic(bootstrap, self.input.topic, 1)
        create_topic(bootstrap, self.scores, 1)

    def properties(self, instance: str, *overrides: str) -> ClientProperties:
        values = (
            f"application_id={self.name}",
            f"kafka.bootstrap.servers={self.bootstrap}",
            f"input.topics=[{self.input.topic}]",
            f"worker.instance={instance}",
            "kafka.transaction.timeout.ms=600000",  # longer than any test
            "kafka.max.poll.interval.ms=2400000",
            "kafka.heartbeat.interval.ms=200",  # how soon a member hears of another
        )
        return ClientProperties(load_settings(None, [*values, *overrides]))

    def join(self, *instances: str) -> list[Consumer]:
        """Make members of the group, and wait until each has got its share, which may be nothing."""
        got: set[str] = set()
        consumers = []
        for instance in instances:
            consumer = Consumer(self.properties(instance).consumer() | {"auto.offset.reset": "earliest"})
            self._running.callback(consumer.close)
            consumer.subscribe([self.input.topic], on_assign=lambda *_, name=instance: got.add(name))
            consumers.append(consumer)
        while got != {*instances}:
            for consumer in consumers:
                consumer.poll(0.05)
        return consumers

    def open_transaction(self, instance: str) -> Producer:
        """As a worker leaves it that is killed: a score is written."""
        producer = Producer(self.properties(instance).producer())
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(self.scores, b"a score of " + instance.encode())
        assert producer.flush(30) == 0
        return producer

    def undecided(self, instance: str) -> Producer:
        """Beside a score there is a position in the open transaction, after one that the instance committed."""
        with self._client(instance) as client:
            client.commit(offsets=[self.position(1, instance)], asynchronous=False)
            producer = self.open_transaction(instance)
            producer.send_offsets_to_transaction([self.position(2, instance)], client.consumer_group_metadata(), 30)
        assert self.committed(within_s=1) is None
        return producer

    def position(self, offset: int, instance: str) -> TopicPartition:
        return TopicPartition(*self.input, offset, POINTER.to_metadata(instance))

    def committed(self, within_s: float = 60) -> int | None:
        """The position; None when it is not decided within that time: a transaction is open that may change it."""
        with self._client("reader") as client:
            try:
                [found] = client.committed([TopicPartition(*self.input)], timeout=within_s)
            except KafkaException:
                return None
            return None if found.error else found.offset

    @contextmanager
    def _client(self, instance: str) -> Iterator[Consumer]:
        """Not a member, since it does not subscribe."""
        consumer = Consumer(self.properties(instance).consumer() | {"isolation.level": "read_committed"})
        try:
            yield consumer
        finally:
            consumer.close()


@pytest.fixture
def group(broker: KafkaBroker) -> Iterator[Group]:
    with ExitStack() as running:
        yield Group(broker.bootstrap, running)


def look(group: Group, workers: DeadWorkers) -> list[str]:
    """Have dead workers fenced; returns their names."""
    with capture_logs() as logs:
        workers.end_transactions([group.input])
    assert {each["event"] for each in logs} <= {"dead_worker_fenced"}
    return [each["worker"] for each in logs]


def test_the_transaction_of_a_dead_worker_that_committed_last_is_ended_and_its_position_decided(group: Group) -> None:
    producer = group.undecided("w9")
    group.join("w0")
    assert look(group, DeadWorkers(group.properties("w0"))) == ["w9"]
    assert group.committed() == 1
    with pytest.raises(KafkaException):
        producer.commit_transaction(30)
    assert read_all(group.bootstrap, group.scores) == []


def test_what_others_wrote_behind_a_dead_worker_becomes_visible(group: Group) -> None:
    group.undecided("w9")
    other = group.open_transaction("w0")
    other.commit_transaction(30)
    assert read_all(group.bootstrap, group.scores) == []
    group.join("w0")
    look(group, DeadWorkers(group.properties("w0")))
    assert [each.value() for each in read_all(group.bootstrap, group.scores)] == [b"a score of w0"]


def test_a_member_of_the_group_is_never_fenced(group: Group) -> None:
    producer = group.undecided("w1")
    group.join("w0", "w1")
    assert look(group, DeadWorkers(group.properties("w0"))) == []
    producer.commit_transaction(30)
    assert group.committed() == 2


def test_nobody_fences_itself(group: Group) -> None:
    producer = group.undecided("w0")
    group.join("w0")
    assert look(group, DeadWorkers(group.properties("w0"))) == []
    producer.commit_transaction(30)


def test_a_member_that_is_gone_before_its_first_commit_is_fenced(group: Group) -> None:
    _, gone = group.join("w0", "w9")
    producer = group.open_transaction("w9")
    workers = DeadWorkers(group.properties("w0"))
    assert look(group, workers) == []
    gone.close()
    assert look(group, workers) == ["w9"]
    with pytest.raises(KafkaException):
        producer.commit_transaction(30)


def test_heirs_may_fence_the_same_worker_at_once(group: Group) -> None:
    group.undecided("w9")
    heirs = ("w0", "w1", "w2")
    group.join(*heirs)
    with ThreadPoolExecutor(len(heirs)) as pool, capture_logs() as logs:
        list(pool.map(lambda heir: DeadWorkers(group.properties(heir)).end_transactions([group.input]), heirs))
    assert [each["event"] for each in logs] == ["dead_worker_fenced"] * len(heirs)
    assert group.committed() == 1


def test_who_is_no_member_fences_nobody(group: Group) -> None:
    producer = group.undecided("w1")
    assert look(group, DeadWorkers(group.properties("w0"))) == []
    producer.commit_transaction(30)


def test_where_client_ids_do_not_tell_workers_apart_nobody_is_fenced(group: Group) -> None:
    producer = group.undecided("w1")
    group.join("w0")
    assert look(group, DeadWorkers(group.properties("w0", "kafka.client.id=logmamba-w0"))) == []
    producer.commit_transaction(30)


def test_brokers_that_do_not_answer_hold_nobody_up(group: Group) -> None:
    with capture_logs() as logs:
        DeadWorkers(group.properties("w0", "kafka.bootstrap.servers=127.0.0.1:1")).end_transactions([group.input])
    assert [each["event"] for each in logs] == ["dead_workers_unknown"]

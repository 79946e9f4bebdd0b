"""Reads a topic beside every consumer group, so it disturbs no worker, and only what was committed.

Brokers that go away are waited for; nothing is skipped or read twice meanwhile. Partitions that the topic gets later
are not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.errors import RunError
from worker.kafka.clients import ClientProperties
from worker.kafka.topics import REACH_TIMEOUT_S
from worker.processing.records import Partition
from worker.settings.document import Settings

_MOST_AT_ONCE = 500
# What a follower asks for is mostly not there yet: the broker holds its answer back so long.
_FETCH_WAIT_MS = 500


class Followed(NamedTuple):
    """A record of the topic."""

    partition: Partition
    offset: int
    value: bytes | None


class Follower:
    """Follows a topic from its oldest record or from the next one on.

    Args:
        settings: of the application.
        topic: an existing one.
        partitions: how many it has.
        from_beginning: whether to begin with the oldest record.
        lost: called once when no broker answers, and again after a record has come meanwhile.

    Raises:
        RunError: a partition's first and last offsets cannot be read.
    """

    def __init__(
        self, settings: Settings, topic: str, partitions: int, *, from_beginning: bool, lost: Callable[[], None]
    ) -> None:
        self._topic = topic
        self._lost = lost
        self._waiting = False
        self._consumer = Consumer(
            ClientProperties(settings).reader()
            | {
                "log_level": 0,  # what the client would log about lost connections is said by `lost`
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",  # of what retention left, while the brokers were away
                "fetch.wait.max.ms": settings.kafka.get("fetch.wait.max.ms", _FETCH_WAIT_MS),
                "error_cb": self._failed,
            }
        )
        try:
            self._consumer.assign(list(self._starts(partitions, from_beginning=from_beginning)))
        except RunError:
            self.close()
            raise

    def records(self, linger_s: float) -> Iterator[Followed]:
        """The records that come within `linger_s`, some hundreds at most.

        Raises:
            RunError: the topic cannot be read any more.
        """
        try:
            messages = self._consumer.consume(_MOST_AT_ONCE, linger_s)
        except KafkaException as error:
            raise RunError(f"Kafka: {error.args[0].str()}") from error
        for message in messages:
            failure = message.error()
            if failure is not None:
                raise RunError(f"{self._topic}: {failure.str()} ({failure.name()})")
            self._waiting = False
            partition = Partition(self._topic, message.partition() or 0)
            yield Followed(partition, message.offset() or 0, message.value())

    def close(self) -> None:
        """Drop the connections."""
        self._consumer.close()

    def _failed(self, error: KafkaError) -> None:
        down = error.code() == KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001  the client names its own codes so
        if down and not self._waiting:
            self._waiting = True
            self._lost()

    def _starts(self, partitions: int, *, from_beginning: bool) -> Iterator[TopicPartition]:
        """Where to begin, asked now: nothing from now on is missed, however late reading begins."""
        for number in range(partitions):
            place = Partition(self._topic, number)
            try:
                marks = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=REACH_TIMEOUT_S)
            except KafkaException as error:
                reason = error.args[0].str()
                raise RunError(f"{place}: its first and last offsets cannot be read: {reason}") from error
            if marks is None:
                raise RunError(f"{place}: no answer within {REACH_TIMEOUT_S:g} s for its first and last offsets")
            yield TopicPartition(*place, marks[0 if from_beginning else 1])

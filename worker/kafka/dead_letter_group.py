"""The consumer group of those who replay dead letters: what it has committed, without joining it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed
from worker.errors import RunError
from worker.kafka.client_log import ClientErrorLog
from worker.kafka.clients import ClientProperties
from worker.kafka.errors import AWAY, DENIED, error_of
from worker.processing.records import Partition
from worker.settings.document import Settings

_SLICE_S = 2.0
_UNDECIDED_S = 90.0  # a transaction that somebody has left open ends within transaction.timeout.ms
_BACKOFF_S = 0.1


class DeadLetterGroup:
    """The group `<application_id>-replay`.

    Args:
        settings: of the application.
        outage: told when no broker answers.
    """

    def __init__(self, settings: Settings, outage: Outage) -> None:
        self._name = f"{settings.application_id}-replay"
        self._outage = outage
        own = {
            "group.id": self._name,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",  # so that what is undecided is not taken for what is committed
            "error_cb": ClientErrorLog("replay"),
        }
        self._consumer = Consumer({**ClientProperties(settings).reader(), **own})

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed | None]:
        """What was committed of each partition.

        Raises:
            RunError: no broker answers, or the group may not be used.
        """
        undecided = Deadline(_UNDECIDED_S)
        while True:
            try:
                answer = self._consumer.committed([TopicPartition(*each) for each in partitions], timeout=_SLICE_S)
                error = next((each.error for each in answer if each.error is not None), None)
            except KafkaException as exception:
                error = error_of(exception)
            if error is None:
                self._outage.over()
                return {
                    Partition(each.topic, each.partition): (
                        None if each.offset == OFFSET_INVALID else Committed(each.offset, each.metadata or "")
                    )
                    for each in answer
                }
            reason = f"the offsets of group {self._name} cannot be read: {error.str()}"
            if error.code() in AWAY:
                self._raise_denied()
                self._outage.wait(reason)
            elif error.code() != KafkaError.UNSTABLE_OFFSET_COMMIT or undecided.passed:
                raise RunError(reason)
            time.sleep(_BACKOFF_S)

    def _raise_denied(self) -> None:
        """A group that may not be used is asked for again and again; the client says so to whoever reads records."""
        for message in self._consumer.consume(1, 0):
            error = message.error()
            if error is not None and error.code() in DENIED:
                raise RunError(f"the offsets of group {self._name} cannot be read: {error.str()} (ACL: Read)")

    def metadata(self) -> object:
        """What a transaction that commits offsets of the group has to show."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Drop the connections."""
        self._consumer.close()

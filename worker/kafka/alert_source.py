"""The score topic for those who tell people of it: one consumer group for each receiver."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import TopicPartition

from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaSource
from worker.processing.records import Partition
from worker.settings.document import Settings

# Score records are small and alerts few: what a worker fetches ahead would be much for each receiver.
_FETCHED_AHEAD_KB = 8_192


class AlertSource(KafkaSource):
    """A member of one receiver's group (`worker.alerting.loop.CommittingSource`).

    Args:
        settings: of the application.
        group: its name.
        outage: is told when no broker answers.
    """

    def __init__(self, settings: Settings, group: str, outage: Outage) -> None:
        properties = ClientProperties(settings).consumer()
        # It names one member of one group, and what a worker's settings name is a worker.
        properties.pop("group.instance.id", None)
        own = {"group.id": group, "queued.max.messages.kbytes": _FETCHED_AHEAD_KB}
        super().__init__(properties | own, [settings.output.topic], outage)

    def commit_offsets(self, offsets: Mapping[Partition, Committed], deadline: Deadline) -> None:
        """Commit positions with their metadata.

        Raises:
            TransactionAborted: they are not committed, or not in time.
            RunError: they may not be.
        """
        self.commit([TopicPartition(*each, place.offset, place.metadata) for each, place in offsets.items()], deadline)

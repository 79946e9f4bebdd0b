"""The client library's own broker in this process, for what needs no transactions: it keeps 5 MiB of each partition."""

from __future__ import annotations

from confluent_kafka import Producer

PARTITIONS = 4  # of every topic that it makes


class MockBroker:
    """A Kafka broker that lives as long as this object.

    Attributes:
        bootstrap: its address.
    """

    def __init__(self) -> None:
        self._client = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(self._client.list_topics(timeout=10).brokers.values()))
        self.bootstrap = f"{broker.host}:{broker.port}"

    def make(self, *topics: str) -> None:
        """Make topics of `PARTITIONS` partitions each; it makes one when it is asked for it."""
        for topic in topics:
            assert len(self._client.list_topics(topic, timeout=10).topics[topic].partitions) == PARTITIONS

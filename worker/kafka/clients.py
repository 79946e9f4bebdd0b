"""Which librdkafka properties each of an application's clients gets, and what the library has against a property."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from confluent_kafka import KafkaException, Producer

from worker.kafka.client_log import client_logger
from worker.settings.document import Settings
from worker.settings.kafka_properties import SHOWN

_CLIENT_ID_PREFIX = "logmamba-"
_ERRORS_ONLY = 3  # syslog: ending a transaction takes an attempt or two, each of them a warning
_CONSUMER_ONLY = frozenset(
    [
        "max.poll.interval.ms",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "group.instance.id",
        "queued.min.messages",
        "queued.max.messages.kbytes",
        "fetch.min.bytes",
        "fetch.max.bytes",
        "fetch.wait.max.ms",
        "fetch.message.max.bytes",
        "max.partition.fetch.bytes",
        "fetch.error.backoff.ms",
        "fetch.queue.backoff.ms",
        "check.crcs",
    ]
)
_PRODUCER_ONLY = frozenset(
    [
        "linger.ms",
        "queue.buffering.max.ms",
        "batch.size",
        "batch.num.messages",
        "queue.buffering.max.messages",
        "queue.buffering.max.kbytes",
        "compression.type",
        "compression.codec",
        "compression.level",
        "transaction.timeout.ms",
        "delivery.timeout.ms",
        "message.timeout.ms",
        "sticky.partitioning.linger.ms",
        "partitioner",
        "request.timeout.ms",
    ]
)


@dataclass(frozen=True, slots=True)
class ClientProperties:
    """The librdkafka properties of each of an application's clients; what the operator set wins."""

    settings: Settings

    def admin(self) -> dict[str, Any]:
        """For topics, and for what the group and its members are."""
        return self._with({}, _CONSUMER_ONLY | _PRODUCER_ONLY)

    def consumer(self) -> dict[str, object]:
        """For the member of the group."""
        # What is fetched ahead bounds the memory of a burst: librdkafka's own default is 64 MiB, said here on purpose.
        defaults = {
            "max.poll.interval.ms": self.settings.max_poll_interval_ms,
            "session.timeout.ms": 45_000,
            "queued.max.messages.kbytes": 65_536,
            # How soon a topic is found that is made or deleted meanwhile: librdkafka's own 5 minutes are long.
            "topic.metadata.refresh.interval.ms": 30_000,
            # How soon a full queue is filled again: librdkafka's own second leaves a fast worker without records.
            "fetch.queue.backoff.ms": 20,
            # Which brokers it is connected to, for the metrics.
            "statistics.interval.ms": 10_000,
            "group.protocol": "classic",
        }
        return self._with(defaults, _PRODUCER_ONLY) | {"group.id": self.settings.group_id}

    def reader(self) -> dict[str, object]:
        """For reading single partitions; it joins no group, and names the application's, since the client needs one."""
        # What it reads is there already: a request that waits for more holds up the one for the next partition.
        defaults: dict[str, object] = {"queued.max.messages.kbytes": 16_384, "fetch.wait.max.ms": 10}
        return self._with(defaults, _PRODUCER_ONLY | {"group.instance.id"}) | {"group.id": self.settings.group_id}

    def plain_producer(self) -> dict[str, object]:
        """For generated lines: outside any transaction, yet in order when a batch is retried."""
        defaults = {"linger.ms": 20, "compression.type": "lz4", "enable.idempotence": True}
        return self._with(defaults, _CONSUMER_ONLY | {"transaction.timeout.ms"})

    def producer(self) -> dict[str, object]:
        """For scores, dead letters and snapshots."""
        defaults = {
            "message.max.bytes": self.settings.message_max_bytes,
            # What waits to be written bounds the memory of a blocked output; librdkafka's own default is 1 GiB.
            "queue.buffering.max.kbytes": max(65_536, 2 * self.settings.message_max_bytes // 1024),
            "transaction.timeout.ms": self.settings.transaction_timeout_ms,
            # The other half is for aborting what could not be delivered.
            "message.timeout.ms": self.settings.transaction_timeout_ms // 2,
            "linger.ms": 5,
            "compression.type": "lz4",
            # Same partition for a key as the Java clients choose, so that other producers' keyed records fit.
            "partitioner": "murmur2_random",
            # Commits that follow each other closely wait this long for the coordinator's previous one to end.
            "retry.backoff.ms": 10,
        }
        properties = self._with(defaults, _CONSUMER_ONLY)
        if self.settings.worker.delivery == "exactly_once":
            properties["transactional.id"] = self.settings.transactional_id
        else:
            del properties["transaction.timeout.ms"]
        return properties

    def producer_of(self, instance: str) -> dict[str, object]:
        """For ending what another instance left open: starting it fences that instance's own producer."""
        of_instance = {"transactional.id": self.settings.transactional_id_of(instance), "log_level": _ERRORS_ONLY}
        return self.producer() | of_instance

    def instance_of(self, client_id: str) -> str | None:
        """The instance that has a client of this name.

        None where the name tells nothing: not one of a worker, or `kafka.client.id` gives them all the same.
        """
        if "client.id" in self.settings.kafka or not client_id.startswith(_CLIENT_ID_PREFIX):
            return None
        return client_id.removeprefix(_CLIENT_ID_PREFIX)

    def _with(self, defaults: dict[str, object], without: frozenset[str]) -> dict[str, object]:
        own = {name: value for name, value in self.settings.kafka.items() if name not in without}
        return {
            "client.id": _CLIENT_ID_PREFIX + self.settings.instance,
            "log.connection.close": False,
            # How soon a broker that comes back is found: librdkafka's own 10 s would be most of the pause.
            "reconnect.backoff.max.ms": 1_000,
            "logger": client_logger(),
            **defaults,
            **own,
        }


# The client library cannot list its properties; these are the ones that people set.
_COMMON = (
    *SHOWN,
    *(
        "sasl.password",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.token.endpoint.url",
        "sasl.oauthbearer.config",
    ),
    *("ssl.key.password", "ssl.key.pem", "ssl.keystore.password", "ssl.ca.pem", "ssl.certificate.pem"),
)

# Setting one of these acts on the process, or on the network.
_NOT_PROBED = frozenset({"debug", "log_level", "bootstrap.servers"})


def rejection(name: str, value: str | int | float | bool) -> str | None:
    """What the client library has against one property, None for nothing: it knows the names and the ranges."""
    if name in _NOT_PROBED or name.startswith("plugin."):
        return None
    try:
        Producer({"log_level": 0, name: value})
    except KafkaException as error:
        reason = " ".join(str(error.args[0].str()).split())
        if reason.startswith("No such configuration property"):
            return f"is not a librdkafka property; {_nearest(name)}"
        if not reason.startswith(("Invalid value", "Expected", "Configuration property")):
            return None  # properties that disagree with each other: all of them are needed to judge
        # The library's own sentence holds the value, which may be secret.
        if limits := re.search(r"allowed range (\S+)\.\.(\S+)", reason):
            return f"is out of range; allowed: {limits[1]} to {limits[2]}"
        return "is not a value that the client library takes for this property"
    except TypeError:
        return "takes a function and cannot be set in a file"
    return None


def _nearest(name: str) -> str:
    near = get_close_matches(name.lower(), _COMMON, 1, 0.7)
    return f"did you mean {near[0]}?" if near else "allowed: those of its CONFIGURATION.md"

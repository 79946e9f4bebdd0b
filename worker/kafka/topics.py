"""The topics a worker needs: which exist, which it may create, and whether the brokers answer at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, ConsumerGroupDescription, NewTopic, TopicDescription

from worker.errors import RunError
from worker.settings.document import Settings

REACH_TIMEOUT_S = 8.0
_CREATE_TIMEOUT_S = 60.0
_MOST_STATE_PARTITIONS = 16
_REFUSALS = (KafkaError._AUTHENTICATION, KafkaError._SSL)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the worker: what it is for, and how many partitions it has (0 = it does not exist)."""

    name: str
    use: str
    partitions: int


class Topics:
    """The topics of an application, seen through the admin protocol.

    Raises:
        RunError: no broker answers within 8 seconds, or access is denied.
    """

    def __init__(self, properties: Mapping[str, Any], settings: Settings) -> None:
        self._settings = settings
        self._bootstrap = str(settings.kafka["bootstrap.servers"])
        self._error: KafkaError | None = None  # the one that tells most of why there is no connection
        self._admin = AdminClient(dict(properties) | {"error_cb": self._remember})
        self._partitions = self._list()

    def inputs(self) -> list[Topic]:
        """The input topics; of a pattern, those that match it now."""
        settings = self._settings.input
        if settings.topics_are_pattern:
            known = pa.array(sorted(self._partitions), pa.string())
            names = known.filter(pc.match_substring_regex(known, settings.topics[0])).to_pylist()
        else:
            names = list(settings.topics)
        return [self._topic(name, "input") for name in names]

    def outputs(self) -> list[Topic]:
        """The topics that the worker writes."""
        output = self._settings.output
        return [
            self._topic(output.topic, "scores"),
            self._topic(output.dead_letter_topic, "dead letters"),
            self._topic(self._settings.state_topic, "state"),
        ]

    def require_inputs(self) -> None:
        """Check that the named input topics exist; a pattern may match topics that are made later.

        Raises:
            RunError: naming the topics that do not exist.
        """
        missing = [topic.name for topic in self.inputs() if not topic.partitions]
        if missing:
            raise RunError(f"input.topics: {', '.join(missing)} does not exist at {self._bootstrap}")

    def create_missing_outputs(self) -> list[str]:
        """Create what the worker writes and is not there; returns the names.

        The topics of scores and dead letters get as many partitions as the largest input topic. The state topic is
        compacted, and its partitions hold the snapshots of several input partitions each.

        Raises:
            RunError: a topic can neither be found nor created.
        """
        widest = max([topic.partitions for topic in self.inputs()] + [1])
        missing = [topic for topic in self.outputs() if not topic.partitions]
        new = [
            NewTopic(topic.name, min(widest, _MOST_STATE_PARTITIONS), -1, config={"cleanup.policy": "compact"})
            if topic.use == "state"
            else NewTopic(topic.name, widest, -1)
            for topic in missing
        ]
        if not new:
            return []
        for name, future in self._admin.create_topics(new, operation_timeout=_CREATE_TIMEOUT_S).items():
            try:
                future.result(timeout=_CREATE_TIMEOUT_S)
            except TimeoutError as error:
                raise RunError(
                    f"topic {name} does not exist, and no answer came within {_CREATE_TIMEOUT_S:.0f} s to creating it"
                ) from error
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise RunError(
                        f"topic {name} does not exist and cannot be created: {error.args[0].str()}"
                    ) from error
        self._partitions = self._list()
        return [topic.name for topic in missing]

    def permissions(self) -> Iterator[tuple[str, bool, str]]:
        """(what this client needs to do, whether it may, why not) for every topic that exists and for the group."""
        needs = {topic.name: AclOperation.READ for topic in self.inputs() if topic.partitions}
        needs |= {topic.name: AclOperation.WRITE for topic in self.outputs() if topic.partitions}
        if needs:
            described = self._admin.describe_topics(
                TopicCollection(list(needs)), include_authorized_operations=True, request_timeout=REACH_TIMEOUT_S
            )
            for name, future in described.items():
                yield self._permission(f"{needs[name].name.lower()} {name}", needs[name], future)
        group = self._settings.group_id
        groups = self._admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=REACH_TIMEOUT_S
        )
        yield self._permission(f"join group {group}", AclOperation.READ, groups[group])

    @staticmethod
    def _permission(
        what: str, operation: AclOperation, future: Future[TopicDescription] | Future[ConsumerGroupDescription]
    ) -> tuple[str, bool, str]:
        try:
            allowed = future.result(timeout=2 * REACH_TIMEOUT_S).authorized_operations
        except KafkaException as error:
            return what, False, error.args[0].str()
        # Brokers without an authorizer report every operation, some older ones none at all.
        ok = not allowed or operation in allowed or AclOperation.ALL in allowed
        return what, ok, "allowed" if ok else "the brokers do not allow it"

    def _topic(self, name: str, use: str) -> Topic:
        return Topic(name, use, self._partitions.get(name, 0))

    def _list(self) -> dict[str, int]:
        try:
            metadata = self._admin.list_topics(timeout=REACH_TIMEOUT_S)
        except KafkaException as exception:
            self._admin.poll(0)  # hands over what happened meanwhile
            error = self._error or exception.args[0]
            if error.code() in _REFUSALS:
                reason = f"no access to Kafka at {self._bootstrap} (kafka.security.protocol, sasl.*, ssl.*)"
            else:
                reason = f"no Kafka broker answers at {self._bootstrap} (kafka.bootstrap.servers)"
            raise RunError(f"{reason}: {error.str()}") from exception
        self.brokers = len(metadata.brokers)
        return {name: len(topic.partitions) for name, topic in metadata.topics.items() if topic.error is None}

    def _remember(self, error: KafkaError) -> None:
        known = self._error
        if known is None or (error.code() != KafkaError._ALL_BROKERS_DOWN and known.code() not in _REFUSALS):
            self._error = error

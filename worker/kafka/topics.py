"""The topics a worker needs: which exist, which it may create, and whether the brokers answer at all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from worker.errors import RunError
from worker.kafka.access import no_access, not_taken
from worker.settings.document import Settings

REACH_TIMEOUT_S = 8.0
_REFUSED_AFTER_S = 2.0  # a broker that lets nobody in does so at once
_CREATE_TIMEOUT_S = 60.0
_MOST_PARTITIONS = {"state": 16, "feedback": 1}  # of the compacted ones
_BACKOFF_S = 0.2
_AS_BROKERS_SAY = -1  # their default.replication.factor
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
        RunError: no broker answers within 8 seconds, access is denied, or the client does not take the properties.
    """

    def __init__(self, properties: Mapping[str, Any], settings: Settings) -> None:
        self._settings = settings
        self._bootstrap = str(settings.kafka["bootstrap.servers"])
        self._error: KafkaError | None = None  # the one that tells most of why there is no connection
        try:
            self._admin = AdminClient(dict(properties) | {"error_cb": self._remember})
        except KafkaException as error:
            raise RunError(not_taken(settings.kafka, error.args[0])) from error
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
        """The topics that the worker writes, and the one that verdicts come from."""
        output, feedback = self._settings.output, self._settings.feedback.topic
        return [
            self._topic(output.topic, "scores"),
            self._topic(output.dead_letter_topic, "dead letters"),
            self._topic(self._settings.state_topic, "state"),
            *([] if feedback is None else [self._topic(feedback, "feedback")]),
        ]

    def require_inputs(self, *, one_is_enough: bool = False) -> None:
        """Check that the named input topics exist, or one of them; a pattern may match topics that are made later.

        Raises:
            RunError: naming the topics that do not exist.
        """
        missing = [topic.name for topic in self.inputs() if not topic.partitions]
        if missing and not (one_is_enough and len(missing) < len(self._settings.input.topics)):
            raise RunError(f"input.topics: {', '.join(missing)} does not exist at {self._bootstrap}")

    def output_partitions(self) -> int:
        """How many partitions an output gets when it is made; 0 while nothing tells."""
        widest = max((topic.partitions for topic in self.inputs()), default=0)
        return self._settings.output.partitions or widest

    def create_missing_outputs(self) -> list[Topic]:
        """Create what the worker writes and is not there; returns these topics.

        The topics of scores and dead letters get `output.partitions`, or as many as the largest input topic. The state
        topic is compacted, and its partitions hold the snapshots of several input partitions each; that of verdicts is
        compacted and has one.

        Raises:
            RunError: a topic can neither be found nor created, or no input topic tells how many partitions it needs.
        """
        missing = [topic for topic in self.outputs() if not topic.partitions]
        if not missing:
            return []
        output, partitions = self._settings.output, self.output_partitions()
        if not partitions:
            raise RunError(
                f"output.partitions: null, and no topic of input.topics ({', '.join(self._settings.input.topics)}) is "
                f"there to tell how many partitions {', '.join(topic.name for topic in missing)} need; set it, or "
                "create the input first"
            )
        new = [
            NewTopic(
                topic.name,
                min(partitions, _MOST_PARTITIONS.get(topic.use, partitions)),
                output.replication_factor or _AS_BROKERS_SAY,
                config={"cleanup.policy": "compact"} if topic.use in _MOST_PARTITIONS else {},
            )
            for topic in missing
        ]
        for name, future in self._admin.create_topics(new, operation_timeout=_CREATE_TIMEOUT_S).items():
            try:
                future.result(timeout=_CREATE_TIMEOUT_S)
            except TimeoutError as error:
                raise RunError(
                    f"topic {name} does not exist, and no answer came within {_CREATE_TIMEOUT_S:.0f} s to creating it"
                ) from error
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    new = [topic for topic in new if topic.topic != name]  # of another worker, as it has made it
                    continue
                wrong = "output.replication_factor: " if reason.code() == KafkaError.INVALID_REPLICATION_FACTOR else ""
                raise RunError(f"{wrong}topic {name} does not exist and cannot be created: {reason.str()}") from error
        # A broker learns of a topic's partitions one by one, after the controller has said that it is made.
        deadline = time.monotonic() + _CREATE_TIMEOUT_S
        while True:
            self._partitions = self._list()
            known = all(self._partitions.get(topic.topic, 0) >= topic.num_partitions for topic in new)
            if known or time.monotonic() > deadline:
                return [self._topic(topic.name, topic.use) for topic in missing]
            time.sleep(_BACKOFF_S)

    def may_be_created(self) -> Iterator[tuple[str, str | None]]:
        """Of each output topic that is missing, why this client could not create it; None where it could.

        Nothing is created. Nothing is said where no input topic tells how many partitions they would get.
        """
        partitions = self.output_partitions()
        missing = [topic.name for topic in self.outputs() if not topic.partitions]
        if not missing or not partitions:
            return
        replicas = self._settings.output.replication_factor or _AS_BROKERS_SAY
        new = [NewTopic(name, partitions, replicas) for name in missing]
        for name, future in self._admin.create_topics(new, validate_only=True).items():
            try:
                future.result(timeout=_CREATE_TIMEOUT_S)
            except KafkaException as error:
                yield name, error.args[0].str()
            else:
                yield name, None

    def _topic(self, name: str, use: str) -> Topic:
        return Topic(name, use, self._partitions.get(name, 0))

    def _list(self) -> dict[str, int]:
        deadline = time.monotonic() + REACH_TIMEOUT_S
        while True:
            try:
                metadata = self._admin.list_topics(timeout=_REFUSED_AFTER_S)
                break
            except KafkaException as exception:
                self._admin.poll(0)  # hands over what happened meanwhile
                error, heard = self._error or exception.args[0], self._error is not None
                reason, may_pass = no_access(self._settings.kafka, error, of_connection=heard)
                if not may_pass or time.monotonic() > deadline:
                    raise RunError(reason) from exception
            time.sleep(_BACKOFF_S)
        self.brokers = len(metadata.brokers)
        return {name: len(topic.partitions) for name, topic in metadata.topics.items() if topic.error is None}

    def _remember(self, error: KafkaError) -> None:
        known = self._error
        if known is None or (error.code() != KafkaError._ALL_BROKERS_DOWN and known.code() not in _REFUSALS):
            self._error = error

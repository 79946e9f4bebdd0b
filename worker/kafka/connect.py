"""From settings to Kafka clients and a worker: which librdkafka properties each gets, and how the parts are joined."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from importlib.metadata import version

import structlog

from worker.delivery.loop import Worker
from worker.delivery.protocols import Scorer
from worker.delivery.restore import StateStore
from worker.kafka.sink import AtLeastOnceSink, TransactionalSink
from worker.kafka.source import KafkaReader, KafkaSource
from worker.kafka.topics import Topics
from worker.observability.metrics import Metrics
from worker.observability.status import WorkerStatus
from worker.processing.pipeline import Pipeline
from worker.processing.score_records import iso_time
from worker.settings.document import Settings

# A revoke may take a fifth of the poll interval: the group waits for it, and the rest is needed to come back.
_REVOKE_SHARE = 0.2

_log = structlog.get_logger(__name__)

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

    def admin(self) -> dict[str, object]:
        """For listing and creating topics."""
        return self._with({}, _CONSUMER_ONLY | _PRODUCER_ONLY)

    def consumer(self) -> dict[str, object]:
        """For the member of the group."""
        # What is fetched ahead bounds the memory of a burst: librdkafka's own default is 64 MiB, said here on purpose.
        defaults = {
            "max.poll.interval.ms": self.settings.max_poll_interval_ms,
            "session.timeout.ms": 45_000,
            "queued.max.messages.kbytes": 65_536,
            # How soon a full queue is filled again: librdkafka's own second leaves a fast worker without records.
            "fetch.queue.backoff.ms": 20,
            "group.protocol": "classic",
        }
        return self._with(defaults, _PRODUCER_ONLY) | {"group.id": self.settings.group_id}

    def reader(self) -> dict[str, object]:
        """For reading single partitions; the group's name is required by the client and never joined."""
        # What it reads is there already: a request that waits for more holds up the one for the next partition.
        defaults: dict[str, object] = {"queued.max.messages.kbytes": 16_384, "fetch.wait.max.ms": 10}
        return self._with(defaults, _PRODUCER_ONLY | {"group.instance.id"}) | {
            "group.id": f"{self.settings.group_id}-reader"
        }

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

    def _with(self, defaults: dict[str, object], without: frozenset[str]) -> dict[str, object]:
        own = {name: value for name, value in self.settings.kafka.items() if name not in without}
        return {
            "client.id": f"logmamba-{self.settings.instance}",
            "log.connection.close": False,
            "logger": logging.getLogger("librdkafka"),
            **defaults,
            **own,
        }


def connect(settings: Settings, topics: Topics, scorer: Scorer, metrics: Metrics) -> Worker:
    """A worker on real Kafka clients, ready to run; missing output topics are created when the broker allows.

    Raises:
        RunError: a topic is missing and cannot be created, or an input topic does not exist.
        SettingsError: settings that do not fit the checkpoint.
    """
    properties = ClientProperties(settings)
    topics.require_inputs()
    for name in topics.create_missing_outputs():
        _log.info("topic_created", topic=name)
    headers = settings.sessions.key.source == "header"
    metrics.watch_score_cache(lambda: scorer.cache_hits, lambda: scorer.cache_misses)
    metrics.watch_batches_split(lambda: scorer.batches_split)
    pipeline = Pipeline(settings, scorer, metrics)
    source = KafkaSource(properties.consumer(), settings.input.topics, with_headers=headers)
    store = StateStore(
        settings,
        vocabulary=scorer.vocabulary,
        decoder=pipeline.decoder,
        reader=KafkaReader(properties.reader(), with_headers=headers),
    )
    sink = (
        TransactionalSink(properties.producer())
        if settings.worker.delivery == "exactly_once"
        else AtLeastOnceSink(properties.producer(), source.consumer)
    )
    return Worker(
        settings,
        source=source,
        sink=sink,
        store=store,
        pipeline=pipeline,
        metrics=metrics,
        status=WorkerStatus(
            application_id=settings.application_id,
            instance=settings.instance,
            started_at=iso_time(int(time.time() * 1000)) or "",
            versions={name: version(name) for name in ("logmamba", "confluent-kafka", "torch")},
            checkpoint=scorer.checkpoint,
            vocabulary=scorer.vocabulary.sha256,
        ),
        revoke_budget_s=settings.max_poll_interval_ms / 1000 * _REVOKE_SHARE,
    )

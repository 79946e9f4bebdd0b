"""A worker on real Kafka clients: how its parts are joined."""

from __future__ import annotations

import structlog

from worker.delivery.loop import Worker
from worker.delivery.outage import Outage
from worker.delivery.protocols import NO_RELOADS, Reloads
from worker.delivery.restore import StateStore
from worker.kafka.clients import ClientProperties
from worker.kafka.dead_workers import DeadWorkers
from worker.kafka.sink import AtLeastOnceSink, TransactionalSink
from worker.kafka.source import KafkaReader, KafkaSource
from worker.kafka.statistics import BrokerStates
from worker.kafka.topics import Topics
from worker.observability.metrics import Metrics
from worker.observability.status import WorkerStatus, versions
from worker.processing.rekeying import AnyPipeline
from worker.processing.score_records import iso_now
from worker.settings.document import Settings

# A revoke may take a fifth of the poll interval: the group waits for it, and the rest is needed to come back.
_REVOKE_SHARE = 0.2

_log = structlog.get_logger(__name__)


def connect(
    settings: Settings,
    topics: Topics,
    pipeline: AnyPipeline,
    metrics: Metrics,
    reloads: Reloads = NO_RELOADS,
) -> Worker:
    """A worker on real Kafka clients, ready to run; missing output topics are created when the broker allows.

    Where a pattern matches no input topic yet, that happens when one is there to tell how many partitions they need.

    Raises:
        RunError: an output topic is missing and cannot be created, or none of the named input topics exists.
    """
    properties = ClientProperties(settings)
    topics.require_inputs(one_is_enough=True)
    told = topics.output_partitions() > 0
    if told:
        _create_outputs(topics)
    headers = settings.headers_needed
    for difference in pipeline.misfits:
        _log.warning("checkpoint_trained_otherwise", difference=difference)
    scorer, outage = pipeline.scorer, Outage()
    exactly_once = settings.worker.delivery == "exactly_once"
    states = BrokerStates(metrics.brokers, settings.kafka.whole("fetch.wait.max.ms", 500))
    source = KafkaSource(
        properties.consumer() | {"stats_cb": states},
        settings.input.topics,
        outage,
        with_headers=headers,
        dead_workers=DeadWorkers(properties) if exactly_once else None,
        prepare=None if told else lambda: _create_outputs(Topics(properties.admin(), settings)),
    )
    store = StateStore(
        settings,
        vocabulary=scorer.vocabulary,
        decoder=pipeline.decoder,
        reader=KafkaReader(
            properties.reader(), outage, batch_records=settings.worker.batch_records, with_headers=headers
        ),
        feedback=pipeline.feedback_version,
    )
    sink = (
        TransactionalSink(properties.producer(), outage)
        if exactly_once
        else AtLeastOnceSink(properties.producer(), source.commit, outage)
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
            started_at=iso_now(),
            versions=versions(),
            checkpoint=scorer.checkpoint,
            vocabulary=scorer.vocabulary.sha256,
            trained_score_shares=scorer.trained_score_shares,
        ),
        outage=outage,
        revoke_budget_s=settings.max_poll_interval_ms / 1000 * _REVOKE_SHARE,
        reloads=reloads,
    )


def _create_outputs(topics: Topics) -> None:
    for topic in topics.create_missing_outputs():
        _log.info("topic_created", topic=topic.name, partitions=topic.partitions)

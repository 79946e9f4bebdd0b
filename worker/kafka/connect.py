"""A worker on real Kafka clients: how its parts are joined."""

from __future__ import annotations

import time
from importlib.metadata import version

import structlog

from worker.delivery.loop import Worker
from worker.delivery.outage import Outage
from worker.delivery.restore import StateStore
from worker.kafka.clients import ClientProperties
from worker.kafka.dead_workers import DeadWorkers
from worker.kafka.sink import AtLeastOnceSink, TransactionalSink
from worker.kafka.source import KafkaReader, KafkaSource
from worker.kafka.topics import Topics
from worker.observability.metrics import Metrics
from worker.observability.status import WorkerStatus
from worker.processing.pipeline import Pipeline
from worker.processing.score_records import iso_time
from worker.processing.scorer import Scorer
from worker.settings.document import Settings

# A revoke may take a fifth of the poll interval: the group waits for it, and the rest is needed to come back.
_REVOKE_SHARE = 0.2

_log = structlog.get_logger(__name__)


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
    headers = settings.headers_needed
    metrics.watch_score_cache(lambda: scorer.cache_hits, lambda: scorer.cache_misses)
    metrics.watch_batches_split(lambda: scorer.batches_split)
    pipeline = Pipeline(settings, scorer, metrics)
    for difference in pipeline.misfits:
        _log.warning("checkpoint_trained_otherwise", difference=difference)
    outage = Outage()
    exactly_once = settings.worker.delivery == "exactly_once"
    source = KafkaSource(
        properties.consumer(),
        settings.input.topics,
        outage,
        with_headers=headers,
        dead_workers=DeadWorkers(properties) if exactly_once else None,
    )
    store = StateStore(
        settings,
        vocabulary=scorer.vocabulary,
        decoder=pipeline.decoder,
        reader=KafkaReader(
            properties.reader(), outage, batch_records=settings.worker.batch_records, with_headers=headers
        ),
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
            started_at=iso_time(int(time.time() * 1000)) or "",
            versions={name: version(name) for name in ("logmamba", "confluent-kafka", "torch")},
            checkpoint=scorer.checkpoint,
            vocabulary=scorer.vocabulary.sha256,
        ),
        outage=outage,
        revoke_budget_s=settings.max_poll_interval_ms / 1000 * _REVOKE_SHARE,
    )

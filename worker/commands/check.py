"""`logmamba check`: what a worker needs, tried in advance, without joining the group or writing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from worker.errors import SettingsError, WorkerError
from worker.kafka.clients import ClientProperties
from worker.kafka.topics import Topic, Topics
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.scorer import load_scorer
from worker.settings.document import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was checked."""

    what: str
    ok: bool
    detail: str


def check_everything(settings: Settings, *, create_topics: bool) -> list[Row]:
    """Check the checkpoint, the brokers, the topics and what this client may do with them.

    Args:
        settings: valid ones.
        create_topics: create the output topics that are missing.
    """
    rows = [Row("settings", ok=True, detail=f"application {settings.application_id}, instance {settings.instance}")]
    rows.append(_tried("checkpoint", lambda: _checkpoint(settings)))
    try:
        topics = Topics(ClientProperties(settings).admin(), settings)
    except WorkerError as error:
        return [*rows, Row("brokers", ok=False, detail=str(error))]
    rows.append(Row("brokers", ok=True, detail=f"{topics.brokers} at {settings.kafka['bootstrap.servers']}"))
    if create_topics:
        rows.append(_tried("create topics", lambda: ", ".join(topics.create_missing_outputs()) or "none was missing"))
    rows += _topics(topics)
    rows += [Row(f"may {right}", ok, detail) for right, ok, detail in topics.permissions()]
    return rows


def _checkpoint(settings: Settings) -> str:
    scorer = load_scorer(settings)
    Pipeline(settings, scorer, Metrics())  # refuses what does not fit the checkpoint
    return f"{settings.model.checkpoint}: {len(scorer.vocabulary.templates)} templates, {scorer.checkpoint}"


def _topics(topics: Topics) -> Iterator[Row]:
    for topic in topics.inputs():
        yield Row(f"input topic {topic.name}", topic.partitions > 0, _partitions(topic, "does not exist"))
    for topic in topics.outputs():
        yield Row(f"{topic.use} topic {topic.name}", ok=True, detail=_partitions(topic, "will be created by run"))


def _partitions(topic: Topic, otherwise: str) -> str:
    return f"{topic.partitions} partition{'s' * (topic.partitions != 1)}" if topic.partitions else otherwise


def _tried(what: str, action: Callable[[], str]) -> Row:
    try:
        return Row(what, ok=True, detail=action())
    except SettingsError as error:
        return Row(what, ok=False, detail="; ".join(error.errors))
    except WorkerError as error:
        return Row(what, ok=False, detail=str(error))

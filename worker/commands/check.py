"""`logmamba check`: what a worker needs, tried in advance, without joining the group or writing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from detector.errors import DetectorError
from detector.text.vocabulary import Vocabulary
from worker.errors import SettingsError, WorkerError
from worker.files.sample import try_sample
from worker.kafka.clients import ClientProperties
from worker.kafka.topics import Topic, Topics
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.scorer import load_scorer
from worker.settings.advice import advice
from worker.settings.document import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was checked; `doubtful` if it works and is hardly meant so."""

    what: str
    ok: bool
    detail: str
    doubtful: bool = False

    @property
    def state(self) -> Literal["ok", "warning", "failed"]:
        """In a word."""
        return "failed" if not self.ok else "warning" if self.doubtful else "ok"


def shown(settings: Settings) -> str:
    """All settings as a file could say them, secrets hidden; what `input.format` stands for is spelled out."""
    return str(yaml.safe_dump(settings.describe(), sort_keys=False, allow_unicode=True, width=120))


def check_everything(settings: Settings, *, create_topics: bool, sample: Sequence[Path] = ()) -> list[Row]:
    """Check the checkpoint, what becomes of a sample, the brokers, the topics and what this client may do with them.

    Args:
        settings: valid ones.
        create_topics: create the output topics that are missing.
        sample: files of lines or records, to see what the settings make of them.
    """
    rows = [Row("settings", ok=True, detail=f"application {settings.application_id}, instance {settings.instance}")]
    rows += _doubts("settings", advice(settings))
    vocabulary = None
    try:
        scorer = load_scorer(settings)
        vocabulary = scorer.vocabulary
        misfits = Pipeline(settings, scorer, Metrics()).misfits  # refuses what cannot fit the checkpoint
    except WorkerError as error:
        rows.append(Row("checkpoint", ok=False, detail=_reason(error)))
    else:
        of = f"{settings.model.checkpoint}: {len(scorer.vocabulary.templates)} templates, {scorer.checkpoint}"
        rows += [Row("checkpoint", ok=True, detail=of), *_doubts("checkpoint", misfits)]
    if sample:
        rows += _sample(settings, vocabulary, sample)
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


def _sample(settings: Settings, vocabulary: Vocabulary | None, paths: Sequence[Path]) -> Iterator[Row]:
    try:
        found = try_sample(settings, vocabulary, paths)
    except (WorkerError, DetectorError) as error:
        yield Row("sample", ok=False, detail=_reason(error))
        return
    for line in found.told:
        yield Row("sample", ok=True, detail=line)
    yield from _doubts("sample", found.doubtful)
    for line in found.wrong:
        yield Row("sample", ok=False, detail=line)


def _doubts(what: str, lines: Iterable[str]) -> Iterator[Row]:
    return (Row(what, ok=True, detail=line, doubtful=True) for line in lines)


def _reason(error: Exception) -> str:
    return "; ".join(error.errors) if isinstance(error, SettingsError) else str(error)


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
    except WorkerError as error:
        return Row(what, ok=False, detail=_reason(error))

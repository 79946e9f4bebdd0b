"""`logmamba check`: what a worker needs, tried in advance, without joining the group or writing a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import yaml

from detector.compiled import served
from detector.errors import DetectorError
from detector.text.vocabulary import Vocabulary
from worker.alerting.delivery import NotTaken, reach
from worker.commands.rekey import rekeying
from worker.errors import SettingsError, WorkerError
from worker.files.sample import try_sample
from worker.kafka.avro import score_writer
from worker.kafka.clients import ClientProperties
from worker.kafka.permissions import Permission, alert_permissions, permissions
from worker.kafka.topics import Topic, Topics
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.rekeying import Tokens
from worker.processing.scorer import Scorer, load_scorer
from worker.settings.advice import advice
from worker.settings.alerts import ReceiverSettings
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


def as_json(rows: Sequence[Row]) -> bytes:
    """All rows, and whether none has failed."""
    checks = [{"what": row.what, "state": row.state, "detail": row.detail} for row in rows]
    return orjson.dumps({"ok": all(row.ok for row in rows), "checks": checks})


def shown(settings: Settings) -> str:
    """All settings as a file could say them, secrets hidden; what `input.format` stands for is spelled out."""
    return str(yaml.safe_dump(settings.describe(), sort_keys=False, allow_unicode=True, width=120))


def check_everything(
    settings: Settings,
    *,
    create_topics: bool,
    sample: Sequence[Path] = (),
    offline: bool = False,
    for_rekey: bool = False,
) -> list[Row]:
    """Check compiled loops, checkpoint, what becomes of a sample, brokers, topics, permissions and receivers of alerts.

    Settings with receivers and without a checkpoint are those of `logmamba alert` alone: only what it needs is tried.

    A schema registry is tried as `run` does it: the schema is registered unless the settings forbid that.

    Args:
        settings: valid ones.
        create_topics: create the output topics that are missing.
        sample: files of lines or records, to see what the settings make of them.
        offline: leave the network out, and do not mind if the checkpoint is still to be trained.
        for_rekey: the settings are those of `logmamba rekey`, which scores nothing.
    """
    rows = [Row("settings", ok=True, detail=f"application {settings.application_id}, instance {settings.instance}")]
    rows += _doubts("settings", () if for_rekey else advice(settings))  # which is about sessions and scores
    vocabulary = None
    folder = settings.model.checkpoint
    alert_alone = bool(settings.alert.receivers) and folder is None
    if alert_alone:
        rows.append(Row("worker", ok=True, detail="model.checkpoint: null: only what logmamba alert needs is checked"))
    else:
        rows.append(_compiled())
        if offline and (folder is None or not folder.exists()):
            detail = f"model.checkpoint: {folder or 'null'}: there is none yet; logmamba train writes one"
            rows.append(Row("checkpoint", ok=True, detail=detail, doubtful=True))
        else:
            vocabulary = _checkpoint(settings, rows, for_rekey=for_rekey)
    if sample:
        rows += _sample(settings, vocabulary, sample)
    if offline:
        return rows
    if settings.output.format == "avro":
        rows.append(_tried("schema registry", lambda: _registered(settings)))
    rows += _brokers(settings, create_topics=create_topics, alert_alone=alert_alone, for_rekey=for_rekey)
    return rows + [_receiver(name, receiver) for name, receiver in settings.alert.receivers.items()]


def _compiled() -> Row:
    found = served()
    if found.folder is None:
        detail = (
            f"{found.loops} compiled anew at each start, which takes seconds: no folder to keep them can be written to"
        )
        return Row("compiled loops", ok=True, detail=detail, doubtful=True)
    how = "loaded from" if found.loaded == found.loops else "compiled now, and kept in"
    return Row("compiled loops", ok=True, detail=f"{found.loops} {how} {found.folder}")


def _checkpoint(settings: Settings, rows: list[Row], *, for_rekey: bool) -> Vocabulary | None:
    """Check the checkpoint; returns its vocabulary."""
    scorer: Scorer | Tokens
    try:
        if for_rekey:
            stage = rekeying(settings, Metrics(), lambda: 1)
            scorer, misfits = stage.scorer, stage.misfits
        else:
            scorer = load_scorer(settings)
            misfits = Pipeline(settings, scorer, Metrics()).misfits  # refuses what cannot fit the checkpoint
    except WorkerError as error:
        rows.append(Row("checkpoint", ok=False, detail=_reason(error)))
        return None
    of = f"{settings.model.checkpoint}: {len(scorer.vocabulary.templates)} templates, {scorer.checkpoint}"
    rows += [Row("checkpoint", ok=True, detail=of), *_doubts("checkpoint", misfits)]
    return scorer.vocabulary


def _brokers(settings: Settings, *, create_topics: bool, alert_alone: bool, for_rekey: bool) -> list[Row]:
    properties = ClientProperties(settings)
    try:
        topics = Topics(properties.admin(), settings)
    except WorkerError as error:
        return [Row("brokers", ok=False, detail=str(error))]
    rows = [Row("brokers", ok=True, detail=f"{topics.brokers} at {settings.kafka['bootstrap.servers']}")]
    if create_topics:
        rows.append(_tried("create topics", lambda: _created(topics)))
    may: list[Permission] = []
    if alert_alone:
        [scores] = [topic for topic in topics.outputs() if topic.use == "scores"]
        detail = _partitions(scores, "does not exist, or may not be seen")
        rows.append(Row(f"scores topic {scores.name}", scores.partitions > 0, detail))
        for topic in topics.outputs() if any(each.answers for each in settings.alert.receivers.values()) else ():
            if topic.use == "feedback":
                detail = _partitions(topic, "does not exist, or may not be seen")
                rows.append(Row(f"feedback topic {topic.name}", topic.partitions > 0, detail))
    else:
        rows += _topics(topics, "tokens" if for_rekey else "scores")
        may += permissions(properties, topics)
    if settings.alert.receivers:
        may += alert_permissions(properties)
    return rows + [Row(f"may {what}", ok, detail) for what, ok, detail in may]


def _receiver(name: str, receiver: ReceiverSettings) -> Row:
    """Whether a receiver answers; it is sent nothing, as `logmamba alert --test` does."""
    what = f"receiver {name} ({receiver.type})"
    try:
        reach(receiver.address)
    except NotTaken as error:
        return Row(what, ok=False, detail=f"alert.receivers.{name}: cannot be reached: {error}")
    return Row(what, ok=True, detail="answers; logmamba alert --test sends it a message")


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


def _topics(topics: Topics, written: str) -> Iterator[Row]:
    inputs = topics.inputs()
    if not inputs:
        yield Row(
            "input topics", ok=True, detail="none matches input.topics yet; a worker waits for one", doubtful=True
        )
    for topic in inputs:
        yield Row(
            f"input topic {topic.name}", topic.partitions > 0, _partitions(topic, "does not exist, or may not be seen")
        )
    for topic in topics.outputs():
        use = written if topic.use == "scores" else topic.use
        yield Row(f"{use} topic {topic.name}", ok=True, detail=_partitions(topic, "will be created by run"))


def _registered(settings: Settings) -> str:
    score_writer(settings)
    return f"{(settings.output.schema_registry or {})['url']}: it has the schema of {settings.output.topic}-value"


def _created(topics: Topics) -> str:
    made = topics.create_missing_outputs()
    return ", ".join(f"{topic.name} ({_partitions(topic, '')})" for topic in made) or "none was missing"


def _partitions(topic: Topic, otherwise: str) -> str:
    return f"{topic.partitions} partition{'s' * (topic.partitions != 1)}" if topic.partitions else otherwise


def _tried(what: str, action: Callable[[], str]) -> Row:
    try:
        return Row(what, ok=True, detail=action())
    except WorkerError as error:
        return Row(what, ok=False, detail=_reason(error))

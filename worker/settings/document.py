"""The worker's settings: one YAML file, checked as a whole, every error at once.

`load_settings` reads the file; `Settings()` is what an empty file means. Keys and defaults are those of
`config/worker.example.yaml`, which describes each of them.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from worker.errors import SettingsError
from worker.formats.patterns import matches
from worker.formats.presets import PRESETS
from worker.settings.alerts import SHOWN_OF_RECEIVERS, AlertSettings, MuteSettings, ReceiverSettings
from worker.settings.kafka_properties import SHOWN, KafkaProperties, Properties, Rejection
from worker.settings.sections import (
    FeedbackSettings,
    InputSettings,
    MaskSettings,
    ModelSettings,
    ObservabilitySettings,
    OutputSettings,
    ScoringSettings,
    Section,
    SessionsSettings,
    StateSettings,
    TokenizerSettings,
    WorkerSettings,
)
from worker.settings.shapes import LinePart
from worker.settings.tree import SettingsTree, read_settings_tree, steps_of
from worker.settings.values import Name

_SOURCE, _SESSIONS = InputSettings(), SessionsSettings()
_LEAST_MESSAGE_BYTES = 65_536  # a score record, a part of a snapshot and a dead letter's headers fit with room to spare


class Settings(Section):
    """Everything a worker can be told. Immutable; its text shows no secret."""

    application_id: Name = "logmamba"
    kafka: Properties = KafkaProperties({"bootstrap.servers": "localhost:9092"})
    input: InputSettings = InputSettings()
    sessions: SessionsSettings = SessionsSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    scoring: ScoringSettings = ScoringSettings()
    output: OutputSettings = OutputSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    state: StateSettings = StateSettings()
    worker: WorkerSettings = WorkerSettings()
    observability: ObservabilitySettings = ObservabilitySettings()
    alert: AlertSettings = AlertSettings()

    @property
    def group_id(self) -> str:
        """The consumer group: the application's name."""
        return self.application_id

    def alert_group(self, receiver: str) -> str:
        """The consumer group of one of the receivers of `logmamba alert`."""
        return f"{self.application_id}-alert-{receiver}"

    @property
    def instance(self) -> str:
        """This worker's name within its application: `worker.instance`, else host and process index."""
        return self.worker.instance or f"{socket.gethostname()}-0"

    @property
    def transactional_id(self) -> str:
        """Stable for an instance, so that a restarted worker fences what is left of its predecessor."""
        return self.transactional_id_of(self.instance)

    def transactional_id_of(self, instance: str) -> str:
        """The transactional id of one of the application's instances."""
        return f"{self.application_id}-{instance}"

    @property
    def state_topic(self) -> str:
        """The compacted topic of snapshots."""
        return self.state.topic or f"{self.application_id}-state"

    @property
    def message_max_bytes(self) -> int:
        """The largest message to produce: `message.max.bytes`, else the client library's default."""
        return self.kafka.whole("message.max.bytes", 1_000_000)

    @property
    def max_poll_interval_ms(self) -> int:
        """The longest time between polls: `max.poll.interval.ms`, else the library's default."""
        return self.kafka.whole("max.poll.interval.ms", 300_000)

    @property
    def transaction_timeout_ms(self) -> int:
        """The longest transaction: `transaction.timeout.ms`, else the library's default."""
        return self.kafka.whole("transaction.timeout.ms", 60_000)

    @property
    def headers_needed(self) -> bool:
        """Whether anything is read from the headers of records."""
        only = self.input.only
        return self.sessions.key.uses("header") or (only is not None and only.source == "header")

    def describe(self) -> dict[str, object]:
        """Every setting by its name in the file, secrets hidden; a file could say just this."""
        return self.model_dump(mode="json", by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _key_of_format(cls, given: object) -> object:
        """Put the session key of the format's preset where the file has none."""
        source = given.get("input") if isinstance(given, dict) else None
        name = source.format if isinstance(source, InputSettings) else _member(source, "format")
        preset = PRESETS.get(name) if isinstance(name, str) else None
        if preset is None or preset.key is None or not isinstance(given, dict):
            return given
        sessions = given.get("sessions")
        if sessions is None or (isinstance(sessions, dict) and "key" not in sessions):
            return {**given, "sessions": {**(sessions or {}), "key": preset.key}}
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise PydanticCustomError("conflicts", "settings disagree", {"conflicts": conflicts})
        return self


def load_settings(
    path: Path | str | None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    *,
    rejection: Rejection | None = None,
) -> Settings:
    """The settings of a YAML file.

    Args:
        path: the file; None stands for an empty one.
        overrides: `section.key=value`, the value in YAML; each takes the place of what the file says.
        environment: where `${NAME}` is looked up.
        rejection: judges the properties of the section `kafka`; None leaves what is wrong with them to the client.

    Raises:
        SettingsError: with every error of the file and the overrides.
    """
    tree = read_settings_tree(None if path is None else Path(path), overrides, environment)
    errors = [_line(tree, where, text) for where, text in tree.errors]
    bad = {_field(where) for where, _ in tree.errors}
    try:
        settings = Settings.model_validate(tree.values, context=rejection and {"rejection": rejection})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    else:
        if not errors:
            return settings
        details = []
    for detail in details:
        if detail["type"] != "conflicts":
            bad.add(_field(detail["loc"]))
            errors.extend(_lines(tree, detail))
    errors.extend(_conflict_lines(tree, bad))
    raise SettingsError(list(dict.fromkeys(errors)))


def _member(node: object, name: str) -> object:
    return node.get(name) if isinstance(node, dict) else None


_Conflict = tuple[tuple[str, ...], str]


def _conflicts(settings: Settings) -> Iterator[_Conflict]:
    """Settings that are fine alone and not together: the paths involved, the sentence."""
    source, sessions, output = settings.input, settings.sessions, settings.output
    yield from _shape_conflicts(source, sessions)
    scoring = settings.scoring
    if scoring.warning >= scoring.critical:
        text = f"is {scoring.warning}, not below scoring.critical ({scoring.critical})"
        yield ("scoring.warning", "scoring.critical"), text
    if settings.model.batch_tokens < sessions.max_events + 2:
        text = (
            f"is {settings.model.batch_tokens}, too few for a session of sessions.max_events "
            f"({sessions.max_events}) events with its start and end"
        )
        yield ("model.batch_tokens", "sessions.max_events"), text
    if settings.message_max_bytes < _LEAST_MESSAGE_BYTES:
        yield (
            ("kafka.message.max.bytes",),
            f"is {settings.message_max_bytes}; allowed: {_LEAST_MESSAGE_BYTES} or more",
        )
    # The broker aborts a transaction that stays open longer; half of it leaves time to write and commit.
    if settings.worker.commit_interval_ms * 2 > settings.transaction_timeout_ms:
        text = f"is more than half of kafka.transaction.timeout.ms ({settings.transaction_timeout_ms} ms)"
        yield ("worker.commit_interval", "kafka.transaction.timeout.ms"), text
    # Between two polls a commit may wait half of that long; with what else there may be (`worker.delivery.loop`) the
    # group must not take the worker for dead meanwhile.
    if settings.max_poll_interval_ms < 4 * settings.transaction_timeout_ms:
        text = (
            f"is {settings.max_poll_interval_ms} ms, less than four times kafka.transaction.timeout.ms "
            f"({settings.transaction_timeout_ms} ms)"
        )
        yield ("kafka.max.poll.interval.ms", "kafka.transaction.timeout.ms"), text
    if output.format == "avro" and output.schema_registry is None:
        yield ("output.format", "output.schema_registry"), "is avro, which needs output.schema_registry"
    if source.tokens and output.line_text:
        text = f"is {output.line_text}, and input.format: tokens has no lines; allowed: 0, or a format of lines"
        yield ("output.line_text", "input.format"), text
    if settings.feedback.topic is None:
        for name, receiver in settings.alert.receivers.items():
            if receiver.answers:
                path = f"alert.receivers.{name}.answers"
                yield (path, "feedback.topic"), "is true, which needs feedback.topic"
    yield from _topic_conflicts(source, output, settings.state_topic, settings.feedback.topic)


def _shape_conflicts(source: InputSettings, sessions: SessionsSettings) -> Iterator[_Conflict]:
    """Settings of documents beside lines of text, and the other way round."""
    time = source.timestamp
    if source.tokens:
        for path, given, default in _of_lines(source, sessions):
            if given != default:
                yield (
                    (path, "input.format"),
                    "is for lines, which rekey has read; leave it out with input.format: tokens",
                )
        return
    if source.documents:
        if isinstance(source.message, LinePart):
            text = "is a pattern, which needs input.format: text; allowed with json: JSON pointers"
            yield ("input.message", "input.format"), text
        if time is not None and not time.pointers:
            what = "has no pointer" if time.pattern is None else "is a pattern"
            text = f"{what}, which needs input.format: text; allowed with json: null or a JSON pointer"
            yield ("input.timestamp", "input.format"), text
        return
    pointers = {
        "input.only": source.only is not None and source.only.source == "pointer",
        "input.split": source.split is not None,
        "input.severity": source.severity is not None,
        "input.timestamp": time is not None and bool(time.pointers),
        "sessions.key": sessions.key.uses("pointer"),
    }
    for path, is_pointer in pointers.items():
        if is_pointer:
            yield (path, "input.format"), "is a JSON pointer, which needs input.format: json"


def _of_lines(source: InputSettings, sessions: SessionsSettings) -> Iterator[tuple[str, object, object]]:
    """What has no part in reading token records: the path of each setting, what it is, and its default."""
    of_source = ("only", "split", "message", "severity", "timestamp", "multiline", "partial_lines", "encoding")
    for name in (*of_source, "max_line_bytes"):
        yield f"input.{name}", getattr(source, name), getattr(_SOURCE, name)
    for name in ("key", "no_key"):
        yield f"sessions.{name}", getattr(sessions, name), getattr(_SESSIONS, name)


def _topic_conflicts(
    source: InputSettings, output: OutputSettings, state_topic: str, feedback_topic: str | None
) -> Iterator[_Conflict]:
    written = {
        "output.topic": output.topic,
        "output.dead_letter_topic": output.dead_letter_topic,
        "state.topic": state_topic,
    }
    if feedback_topic is not None:
        written["feedback.topic"] = feedback_topic
    for path, topic in written.items():
        read = matches(source.topics[0], topic) if source.topics_are_pattern else topic in source.topics
        if read:
            yield (
                (path, "input.topics"),
                f"is {topic!r}, which input.topics also reads",
            )
        for other, used in written.items():
            if other < path and used == topic:
                yield (path, other), f"is {topic!r}, and so is {other}; allowed: different topics"


def _conflict_lines(tree: SettingsTree, bad: set[str]) -> Iterator[str]:
    """Conflicts between settings that are fine alone, whatever is wrong with others."""
    values = tree.values
    kept: dict[str, object] = {}
    for section, content in values.items():
        if section in bad or section not in Settings.model_fields:
            continue
        kept[section] = content
        if isinstance(content, Mapping) and section != "kafka":
            kept[section] = {key: value for key, value in content.items() if f"{section}.{key}" not in bad}
        elif section == "kafka" and any(path.startswith("kafka") for path in bad):
            del kept[section]
    try:
        Settings.model_validate(kept)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            for paths, text in detail.get("ctx", {}).get("conflicts", ()):
                known = "kafka" in kept or "kafka" not in values or not any(p.startswith("kafka.") for p in paths)
                if known and bad.isdisjoint(paths):
                    yield f"{tree.place_of(*(tuple(steps_of(path)) for path in paths))}{paths[0]}: {text}"


def _field(where: Sequence[str | int]) -> str:
    return ".".join(str(step) for step in where[:2])


def _path(where: Sequence[str | int]) -> str:
    return re.sub(r"\.(?=\[)", "", ".".join(f"[{step}]" if isinstance(step, int) else step for step in where))


def _line(tree: SettingsTree, where: Sequence[str | int], text: str, value_shown: bool = True) -> str:
    if not where:
        return text
    value = tree.text_at(where) if value_shown and _may_be_shown(where) else None
    return f"{tree.place_of(tuple(where))}{_path(where)}: {text if value is None else f'{value} {text}'}"


def _may_be_shown(where: Sequence[str | int]) -> bool:
    """Whether what the file says at a path holds no secret."""
    if where[0] == "kafka":
        return len(where) > 1 and where[1] in SHOWN
    if tuple(where[:2]) == ("output", "schema_registry"):
        return len(where) == 3 and where[2] == "auto.register.schemas"
    if where[0] == "alert" and (len(where) < 2 or where[1] == "receivers"):
        return len(where) == 4 and where[-1] in SHOWN_OF_RECEIVERS
    return True


def _lines(tree: SettingsTree, detail: ErrorDetails) -> Iterator[str]:
    where, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    if kind == "problems":
        for problem in context["problems"]:
            yield _line(tree, (*where, *problem.path), problem.text, problem.value_shown)
    elif kind == "value_error":
        yield _line(tree, where, str(context["error"]))
    elif kind == "literal_error":
        allowed = context["expected"].replace("'", "")
        yield _line(tree, where, f"is not allowed; allowed: {allowed}")
    elif kind == "extra_forbidden":
        yield _line(tree, where, f"is not a setting; {_nearest(where)}", value_shown=False)
    elif kind == "missing":
        yield _line(tree, where, "is missing")
    elif kind in {"tuple_type", "list_type"}:
        yield _line(tree, where, "is not a list")
    elif kind in {"model_type", "model_attributes_type", "dict_type"}:
        yield _line(tree, where, f"is not a mapping; allowed: {', '.join(_keys(where))}")
    else:
        yield _line(tree, where, detail["msg"])


def _section(where: Sequence[str | int]) -> type[BaseModel]:
    """The model whose keys stand at a path."""
    if not where:
        return Settings
    if tuple(where[:2]) == ("tokenizer", "masks"):
        return MaskSettings
    if len(where) > 2 and where[0] == "alert":
        return ReceiverSettings if where[1] == "receivers" else MuteSettings
    model = Settings.model_fields[str(where[0])].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


def _keys(where: Sequence[str | int]) -> list[str]:
    return [info.alias or name for name, info in _section(where).model_fields.items()]


def _nearest(where: Sequence[str | int]) -> str:
    """The known key that an unknown one was most likely meant to be."""
    *parents, key = where
    known = _keys(parents)
    if near := get_close_matches(str(key).replace("-", "_").lower(), known, 1, 0.6):
        return f"did you mean {_path([*parents, near[0]])}?"
    for section, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section) and key in _keys([section]):
            return f"did you mean {section}.{key}?"
    return f"allowed: {', '.join(known)}"

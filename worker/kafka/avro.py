"""Score records in Avro, by a schema registry: `config/score-record.avsc` in Confluent's wire format.

A writer asks the registry once, when it starts, for the number of its schema; from then on the value of a record is
as pure a function as in JSON, and nothing of a transaction waits for the registry. A reader asks once for each schema
that it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import orjson

from worker.errors import RunError
from worker.settings.document import Settings
from worker.shipped import shipped_text

_SCHEMA_FILE: Final = "score-record.avsc"
_MAGIC: Final = b"\0"  # begins what is in the wire format; no JSON text does
# Fields that a record in JSON, or an event in it, only has where they say something.
_OPTIONAL: Final = ("reason", "pattern", "feedback", "retracts", "text", "origins", "origin")
_CLIENT: Final = {"timeout": 10, "max.retries": 2, "retries.wait.ms": 200, "retries.max.wait.ms": 1_000}
_NOT_FOUND: Final = 404


class AvroScores:
    """Writes and reads score records of one topic.

    Args:
        settings: `output.topic` and `output.schema_registry` are used, the latter being there.

    Raises:
        RunError: what Avro needs is not installed, or the client refuses the properties.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            from confluent_kafka.schema_registry import (
                SchemaRegistryClient,
                SchemaRegistryError,
                topic_subject_name_strategy,
            )
            from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
            from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError
            from httpx2 import HTTPError
        except ImportError as error:
            raise RunError(
                f"output.schema_registry: {error.name} is not installed; run: pip install 'logmamba[avro]'"
            ) from error
        properties: dict[str, Any] = dict(settings.output.schema_registry or {})
        register = properties.pop("auto.register.schemas", True)
        if "bearer.auth.token" in properties:
            properties["bearer.auth.credentials.source"] = "STATIC_TOKEN"
        self._error, self._no_answer = SchemaRegistryError, HTTPError
        # What a reader raises where no whole record follows the number of a schema.
        self._unreadable = SerializationError, EOFError, IndexError, ValueError, TypeError
        self._url = properties["url"]
        self._subject = f"{settings.output.topic}-value"
        self._context = SerializationContext(settings.output.topic, MessageField.VALUE)
        by_topic = {"subject.name.strategy": topic_subject_name_strategy}  # the default asks the registry
        try:
            client = self._client = SchemaRegistryClient(_CLIENT | properties)
            schema = shipped_text(_SCHEMA_FILE)
            self._serializer = AvroSerializer(client, schema, conf={"auto.register.schemas": register, **by_topic})
            self._deserializer = AvroDeserializer(client, conf=by_topic)
        except (OSError, TypeError, ValueError) as error:  # such as a certificate that cannot be read
            raise RunError(f"output.schema_registry: {error}") from error

    def close(self) -> None:
        """Drop the connections; what is known of the registry is still there."""
        self._client.close()

    def serialize(self, record: dict[str, Any]) -> bytes:
        """The value of a record.

        Raises:
            RunError: it is the first, and the registry does not have or take the schema.
        """
        return bytes(self._asked(lambda: self._serializer(record, self._context)))

    def register(self) -> None:
        """Have the registry know the schema, before the first record needs it.

        Raises:
            RunError: it does not answer, refuses us, or does not have or take the schema.
        """
        times = dict.fromkeys(("first_event_time", "last_event_time", "closed_by"))
        none: dict[str, Any] = dict.fromkeys(("schema", "id", "session", "kind", "severity"), "") | times
        numbers = dict.fromkeys(("score", "surprise", "events", "unknown_events"), 0)
        source = dict.fromkeys(("partition", "first_offset", "last_offset", "cause_offset"), 0) | {"topic": ""}
        parts = {
            "thresholds": {"warning": 0.0, "critical": 0.0},
            "top_events": [],
            "source": source,
            "model": {"checkpoint": "", "vocabulary": ""},
        }
        self.serialize(none | numbers | parts)

    def as_json(self, value: bytes | None) -> bytes | None:
        """A value of the score topic in JSON; what is not in Avro, or not in a schema that is known, as it is.

        Raises:
            RunError: the registry does not answer or refuses us.
        """
        if value is None or not value.startswith(_MAGIC):
            return value
        try:
            record = self._asked(lambda: self._deserializer(value, self._context), any_schema=True)
        except self._unreadable:
            return value
        if not isinstance(record, dict):
            return value
        events = record.get("top_events")
        for part in (record, *(events if isinstance(events, list) else ())):
            for name in _OPTIONAL:
                if isinstance(part, dict) and name in part and part[name] is None:
                    del part[name]
        return orjson.dumps(record)

    def _asked(self, call: Callable[[], Any], *, any_schema: bool = False) -> Any:
        """What a call gives that may ask the registry; with `any_schema` None for a schema that it does not know."""
        try:
            return call()
        except self._error as error:
            status = error.http_status_code
            if status == _NOT_FOUND and any_schema:
                return None
            raise RunError(f"output.schema_registry: {self._url}: {self._refusal(status)} ({error})") from error
        except self._no_answer as error:
            raise RunError(f"output.schema_registry: {self._url} does not answer: {error}") from error

    def _refusal(self, status: int) -> str:
        match status:
            case 401 | 403:
                return "refuses the login; allowed: that of basic.auth.user.info or bearer.auth.token"
            case 404:
                return f"has no such schema for {self._subject}; register it, or set auto.register.schemas: true"
            case 409:
                return f"{self._subject} has a schema that this one is not compatible with"
        return "cannot be used"


def score_writer(settings: Settings) -> Callable[[dict[str, Any]], bytes] | None:
    """What makes the values of score records; None for JSON.

    Raises:
        RunError: the registry does not answer, refuses us, or does not have or take the schema.
    """
    if settings.output.format == "json":
        return None
    scores = AvroScores(settings)
    try:
        scores.register()
    finally:
        scores.close()
    return scores.serialize


@contextmanager
def score_reader(settings: Settings) -> Iterator[Callable[[bytes | None], bytes | None]]:
    """What makes JSON of the values of score records, whichever format they have.

    Raises:
        RunError: also from what it gives: the registry does not answer or refuses us, or the settings name none.
    """
    if settings.output.schema_registry is None:
        yield partial(_plain, settings)
        return
    scores = AvroScores(settings)
    try:
        yield scores.as_json
    finally:
        scores.close()


def _plain(settings: Settings, value: bytes | None) -> bytes | None:
    if value is not None and value.startswith(_MAGIC):
        raise RunError(f"output.schema_registry: is missing, and {settings.output.topic} holds records in Avro")
    return value

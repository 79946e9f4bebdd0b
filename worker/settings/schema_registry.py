"""The setting `output.schema_registry`: properties of Confluent's client for one, as its documentation names them."""

from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import PlainSerializer, PlainValidator

from worker.settings.kafka_properties import REDACTED
from worker.settings.values import Problem, refuse

#: Properties that may be set, in the order of the documentation; those of `REGISTRY_SECRETS` are never shown.
REGISTRY_PROPERTIES: Final = (
    "url", "basic.auth.user.info", "bearer.auth.token", "bearer.auth.logical.cluster", "bearer.auth.identity.pool.id",
    "ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password", "auto.register.schemas",
)  # fmt: skip
REGISTRY_SECRETS: Final = frozenset({"basic.auth.user.info", "bearer.auth.token", "ssl.key.password"})


def registry_secret(name: str) -> bool:
    """Whether a property's value must not stand in a settings file."""
    return name in REGISTRY_SECRETS


def _properties(value: object) -> dict[str, str | bool] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        refuse(Problem((), "is not a mapping; allowed: url and what else the registry needs, or null", False))
    problems = []
    for name, text in value.items():
        if name not in REGISTRY_PROPERTIES:
            problems.append(Problem((name,), f"is not a setting; allowed: {', '.join(REGISTRY_PROPERTIES)}", False))
        elif name == "auto.register.schemas":
            if not isinstance(text, bool):
                problems.append(Problem((name,), "is not true or false"))
        elif not isinstance(text, str) or not text.strip():
            problems.append(Problem((name,), "is not a text", False))
    problems += [Problem(("url",), text, False) for text in _url_problems(value.get("url"))]
    if problems:
        refuse(*problems)
    return dict(value)


def _url_problems(url: object) -> list[str]:
    if not isinstance(url, str):
        return ["is missing; allowed: http:// or https:// and a host"] if url is None else []
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:
        known = False
    if not known:
        return ["is not an address; allowed: http:// or https:// and a host"]
    return ["holds a login; allowed: one in basic.auth.user.info"] if "@" in parts.netloc else []


def _shown(value: Mapping[str, object] | None) -> object:
    return value and {name: REDACTED if registry_secret(name) else text for name, text in value.items()}


SchemaRegistry = Annotated[
    dict[str, str | bool] | None,
    PlainValidator(_properties, json_schema_input_type=dict[str, str | bool] | None),
    PlainSerializer(_shown, when_used="json"),
]

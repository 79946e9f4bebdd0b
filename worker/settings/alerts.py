"""The section `alert`: who is told of anomalous sessions, and what they are spared."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    model_validator,
)

from worker.formats.patterns import check_pattern
from worker.settings.kafka_properties import REDACTED
from worker.settings.sections import Section
from worker.settings.values import Duration, Flag, Name, Problem, Told, Whole, refuse

ReceiverType = Literal["webhook", "slack", "pagerduty", "alertmanager"]

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"

#: Settings of a receiver whose values may be shown; addresses and headers of receivers hold tokens.
SHOWN_OF_RECEIVERS = ("type", "severity", "lasts", "answers")

_SECRET_HEADER = re.compile(r"authorization|token|secret|key|cookie|password|signature", re.IGNORECASE)


def receiver_secret(receiver: Mapping[str, object], name: str) -> bool:
    """Whether a setting of a receiver, as the file has it, must not stand in the file."""
    return name == "routing_key" or (name == "url" and receiver.get("type") == "slack")  # who knows it may post


def header_secret(name: str) -> bool:
    """Likewise, a header by its name."""
    return _SECRET_HEADER.search(name) is not None


def _url(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("is not an address; allowed: http:// or https:// and a host")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise ValueError("is not an address; allowed: http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("holds a login; allowed: one in headers, as Authorization")
    return value


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        refuse(Problem((), "is not a mapping; allowed: names of HTTP headers and their values", value_shown=False))
    problems = []
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", str(name)):
            problems.append(Problem((str(name),), "is not the name of a header", value_shown=False))
        elif not isinstance(text, str) or not text.isascii() or not text.isprintable():
            problems.append(Problem((str(name),), "is not the value of a header", value_shown=False))
    if problems:
        refuse(*problems)
    return dict(value)


def _hidden(value: object) -> object:
    return dict.fromkeys(value, REDACTED) if isinstance(value, dict) else value and REDACTED


hidden = PlainSerializer(_hidden, when_used="json")


class ReceiverSettings(Section):
    """One place that alerts are sent to. Its text shows no address, key or header."""

    model_config = ConfigDict(
        json_schema_extra={"patternProperties": {"^(url|routing_key)_file$": {"type": "string"}}},
    )

    type: ReceiverType
    url: Annotated[str | None, PlainValidator(_url, json_schema_input_type=str | None), hidden] = Field(
        None, repr=False
    )
    routing_key: Annotated[
        str | None,
        StringConstraints(strict=True, pattern="^[A-Za-z0-9]{32}$"),
        Told("is not a routing key; allowed: the 32 letters and digits of an Events API v2 integration"),
        hidden,
    ] = Field(None, repr=False)
    headers: Annotated[dict[str, str], PlainValidator(_headers, json_schema_input_type=dict[str, str]), hidden] = Field(
        {}, repr=False
    )
    severity: Literal["warning", "critical"] = "warning"
    lasts_ms: Annotated[int, Duration("1m", "30d")] = Field(14_400_000, alias="lasts")
    answers: Flag = False

    @property
    def address(self) -> str:
        """`url`, or where PagerDuty listens."""
        return self.url or PAGERDUTY_URL

    @model_validator(mode="after")
    def _complete(self) -> Self:
        problems = []
        if self.type == "pagerduty":
            if self.routing_key is None:
                problems.append(Problem(("routing_key",), "is missing; type pagerduty needs one", value_shown=False))
        else:
            if self.url is None:
                problems.append(Problem(("url",), f"is missing; type {self.type} needs one", value_shown=False))
            if self.routing_key is not None:
                text = f"is only for type pagerduty, and this one is {self.type}"
                problems.append(Problem(("routing_key",), text, value_shown=False))
        if self.headers and self.type in ("slack", "pagerduty"):
            text = f"are only for types webhook and alertmanager, and this one is {self.type}"
            problems.append(Problem(("headers",), text, value_shown=False))
        if self.answers and self.type != "webhook":
            text = f"is only for type webhook, and this one is {self.type}"
            problems.append(Problem(("answers",), text, value_shown=False))
        if problems:
            refuse(*problems)
        return self


def _pattern(value: object) -> str | None:
    return None if value is None else check_pattern(value)


def _until(value: object) -> datetime:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()  # YAML has read a day
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        text = "is not a time; allowed: one such as 2026-12-01T08:00:00Z, in UTC if it names no zone"
        raise ValueError(text) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


optional_pattern = PlainValidator(_pattern, json_schema_input_type=str | None)


class MuteSettings(Section):
    """Sessions that nobody is told of until a time: all patterns that are given must be found."""

    session: Annotated[str | None, optional_pattern] = None
    reason: Annotated[str | None, optional_pattern] = None
    until: Annotated[
        datetime,
        PlainValidator(_until, json_schema_input_type=str),
        PlainSerializer(datetime.isoformat, when_used="json"),
    ]

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if self.session is None and self.reason is None:
            refuse(Problem((), "mutes everything; allowed: a pattern for session, for reason, or both"))
        return self


def _receivers(value: object) -> object:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError("is not a mapping; allowed: a name for each receiver, with its settings")
    return value or {}


class AlertSettings(Section):
    """What `logmamba alert` does; a worker needs none of it."""

    receivers: Annotated[dict[Name, ReceiverSettings], BeforeValidator(_receivers)] = Field({})
    mutes: Annotated[tuple[MuteSettings, ...], BeforeValidator(lambda value: value or ())] = ()
    group_wait_ms: Annotated[int, Duration("0ms", "1h")] = Field(10_000, alias="group_wait")
    most_per_minute: Annotated[int, Whole(1, 10_000)] = 10
    remember_ms: Annotated[int, Duration("1m", "30d")] = Field(86_400_000, alias="remember")
    start: Literal["latest", "earliest"] = "latest"

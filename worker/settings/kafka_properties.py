"""The `kafka` section: librdkafka properties, without those that the worker's guarantees fix."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, ValidationInfo

from worker.settings.values import Problem, refuse

REDACTED = "********"

_EXACTLY_ONCE = "the worker reads committed records and writes outputs with offsets in transactions"
_OFFSETS = "the worker commits the offsets that it has fully processed, inside its transactions"
_GROUP = "handing partitions over one by one needs the cooperative protocol of classic groups"
_IDEMPOTENCE = "transactions need an idempotent producer, which sets this itself"
_LOST = "a position that is gone must never be skipped silently; see input.start and input.on_lost_offsets"
_NAMES = "it is made of application_id"

#: Properties that may not be set, each with the reason.
FIXED: Mapping[str, str] = {
    "group.id": _NAMES,
    "transactional.id": f"{_NAMES} and worker.instance",
    "metadata.broker.list": "use its other name, bootstrap.servers",
    "sasl.jaas.config": "only Java clients read it; use sasl.username and sasl.password",
    "isolation.level": _EXACTLY_ONCE,
    "enable.auto.commit": _OFFSETS,
    "auto.commit.enable": _OFFSETS,
    "auto.commit.interval.ms": _OFFSETS,
    "enable.auto.offset.store": _OFFSETS,
    "offset.store.method": _OFFSETS,
    "auto.offset.reset": _LOST,
    "enable.partition.eof": "the worker itself asks where a partition ends",
    "partition.assignment.strategy": _GROUP,
    "group.protocol": _GROUP,
    "group.protocol.type": _GROUP,
    "group.remote.assignor": _GROUP,
    "enable.idempotence": _IDEMPOTENCE,
    "acks": _IDEMPOTENCE,
    "request.required.acks": _IDEMPOTENCE,
    "max.in.flight": _IDEMPOTENCE,
    "max.in.flight.requests.per.connection": _IDEMPOTENCE,
    "retries": _IDEMPOTENCE,
    "message.send.max.retries": _IDEMPOTENCE,
    "enable.gapless.guarantee": _IDEMPOTENCE,
}

#: Properties whose values may be shown and logged. All others are hidden, also those that nobody has thought of: a
#: value may hold a password in the middle of something else.
SHOWN: tuple[str, ...] = (
    "bootstrap.servers", "client.id", "client.rack", "security.protocol", "compression.type", "compression.codec",
    "compression.level", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.oauthbearer.method",
    "sasl.oauthbearer.client.id", "sasl.oauthbearer.scope", "sasl.kerberos.service.name", "sasl.kerberos.keytab",
    "sasl.kerberos.principal", "ssl.ca.location", "ssl.certificate.location", "ssl.key.location",
    "ssl.keystore.location", "ssl.cipher.suites", "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification", "message.max.bytes", "message.copy.max.bytes", "receive.message.max.bytes",
    "max.poll.interval.ms", "session.timeout.ms", "heartbeat.interval.ms", "group.instance.id",
    "transaction.timeout.ms", "delivery.timeout.ms", "message.timeout.ms", "request.timeout.ms", "linger.ms",
    "batch.size", "batch.num.messages", "sticky.partitioning.linger.ms", "partitioner", "queue.buffering.max.ms",
    "queue.buffering.max.messages", "queue.buffering.max.kbytes", "queued.min.messages", "queued.max.messages.kbytes",
    "fetch.min.bytes", "fetch.max.bytes", "fetch.wait.max.ms", "fetch.message.max.bytes", "max.partition.fetch.bytes",
    "fetch.error.backoff.ms", "fetch.queue.backoff.ms", "retry.backoff.ms", "retry.backoff.max.ms",
    "reconnect.backoff.ms", "reconnect.backoff.max.ms", "socket.timeout.ms", "socket.keepalive.enable",
    "socket.connection.setup.timeout.ms", "connections.max.idle.ms", "metadata.max.age.ms",
    "topic.metadata.refresh.interval.ms", "allow.auto.create.topics", "check.crcs", "statistics.interval.ms",
    "broker.address.family", "client.dns.lookup", "debug", "log_level",
)  # fmt: skip

_SECRET = re.compile(
    r"password|passphrase|secret|private\.key|key\.pem|credentials?$|^sasl\.oauthbearer\.config$", re.IGNORECASE
)
_BROKER = r"([A-Za-z_]+://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
_BROKERS = re.compile(rf"\s*{_BROKER}\s*(,\s*{_BROKER}\s*)*")


def is_secret(property_name: str) -> bool:
    """Whether a property's value must not stand in a settings file."""
    return _SECRET.search(property_name) is not None


class KafkaProperties(Mapping[str, str | int | float | bool]):
    """Immutable librdkafka properties: `dict(properties)` has the values, its text only those of `SHOWN`."""

    def __init__(self, properties: Mapping[str, str | int | float | bool]) -> None:
        self._properties = dict(properties)

    def __getitem__(self, name: str) -> str | int | float | bool:
        return self._properties[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._properties)

    def __len__(self) -> int:
        return len(self._properties)

    def __repr__(self) -> str:
        return f"KafkaProperties({self.redacted()!r})"

    def redacted(self) -> dict[str, str | int | float | bool]:
        """The properties as they may be shown."""
        return {name: value if name in SHOWN else REDACTED for name, value in self._properties.items()}

    def whole(self, name: str, default: int) -> int:
        """A property that is a whole number."""
        return int(self._properties.get(name, default))


Rejection = Callable[[str, str | int | float | bool], str | None]
"""What the client library has against one property and its value: a sentence, or None for nothing."""


def check_properties(value: object, info: ValidationInfo) -> KafkaProperties:
    """Properties that the worker can be given; a `Rejection` in the context of validation judges each of them.

    Raises:
        PydanticCustomError: of type `problems`; values of secrets are not in it.
    """
    if isinstance(value, KafkaProperties):
        return value
    if not isinstance(value, Mapping):
        refuse(Problem((), "is not a mapping; allowed: librdkafka properties", value_shown=False))
    rejection_of: Rejection = (info.context or {}).get("rejection", lambda _name, _value: None)
    problems = []
    for name, setting in value.items():
        path, shown = (str(name),), name in SHOWN
        if name in FIXED:
            problems.append(Problem(path, f"cannot be set: {FIXED[name]}", value_shown=False))
        elif isinstance(setting, Mapping):
            flat = f"{name}.{next(iter(setting), '…')}"
            problems.append(Problem(path, f"is a mapping; allowed: whole names such as {flat}", value_shown=False))
        elif not isinstance(setting, str | int | float | bool):
            problems.append(Problem(path, "is not a text, a number, true or false", shown))
        elif rejection := rejection_of(str(name), setting):
            problems.append(Problem(path, rejection, shown))
    servers = value.get("bootstrap.servers")
    if servers is None:
        problems.append(Problem(("bootstrap.servers",), "is missing; allowed: host:port, with commas"))
    elif not isinstance(servers, str) or not _BROKERS.fullmatch(servers):
        shown = "@" not in str(servers)  # as in user:password@host
        problems.append(
            Problem(("bootstrap.servers",), "is no list of brokers; allowed: host:port, with commas", shown)
        )
    if problems:
        refuse(*problems)
    return KafkaProperties(value)


Properties = Annotated[
    KafkaProperties,
    PlainValidator(check_properties, json_schema_input_type=dict[str, str | int | float | bool]),
    PlainSerializer(KafkaProperties.redacted, when_used="json"),
]

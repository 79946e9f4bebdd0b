"""What a client has to be allowed to do for a run and for every restart, tried in advance.

Of topics and groups the brokers say what is allowed. Of transactional ids they do not: a producer has to be started. It
gets an id that no worker has and that begins as all of the application's do, since a worker also ends the transactions
of others that have died (`worker.kafka.dead_workers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, ConsumerGroupDescription, TopicDescription

from worker.kafka.clients import ClientProperties
from worker.kafka.errors import AWAY, UNKNOWN, error_of
from worker.kafka.topics import REACH_TIMEOUT_S, Topics

_BACKOFF_S = 0.2
_PROBE = "logmamba-check"  # the instance that no worker is
_TRANSACTIONS_TIMEOUT_S = 30.0  # those of a new cluster take seconds to know where they are kept

_READ, _WRITE = AclOperation.READ, AclOperation.WRITE
_OF_OUTPUTS: Mapping[str, Sequence[AclOperation]] = {"state": (_READ, _WRITE), "feedback": (_READ,)}


class Permission(NamedTuple):
    """Something that a worker does: whether the brokers allow it, and why not."""

    what: str
    ok: bool
    detail: str


def permissions(properties: ClientProperties, topics: Topics) -> Iterator[Permission]:
    """Whether this client may do what a worker does, each thing by itself.

    A producer is started with the transactional id `<application_id>-logmamba-check`; brokers forget it after a week.

    Args:
        properties: of the application's clients.
        topics: of the application.
    """
    settings = properties.settings
    admin = AdminClient(properties.admin())
    needs: dict[str, Sequence[AclOperation]] = {}
    if not settings.input.topics_are_pattern:
        needs |= dict.fromkeys(settings.input.topics, (_READ,))
    needs |= {topic.name: (_READ,) for topic in topics.inputs()}
    needs |= {topic.name: _OF_OUTPUTS.get(topic.use, (_WRITE,)) for topic in topics.outputs()}
    yield from _of_topics(admin, needs)
    for name, reason in topics.may_be_created():
        yield Permission(f"create {name}", reason is None, reason or "allowed")
    yield from _of_group(admin, settings.group_id)
    if settings.worker.delivery == "exactly_once":
        yield _transactions(properties)


def alert_permissions(properties: ClientProperties) -> Iterator[Permission]:
    """Likewise what `logmamba alert` does: read the score topic, in a group for each receiver, and write verdicts."""
    settings = properties.settings
    admin = AdminClient(properties.admin())
    needs: dict[str, Sequence[AclOperation]] = {settings.output.topic: (_READ,)}
    if settings.feedback.topic is not None and any(each.answers for each in settings.alert.receivers.values()):
        needs[settings.feedback.topic] = (_WRITE,)
    yield from _of_topics(admin, needs)
    for name in settings.alert.receivers:
        yield from _of_group(admin, settings.alert_group(name))


def _of_topics(admin: AdminClient, needs: Mapping[str, Sequence[AclOperation]]) -> Iterator[Permission]:
    described = admin.describe_topics(
        TopicCollection([*needs]), include_authorized_operations=True, request_timeout=REACH_TIMEOUT_S
    )
    for name, operations in needs.items():
        for operation in operations:
            found = _permission(f"{operation.name.lower()} {name}", operation, described[name].result)
            if found is not None:
                yield found


def _of_group(admin: AdminClient, group: str) -> Iterator[Permission]:
    found = _permission(f"join group {group}", _READ, lambda limit_s: _group(admin, group, limit_s))
    if found is not None:
        yield found


def _permission(
    what: str, operation: AclOperation, described: Callable[[float], TopicDescription | ConsumerGroupDescription]
) -> Permission | None:
    """None of a topic that is not there."""
    needed = f"ACL: {operation.name.title()}"
    try:
        allowed = described(2 * REACH_TIMEOUT_S).authorized_operations
    except KafkaException as exception:
        error = error_of(exception)
        return None if error.code() in UNKNOWN else Permission(what, ok=False, detail=f"{error.str()} ({needed})")
    # Brokers without an authorizer report every operation, some older ones none at all.
    ok = not allowed or operation in allowed or AclOperation.ALL in allowed
    return Permission(what, ok, "allowed" if ok else f"the brokers do not allow it ({needed})")


def _group(admin: AdminClient, group: str, limit_s: float) -> ConsumerGroupDescription:
    """What the brokers say of a group; those of a new cluster take seconds to know where groups are kept."""
    deadline = time.monotonic() + limit_s
    while True:
        described = admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=REACH_TIMEOUT_S
        )
        try:
            found: ConsumerGroupDescription = described[group].result(limit_s)
        except KafkaException as error:
            if error_of(error).code() not in AWAY or time.monotonic() > deadline:
                raise
            time.sleep(_BACKOFF_S)
        else:
            return found


def _transactions(properties: ClientProperties) -> Permission:
    what = f"write with transactional ids that begin with {properties.settings.transactional_id_of('')}"
    try:
        Producer(properties.producer_of(_PROBE)).init_transactions(_TRANSACTIONS_TIMEOUT_S)
    except KafkaException as error:
        return Permission(what, ok=False, detail=f"{error_of(error).str()} (ACL: Write, prefixed)")
    return Permission(what, ok=True, detail="allowed")

"""The members of an application's consumer group: its workers."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from worker.errors import RunError
from worker.kafka.clients import ClientProperties
from worker.observability.status import GroupMember

_REQUEST_TIMEOUT_S = 5.0


def group_members(admin: AdminClient, properties: ClientProperties) -> list[GroupMember]:
    """Who is in the group now, by name.

    Raises:
        KafkaException, TimeoutError: the brokers do not say, or not within 5 s.
    """
    group = properties.settings.group_id
    described = admin.describe_consumer_groups([group], request_timeout=_REQUEST_TIMEOUT_S)
    members = described[group].result(_REQUEST_TIMEOUT_S).members
    return sorted(
        GroupMember(
            instance=properties.instance_of(each.client_id),
            client_id=each.client_id,
            host=each.host.removeprefix("/"),
            partitions=0 if each.assignment is None else len(each.assignment.topic_partitions),
        )
        for each in members
    )


def look_for_members(properties: ClientProperties) -> list[GroupMember]:
    """As `group_members`, with a client of its own.

    Raises:
        RunError: the brokers do not say, and why.
    """
    try:
        return group_members(AdminClient(properties.admin()), properties)
    except TimeoutError:
        raise RunError(f"no answer within {_REQUEST_TIMEOUT_S:g} s") from None
    except KafkaException as error:
        reason: KafkaError = error.args[0]
        raise RunError(reason.str()) from error

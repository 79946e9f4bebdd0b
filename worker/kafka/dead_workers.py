"""Ends what dead workers left open, when another worker takes their partitions over.

A worker that is killed leaves a transaction open. As long as it is open, readers of committed records see nothing that
anybody has written behind it, whichever worker that was; and where it holds offsets, nobody knows from where to go on.
By itself it ends at the coordinator's first look after `transaction.timeout.ms` (one minute, and a look every 10 s).
Whoever starts a producer with its transactional id ends it at once: aborted, or, when its commit had reached the
coordinator, committed. The call returns when that is decided and every partition has its marker.

Who may have died: the workers that committed the newly assigned partitions last (`committer` of the offset's metadata,
read here as it stands, whatever open transaction is about to change it), and the members of the group at the latest
look, for one that died before its first commit. Who has died: those of them that are members of the group no more. A
member is never fenced, however slow.

Exactly once does not rest on this judgement. Fencing only ever aborts what is not committed, and a worker outside the
group cannot commit: its offsets carry a generation that is over. The judgement spares a worker that is well a restart.
Two are no members and are well: one that starts and is about to join, and one that stood still or was cut off for so
long that the group gave its partitions away. Either begins its next transaction with a new producer, when it has
partitions (`worker.kafka.sink`). Nobody fences it from then on: the group gives it partitions only after every member
has joined anew, which none does within the callback that calls `end_transactions`. One that goes on with a transaction
after it stood still, before it hears that its partitions are lost, is fenced and stops.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.delivery.snapshots import committer
from worker.kafka.clients import ClientProperties
from worker.kafka.errors import FENCED
from worker.kafka.group_members import group_members
from worker.processing.records import Partition

_REQUEST_TIMEOUT_S = 5.0
_FENCE_TIMEOUT_S = 10.0
_AT_ONCE = 8

_log = structlog.get_logger(__name__)


class DeadWorkers:
    """Of one application, seen by one of its workers.

    Args:
        properties: of the application's clients.
    """

    def __init__(self, properties: ClientProperties) -> None:
        self._properties = properties
        self._group = properties.settings.group_id
        self._us = properties.settings.instance
        self._seen: frozenset[str] = frozenset()  # members at the latest look

    def end_transactions(self, partitions: Sequence[Partition]) -> None:
        """End the open transactions of dead workers; to be called for partitions that were just assigned.

        What cannot be ended now, because the brokers do not answer or do not allow it, is logged and ends by itself. It
        takes 10 s at most to find out who is dead, and as long again for every eight of them.
        """
        # For this look only: what an idle client has to say of brokers that come and go piles up in it.
        admin = AdminClient(self._properties.admin())
        try:
            members = self._members(admin)
            if self._us not in members:
                return  # the group has given us up, too: what we see of it is old
            suspects = self._committers(admin, partitions) | self._seen
        except KafkaException as error:
            # librdkafka's own broker has no groups to describe, and no transactions to end either.
            tell = _log.debug if error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE else _log.warning
            tell("dead_workers_unknown", reason=error.args[0].str())
            return
        except TimeoutError:
            _log.warning("dead_workers_unknown", reason=f"no answer within {_REQUEST_TIMEOUT_S:g} s")
            return
        self._seen = members
        if dead := suspects - members:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(self._fence, sorted(dead)))

    def _members(self, admin: AdminClient) -> frozenset[str]:
        """The instances that are members of the group."""
        names = (member.instance for member in group_members(admin, self._properties))
        return frozenset(name for name in names if name is not None)

    def _committers(self, admin: AdminClient, partitions: Iterable[Partition]) -> frozenset[str]:
        """The instances that were the last to commit these partitions."""
        asked = ConsumerGroupTopicPartitions(self._group, [TopicPartition(*partition) for partition in partitions])
        answers = admin.list_consumer_group_offsets([asked], require_stable=False, request_timeout=_REQUEST_TIMEOUT_S)
        found = answers[self._group].result(_REQUEST_TIMEOUT_S).topic_partitions or []
        names = (committer(each.metadata) for each in found)
        return frozenset(name for name in names if name is not None)

    def _fence(self, instance: str) -> None:
        began = time.monotonic()
        try:
            Producer(self._properties.producer_of(instance)).init_transactions(_FENCE_TIMEOUT_S)
        except KafkaException as error:
            # Fenced: another heir, or the worker itself, started again, has done it meanwhile.
            if error.args[0].code() not in FENCED:
                _log.warning("dead_worker_not_fenced", worker=instance, reason=error.args[0].str())
                return
        _log.info("dead_worker_fenced", worker=instance, seconds=round(time.monotonic() - began, 3))

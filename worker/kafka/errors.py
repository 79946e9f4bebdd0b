"""Errors of the Kafka client, as what the worker does next."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from worker.errors import RunError, TransactionAborted

#: Records that were not delivered for a reason that passes: the same records can be sent again. Every other reason (a
#: topic that may not be written, a record that is too large) would come back, so the worker stops.
UNDELIVERED_FOR_NOW = frozenset(
    {
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.UNKNOWN_PRODUCER_ID,
        # The coordinator gave the transaction up because it took too long. If another worker had taken over, the abort
        # that follows would say so.
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.INVALID_TXN_STATE,
    }
)

#: A broker, or a group's coordinator, is away or not ready yet. The client does not call these retriable, since only
#: its transactional functions say so.
AWAY = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
    }
)

#: A topic or a partition is not there, as far as the brokers know.
UNKNOWN = frozenset({KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART})

#: A permission that is missing will be missing next time: aborting and trying again would never end.
DENIED = frozenset(
    {
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)

# The broker knows something else of the transaction than the client does, as after a broker's crash. The client may be
# of no use any more, a new one is.
_OUT_OF_STEP = frozenset(
    {
        KafkaError.INVALID_TXN_STATE,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.UNKNOWN_PRODUCER_ID,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    }
)

#: Another client with the same transactional id has started since.
FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})


class Fenced(RunError):
    """Another client with our transactional id has started; it has ended what we had open."""


def error_of(exception: KafkaException) -> KafkaError:
    """What the client's exception is about."""
    error = exception.args[0]
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def translated(exception: KafkaException, topic: str = "") -> RunError | TransactionAborted:
    """The error as the loop must see it: abort and go on, or stop. `topic` is the one that was written to."""
    error = error_of(exception)
    if error.code() in FENCED:
        return Fenced(
            "another worker with the same worker.instance has taken over (each needs its own), or this process stood "
            "still for longer than session.timeout.ms or transaction.timeout.ms"
        )
    if error.code() in _OUT_OF_STEP:
        return TransactionAborted(error.str())
    if error.fatal():
        return RunError(f"Kafka: {error.str()}")
    if error.txn_requires_abort() and error.code() not in DENIED:
        return TransactionAborted(error.str())
    return RunError(f"Kafka: {topic and f'{topic} cannot be written: '}{error.str()} ({error.name()})")


def not_committed(exception: KafkaException) -> RunError | TransactionAborted:
    """Likewise, the error of a commit outside a transaction."""
    error = error_of(exception)
    reason = f"the offsets were not committed: {error.str()} ({error.name()})"
    return RunError(f"Kafka: {reason}") if error.fatal() or error.code() in DENIED else TransactionAborted(reason)

"""The Kafka sink: scores, dead letters, snapshots and input offsets in one transaction.

The order of steps, and why:

1. `begin_transaction` on the first message after a commit, so an idle worker holds no transaction open.
2. `produce` scores and dead letters as they are made; they travel while the next batch is scored.
3. Snapshots are produced, then flushed: the offset of a snapshot's first part goes into the metadata of the
   committed offset, and is known only once the broker has it (worst case `transaction.timeout.ms`).
4. `send_offsets_to_transaction` with the group's metadata taken at that moment: an older generation would let a
   worker that has lost its partitions commit them.
   A client bug can make this call block for ever; the process then ends (see `_process_ends_after`).
5. `commit_transaction`, which first waits for everything produced. It is called in slices of one second, again and
   again while the error is retriable, until `transaction.timeout.ms`, when the coordinator aborts by itself.

Because the offsets are part of the transaction, a crash before 5 leaves neither outputs nor offsets, and after it both.
A crash during 5 is decided by the coordinator; the next worker's `committed` waits for that decision.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from worker.errors import RunError, TransactionAborted
from worker.protocols import Committed, Message, Partition

_SLICE_S = 1.0
_HUNG_AFTER_S = 10.0  # beyond the time-out of a call that should have kept it
_ABORT_TIMEOUT_S = 30.0
_INIT_TIMEOUT_S = 30.0

_log = structlog.get_logger(__name__)


class _KafkaSink:
    """What both delivery modes share: producing, and the offsets of snapshots."""

    def __init__(self, properties: Mapping[str, object]) -> None:
        timeout_ms = properties.get("transaction.timeout.ms", properties.get("message.timeout.ms", 60_000))
        self._timeout_s = int(str(timeout_ms)) / 1000
        self._producer = Producer({**properties, "error_cb": lambda error: _log_client_error("producer", error)})
        self._failed: KafkaError | None = None

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._produce(message)
        self._producer.poll(0)
        self._raise_failed()

    def send_snapshot(self, parts: Sequence[Message]) -> int:
        first: list[int] = []

        def delivered(error: KafkaError | None, record: KafkaMessage) -> None:
            self._delivered(error, record)
            if error is None and not first:
                first.append(_offset(record))

        for part in parts:
            self._produce(part, delivered)
        self._flush(self._timeout_s)
        return first[0]

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1.0)

    def _begin(self) -> None:
        """Called before each message."""

    def _produce(
        self, message: Message, delivered: Callable[[KafkaError | None, KafkaMessage], None] | None = None
    ) -> None:
        self._begin()
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    -1 if message.partition is None else message.partition,
                    delivered or self._delivered,
                    headers=list(message.headers),
                )
            except BufferError as error:
                # The queue is full: the broker is slower than the scorer. Waiting here is what slows the input down.
                if time.monotonic() > deadline:
                    raise TransactionAborted("the producer's queue stayed full") from error
                self._producer.poll(0.1)
                self._raise_failed()
            except KafkaException as error:
                raise _translated(error) from error
            else:
                return

    def _flush(self, timeout_s: float) -> None:
        left = self._producer.flush(timeout_s)
        self._raise_failed()
        if left:
            raise TransactionAborted(f"{left} records were not delivered within {timeout_s:g} s")

    def _delivered(self, error: KafkaError | None, _record: KafkaMessage) -> None:
        if error is not None and self._failed is None:
            self._failed = error

    def _raise_failed(self) -> None:
        if self._failed is not None:
            error, self._failed = self._failed, None
            raise _translated(KafkaException(error))


class TransactionalSink(_KafkaSink):
    """Exactly once: see the module's text for the protocol.

    Args:
        properties: librdkafka properties; `transactional.id` and `transaction.timeout.ms` among them.

    Raises:
        RunError: the broker is unreachable or refuses the transactional id.
    """

    def __init__(self, properties: Mapping[str, object]) -> None:
        super().__init__({**properties, "enable.idempotence": True})
        self._open = False
        try:
            # Fences the previous process with this transactional id and ends what it left open.
            self._retry(self._producer.init_transactions, _INIT_TIMEOUT_S)
        except TransactionAborted as error:
            raise RunError(f"the transactional producer could not start: {error}") from error

    def commit(
        self,
        offsets: Mapping[Partition, Committed],
        group_metadata: Callable[[], object],
        timeout_s: float | None = None,
    ) -> None:
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        self._begin()
        positions = _positions(offsets)

        def send_offsets(slice_s: float) -> None:
            self._producer.send_offsets_to_transaction(positions, group_metadata(), slice_s)

        with _process_ends_after(max(0.0, deadline - time.monotonic()) + _HUNG_AFTER_S):
            self._retry(send_offsets, deadline - time.monotonic())
        self._retry(self._producer.commit_transaction, deadline - time.monotonic())
        self._open = False
        self._raise_failed()

    def abort(self) -> None:
        self._failed = None
        if self._open:
            try:
                self._retry(self._producer.abort_transaction, _ABORT_TIMEOUT_S)
            except TransactionAborted as error:
                raise RunError(f"the transaction could not be aborted: {error}") from error
            self._open = False
        self._failed = None

    def _begin(self) -> None:
        if not self._open:
            self._producer.begin_transaction()
            self._open = True

    def _retry(self, call: Callable[[float], object], timeout_s: float) -> None:
        """Call again while the error is retriable, which librdkafka asks for after a time-out, too."""
        deadline = time.monotonic() + timeout_s
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            try:
                call(min(_SLICE_S, remaining))
            except KafkaException as error:
                if not _error(error).retriable():
                    raise _translated(error) from error
                if remaining == 0.0:
                    raise TransactionAborted(f"no answer within {timeout_s:.0f} s: {_error(error).str()}") from error
            else:
                return


class AtLeastOnceSink(_KafkaSink):
    """At least once: everything is delivered before the offsets are committed, without a transaction."""

    def __init__(self, properties: Mapping[str, object], consumer: Consumer) -> None:
        super().__init__({**properties, "enable.idempotence": True})
        self._consumer = consumer

    def commit(
        self,
        offsets: Mapping[Partition, Committed],
        group_metadata: Callable[[], object],  # noqa: ARG002  the consumer commits for itself
        timeout_s: float | None = None,
    ) -> None:
        self._flush(self._timeout_s if timeout_s is None else timeout_s)
        try:
            self._consumer.commit(offsets=_positions(offsets), asynchronous=False)
        except KafkaException as error:
            raise TransactionAborted(f"the offsets were not committed: {_error(error).str()}") from error

    def abort(self) -> None:
        self._producer.purge()
        self._producer.flush(1.0)
        self._failed = None


@contextmanager
def _process_ends_after(seconds: float) -> Iterator[None]:
    """End the process when the block takes longer, as a crash would: what is committed stays, a restart resumes.

    librdkafka's `send_offsets_to_transaction` can block for ever after the group's coordinator went away, whatever its
    time-out (confluentinc/librdkafka issues 5456 and 5511); nothing else can take the thread back from it.
    """

    def end() -> None:
        _log.critical("kafka_client_hung", call="send_offsets_to_transaction", seconds=seconds)
        os._exit(1)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _positions(offsets: Mapping[Partition, Committed]) -> list[TopicPartition]:
    return [
        TopicPartition(partition.topic, partition.partition, committed.offset, committed.metadata)
        for partition, committed in offsets.items()
    ]


def _offset(record: KafkaMessage) -> int:
    offset = record.offset()
    if offset is None:
        raise RunError("the broker acknowledged a record without its offset")
    return offset


def _error(exception: KafkaException) -> KafkaError:
    error = exception.args[0]
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def _translated(exception: KafkaException) -> RunError | TransactionAborted:
    """The error as the loop must see it: abort and go on, or stop."""
    error = _error(exception)
    if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
        return RunError("another worker with the same worker.instance has taken over; each needs its own")
    if error.fatal():
        return RunError(f"Kafka: {error.str()}")
    if error.txn_requires_abort():
        return TransactionAborted(error.str())
    return RunError(f"Kafka: {error.str()} ({error.name()})")


def _log_client_error(client: str, error: KafkaError) -> None:
    _log.warning("kafka_client_error", client=client, code=error.name(), reason=error.str())

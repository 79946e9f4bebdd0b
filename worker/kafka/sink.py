"""The Kafka sink: scores, dead letters, snapshots and input offsets in one transaction.

The order of steps, why, and how long each may take at worst. T is `message.timeout.ms`, half of
`transaction.timeout.ms` unless set: what takes longer is aborted while the coordinator still listens. At
`transaction.timeout.ms` the coordinator aborts by itself, and fences this client as if another had taken over.

1. `begin_transaction` on the first message after a commit, so an idle worker holds no transaction open. Local.
2. `produce` scores and dead letters as they are made; they travel while the next batch is scored. While the queue is
   full it waits: T at most without anything delivered.
3. Snapshots are produced, then flushed, T at most: the offset of a snapshot's first part goes into the metadata of
   the committed offset, and is known only once the broker has it.
4. `send_offsets_to_transaction` with the group's metadata taken at that moment: an older generation would let a
   worker that has lost its partitions commit them. The partitions must be ours until the broker has the offsets; after
   that they may move, because their next owner's `committed` waits for this transaction. `_OFFSETS_TIMEOUT_S` at
   most: the client may ignore the limit it is given, and is then left behind (see `_within`).
5. Everything produced is flushed.
6. `commit_transaction`. Without an answer it is undecided, neither committed nor aborted.

4 to 6 together take the caller's limit or T. While 2, 3 and 5 wait for the broker, `while_waiting` is called every
second. It may raise `TransactionAborted`: partitions have gone away, and what was sent for them must not be committed.

Because the offsets are part of the transaction, a crash before 6 leaves neither outputs nor offsets, and after it both.
A crash during 6 is decided by the coordinator; the next worker's `committed` waits for that decision.

`abort` gives up whatever is open, within `_ABORT_TIMEOUT_S`. A client that cannot, because one of its calls hangs or
its commit is undecided, is replaced by a new one with the same transactional id, within `_INIT_TIMEOUT_S`: starting,
that one fences the old one, ends what it left open and waits for what was undecided. Either way the caller goes on
from what is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from worker.delivery.protocols import Committed, Message
from worker.errors import RunError, TransactionAborted
from worker.processing.records import Partition

_OFFSETS_TIMEOUT_S = 15.0
_HUNG_AFTER_S = 1.0  # beyond the limit of a call that should have kept it
_ABORT_TIMEOUT_S = 30.0
_INIT_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 5.0
_WAIT_SLICE_S = 1.0  # between two calls of `while_waiting`
_BACKOFF_S = 0.1

# Records that were not delivered for a reason that passes: the same records can be sent again. Every other reason (a
# topic that may not be written, a record that is too large) would come back, so the worker stops.
_PASSING = frozenset(
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

_log = structlog.get_logger(__name__)


class _KafkaSink:
    """What both delivery modes share: producing, and the offsets of snapshots.

    Attributes:
        while_waiting: called every second while a call waits for the broker to take what was sent.
    """

    def __init__(self, properties: Mapping[str, object]) -> None:
        # Both names are the same property.
        self._timeout_s = int(str(properties.get("delivery.timeout.ms") or properties["message.timeout.ms"])) / 1000
        self._properties = {
            **properties,
            "enable.idempotence": True,
            "error_cb": lambda error: _log_client_error("producer", error),
        }
        self._producer = Producer(self._properties)
        self._failed: tuple[KafkaError, str] | None = None  # why a record was not delivered, and its topic
        self.while_waiting: Callable[[], None] = lambda: None

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._produce(message, self._delivered)
        self._serve(0)

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
        with suppress(RunError, TransactionAborted):
            self._producer.purge()
            self._serve(_CLOSE_TIMEOUT_S, self._producer.flush)

    def _begin(self) -> None:
        """Called before each message."""

    def _produce(self, message: Message, delivered: Callable[[KafkaError | None, KafkaMessage], None]) -> None:
        self._begin()
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    -1 if message.partition is None else message.partition,
                    delivered,
                    headers=list(message.headers),
                )
            except BufferError:
                self._make_room()
            except KafkaException as error:
                if _error(error).code() == KafkaError._STATE:
                    # What the reason was comes with the abort.
                    raise TransactionAborted("the client gave the transaction up") from error
                raise _translated(error, message.topic) from error
            else:
                return

    def _make_room(self) -> None:
        """Wait until the broker has taken something: it is slower than the scorer."""
        queued, wait = len(self._producer), _Wait(self._timeout_s, self.while_waiting)
        while len(self._producer) >= queued:
            if not wait.goes_on():
                raise TransactionAborted(f"the producer's queue stayed full for {self._timeout_s:g} s")
            self._serve(0.1)

    def _flush(self, timeout_s: float) -> None:
        wait = _Wait(timeout_s, self.while_waiting)
        while left := self._serve(min(_WAIT_SLICE_S, wait.left_s), self._producer.flush):
            if not wait.goes_on():
                raise TransactionAborted(f"{left} records were not delivered within {max(0.0, timeout_s):.0f} s")

    def _serve(self, seconds: float, call: Callable[[float], int] | None = None) -> int:
        """Hear from the client what was delivered: `poll` unless said otherwise; returns what it returns."""
        try:
            result = (call or self._producer.poll)(seconds)
        except KafkaException as error:
            raise _translated(error) from error
        except SystemError as error:  # a fatal error that was raised between two delivery reports
            if isinstance(error.__cause__, KafkaException):
                raise _translated(error.__cause__) from error
            raise
        self._raise_failed()
        return result

    def _delivered(self, error: KafkaError | None, record: KafkaMessage) -> None:
        if error is not None and (self._failed is None or self._failed[0].code() in _PASSING):
            self._failed = error, record.topic() or ""

    def _raise_failed(self) -> None:
        if self._failed is not None:
            error, topic = self._failed
            if error.code() not in _PASSING:
                raise RunError(f"Kafka: {topic} cannot be written: {error.str()} ({error.name()})")
            raise TransactionAborted(f"{topic}: a record was not delivered: {error.str()}")

    def _forget_failed(self) -> None:
        """After an abort: records that can be sent again will be; for others the worker stops.

        Raises:
            RunError: a record can never be written.
        """
        try:
            self._raise_failed()
        except TransactionAborted:
            self._failed = None


class TransactionalSink(_KafkaSink):
    """Exactly once: see the module's text for the protocol.

    Args:
        properties: librdkafka properties; `transactional.id` and `message.timeout.ms` among them.

    Raises:
        RunError: the broker is unreachable or refuses the transactional id.
    """

    def __init__(self, properties: Mapping[str, object]) -> None:
        super().__init__(properties)
        self._open = False
        self._stuck = False  # the client can neither commit nor abort any more
        self._init()

    def commit(
        self,
        offsets: Mapping[Partition, Committed],
        group_metadata: Callable[[], object],
        timeout_s: float | None = None,
    ) -> None:
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        self._begin()
        self._send_offsets(_positions(offsets), group_metadata, deadline - time.monotonic())
        self._flush(deadline - time.monotonic())
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TransactionAborted("no time was left to commit")  # once asked for, a commit cannot be taken back
        try:
            _retry(self._producer.commit_transaction, left_s)
        except _NoAnswer:
            self._stuck = True
            raise
        self._open = False
        self._raise_failed()

    def abort(self) -> None:
        if self._open:
            if not self._stuck:
                try:
                    _retry(self._producer.abort_transaction, _ABORT_TIMEOUT_S)
                except TransactionAborted:
                    self._stuck = True
            if self._stuck:
                _log.warning("producer_replaced")
                self._producer = Producer(self._properties)
                self._init()
            self._open = self._stuck = False
        self._forget_failed()

    def close(self) -> None:
        if self._stuck:
            return  # its calls may never return; the coordinator ends what it left open
        if self._open:
            try:
                _retry(self._producer.abort_transaction, _CLOSE_TIMEOUT_S)
            except (RunError, TransactionAborted) as error:
                _log.warning("transaction_left_open", reason=str(error))
        super().close()

    def _init(self) -> None:
        """Fence the previous client with this transactional id and end what it left open."""
        try:
            _retry(self._producer.init_transactions, _INIT_TIMEOUT_S)
        except TransactionAborted as error:
            raise RunError(f"the transactional producer could not start: {error}") from error

    def _begin(self) -> None:
        if not self._open:
            try:
                self._producer.begin_transaction()
            except KafkaException as error:
                raise _translated(error) from error
            self._open = True

    def _send_offsets(
        self, positions: list[TopicPartition], group_metadata: Callable[[], object], timeout_s: float
    ) -> None:
        limit_s = max(0.0, min(timeout_s, _OFFSETS_TIMEOUT_S))
        # Asked in this thread: while a rebalance callback runs, the consumer leaves any other waiting.
        metadata = group_metadata()

        def send(left_s: float) -> None:
            self._producer.send_offsets_to_transaction(positions, metadata, left_s)

        try:
            _within(limit_s + _HUNG_AFTER_S, lambda: _retry(send, limit_s))
        except TimeoutError as error:
            self._stuck = True
            raise TransactionAborted("the client hangs while it sends offsets") from error


class AtLeastOnceSink(_KafkaSink):
    """At least once: everything is delivered before the offsets are committed, without a transaction."""

    def __init__(self, properties: Mapping[str, object], consumer: Consumer) -> None:
        super().__init__(properties)
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
        self._producer.flush(_CLOSE_TIMEOUT_S)
        self._forget_failed()


class _NoAnswer(TransactionAborted):
    """A transactional call was not answered in time."""


class _Wait:
    """A wait for the broker that calls `while_waiting` every second."""

    def __init__(self, limit_s: float, while_waiting: Callable[[], None]) -> None:
        now = time.monotonic()
        self._deadline, self._next_call = now + limit_s, now + _WAIT_SLICE_S
        self._while_waiting = while_waiting

    @property
    def left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def goes_on(self) -> bool:
        """Whether there is time left."""
        now = time.monotonic()
        if now >= self._next_call:
            self._next_call = now + _WAIT_SLICE_S
            self._while_waiting()
        return now < self._deadline


def _retry(call: Callable[[float], object], timeout_s: float) -> None:
    """Make a transactional call, again while its error is retriable; it is given the seconds that are left.

    Raises:
        _NoAnswer: time is up.
        TransactionAborted: the transaction must be aborted.
        RunError: the worker must stop.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            call(left_s)
        except KafkaException as error:
            if not _error(error).retriable():
                raise _translated(error) from error
            if left_s == 0.0:
                raise _NoAnswer(f"no answer within {timeout_s:.0f} s: {_error(error).str()}") from error
            time.sleep(min(_BACKOFF_S, left_s))
        else:
            return


def _within(seconds: float, call: Callable[[], None]) -> None:
    """Run a call in a thread of its own, which is left behind when the call takes longer.

    librdkafka's `send_offsets_to_transaction` can block for ever after the group's coordinator went away, whatever its
    time-out (confluentinc/librdkafka issues 5456 and 5511).

    Raises:
        TimeoutError: it took longer.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())  # type: ignore[func-returns-value]
        except BaseException as error:  # raised again below
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    outcome.result(seconds)


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


def _translated(exception: KafkaException, topic: str = "") -> RunError | TransactionAborted:
    """The error as the loop must see it: abort and go on, or stop. `topic` is the one that was written to."""
    error = _error(exception)
    if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
        return RunError(
            "another worker with the same worker.instance has taken over (each needs its own), or the transaction took "
            "longer than transaction.timeout.ms"
        )
    if error.fatal():
        return RunError(f"Kafka: {error.str()}")
    if error.txn_requires_abort():
        return TransactionAborted(error.str())
    return RunError(f"Kafka: {topic and f'{topic} cannot be written: '}{error.str()} ({error.name()})")


def _log_client_error(client: str, error: KafkaError) -> None:
    _log.warning("kafka_client_error", client=client, code=error.name(), reason=error.str())

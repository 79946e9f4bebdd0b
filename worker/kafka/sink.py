"""The Kafka sink: scores, dead letters, snapshots and input offsets in one transaction.

The order of steps, why, and how long each may take at worst. T is `transaction.timeout.ms`: that long after the
transaction began the coordinator aborts it by itself, and fences this client as if another had taken over. So whatever
is to be committed is committed within 3/4 of T from `begin_transaction`, and the last quarter is for aborting the rest.

1. `begin_transaction` on the first message after a commit, so an idle worker holds no transaction open. Local.
2. `produce` scores and dead letters as they are made; they travel while the next batch is scored. While the queue is
   full it waits: `message.timeout.ms` (T/2 unless set) at most without anything delivered.
3. Snapshots of all partitions are produced, then flushed once: the offset of a snapshot's first part goes into the
   metadata of the committed offset, and is known only once the broker has it.
4. `send_offsets_to_transaction` with the group's metadata taken at that moment: an older generation would let a
   worker that has lost its partitions commit them. The partitions must be ours until the broker has the offsets; after
   that they may move, because their next owner's `committed` waits for this transaction. `_OFFSETS_TIMEOUT_S` at
   most: the client may ignore the limit it is given, and is then left behind (`worker.kafka.calls`).
5. Everything produced is flushed.
6. `commit_transaction`. Without an answer it is undecided, neither committed nor aborted.

2 to 6 end by the transaction's 3/4 T; 3 to 6 also by the caller's deadline, which they share. Past either the caller
gets `TransactionAborted`. While 2, 3 and 5 wait for the broker, `while_waiting` is called every second. It may raise
`TransactionAborted`: partitions have gone away, and what was sent for them must not be committed.

Because the offsets are part of the transaction, a crash before 6 leaves neither outputs nor offsets, and after it both.
A crash during 6 is decided by the coordinator; the next worker's `committed` waits for that decision. What a crash
leaves open is ended by the next worker of the same name when it starts, or by those that get the partitions
(`worker.kafka.dead_workers`). These may also do so while a worker of that name is about to join the group: one that
starts, or one that the group took for dead. So `settle` replaces its client as soon as it has partitions, since nobody
fences it from then on. What it had open when its partitions were lost is ended in that way, too: asked to abort, the
old client could learn that it is fenced, and would not know by whom.

`abort` gives up whatever is open, until the caller's deadline and T have passed. A client that cannot, because one of
its calls hangs, the broker is away or has forgotten its transaction in a crash, or its commit is undecided, is given
up: `settle` replaces it by a new one with the same transactional id, and waits as long as the broker is away. Starting,
that one fences the old one, ends what it left open and waits for what was undecided; only then may the caller read what
is committed, and go on from there.

A twin, another live worker with the same id, fences this one, which then stops. It is told from a coordinator that lost
patience by the time: no call asks for anything after T unless the process itself stood still for so long (SIGSTOP, a
suspended machine), and then it stops too, since a twin may have taken over meanwhile, or those who got its partitions.
A broker that was away for longer than T is found so before T has passed, because a call was not answered: its client is
replaced without asking it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Thread

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed, Message
from worker.errors import RunError, TransactionAborted
from worker.kafka.calls import Hung, NoAnswer, transactional
from worker.kafka.client_log import ClientErrorLog
from worker.kafka.errors import DENIED, UNDELIVERED_FOR_NOW, Fenced, error_of, translated
from worker.processing.records import Partition

_COMMIT_SHARE = 0.75  # of the transaction's longest life
_OFFSETS_TIMEOUT_S = 15.0
_START_TIMEOUT_S = 30.0
_SETTLE_SLICE_S = 2.0  # between two looks whether the worker was told to stop
_LAST_FLUSH_S = 5.0
_ENDED = frozenset({KafkaError._FATAL, KafkaError._FENCED})  # of a record: its client takes none any more
_WAIT_SLICE_S = 1.0  # between two calls of `while_waiting`

# What Python says of a call of the client that failed and whose reason a later report overwrote.
_LOST = "returned NULL without setting an exception"

_log = structlog.get_logger(__name__)


class _KafkaSink:
    """What both delivery modes share: producing, and the offsets of snapshots.

    Attributes:
        while_waiting: called every second while a call waits for the broker to take what was sent.
    """

    def __init__(self, properties: Mapping[str, object], outage: Outage) -> None:
        # Both names are the same property.
        self._timeout_s = int(str(properties.get("delivery.timeout.ms") or properties["message.timeout.ms"])) / 1000
        self._properties = {**properties, "enable.idempotence": True, "error_cb": ClientErrorLog("producer")}
        self._outage = outage
        self._producer = Producer(self._properties)
        self._failed: tuple[KafkaError, str] | None = None  # why a record was not delivered, and its topic
        self.while_waiting: Callable[[], None] = lambda: None

    def send(self, messages: Iterable[Message], deadline: Deadline) -> None:
        self._produce(messages, self._delivered, deadline)
        self._serve(0)

    def send_snapshots(self, snapshots: Iterable[Sequence[Message]], deadline: Deadline) -> list[int]:
        firsts: list[int | None] = []

        def produce(parts: Iterable[Message], number: int) -> None:
            def delivered(error: KafkaError | None, record: KafkaMessage) -> None:
                self._delivered(error, record)
                if error is None and firsts[number] is None:
                    firsts[number] = record.offset()

            self._produce(parts, delivered, deadline)

        for number, parts in enumerate(snapshots):
            firsts.append(None)
            produce(parts, number)
            if deadline.passed:
                raise TransactionAborted(f"no time was left after {number + 1} snapshots", "no_answer")
        self._flush(deadline)
        if None in firsts:
            raise RunError("the broker acknowledged a snapshot without its offset")
        return [first for first in firsts if first is not None]

    def close(self, deadline: Deadline) -> None:
        with suppress(RunError, TransactionAborted):
            self._producer.purge()
            self._serve(min(_LAST_FLUSH_S, deadline.left_s), self._producer.flush)

    def _begin(self) -> Deadline:
        """Called before messages; returns what ends every wait."""
        return Deadline()

    def _said_in_full(self, exception: KafkaException) -> KafkaException:
        """An exception, or the one that says why the client has ended, where this one says no more than that it has."""
        return (error_of(exception).code() in _ENDED and self._fatal()) or exception

    def _fatal(self) -> KafkaException | None:
        """Why the client has ended, if it has and can still say so."""
        return None

    def _produce(
        self,
        messages: Iterable[Message],
        delivered: Callable[[KafkaError | None, KafkaMessage], None],
        deadline: Deadline,
    ) -> None:
        limit, produce = None, self._producer.produce
        for topic, key, value, headers, partition, timestamp_ms in messages:
            limit = limit or self._begin()
            number, time_ms = -1 if partition is None else partition, timestamp_ms or 0
            own = headers if isinstance(headers, list) else list(headers)
            while True:
                try:
                    produce(topic, value, key, number, delivered, timestamp=time_ms, headers=own)
                    break
                except BufferError:
                    self._make_room(Deadline(self._timeout_s, within=(limit, deadline)))
                except KafkaException as error:
                    if error_of(error).code() == KafkaError._STATE:
                        # What the reason was comes with the abort.
                        raise TransactionAborted("the client gave the transaction up") from error
                    raise translated(self._said_in_full(error), topic) from error

    def _make_room(self, deadline: Deadline) -> None:
        """Wait until the broker has taken something: it is slower than the scorer."""
        queued, wait = len(self._producer), _Wait(deadline, self.while_waiting)
        while len(self._producer) >= queued:
            if not wait.goes_on():
                raise TransactionAborted("the producer's queue stayed full", "no_answer")
            self._serve(0.1)

    def _flush(self, deadline: Deadline) -> None:
        wait = _Wait(deadline, self.while_waiting)
        while left := self._serve(min(_WAIT_SLICE_S, deadline.left_s), self._producer.flush):
            if not wait.goes_on():
                raise TransactionAborted(f"{left} records were not delivered in time", "no_answer")

    def _serve(self, seconds: float, call: Callable[[float], int] | None = None) -> int:
        """Hear from the client what was delivered: `poll` unless said otherwise; returns what it returns."""
        try:
            result = (call or self._producer.poll)(seconds)
        except KafkaException as error:
            raise translated(error) from error
        except Exception as error:
            # The client raises a fatal error between two of its reports. It comes out as the cause of another error, as
            # whatever the code of the next report meets with an error pending, or not at all.
            fatal = error.__cause__ if isinstance(error.__cause__, KafkaException) else self._fatal()
            if fatal is not None:
                raise translated(fatal) from error
            if _LOST not in str(error):
                raise
            result = len(self._producer)  # the next call has it again
        self._raise_failed()
        return result

    def _delivered(self, error: KafkaError | None, record: KafkaMessage) -> None:
        if error is not None and (self._failed is None or self._failed[0].code() in UNDELIVERED_FOR_NOW):
            self._failed = error, record.topic() or ""

    def _raise_failed(self) -> None:
        if self._failed is not None:
            error, topic = self._failed
            if error.code() in _ENDED:
                raise translated(self._said_in_full(KafkaException(error)), topic)
            if error.code() not in UNDELIVERED_FOR_NOW:
                raise RunError(f"Kafka: {topic} cannot be written: {error.str()} ({error.name()})")
            timed_out = error.code() == KafkaError._MSG_TIMED_OUT
            reason = f"{topic}: a record was not delivered: {error.str()}"
            raise TransactionAborted(reason, "no_answer" if timed_out else "broker")

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
        properties: librdkafka properties; `transactional.id` and both time-outs among them.
        outage: is told when the broker does not answer.

    Raises:
        RunError: the broker is unreachable or refuses the transactional id.
    """

    def __init__(self, properties: Mapping[str, object], outage: Outage) -> None:
        super().__init__(properties, outage)
        self._longest_s = int(str(properties["transaction.timeout.ms"])) / 1000
        self._commit_by = self._ends = Deadline()  # of the open transaction
        self._open = False
        self._stuck = False  # the client can neither commit nor abort any more
        self._doubtful = True  # we were outside the group since the client started, so that others may have fenced it
        try:
            transactional(self._producer.init_transactions, Deadline(_START_TIMEOUT_S), "starting the producer")
        except TransactionAborted as error:
            raise RunError(f"the transactional producer could not start: {error}") from error

    def commit(
        self, offsets: Mapping[Partition, Committed], group_metadata: Callable[[], object], deadline: Deadline
    ) -> None:
        deadline = Deadline(within=(deadline, self._begin()))
        try:
            self._send_offsets(_positions(offsets), group_metadata, deadline)
            self._flush(deadline)
            if deadline.passed:  # once asked for, a commit cannot be taken back
                raise TransactionAborted("no time was left to commit", "no_answer")
            transactional(self._producer.commit_transaction, deadline, "committing", self._outage.look)
        except NoAnswer:
            self._stuck = True
            raise
        self._open = False
        self._outage.over()
        self._raise_failed()

    def abort(self, deadline: Deadline) -> None:
        denied = None
        if self._open and not self._stuck:
            denied = self._denied()
            # Past its end the coordinator has aborted it, or will tell that it was not us who let it pass.
            limit = deadline if self._ends.passed else Deadline(within=(deadline, self._ends))
            try:
                transactional(self._producer.abort_transaction, limit, "aborting", self._outage.look)
            except TransactionAborted as error:
                self._outage.noticed(str(error))
                self._stuck = True
        self._open = False
        if denied is not None:
            raise denied
        self._forget_failed()

    def lost(self) -> None:
        self._doubtful = True
        self._stuck |= self._open
        self._failed = None  # being fenced is one of the reasons

    def settle(self, *, assigned: bool = False) -> None:
        if self._stuck:
            _log.warning("producer_replaced")
        if assigned:
            self._stuck |= self._doubtful
            self._doubtful = False
        while self._stuck:
            given_up, self._producer = self._producer, Producer(self._properties)
            # Its end may take as long as the call that hangs.
            Thread(target=given_up.purge, daemon=True).start()
            del given_up
            self._start_anew()

    def close(self, deadline: Deadline) -> None:
        if self._stuck:
            return  # its calls may never return; the coordinator ends what it left open
        if self._open:
            try:
                transactional(self._producer.abort_transaction, deadline.part(0.5), "aborting")
            except Fenced:
                return
            except (RunError, TransactionAborted) as error:
                _log.warning("transaction_left_open", reason=str(error))
                return
        super().close(deadline)

    def _fatal(self) -> KafkaException | None:
        reason = self._refusal()
        return reason if reason is not None and error_of(reason).fatal() else None

    def _denied(self) -> Exception | None:
        """The permission for lack of which the client gave the open transaction up, if that is why."""
        reason = self._refusal()
        return translated(reason) if reason is not None and error_of(reason).code() in DENIED else None

    def _refusal(self) -> KafkaException | None:
        """What is wrong with the open transaction or its client: with that the client refuses to begin another one."""
        try:
            self._producer.begin_transaction()
        except KafkaException as reason:
            return reason
        return None

    def _start_anew(self) -> None:
        """Fence the previous client and end what it left open, once the broker answers."""
        while True:
            try:
                transactional(self._producer.init_transactions, Deadline(_SETTLE_SLICE_S), "starting the producer")
            except Hung as error:
                self._outage.wait(str(error))
                return  # still stuck: a third client
            except TransactionAborted as error:
                self._outage.wait(str(error))
            else:
                self._stuck = False
                self._outage.over()
                return

    def _begin(self) -> Deadline:
        if not self._open:
            try:
                self._producer.begin_transaction()
            except KafkaException as error:
                self._stuck = True
                raise translated(error) from error
            self._open = True
            self._ends = Deadline(self._longest_s)
            self._commit_by = Deadline(self._longest_s * _COMMIT_SHARE)
        return self._commit_by

    def _send_offsets(
        self, positions: list[TopicPartition], group_metadata: Callable[[], object], deadline: Deadline
    ) -> None:
        # Asked in this thread: while a rebalance callback runs, the consumer leaves any other waiting.
        metadata = group_metadata()

        def send(left_s: float) -> None:
            self._producer.send_offsets_to_transaction(positions, metadata, left_s)

        limit = Deadline(_OFFSETS_TIMEOUT_S, within=(deadline,))
        transactional(send, limit, "sending offsets", self._outage.look)


class AtLeastOnceSink(_KafkaSink):
    """At least once: everything is delivered before the offsets are committed, without a transaction.

    Args:
        properties: librdkafka properties.
        commit: commits positions as the member of the group.
        outage: is told when the broker answers.
    """

    def __init__(
        self,
        properties: Mapping[str, object],
        commit: Callable[[list[TopicPartition], Deadline], None],
        outage: Outage,
    ) -> None:
        super().__init__(properties, outage)
        self._commit_positions = commit

    def commit(
        self,
        offsets: Mapping[Partition, Committed],
        group_metadata: Callable[[], object],  # noqa: ARG002  the consumer commits for itself
        deadline: Deadline,
    ) -> None:
        deadline = Deadline(self._timeout_s, within=(deadline,))
        self._flush(deadline)
        self._commit_positions(_positions(offsets), deadline)
        self._outage.over()

    def abort(self, deadline: Deadline) -> None:
        self._producer.purge()
        self._producer.flush(min(_LAST_FLUSH_S, deadline.left_s))
        self._forget_failed()

    def lost(self) -> None:
        """Nobody can end what is not a transaction."""

    def settle(self, *, assigned: bool = False) -> None:
        """Nothing is undecided: what was delivered stays, and is delivered again."""


class _Wait:
    """A wait for the broker that calls `while_waiting` every second."""

    def __init__(self, deadline: Deadline, while_waiting: Callable[[], None]) -> None:
        self._deadline, self._slice = deadline, Deadline(_WAIT_SLICE_S)
        self._while_waiting = while_waiting

    def goes_on(self) -> bool:
        """Whether there is time left."""
        if self._slice.passed:
            self._slice = Deadline(_WAIT_SLICE_S)
            self._while_waiting()
        return not self._deadline.passed


def _positions(offsets: Mapping[Partition, Committed]) -> list[TopicPartition]:
    return [
        TopicPartition(partition.topic, partition.partition, committed.offset, committed.metadata)
        for partition, committed in offsets.items()
    ]

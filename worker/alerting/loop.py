"""Tells one receiver of what the score topic holds, at least once.

A receiver has a consumer group of its own, so that the outage of one holds up no other. Offsets are committed once the
receiver has taken everything that the records before them led to. Beside a partition's offset stands from where a
restart has to read again, silently, to know what was told (`worker.alerting.memory`). While the receiver is
away the partitions are paused, and nothing is held that Kafka does not hold as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog
from pydantic import ValidationError

from worker.alerting.alerts import ScoreRecord
from worker.alerting.answers import Answers
from worker.alerting.delivery import Answer, NotTaken, Refused
from worker.alerting.grouping import Budget, Waiting
from worker.alerting.memory import Memory, Mutes
from worker.alerting.receivers import Request, receiver_of
from worker.delivery.deadline import Deadline, StopDeadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed, Source, TopicReader
from worker.errors import RunError, TransactionAborted
from worker.processing.feedback import FeedbackRecord
from worker.processing.records import Partition, Records
from worker.settings.document import Settings

_MOST_POLLED = 5_000
_POLL_S = 0.2
_COMMIT_EVERY_S = 5.0  # what brings no alert
_COMMIT_TIMEOUT_S = 10.0
_LEAST_BACKOFF_S, _MOST_BACKOFF_S = 1.0, 60.0
_LOG_EVERY_S = 60.0
_KEEP_ALIVE_S = 0.5
_LEAVE_SHARE = 0.2  # of worker.shutdown_timeout

_READ_FROM: Final = re.compile(r"read_from=(\d{1,19})")

_log = structlog.get_logger(__name__)


class CommittingSource(Source, Protocol):
    """A member of a consumer group that commits outside transactions."""

    def commit_offsets(self, offsets: Mapping[Partition, Committed], deadline: Deadline) -> None:
        """Commit positions with their metadata.

        Raises:
            TransactionAborted: they are not committed now; they can be at another time.
            RunError: they may not be.
        """


@dataclass(slots=True)
class _Place:
    """A partition that is ours.

    Attributes:
        next: offset of the first record that is not read.
        committed: what the group has last committed; None for nothing yet.
        memory: of the records before `next`.
    """

    next: int
    committed: Committed | None
    memory: Memory


class _NotTold(Exception):
    """A stop leaves something untold: the next start tells it."""


class AlertLoop:
    """One receiver's (`worker.delivery.protocols.Rebalance` is its other half).

    Args:
        settings: of the application.
        name: of the receiver, among `alert.receivers`.
        source: of the score topic, in the receiver's own group.
        reader: of the score topic.
        send: posts a request (`worker.alerting.delivery.post`).
        outage: what is known of a broker that does not answer.
        as_json: makes JSON of the value of a score record.
        say: writes a verdict that the receiver answered with.
        clock, sleep: monotonic seconds, and what lets them pass.
        now: the time of day.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        source: CommittingSource,
        reader: TopicReader,
        send: Callable[[Request], Answer],
        outage: Outage,
        as_json: Callable[[bytes | None], bytes | None] = lambda value: value,
        say: Callable[[FeedbackRecord], object] = lambda _record: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        alert = settings.alert
        self._settings = settings
        self._name = name
        self._least = alert.receivers[name].severity
        self._mutes = Mutes(alert.mutes)
        self._receiver = receiver_of(alert.receivers[name])
        self._source, self._reader, self._send = source, reader, send
        self._clock, self._sleep, self._now = clock, sleep, now
        self._waiting = Waiting()
        self._waiting_since = self._committed_at = clock()
        self._budget = Budget(alert.most_per_minute, clock)
        self._places: dict[Partition, _Place] = {}
        self._rewind = False  # records were delivered that are not ours to take now
        self._stop = StopDeadline(lambda: False, 0.0, clock)
        self._kept_alive_at = clock()
        self._log = _log.bind(receiver=name)
        self._as_json = as_json
        answers = alert.receivers[name].answers
        self._answers = Answers(settings.application_id, f"receiver {name}", say) if answers else None
        self._outage = outage
        outage.while_away = self._while_away

    def run(self, stopping: Callable[[], bool]) -> None:
        """Tell the receiver until `stopping()`; then tell what waits, commit, leave the group and return.

        Raises:
            RunError: the receiver refuses a message for good, or the score topic can no longer be read.
        """
        self._stop = StopDeadline(stopping, self._settings.worker.shutdown_timeout_ms / 1000, self._clock)
        try:
            self._source.subscribe(self)
            while not self._stop.begun:
                self._turn()
            self._deliver(at_once=True)
            self._commit()
        except _NotTold as error:
            self._log.warning("left_for_the_next_start", reason=str(error))
        finally:
            self._stop.begin()
            self._source.close(self._stop.part(_LEAVE_SHARE))

    # -- what the source tells -------------------------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """These partitions are ours: remember what was told of them, and go on from what is committed."""
        try:
            found = self._source.committed(partitions, lambda: self._stop.begun)
            starts = {partition: self._restored(partition, found[partition]) for partition in partitions}
        except TransactionAborted as error:  # told to stop meanwhile
            self._log.info("not_started", reason=str(error))
            return
        self._places |= starts
        if None in found.values():  # where a group begins must not depend on when it is started again
            self._committed_at = -_COMMIT_EVERY_S
        self._source.start({partition: place.next for partition, place in starts.items()})

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Another process goes on from what is committed, and tells what waits here."""
        ours = [partition for partition in partitions if self._places.pop(partition, None) is not None]
        for partition in ours:
            self._waiting.drop(partition)
        self._source.forget(ours)

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """As `on_revoked`."""
        self.on_revoked(partitions)

    def _restored(self, partition: Partition, committed: Committed | None) -> _Place:
        alert = self._settings.alert
        memory = Memory(
            self._settings.application_id, least=self._least, mutes=self._mutes, remember_ms=alert.remember_ms
        )
        low, high = self._reader.watermarks(partition)
        if committed is None:
            return _Place(low if alert.start == "earliest" else high, None, memory)
        position = self._readable(partition, committed.offset)
        read_from = _READ_FROM.fullmatch(committed.metadata)
        if read_from and position == committed.offset:
            for records in self._reader.read(partition, max(low, int(read_from[1])), position):
                for offset, time_ms, record in self._score_records(records):
                    memory.take(record, offset, time_ms, again=True)
        return _Place(position, committed, memory)

    def _readable(self, partition: Partition, position: int) -> int:
        """The position, or the partition's oldest record where it is no longer in the topic."""
        low, high = self._reader.watermarks(partition)
        if low <= position <= high:
            return position
        why = "retention was faster" if position < low else "the topic was made anew"
        self._log.error("position_lost", partition=str(partition), position=position, oldest=low, why=why)
        return low

    # -- one turn --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        try:
            if self._rewind:
                self._go_back()
            if self._waiting.full:
                self._keep_alive()
                self._sleep(_POLL_S)
            else:
                for records in self._source.poll(_MOST_POLLED, _POLL_S):
                    self._take(records)
                self._kept_alive_at = self._clock()
                # Behind the last record there may be markers and what was aborted: no lag that anyone should look at.
                for partition, end in self._source.fully_consumed().items():
                    if (place := self._places.get(partition)) is not None and not self._rewind:
                        place.next = max(place.next, end)
        except TransactionAborted as error:
            self._read_again(error)
            self._sleep(_POLL_S)
        self._deliver()
        if not self._waiting and self._clock() - self._committed_at >= _COMMIT_EVERY_S:
            self._commit()

    def _take(self, records: Records) -> None:
        partition = Partition(records.topic, records.partition)
        place = self._places.get(partition)
        if place is None or self._rewind:
            return
        for offset, time_ms, record in self._score_records(records):
            if self._answers is not None:
                self._answers.see(record)
            change = place.memory.take(record, offset, time_ms)
            if change is not None:
                if not self._waiting:
                    self._waiting_since = self._clock()
                self._waiting.add(partition, change)
        place.next = records.last_offset + 1

    def _score_records(self, records: Records) -> Iterable[tuple[int, int, ScoreRecord]]:
        """Offset, time in ms and content of each."""
        times = [0] * len(records.offsets) if records.timestamps is None else map(int, records.timestamps)
        for offset, time_ms, value in zip(map(int, records.offsets), times, records.values, strict=True):
            try:
                yield offset, time_ms, ScoreRecord.model_validate_json(self._as_json(value) or b"")
            except ValidationError:
                place = f"{records.topic}[{records.partition}]"
                self._log.warning("not_a_score_record", partition=place, offset=offset)

    def _go_back(self) -> None:
        """Have everything delivered again that was not taken."""
        for partition, place in self._places.items():
            place.next = self._readable(partition, place.next)
        self._rewind = False
        self._source.seek({partition: place.next for partition, place in self._places.items()})

    def _read_again(self, why: TransactionAborted) -> None:
        self._log.warning("reading_again", reason=str(why))
        self._rewind = True

    # -- to the receiver -------------------------------------------------------------------------------------------

    def _deliver(self, *, at_once: bool = False) -> None:
        """Send what waits if it is time, and commit what led to it."""
        if not self._waiting:
            return
        if not at_once and self._clock() - self._waiting_since < self._settings.alert.group_wait_ms / 1000:
            return
        notifications = self._waiting.take(by_session=self._receiver.by_session, most=self._budget.left)
        for notification in notifications:
            for request in self._receiver.requests(notification, self._now()):
                answer = self._send_until_taken(request)
                if self._answers is not None and notification.status == "firing":
                    self._answers.take(notification.alerts, answer.body)
                if self._clock() - self._kept_alive_at >= _KEEP_ALIVE_S:
                    self._keep_alive()
            if notification.status == "firing" or not self._receiver.by_session:
                self._budget.spend()
            self._log.info(
                "told",
                status=notification.status,
                sessions=notification.sessions,
                severity=notification.alerts[0].severity,
            )
        if notifications and not self._waiting:
            self._commit()
        elif self._waiting and at_once:
            raise _NotTold("alert.most_per_minute are sent")

    def _send_until_taken(self, request: Request) -> Answer:
        """Send a request, again and again where the receiver is away; returns the answer.

        Raises:
            RunError: it is refused.
            _NotTold: it was not taken, and we are told to stop.
        """
        backoff_s, since, times, logged_at = _LEAST_BACKOFF_S, self._clock(), 0, -_LOG_EVERY_S
        while True:
            try:
                answer = self._send(request)
            except NotTaken as error:
                times += 1
                now = self._clock()
                if now - logged_at >= _LOG_EVERY_S:
                    logged_at = now
                    seconds = round(now - since, 1)
                    self._log.warning("receiver_away", reason=str(error), seconds=seconds, unanswered=times)
                wait_s = backoff_s if error.wait_s is None else error.wait_s
                backoff_s = min(2 * backoff_s, _MOST_BACKOFF_S)
                self._wait(Deadline(wait_s, self._clock))
            except Refused as error:
                raise RunError(
                    f"alert.receivers.{self._name}: refused a message for good: {error}; nothing was lost: once the "
                    "receiver or its settings are right, a restart sends it again"
                ) from error
            else:
                if times:
                    self._log.info("receiver_back", seconds=round(self._clock() - since, 1), unanswered=times)
                return answer

    def _wait(self, until: Deadline) -> None:
        while not until.passed:
            if self._stop.begun:
                raise _NotTold("the receiver is away")
            self._keep_alive()
            self._sleep(min(_KEEP_ALIVE_S, until.left_s))

    def _keep_alive(self) -> None:
        self._kept_alive_at = self._clock()
        try:
            self._source.keep_alive()
        except TransactionAborted as error:
            self._read_again(error)

    def _while_away(self) -> None:
        if self._stop.begun:
            raise TransactionAborted("told to stop while no broker answered")

    # -- to the group ----------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        self._committed_at = self._clock()
        offsets = {}
        for partition, place in self._places.items():
            read_from = place.memory.read_from(place.next)
            if place.committed != (now := Committed(place.next, f"read_from={read_from}")):
                offsets[partition] = now
        if not offsets or self._outage.lasts:
            return
        try:
            self._source.commit_offsets(offsets, Deadline(_COMMIT_TIMEOUT_S, self._clock, within=(self._stop,)))
        except TransactionAborted as error:
            self._log.warning("not_committed", reason=str(error))
            return
        for partition, committed in offsets.items():
            self._places[partition].committed = committed

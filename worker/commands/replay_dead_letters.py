"""`logmamba replay-dead-letters`: dead letters back to where they came from, each once.

What is sent and which dead letters are dealt with is one Kafka transaction: killed at any moment, the next replay goes
on from what is committed. A second one that starts meanwhile ends the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

from worker.delivery.deadline import Deadline
from worker.delivery.outage import outage_of_a_command
from worker.delivery.protocols import Committed, Message, Sink
from worker.delivery.replayed import Replayed
from worker.errors import RunError, SettingsError, TransactionAborted
from worker.formats.printable import cut, printable
from worker.kafka.clients import ClientProperties
from worker.kafka.dead_letter_group import DeadLetterGroup
from worker.kafka.errors import Fenced
from worker.kafka.sink import TransactionalSink
from worker.kafka.source import KafkaReader
from worker.kafka.topics import Topics
from worker.processing.dead_letters import REASONS, ReadDeadLetter, read_dead_letter
from worker.processing.records import Partition, Records
from worker.processing.score_records import iso_time
from worker.settings.document import Settings

ORIGIN_HEADER: Final = "logmamba-replayed-from"
_INSTANCE: Final = "replay-dead-letters"  # of the transactional id
_BATCH_RECORDS: Final = 1_000
_ABORT_S: Final = 10.0
_MOST_ABORTS: Final = 5  # in a row
_SHOWN_CHARACTERS: Final = 160

Left = Literal["cut", "no_such_topic", "not_ours"]
"""Why a dead letter cannot be sent: it was cut to fit into a message; the topic or partition that it came from is none
of `input.topics`, or not there any more; no worker wrote it."""


class Example(NamedTuple):
    """One dead letter of several, by its origin."""

    topic: str
    partition: int
    offset: int
    timestamp: str | None
    message: str
    value: str | None

    @classmethod
    def of(cls, letter: ReadDeadLetter) -> Example:
        """Of a dead letter; its value is shortened."""
        value = None
        if letter.value is not None:
            text = letter.value[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")
            value = cut(printable(text), _SHOWN_CHARACTERS)
        return cls(*letter.origin, letter.offset, iso_time(letter.timestamp_ms), printable(letter.message), value)


@dataclass
class Tally:
    """What became of dead letters.

    Attributes:
        sent: how many were sent, or would be, by reason.
        examples: one of each reason.
        left: how many cannot be sent, by why.
        left_examples: the first of each of them; where no worker wrote it there is none.
    """

    sent: dict[str, int] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    left: dict[Left, int] = field(default_factory=lambda: dict.fromkeys(get_args(Left), 0))
    left_examples: dict[Left, Example] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many were sent, or would be."""
        return sum(self.sent.values())

    def add(self, letter: ReadDeadLetter) -> None:
        """One more is sent."""
        self.sent[letter.reason] = self.sent.get(letter.reason, 0) + 1
        self.examples.setdefault(letter.reason, Example.of(letter))

    def leave(self, why: Left, letter: ReadDeadLetter | None) -> None:
        """One more cannot be."""
        self.left[why] += 1
        if letter is not None:
            self.left_examples.setdefault(why, Example.of(letter))

    def take(self, other: Tally) -> None:
        """What another one has counted."""
        for reason, count in other.sent.items():
            self.sent[reason] = self.sent.get(reason, 0) + count
        for why, count in other.left.items():
            self.left[why] += count
        self.examples = {**other.examples, **self.examples}
        self.left_examples = {**other.left_examples, **self.left_examples}

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "records": self.total,
            "reasons": {
                reason: {"records": count, "example": self.examples[reason]._asdict()}
                for reason, count in sorted(self.sent.items())
            },
            "left": {
                why: {"records": count, "example": example and example._asdict()}
                for why, count in self.left.items()
                for example in [self.left_examples.get(why)]
            },
        }


_WHY: Final[dict[Left, str]] = {
    "cut": "cut to fit into a message, so not all there",
    "no_such_topic": "of a topic or partition that is none of input.topics, or is not there any more",
    "not_ours": "written by no worker",
}


def told(tally: Tally, *, dry_run: bool) -> str:
    """What became of dead letters, in lines for people."""
    if not tally.total and not any(tally.left.values()):
        return "no dead letters are left to send"
    done = "would be sent back" if dry_run else "sent back"
    lines = [f"{tally.total:,} dead letter{'s' * (tally.total != 1)} {done}"]
    for reason, count in sorted(tally.sent.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {reason}: {count:,}, such as {_shown(tally.examples[reason])}")
    for why, count in tally.left.items():
        if count:
            example = tally.left_examples.get(why)
            such = "" if example is None else f", such as {_shown(example)}"
            lines.append(f"{count:,} cannot be sent, {_WHY[why]}{such}")
    return "\n".join(lines)


def _shown(example: Example) -> str:
    at = f"{example.topic}[{example.partition}] offset {example.offset}, {example.timestamp or 'no time'}"
    return f"{at} ({example.message}): {'null' if example.value is None else example.value}"


class _Step(NamedTuple):
    """A batch of a partition of the dead-letter topic, read and chosen."""

    partition: Partition
    messages: list[Message]
    tally: Tally
    position: int
    replayed: Replayed


def replay_dead_letters(
    settings: Settings,
    *,
    reasons: Collection[str] = (),
    since: int | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    stopping: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda _records: None,
) -> Tally:
    """Send dead letters that were not sent again so far, in the order in which they lie, partition after partition.

    Those that come while it works are left to the next time.

    Args:
        settings: `kafka`, `input.topics` and the names of the output topics are used.
        reasons: only these; none for all.
        since: only those that were written from this time on, in ms.
        limit: only so many.
        dry_run: send and remember nothing.
        stopping: asked between two transactions; what was committed by then stays.
        progress: told how many were sent since the last call.

    Raises:
        SettingsError: a reason is none.
        RunError: no broker answers, there is no dead-letter topic, or something is not allowed.
    """
    if unknown := [each for each in reasons if each not in REASONS]:
        raise SettingsError([f"--reason: {each!r} is no reason; allowed: {', '.join(REASONS)}" for each in unknown])
    properties, outage = ClientProperties(settings), outage_of_a_command()
    inputs = {topic.name: topic.partitions for topic in Topics(properties.admin(), settings).inputs()}
    reader = KafkaReader(properties.reader(), outage, batch_records=_BATCH_RECORDS, with_headers=True)
    group = DeadLetterGroup(settings, outage)
    done = Tally()
    try:
        topic = settings.output.dead_letter_topic
        partitions = [Partition(topic, number) for number in reader.partitions(topic)]
        if not partitions:
            raise RunError(f"output.dead_letter_topic: {topic} does not exist")
        steps = Steps(reader, inputs, [*(reasons or REASONS)], since)
        if dry_run:
            for step in steps.all(partitions, group.committed(partitions), done, limit):
                done.take(step.tally)
                progress(step.tally.total)
            return done
        # Before anything is read: starting it ends what a replay before this one has left open.
        sink = TransactionalSink(properties.producer_of(_INSTANCE), outage)
        try:
            send_all(steps, partitions, sink, group, done, limit, stopping, progress)
        except Fenced:
            raise RunError("another replay of these dead letters has started since, and goes on") from None
        finally:
            sink.close(Deadline(_ABORT_S))
    finally:
        group.close()
        reader.close()
    return done


def send_all(
    steps: Steps,
    partitions: Sequence[Partition],
    sink: Sink,
    group: Group,
    done: Tally,
    limit: int | None,
    stopping: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda _records: None,
) -> None:
    """Send what is left of these partitions, a transaction each batch; `done` counts what is committed.

    Raises:
        RunError: nothing can be committed.
    """
    undecided: tuple[_Step, Committed] | None = None
    aborts = 0
    while True:
        committed = group.committed(partitions)
        if undecided is not None and committed[undecided[0].partition] == undecided[1]:
            done.take(undecided[0].tally)  # its commit was not answered, and has happened
        undecided = None
        try:
            for step in steps.all(partitions, committed, done, limit):
                sink.send(step.messages, Deadline())
                position = Committed(step.position, step.replayed.to_metadata())
                undecided = step, position
                sink.commit({step.partition: position}, group.metadata, Deadline())
                undecided = None
                done.take(step.tally)
                progress(step.tally.total)
                aborts = 0
                if stopping():
                    return
        except TransactionAborted as error:
            aborts += 1
            if aborts > _MOST_ABORTS:
                raise RunError(f"nothing could be committed, {aborts} times in a row: {error}") from error
            sink.abort(Deadline(_ABORT_S))
            sink.settle()
        else:
            return


class Group(Protocol):
    """Who remembers what was replayed (`worker.kafka.dead_letter_group`)."""

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed | None]:
        """What was committed of each partition."""

    def metadata(self) -> object:
        """What a transaction that commits offsets of the group has to show."""


class Letters(Protocol):
    """Reads the dead-letter topic (`worker.delivery.protocols.TopicReader`)."""

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        """(offset of the oldest record, offset after the newest)."""

    def offset_at(self, partition: Partition, time_ms: int, end: int) -> int:
        """Offset of the first record from a time on; `end` where there is none."""

    def read(self, partition: Partition, start: int, end: int) -> Iterable[Records]:
        """The records in [start, end) in order, in batches."""


class Steps:
    """Reads dead letters in batches, and chooses.

    Args:
        reader: of the dead-letter topic.
        inputs: how many partitions each input topic has.
        reasons: of those that are chosen.
        since: when they were written at the earliest, in ms; None for any time.
    """

    def __init__(self, reader: Letters, inputs: Mapping[str, int], reasons: list[str], since: int | None) -> None:
        self._reader, self._inputs, self._reasons, self._since = reader, inputs, reasons, since

    def all(
        self,
        partitions: Sequence[Partition],
        committed: dict[Partition, Committed | None],
        done: Tally,
        limit: int | None,
    ) -> Iterator[_Step]:
        """The batches that are left; `done` says at each how much of `limit` is used up."""
        for partition in partitions:
            oldest, end = self._reader.watermarks(partition)
            before = committed[partition]
            replayed = Replayed.from_metadata("" if before is None else before.metadata, oldest)
            start = replayed.first_left(self._reasons, oldest)
            if self._since is not None:
                start = max(start, self._reader.offset_at(partition, self._since, end))
            for records in self._reader.read(partition, start, end):
                room = None if limit is None else limit - done.total
                if room == 0:
                    return
                step = self._step(partition, records, replayed, start, room)
                start, replayed = step.position, step.replayed
                yield step

    def _step(self, partition: Partition, records: Records, replayed: Replayed, start: int, room: int | None) -> _Step:
        messages, tally, position = [], Tally(), start
        for row, offset in enumerate(map(int, records.offsets)):
            if room is not None and tally.total == room:
                break
            position = offset + 1
            letter = read_dead_letter(records, row)
            if letter is None:
                tally.leave("not_ours", None)
            elif letter.reason not in self._reasons or replayed.has(letter.reason, offset):
                continue
            elif letter.origin.partition >= self._inputs.get(letter.origin.topic, 0):
                tally.leave("no_such_topic", letter)
            elif letter.cut:
                tally.leave("cut", letter)
            else:
                tally.add(letter)
                messages.append(_message(letter))
        return _Step(partition, messages, tally, position, replayed.with_span(self._reasons, start, position))


def _message(letter: ReadDeadLetter) -> Message:
    """The record as it was, with its former place in a header."""
    place = f"{letter.origin.topic}/{letter.origin.partition}/{letter.offset}".encode()
    headers = [each for each in letter.headers if each[0] != ORIGIN_HEADER]
    return Message(
        letter.origin.topic,
        letter.key,
        letter.value,
        [*headers, (ORIGIN_HEADER, place)],
        letter.origin.partition,
        letter.timestamp_ms,
    )

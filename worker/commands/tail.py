"""`logmamba tail`: follows the score topic in a terminal, one line a score record.

It reads beside every consumer group, so it disturbs no worker, and only what was committed. Brokers that go away are
waited for; nothing is skipped or shown twice meanwhile. Partitions that the topic gets later are not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.text import Text

from worker.commands.terminal.text import SEVERITY_STYLES, shown
from worker.errors import RunError
from worker.kafka.connect import ClientProperties
from worker.kafka.topics import REACH_TIMEOUT_S, Topics
from worker.processing.score_records import Severity
from worker.settings.document import Settings

_RANKS: dict[Severity, int] = {"normal": 0, "warning": 1, "critical": 2}
_MOST_AT_ONCE = 500
_LINGER_S = 0.2  # how long a record may wait to be shown, and Ctrl-C to be heard
# What a follower asks for is mostly not there yet: the broker holds its answer back so long.
_FETCH_WAIT_MS = 500


def tail_scores(
    settings: Settings,
    stopping: Callable[[], bool],
    *,
    from_beginning: bool,
    least: Severity,
    out: Console,
    err: Console,
) -> None:
    """Print score records as they are committed, until `stopping()`.

    Args:
        settings: `kafka` and `output.topic` are used.
        stopping: asked a few times a second.
        from_beginning: whether to begin with the oldest record of the topic rather than with the next one.
        least: severity below which records are passed over.
        out: gets the records.
        err: gets what is said about them: where they come from, and what keeps them from coming.

    Raises:
        RunError: no broker answers when it begins, or the topic does not exist or may not be read.
    """
    properties = ClientProperties(settings)
    topic = settings.output.topic
    # What the client would log about lost connections is said in a line of our own.
    quiet = {"log_level": 0}
    [scores] = [each for each in Topics(properties.admin() | quiet, settings).outputs() if each.use == "scores"]
    if not scores.partitions:
        raise RunError(f"output.topic: {topic} does not exist at {settings.kafka['bootstrap.servers']}")
    connection = _Connection(err)
    consumer = Consumer(
        properties.reader()
        | quiet
        | {
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",  # of what retention left, while the brokers were away
            "fetch.wait.max.ms": settings.kafka.get("fetch.wait.max.ms", _FETCH_WAIT_MS),
            "error_cb": connection.failed,
        }
    )
    try:
        consumer.assign(list(_starts(consumer, topic, scores.partitions, from_beginning=from_beginning)))
        err.print(f"following {topic}; Ctrl-C ends", style="dim", highlight=False)
        while not stopping():
            for message in _committed(consumer, topic):
                connection.works()
                _print(message, least, out)
    finally:
        consumer.close()


class _Connection:
    """Says once that no broker answers, until a record has come again."""

    def __init__(self, err: Console) -> None:
        self._err = err
        self._lost = False

    def failed(self, error: KafkaError) -> None:
        down = error.code() == KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001  the client names its own codes so
        if down and not self._lost:
            self._lost = True
            self._err.print("no broker answers; waiting for one", style="yellow", highlight=False)

    def works(self) -> None:
        self._lost = False


def _starts(consumer: Consumer, topic: str, partitions: int, *, from_beginning: bool) -> Iterator[TopicPartition]:
    """Where to begin in each partition, asked now: nothing from now on is missed, however late reading begins."""
    for number in range(partitions):
        try:
            marks = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=REACH_TIMEOUT_S)
        except KafkaException as error:
            reason = error.args[0].str()
            raise RunError(f"{topic}[{number}]: its first and last offsets cannot be read: {reason}") from error
        if marks is None:
            raise RunError(f"{topic}[{number}]: no answer within {REACH_TIMEOUT_S:g} s for its first and last offsets")
        yield TopicPartition(topic, number, marks[0 if from_beginning else 1])


def _committed(consumer: Consumer, topic: str) -> Iterator[Message]:
    """The records that came within a moment."""
    try:
        messages = consumer.consume(_MOST_AT_ONCE, _LINGER_S)
    except KafkaException as error:
        raise RunError(f"Kafka: {error.args[0].str()}") from error
    for message in messages:
        failure = message.error()
        if failure is not None:
            raise RunError(f"{topic}: {failure.str()} ({failure.name()})")
        yield message


class _TopEvent(BaseModel):
    model_config = ConfigDict(strict=True)

    template: str
    surprise: float


class _Record(BaseModel):
    """What is shown of a score record."""

    model_config = ConfigDict(strict=True)

    schema_: Literal["logmamba.score/1"] = Field(alias="schema")
    session: str
    kind: Literal["early", "final"]
    score: float
    severity: Severity
    events: int
    last_event_time: str | None
    top_events: list[_TopEvent]


def _print(message: Message, least: Severity, out: Console) -> None:
    try:
        record = _Record.model_validate_json(message.value() or b"")
    except ValidationError:
        place = f"{message.topic()}[{message.partition()}], offset {message.offset()}"
        line = Text(f"{place}: not a score record", style="magenta")
    else:
        if _RANKS[record.severity] < _RANKS[least]:
            return
        line = _line(record)
    if out.is_terminal:
        out.print(line, no_wrap=True, overflow="ellipsis", highlight=False)
    else:
        out.print(line, soft_wrap=True, highlight=False)


def _line(record: _Record) -> Text:
    time = "-" if record.last_event_time is None else record.last_event_time.replace("T", " ")
    line = Text.assemble(
        shown(f"{time:<24}  ", "dim"),
        (f"{record.severity:<8} {record.score:.4f}", SEVERITY_STYLES[record.severity]),
        "  ",
        shown(record.session, "bold"),
        f"  {record.events} events" + (", still open" if record.kind == "early" else ""),
    )
    if record.top_events:
        top = record.top_events[0]
        line.append_text(Text.assemble("  ", shown(top.template), (f" ({top.surprise:.1f} nats)", "dim")))
    return line

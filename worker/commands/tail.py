"""`logmamba tail`: follows the score topic in a terminal, one line a score record."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.text import Text

from worker.commands.terminal.text import SEVERITY_STYLES, shown
from worker.errors import RunError
from worker.kafka.avro import score_reader
from worker.kafka.clients import ClientProperties
from worker.kafka.follower import Followed, Follower
from worker.kafka.topics import Topics
from worker.processing.score_records import RANKS, ReadScoreRecord, ReadVerdict, Severity
from worker.settings.document import Settings

_LINGER_S = 0.2  # how long a record may wait to be shown, and Ctrl-C to be heard


def tail_scores(
    settings: Settings,
    stopping: Callable[[], bool],
    *,
    from_beginning: bool,
    least: Severity,
    as_json: bool,
    out: Console,
    err: Console,
) -> None:
    """Print score records as they are committed, until `stopping()`.

    Args:
        settings: `kafka` and `output.topic` are used.
        stopping: asked a few times a second.
        from_beginning: whether to begin with the oldest record of the topic rather than with the next one.
        least: severity below which records are passed over.
        as_json: print records as they are in place of a line for people.
        out: gets the records.
        err: gets what is said about them: where they come from, and what keeps them from coming.

    Raises:
        RunError: no broker answers when it begins, the topic does not exist or may not be read, or the schema registry
            cannot be used.
    """
    topic = settings.output.topic
    follower = Follower(
        settings,
        topic,
        require_score_topic(settings),
        from_beginning=from_beginning,
        lost=lambda: err.print("no broker answers; waiting for one", style="yellow", highlight=False),
    )
    try:
        with score_reader(settings) as json_of:
            err.print(f"following {topic}; Ctrl-C ends", style="dim", highlight=False)
            while not stopping():
                for record in follower.records(_LINGER_S):
                    _print(record._replace(value=json_of(record.value)), least, out, err, as_json=as_json)
    finally:
        follower.close()


def require_score_topic(settings: Settings) -> int:
    """How many partitions the score topic has.

    Raises:
        RunError: no broker answers, or there is no such topic.
    """
    quiet = {"log_level": 0}  # what the client would log about lost connections is said in a line of our own
    properties = ClientProperties(settings).admin() | quiet
    [scores] = [each for each in Topics(properties, settings).outputs() if each.use == "scores"]
    if not scores.partitions:
        servers = settings.kafka["bootstrap.servers"]
        raise RunError(f"output.topic: {settings.output.topic} does not exist at {servers}")
    return scores.partitions


class _TopEvent(BaseModel):
    model_config = ConfigDict(strict=True)

    template: str
    surprise: float
    text: str | None = None


class _Record(ReadScoreRecord):
    """What is shown of a score record."""

    severity: Severity
    last_event_time: str | None
    top_events: list[_TopEvent]
    feedback: ReadVerdict | None = None


def _print(followed: Followed, least: Severity, out: Console, err: Console, *, as_json: bool) -> None:
    value = followed.value or b""
    try:
        record = _Record.model_validate_json(value)
    except ValidationError:
        line = Text(f"{followed.partition}, offset {followed.offset}: not a score record", style="magenta")
        if as_json:
            err.print(line)
            return
    else:
        if RANKS[record.severity] < RANKS[least]:
            return
        if as_json:
            out.out(value.decode(), highlight=False)
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
    if record.feedback is not None:
        line.append(f"  judged {record.feedback.verdict}, {record.feedback.scored} by its score", "dim")
    if record.top_events:
        top = record.top_events[0]
        line.append_text(Text.assemble("  ", shown(top.text or top.template), (f" ({top.surprise:.1f} nats)", "dim")))
    return line

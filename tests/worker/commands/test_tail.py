"""`logmamba tail` shows each committed score record once, as text only, and ends when it is told to."""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from rich.console import Console

from tests.worker.alerting.receiving import score_record
from tests.worker.kafka.registry import SchemaRegistry
from worker.commands.tail import tail_scores
from worker.errors import RunError
from worker.kafka.avro import score_writer
from worker.kafka.mock_broker import PARTITIONS, MockBroker
from worker.processing.score_records import Severity
from worker.settings.document import Settings, load_settings

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def broker() -> MockBroker:
    return MockBroker()


class ScoreTopic:
    """A score topic of a test's own."""

    def __init__(self, broker: MockBroker) -> None:
        self.bootstrap, self.name = broker.bootstrap, f"scores-{next(_numbers)}"
        broker.make(self.name)
        self.also: list[str] = []  # overrides
        self._producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0, "log_level": 0})

    def overrides(self) -> list[str]:
        return [f"kafka={{bootstrap.servers: '{self.bootstrap}'}}", f"output.topic={self.name}", *self.also]

    def settings(self) -> Settings:
        return load_settings(None, self.overrides())

    def write(self, *values: bytes, partition: int = 0) -> None:
        for value in values:
            self._producer.produce(self.name, value, partition=partition)
        assert self._producer.flush(10) == 0


@pytest.fixture
def topic(broker: MockBroker) -> ScoreTopic:
    return ScoreTopic(broker)


def record(session: str, severity: Severity = "normal", **other: Any) -> bytes:
    return orjson.dumps(
        {
            "schema": "logmamba.score/1",
            "session": session,
            "kind": "final",
            "score": {"normal": 0.1, "warning": 0.8, "critical": 0.9987}[severity],
            "severity": severity,
            "events": 19,
            "last_event_time": "2008-11-09T20:36:42.000Z",
            "top_events": [{"offset": 120, "template": "Receiving block <*>", "surprise": 9.3}],
            **other,
        }
    )


def followed(
    topic: ScoreTopic,
    lines: int,
    *,
    from_beginning: bool = True,
    least: Severity = "normal",
    as_json: bool = False,
    when_following: Callable[[], None] = lambda: None,
) -> list[str]:
    """What is printed until there are so many lines."""
    out, err = io.StringIO(), io.StringIO()
    once, deadline = iter([when_following]), time.monotonic() + 150

    def stopping() -> bool:
        next(once, lambda: None)()
        assert time.monotonic() < deadline, out.getvalue()
        return out.getvalue().count("\n") >= lines

    tail_scores(
        topic.settings(),
        stopping,
        from_beginning=from_beginning,
        least=least,
        as_json=as_json,
        out=Console(file=out, width=80),
        err=Console(file=err, width=200),
    )
    assert err.getvalue() == f"following {topic.name}; Ctrl-C ends\n"
    return out.getvalue().splitlines()


def test_a_record_is_one_line_with_what_matters(topic: ScoreTopic) -> None:
    topic.write(record("blk_7", "critical"))
    assert followed(topic, 1) == [
        "2008-11-09 20:36:42.000Z  critical 0.9987  blk_7  19 events  Receiving block <*> (9.3 nats)"
    ]


def test_what_an_operator_judged_is_told(topic: ScoreTopic) -> None:
    topic.write(record("a", feedback={"verdict": "normal", "scored": "critical"}, top_events=[]))
    [line] = followed(topic, 1)
    assert line.endswith("normal   0.1000  a  19 events  judged normal, critical by its score")


def test_for_a_script_records_are_as_they_were_written(topic: ScoreTopic) -> None:
    records = [record("[red]blk_7[/red] :bug: " + 300 * "long ", "critical"), record("blk_8")]
    topic.write(*records)
    assert [line.encode() for line in followed(topic, 2, as_json=True)] == records


def test_a_record_without_times_or_events_is_a_line_too(topic: ScoreTopic) -> None:
    topic.write(record("blk_7", last_event_time=None, top_events=[], kind="early"))
    [line] = followed(topic, 1)
    assert line.split() == ["-", "normal", "0.1000", "blk_7", "19", "events,", "still", "open"]


def test_records_in_avro_and_in_json_are_shown_from_one_topic(topic: ScoreTopic) -> None:
    pytest.importorskip("confluent_kafka.schema_registry.avro", reason="too old a client", exc_type=ImportError)
    with SchemaRegistry() as registry:
        topic.also = ["output.format=avro", f"output.schema_registry={{url: '{registry.url}'}}"]
        serialize = score_writer(topic.settings())
        assert serialize is not None
        topic.write(record("before"), serialize(orjson.loads(score_record("blk_7"))), b"\0\0\0\0\1", record("after"))
        shown = followed(topic, 4)
    assert [line.split()[4] for line in (shown[0], shown[1], shown[3])] == ["before", "blk_7", "after"]
    assert shown[2].endswith("not a score record")
    assert "critical 0.9987  blk_7  19 events  Receiving block <*> (9.3 nats)" in shown[1]


def test_from_the_beginning_every_partition_is_shown_in_its_order(topic: ScoreTopic) -> None:
    for partition in range(PARTITIONS):
        topic.write(*(record(f"p{partition}-{number}") for number in range(3)), partition=partition)
    sessions = [line.split()[4] for line in followed(topic, 3 * PARTITIONS)]
    assert sorted(sessions) == [f"p{partition}-{number}" for partition in range(PARTITIONS) for number in range(3)]
    for partition in range(PARTITIONS):
        own = [session for session in sessions if session.startswith(f"p{partition}-")]
        assert own == sorted(own)


def test_by_default_only_what_comes_from_now_on_is_shown(topic: ScoreTopic) -> None:
    topic.write(record("old"))
    lines = followed(topic, 1, from_beginning=False, when_following=lambda: topic.write(record("new")))
    assert [line.split()[4] for line in lines] == ["new"]


@pytest.mark.parametrize(
    ("least", "expected"),
    [("normal", ["a", "b", "c", "d"]), ("warning", ["b", "c", "d"]), ("critical", ["c", "d"])],
)
def test_records_below_the_severity_asked_for_are_passed_over(
    topic: ScoreTopic, least: Severity, expected: list[str]
) -> None:
    severities: tuple[Severity, ...] = ("normal", "warning", "critical", "critical")
    topic.write(*(record(session, severity) for session, severity in zip("abcd", severities, strict=True)))
    assert [line.split()[4] for line in followed(topic, len(expected), least=least)] == expected


@pytest.mark.parametrize(
    "value", [b"", b"{", b"\xff", b"[]", b'{"schema":"other/1"}', record("x", score="high"), record("x", events=None)]
)
def test_a_record_that_is_none_is_named_by_its_place_and_the_next_is_shown(topic: ScoreTopic, value: bytes) -> None:
    topic.write(value, record("blk_7"))
    first, second = followed(topic, 2, least="normal")
    assert first == f"{topic.name}[0], offset 0: not a score record"
    assert "blk_7" in second


def test_a_hostile_record_reaches_the_terminal_as_text_only(topic: ScoreTopic) -> None:
    text = "\x1b[2J[red]x[/red]\n\u202e"
    hostile = {"offset": 1, "template": text, "surprise": 1.0}
    topic.write(record(text, top_events=[hostile], last_event_time=text))
    [line] = followed(topic, 1)
    assert line.isprintable()
    assert line.count(r"\x1b[2J[red]x[/red]\n\u202e") == 3


def test_where_the_record_has_the_text_of_the_line_that_is_shown(topic: ScoreTopic) -> None:
    top = {"offset": 120, "template": "Receiving block <*>", "surprise": 9.3, "text": "Receiving block blk_7\x1b"}
    topic.write(record("blk_7", top_events=[top]))
    assert followed(topic, 1)[0].endswith(r"Receiving block blk_7\x1b (9.3 nats)")


def test_a_line_fits_a_terminal_and_is_whole_in_a_pipe(topic: ScoreTopic) -> None:
    topic.write(record("blk_7", top_events=[{"offset": 1, "template": "long " * 100, "surprise": 1.0}]))
    [whole] = followed(topic, 1)
    assert whole.endswith("long  (1.0 nats)")
    out = io.StringIO()
    terminal = Console(file=out, width=80, force_terminal=True, color_system=None)
    tail_scores(
        topic.settings(),
        lambda: "\n" in out.getvalue(),
        from_beginning=True,
        least="normal",
        as_json=False,
        out=terminal,
        err=Console(file=io.StringIO()),
    )
    assert len(out.getvalue().rstrip("\n")) <= 80
    assert out.getvalue().count("\n") == 1


def test_a_topic_that_is_not_there_is_an_error_that_names_the_setting(broker: MockBroker, topic: ScoreTopic) -> None:
    # The mock broker makes a topic that it is asked for, but not one that is looked for in the list of all.
    missing = load_settings(None, [topic.overrides()[0], "output.topic=nowhere"])
    with pytest.raises(RunError, match=f"output.topic: nowhere does not exist at {broker.bootstrap}"):
        tail_scores(
            missing, lambda: True, from_beginning=False, least="normal", as_json=False, out=Console(), err=Console()
        )


def test_the_command_follows_until_ctrl_c_and_then_exits_with_0(topic: ScoreTopic, tmp_path: Any) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text(f"kafka: {{bootstrap.servers: '{topic.bootstrap}'}}\noutput: {{topic: {topic.name}}}\n")
    command = [sys.executable, "-m", "worker", "tail", "--config", str(config), "--severity", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith(f"following {topic.name}")
            topic.write(record("quiet"), record("loud", "critical"))
            assert "loud" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=150)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, ("", ""))

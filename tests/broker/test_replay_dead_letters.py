"""Dead letters go back to where they came from, as they came and once, whatever kills the replay."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from confluent_kafka import Message, Producer

from detector.checkpoint import demo_checkpoint
from tests.broker.forked import ForkedProcess
from tests.broker.harness import Application, create_topic, read_all
from tests.broker.kafka import KafkaBroker
from tests.worker.command_line import logmamba

PARTITIONS = 3
EACH = 12  # bad records of a partition
TIME_MS = 1_226_263_535_123


def sent(application: Application) -> None:
    """Records without a key, of which every third is not even text, with headers and times of their own."""
    producer = Producer({"bootstrap.servers": application.bootstrap})
    for number in range(PARTITIONS * EACH):
        value = b"\xff%d" % number if number % 3 == 0 else b"081109 203535 148 INFO request_%d" % number
        producer.produce(
            application.input_topic,
            value,
            b"key %d" % number if number % 2 else None,
            number % PARTITIONS,
            timestamp=TIME_MS + number,
            headers=[("trace", b"t%d" % number), ("empty", None)],
        )
    assert producer.flush(60) == 0


def replayed(application: Application) -> list[Message]:
    """What is in the input topic after the records that `sent` has sent."""
    return [each for each in read_all(application.bootstrap, application.input_topic) if (each.offset() or 0) >= EACH]


def content(message: Message) -> tuple[object, ...]:
    headers = [each for each in message.headers() or [] if each[0] != "logmamba-replayed-from"]
    return message.partition(), message.key(), message.value(), message.timestamp()[1], headers


def test_dead_letters_are_sent_again_as_they_came_and_once_also_by_a_replay_that_is_killed(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint(), PARTITIONS)
    create_topic(application.bootstrap, application.dead_topic, PARTITIONS)
    sent(application)
    with application.start() as worker:
        worker.wait_until(lambda: len(application.dead_letters()) == PARTITIONS * EACH)
        assert worker.stop() == 0, worker.tail()
    before = [content(each) for each in read_all(application.bootstrap, application.input_topic)]
    command = ("replay-dead-letters", "--config", application.config)

    dry = json.loads(logmamba(*command, "--dry-run", "--json").stdout)
    assert {reason: each["records"] for reason, each in dry["reasons"].items()} == {"no_key": 24, "not_utf8": 12}
    assert dry["reasons"]["no_key"]["example"]["value"].startswith("081109 203535 148 INFO request_")
    assert replayed(application) == []

    for point, nth in (("send_offsets", 1), ("commit", 2)):
        strike = ["--at", point, "--nth", str(nth), "--signal", "KILL", *command, "--reason", "no_key"]
        log = tmp_path / f"{point}.log"
        killed = ForkedProcess(["tests.faults.striking_worker", *map(str, strike)], log)
        assert killed.wait(150) == -signal.SIGKILL, log.read_text()
    first = logmamba(*command, "--reason", "no_key", "--limit", 5)
    assert first.stdout.startswith("5 dead letters sent back\n  no_key: 5, such as "), first
    rest = json.loads(logmamba(*command, "--reason", "no_key", "--json").stdout)
    none = logmamba(*command, "--reason", "no_key")
    assert none.stdout == "no dead letters are left to send\n"

    back = replayed(application)
    assert sorted(map(str, map(content, back))) == sorted(str(each) for each in before if b"request" in each[2])
    assert 0 < rest["records"] < 24
    origins = {dict(each.headers())["logmamba-replayed-from"].decode() for each in back}
    assert len(origins) == 24
    assert all(each.startswith(f"{application.input_topic}/") for each in origins)

    everything = logmamba(*command)
    assert "12 dead letters sent back" in everything.stdout, everything
    assert len(replayed(application)) == 36


def test_what_cannot_be_sent_back_is_told_and_wrong_usage_is_one_line(broker: KafkaBroker, tmp_path: Path) -> None:
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint())
    command = ("replay-dead-letters", "--config", application.config)
    missing = logmamba(*command)
    assert (missing.returncode, missing.stderr) == (
        1,
        f"logmamba: output.dead_letter_topic: {application.dead_topic} does not exist\n",
    )
    create_topic(application.bootstrap, application.dead_topic, 1)
    producer = Producer({"bootstrap.servers": application.bootstrap})
    error = {"reason": "no_key", "message": "there is no key", "topic": "elsewhere", "partition": "0", "offset": "7"}
    cut = error | {"message": "none (key of 0 and value of 70000 bytes cut)", "topic": application.input_topic}
    for fields in (error, cut, {}):
        headers = [
            (f"logmamba-error-{name}", value) for name, value in (fields and {**fields, "timestamp": ""}).items()
        ]
        producer.produce(application.dead_topic, b"line", headers=headers)
    assert producer.flush(60) == 0
    left = logmamba(*command)
    assert left.returncode == 0
    assert [line.partition(", such as")[0] for line in left.stdout.splitlines()] == [
        "0 dead letters sent back",
        "1 cannot be sent, cut to fit into a message, so not all there",
        "1 cannot be sent, of a topic or partition that is none of input.topics, or is not there any more",
        "1 cannot be sent, written by no worker",
    ]
    wrong = logmamba(*command, "--reason", "bad")
    assert (wrong.returncode, wrong.stderr.splitlines()[0].partition(";")[0]) == (
        2,
        "logmamba: --reason: 'bad' is no reason",
    )

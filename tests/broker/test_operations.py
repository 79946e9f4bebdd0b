"""What an operator does around the worker, on a real broker."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import yaml
from confluent_kafka.admin import AdminClient

from detector.checkpoint import demo_checkpoint
from detector.text.vocabulary import Vocabulary
from tests.broker.harness import Application, create_topic, hdfs_lines, keyed_by_block, read_all
from tests.broker.kafka import KafkaBroker
from tests.detector.small_models import save_random
from tests.shared import needs_shared
from tests.worker.alerting.receiving import ReceiverServer
from tests.worker.command_line import logmamba
from worker.commands.check import check_everything
from worker.settings.document import load_settings

LINES = 300


def test_check_creates_the_output_topics_with_as_many_partitions_as_the_input(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint(), partitions=3)
    done = logmamba("check", "--config", application.config, "--create-topics")
    assert done.returncode == 0, done.stdout
    assert made(application) == {"scores": 3, "dead": 3, "state": 3}
    for missing in ("input.topics=[not-there]", "model.checkpoint=nowhere"):
        assert logmamba("check", "--config", application.config, "--set", missing).returncode == 1


def test_without_the_input_topic_check_creates_nothing_unless_the_settings_say_how_many_partitions(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    name = f"{tmp_path.name}-not-there"
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint(), input_topic=name)
    create = "check", "--config", application.config, "--create-topics"
    done = logmamba(*create, columns=1_000)
    assert (done.returncode, made(application)) == (1, {})
    assert "output.partitions: null, and no topic of input.topics" in done.stdout
    done = logmamba(*create, "--set", "output.partitions=20", "--set", "output.replication_factor=2", columns=1_000)
    assert (done.returncode, made(application)) == (1, {})
    assert "output.replication_factor: topic" in done.stdout
    done = logmamba(*create, "--set", "output.partitions=20", "--set", "output.replication_factor=1", columns=1_000)
    assert (done.returncode, made(application)) == (1, {"scores": 20, "dead": 20, "state": 16})
    assert "does not exist" in done.stdout
    done = logmamba(*create[:-1], "--set", "input.topics='^nothing-has-this-name$'", columns=1_000)
    assert (done.returncode, "none matches input.topics yet" in done.stdout) == (0, True)


def test_check_of_settings_for_alert_tries_what_alert_needs_and_sends_receivers_nothing(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    name = f"{tmp_path.name}-alert"
    create_topic(broker.bootstrap, name, 2)
    config = tmp_path / "alert.yaml"
    with ReceiverServer() as server, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused, and no one else's
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}/a-token-of-theirs"
        receivers = {"hook": {"type": "webhook", "url": server.url}, "gone": {"type": "webhook", "url": gone}}
        kafka = {"bootstrap.servers": broker.bootstrap}
        settings = {
            "application_id": name,
            "kafka": kafka,
            "output": {"topic": name},
            "alert": {"receivers": receivers},
        }
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        done = logmamba("check", "--config", config, "--json")
        assert server.requests == []
    rows = json.loads(done.stdout)["checks"]
    assert done.returncode == 1
    assert "a-token-of-theirs" not in done.stdout
    assert [(row["what"], row["state"]) for row in rows] == [
        ("settings", "ok"),
        ("worker", "ok"),
        ("brokers", "ok"),
        (f"scores topic {name}", "ok"),
        (f"may read {name}", "ok"),
        (f"may join group {name}-alert-hook", "ok"),
        (f"may join group {name}-alert-gone", "ok"),
        ("receiver hook (webhook)", "ok"),
        ("receiver gone (webhook)", "failed"),
    ]
    assert rows[-1]["detail"].startswith("alert.receivers.gone: cannot be reached: ConnectionRefusedError")


def made(application: Application) -> dict[str, int]:
    """How many partitions the topics have that a worker writes."""
    topics = AdminClient({"bootstrap.servers": application.bootstrap}).list_topics(timeout=10).topics
    names = {use: f"{application.config.stem}-{use}" for use in ("scores", "dead", "state")}
    return {use: len(topics[name].partitions) for use, name in names.items() if name in topics}


def test_a_checkpoint_of_parsed_sessions_is_refused_by_check_and_run(broker: KafkaBroker, tmp_path: Path) -> None:
    checkpoint = tmp_path / "of-sessions"
    save_random(checkpoint, Vocabulary(("E5", "E9"), kind="events"))
    application = Application(broker.bootstrap, tmp_path, checkpoint)
    refused = f"model.checkpoint: {checkpoint} was trained on parsed sessions, but the input is raw log lines"
    rows = check_everything(load_settings(application.config, []), create_topics=False)
    assert [refused in row.detail for row in rows if not row.ok] == [True]
    done = logmamba("run", "--config", application.config)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"logmamba: {refused}")


@needs_shared
def test_generated_lines_go_to_the_topic_keyed_by_block_and_in_order(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, partitions=2)
    done = logmamba("generate", "--lines", 2000, "--config", application.config, "--rate", 20000)
    assert done.returncode == 0, done.stderr
    messages = read_all(broker.bootstrap, application.input_topic)
    assert len(messages) == 2000
    assert all((message.key() or b"?") in (message.value() or b"") for message in messages)
    for partition in (0, 1):
        times = [message.timestamp()[1] for message in messages if message.partition() == partition]
        assert times == sorted(times)


@needs_shared
def test_at_least_once_delivers_every_session_and_resumes(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, worker={"delivery": "at_least_once"})
    lines = keyed_by_block(hdfs_lines(2 * LINES), 1)
    for end in (LINES, 2 * LINES):
        application.produce(lines[end - LINES : end])
        with application.start("sessions.idle_flush=null") as worker:
            worker.wait_until(lambda end=end: application.committed()[0].offset == end)
            assert worker.stop() == 0, worker.tail()
    with application.start() as worker:
        worker.wait_until(lambda: events(application) == len(lines))
        assert worker.stop() == 0, worker.tail()


def events(application: Application) -> int:
    """Events of all final scores."""
    return sum(record["events"] for record in application.scores() if record["kind"] == "final")

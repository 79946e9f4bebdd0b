"""What an operator does around the worker, on a real broker."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka import Consumer

from detector.text.vocabulary import Vocabulary
from tests.broker.harness import Application, hdfs_lines, keyed_by_block, read_all, run_logmamba
from tests.broker.kafka import KafkaBroker
from tests.detector.small_models import save_random
from tests.shared import needs_shared
from tests.worker.command_line import logmamba
from worker.commands.check import check_everything
from worker.settings.document import load_settings

LINES = 300


@needs_shared
def test_check_creates_the_output_topics_and_says_what_is_missing(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, partitions=3)
    assert logmamba("check", "--config", application.config, "--create-topics").returncode == 0
    for topic in (application.score_topic, application.dead_topic):
        assert len(Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "x"}).list_topics(topic).topics) == 1
    for missing in ("input.topics=[not-there]", "model.checkpoint=nowhere"):
        assert logmamba("check", "--config", application.config, "--set", missing).returncode == 1


def test_a_checkpoint_of_parsed_sessions_is_refused_by_check_and_run(broker: KafkaBroker, tmp_path: Path) -> None:
    checkpoint = tmp_path / "of-sessions"
    save_random(checkpoint, Vocabulary(("E5", "E9"), kind="events"))
    application = Application(broker.bootstrap, tmp_path, checkpoint)
    refused = f"model.checkpoint: {checkpoint} was trained on parsed sessions, but the input is raw log lines"
    rows = check_everything(load_settings(application.config, []), create_topics=False)
    assert [refused in row.detail for row in rows if not row.ok] == [True]
    told = run_logmamba("run", "--config", application.config, code=2).splitlines()
    assert told[-1].startswith(f"logmamba: {refused}")


@needs_shared
def test_generated_lines_go_to_the_topic_keyed_by_block_and_in_order(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, partitions=2)
    run_logmamba("generate", "--lines", 2000, "--config", application.config, "--rate", 20000)
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

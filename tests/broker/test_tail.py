"""Following the score topic of a real broker: only what was committed, and on through a restart."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Producer

from tests.broker.harness import create_topic
from tests.broker.kafka import KafkaBroker, require_kafka
from tests.worker.commands.test_tail import record

TOPIC = "scores"


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    require_kafka()
    broker = KafkaBroker(tmp_path / "kafka").start()
    yield broker
    broker.kill()


def written(bootstrap: str, session: str) -> Producer:
    """A score record in an open transaction of the producer."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": session})
    producer.init_transactions(60)
    producer.begin_transaction()
    producer.produce(TOPIC, record(session))
    assert producer.flush(30) == 0
    return producer


def test_committed_records_are_shown_once_each_through_a_restart_of_the_broker(
    own_broker: KafkaBroker, tmp_path: Path
) -> None:
    create_topic(own_broker.bootstrap, TOPIC, 1)
    config = tmp_path / "worker.yaml"
    config.write_text(
        yaml.safe_dump({"kafka": {"bootstrap.servers": own_broker.bootstrap}, "output": {"topic": TOPIC}})
    )
    command = [sys.executable, "-m", "worker", "tail", "--config", str(config)]
    written(own_broker.bootstrap, "before").commit_transaction(30)
    still_open = written(own_broker.bootstrap, "open")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith(f"following {TOPIC};")
            still_open.commit_transaction(30)
            assert " open " in process.stdout.readline()
            written(own_broker.bootstrap, "aborted").abort_transaction(30)
            written(own_broker.bootstrap, "first").commit_transaction(30)
            assert " first " in process.stdout.readline()
            own_broker.kill()  # a clean stop may take a minute on a busy machine
            assert process.stderr.readline() == "no broker answers; waiting for one\n"
            own_broker.start()
            written(own_broker.bootstrap, "second").commit_transaction(30)
            assert " second " in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=150)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, ("", ""))

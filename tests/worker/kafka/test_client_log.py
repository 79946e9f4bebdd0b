"""The log of Kafka clients: each kind of line once a minute, with a count."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import structlog
from confluent_kafka import KafkaError

from worker.kafka import client_log
from worker.kafka.client_log import ClientErrorLog, client_logger


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The minute that it is."""
    now = [1000.0]
    monkeypatch.setattr(client_log.time, "monotonic", lambda: now[0] * 60)
    return now


def test_each_kind_of_error_is_logged_once_a_minute_with_how_often_it_came(minutes: list[float]) -> None:
    report = ClientErrorLog("producer")
    with structlog.testing.capture_logs() as logs:
        for _ in range(1000):
            report(KafkaError(KafkaError._TRANSPORT))
        report(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        minutes[0] += 1.01
        report(KafkaError(KafkaError._TRANSPORT))
    assert [(each["code"], each["times"]) for each in logs] == [
        ("_TRANSPORT", 1),
        ("_ALL_BROKERS_DOWN", 1),
        ("_TRANSPORT", 1000),
    ]


def test_the_client_library_s_own_lines_come_once_a_minute_and_facility(
    minutes: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The logger is the process's own, and counts what other tests' clients have said through it.
    monkeypatch.setattr(logging.getLogger("librdkafka"), "filters", [])
    for number in range(1000):
        client_logger().error("%s [%s] %s", "FAIL", f"worker#consumer-{number}", "Connection refused")
    client_logger().warning("%s [%s] %s", "REQTMOUT", "worker#consumer-1", "Timed out")
    minutes[0] += 1.01
    client_logger().error("%s [%s] %s", "FAIL", "worker#consumer-7", "Connection refused")
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "FAIL [worker#consumer-0] Connection refused",
        "REQTMOUT [worker#consumer-1] Timed out",
        "FAIL [worker#consumer-7] Connection refused (and 999 more since the last such line)",
    ]


def test_where_a_command_sets_up_no_log_the_client_library_writes_nothing_to_standard_error() -> None:
    program = "from worker.kafka.client_log import client_logger; client_logger().error('FAIL Connection refused')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

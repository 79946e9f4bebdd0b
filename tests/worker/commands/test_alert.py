"""`logmamba alert`: what it says before it begins, `--test` and `--dry-run`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.alerting.receiving import ReceiverServer, Reply, score_record
from tests.worker.command_line import logmamba
from tests.worker.commands.test_tail import ScoreTopic
from worker.kafka.mock_broker import MockBroker

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def server() -> Iterator[ReceiverServer]:
    with ReceiverServer() as server:
        yield server


@pytest.fixture(scope="module")
def topic() -> Iterator[ScoreTopic]:
    broker = MockBroker()  # it lives as long as this name
    yield ScoreTopic(broker)
    del broker


def config_of(tmp_path: Path, server: ReceiverServer, topic: ScoreTopic | None = None) -> Path:
    (tmp_path / "url").write_text(f"{server.url}/slack")
    (tmp_path / "key").write_text(KEY)
    config = tmp_path / "worker.yaml"
    kafka = "" if topic is None else f"kafka: {{bootstrap.servers: '{topic.bootstrap}'}}\n"
    config.write_text(
        f"{kafka}"
        f"output: {{topic: {'scores' if topic is None else topic.name}}}\n"
        "alert:\n"
        "  start: earliest\n"
        "  group_wait: 0ms\n"
        "  receivers:\n"
        f"    hook: {{type: webhook, url: '{server.url}/hook'}}\n"
        f"    chat: {{type: slack, url_file: {tmp_path}/url}}\n"
        f"    oncall: {{type: pagerduty, url: '{server.url}/pd', routing_key_file: {tmp_path}/key}}\n"
        f"    am: {{type: alertmanager, url: '{server.url}'}}\n"
    )
    return config


def test_without_receivers_there_is_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "worker.yaml").write_text("{}")
    for option in ([], ["--test"], ["--dry-run"]):
        done = logmamba("alert", "--config", tmp_path / "worker.yaml", *option)
        assert done.returncode == 2
        assert done.stderr.startswith("logmamba: alert.receivers: is empty; allowed: ")


def test_test_sends_each_receiver_one_and_says_what_came_back(tmp_path: Path, server: ReceiverServer) -> None:
    config = config_of(tmp_path, server)
    done = logmamba("alert", "--config", config, "--test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "hook (webhook): took it: 200 OK: ok",
        "chat (slack): took it: 200 OK: ok",
        "oncall (pagerduty): took it: 200 OK: ok",
        "am (alertmanager): took it: 200 OK: ok",
    ]
    assert [request.path for request in server.requests] == ["/hook", "/slack", "/pd", "/api/v2/alerts"]
    webhook, _, pagerduty, [alertmanager] = (request.body for request in server.requests)
    assert webhook["status"] == "test"
    assert pagerduty["payload"]["severity"] == "info"
    assert alertmanager["labels"]["alertname"] == "LogAnomalyTest"


def test_test_goes_on_behind_a_receiver_that_refuses_and_exits_with_1(tmp_path: Path, server: ReceiverServer) -> None:
    config = config_of(tmp_path, server)
    server.replies = [Reply(404, text="no_\x1bservice"), Reply(503, text=f"not {KEY}")]
    done = logmamba("alert", "--config", config, "--test")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == r"hook (webhook): refused it: 404 Not Found: no_\x1bservice"
    assert lines[1].startswith("chat (slack): did not take it: 503 Service Unavailable")
    assert lines[2] == "oncall (pagerduty): took it: 200 OK: ok"


def test_dry_run_prints_what_would_be_sent_and_sends_nothing(
    tmp_path: Path, server: ReceiverServer, topic: ScoreTopic
) -> None:
    config = config_of(tmp_path, server, topic)
    topic.write(score_record("a"), score_record("quiet", "normal"))
    command = [sys.executable, "-m", "worker", "alert", "--config", str(config), "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [json.loads(process.stdout.readline()) for _ in range(4)]
            process.send_signal(signal.SIGTERM)
            rest, log = process.communicate(timeout=150)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, "")
    assert {line["receiver"] for line in lines} == {"hook", "chat", "oncall", "am"}
    [pagerduty] = [line["body"] for line in lines if line["receiver"] == "oncall"]
    assert (pagerduty["event_action"], pagerduty["routing_key"]) == ("trigger", "********")
    assert server.requests == []
    assert KEY not in log
    assert server.url not in log


def test_a_topic_that_is_not_there_is_an_error_that_names_the_setting(
    tmp_path: Path, server: ReceiverServer, topic: ScoreTopic
) -> None:
    config = config_of(tmp_path, server, topic)
    command = [sys.executable, "-m", "worker", "alert", "--config", str(config), "--set", "output.topic=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 1
    assert f"logmamba: output.topic: nowhere does not exist at {topic.bootstrap}" in done.stderr

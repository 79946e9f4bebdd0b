"""`logmamba alert` on a real broker: only what was committed, once each, through outages, kills and restarts."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.broker.harness import AlertProcess, create_topic
from tests.broker.kafka import KafkaBroker
from tests.worker.alerting.receiving import ReceiverServer, Reply, score_record

PARTITIONS = 2
_numbers = itertools.count(1)


class Shop:
    """A score topic of its own, and processes that tell one receiver of it."""

    def __init__(self, bootstrap: str, folder: Path, url: str) -> None:
        self._bootstrap, self._folder, self._started = bootstrap, folder, 0
        self.name = f"alert{next(_numbers)}-{os.getpid()}"
        self.topic = f"{self.name}-scores"
        create_topic(bootstrap, self.topic, PARTITIONS)
        self._config = folder / "alert.yaml"
        alert = {
            "receivers": {"hook": {"type": "webhook", "url": url}},
            "group_wait": "200ms",
            "most_per_minute": 1000,
            "start": "earliest",
        }
        settings = {
            "application_id": self.name,
            "kafka": {"bootstrap.servers": bootstrap, "session.timeout.ms": 2000, "heartbeat.interval.ms": 500},
            "output": {"topic": self.topic},
            "observability": {"log_format": "json"},
            "alert": alert,
        }
        self._config.write_text(yaml.safe_dump(settings))
        self._producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": self.name})
        self._producer.init_transactions(60)

    def write(self, *values: bytes, end: Callable[[Producer], object] = lambda p: p.commit_transaction(30)) -> None:
        """Records in a transaction of their own; a session is in one partition."""
        self._producer.begin_transaction()
        for value in values:
            key = yaml.safe_load(value)["session"]
            self._producer.produce(self.topic, value, key, sum(key.encode()) % PARTITIONS)
        assert self._producer.flush(30) == 0
        end(self._producer)

    def start(self) -> AlertProcess:
        self._started += 1
        return AlertProcess(self._config, self._folder / f"alert-{self._started}.log")

    def committed(self) -> bool:
        """Whether the group has committed up to the end of every partition."""
        group = {"bootstrap.servers": self._bootstrap, "group.id": f"{self.name}-alert-hook"}
        consumer = Consumer(group | {"isolation.level": "read_committed"})
        try:
            places = consumer.committed([TopicPartition(self.topic, each) for each in range(PARTITIONS)], timeout=30)
            return all(
                place.offset == consumer.get_watermark_offsets(TopicPartition(self.topic, place.partition), 30)[1]
                for place in places
            )
        finally:
            consumer.close()


def told(server: ReceiverServer) -> list[tuple[str, str]]:
    """Status and session of everything that was taken, sorted."""
    bodies: list[dict[str, Any]] = server.taken
    return sorted((body["status"], alert["session"]) for body in bodies for alert in body["alerts"])


def test_each_session_is_told_of_through_an_outage_of_the_receiver_kills_and_restarts(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    with ReceiverServer() as server:
        shop = Shop(broker.bootstrap, tmp_path, server.url)
        server.always = Reply(503)
        early = [score_record(f"early{number}", "critical", "early") for number in range(4)]
        final = [score_record(f"final{number}") for number in range(40)]
        shop.write(*early, *(score_record(f"quiet{number}", "normal") for number in range(100)))
        shop.write(*final[:20])
        shop.write(score_record("aborted"), end=lambda producer: producer.abort_transaction(30))

        with shop.start() as process:
            process.wait_until(lambda: process.logged("receiver_away"))
            assert not shop.committed()
            process.kill()
        assert told(server) == []

        server.always = Reply()
        expected = sorted(
            ("firing", name) for name in (*map("early{}".format, range(4)), *map("final{}".format, range(20)))
        )
        with shop.start() as process:
            process.wait_until(lambda: len(told(server)) >= 24)
            assert told(server) == expected
            process.wait_until(shop.committed)
            process.kill()

        # A stop amid an outage loses nothing, either, and takes no longer than it must.
        server.always = Reply(503)
        seen = len(server.requests)
        shop.write(*final[20:], *final[:20], *early, score_record("early0", "normal"), score_record("early1"))
        with shop.start() as process:
            process.wait_until(lambda: len(server.requests) > seen)
            assert process.stop(signal.SIGTERM) == 0, process.tail()
            assert process.logged("left_for_the_next_start", "stopped")
        assert told(server) == expected

        server.always = Reply()
        expected += [("resolved", "early0"), *(("firing", f"final{number}") for number in range(20, 40))]
        with shop.start() as process:
            process.wait_until(lambda: len(told(server)) >= len(expected))
            shop.write(score_record("early2", "normal"), score_record("early3"))
            expected.append(("resolved", "early2"))
            process.wait_until(lambda: len(told(server)) >= len(expected))
            assert process.stop(signal.SIGTERM) == 0, process.tail()
        assert told(server) == sorted(expected)

        # What a stop had not read is for the next start, which tells nothing again.
        with shop.start() as process:
            process.wait_until(shop.committed)
        assert told(server) == sorted(expected)


def test_a_receiver_that_refuses_a_message_ends_the_command_with_1_and_a_line_that_names_it(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    with ReceiverServer() as server:
        shop = Shop(broker.bootstrap, tmp_path, f"{server.url}/hunter2-hunter2")
        server.always = Reply(410, text="channel_is_archived")
        shop.write(score_record("a"))
        with shop.start() as process:
            assert process.ended() == 1, process.tail()
        log = process.tail()
    assert "logmamba: alert.receivers.hook: refused a message for good: 410 Gone: channel_is_archived; " in log
    assert "Traceback" not in log
    assert "hunter2" not in log

"""Input topics that are deleted, or that no pattern matches yet, on a real broker: a worker goes on and says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, Record, WorkerProcess, create_topic
from tests.broker.kafka import KafkaBroker

SOON = "kafka.topic.metadata.refresh.interval.ms=500"  # in place of half a minute
ANSWERING = "observability.port=0"


def test_when_one_of_two_topics_is_deleted_the_worker_goes_on_with_the_other_and_says_so(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    kept = Application(broker.bootstrap, tmp_path, demo_checkpoint())
    gone = f"{kept.config.stem}-gone"
    create_topic(broker.bootstrap, gone, 1)
    kept.produce(lines(range(3)))
    both = f"input.topics=[{kept.input_topic}, {gone}]"
    with kept.start(both, SOON, ANSWERING) as worker:
        worker.wait_until(lambda: sessions(kept) == {0, 1, 2})
        delete_topic(broker.bootstrap, gone)
        worker.wait_until(lambda: status(worker)["missing_topics"] == [gone])
        worker.wait_until(lambda: f"No such input topic: {gone}." in worker.get("/")[1])
        worker.wait_until(lambda: "logmamba_input_topics_missing 1.0\n" in worker.get("/metrics")[1])
        kept.produce(lines(range(3, 6)))
        worker.wait_until(lambda: sessions(kept) == set(range(6)))
        assert len(worker.events("input_topic_missing")) == 1
        worker.wait_until(lambda: status(worker)["joined"])
        assert worker.stop() == 0, worker.tail()
    # What is there when it starts is enough, too. A topic that is made anew has lost its offsets.
    with kept.start(both, SOON, ANSWERING, "input.on_lost_offsets=earliest") as worker:
        kept.produce(lines(range(6, 9)))
        worker.wait_until(lambda: sessions(kept) == set(range(9)))
        worker.wait_until(lambda: status(worker)["missing_topics"] == [gone])
        create_topic(broker.bootstrap, gone, 1)
        worker.wait_until(lambda: status(worker)["missing_topics"] == [])
        worker.wait_until(lambda: len(status(worker)["partitions"]) == 2)
        assert worker.stop() == 0, worker.tail()
    assert len(kept.scores()) == 9


def test_a_worker_whose_pattern_matches_nothing_says_so_and_takes_the_topic_that_is_made_later(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    later = Application(broker.bootstrap, tmp_path, demo_checkpoint(), 3, input_topic=f"later{os.getpid()}-1")
    missing = f"^later{os.getpid()}-[0-9]$"
    pattern = f"input.topics='{missing}'"
    with later.start(pattern, SOON, ANSWERING) as worker:
        worker.wait_until(lambda: status(worker)["missing_topics"] == [missing])
        code, why = worker.get("/readyz")  # the group has nothing to give before there is a topic
        assert (code, f"no such input topic: {missing}\n" in why) == (503, True)
        assert later.score_topic not in topics(broker)
        create_topic(broker.bootstrap, later.input_topic, 3)
        later.produce(lines(range(3), partition=2))
        worker.wait_until(lambda: sessions(later) == {0, 1, 2})
        assert topics(broker)[later.score_topic] == 3
        worker.wait_until(lambda: status(worker)["missing_topics"] == [])
        assert worker.stop() == 0, worker.tail()


def lines(blocks: range, partition: int = 0) -> list[Record]:
    text = "081109 203530 147 INFO dfs.DataNode$DataXceiver: Receiving block blk_{} src: /10.0.0.1:1 dest: /10.0.0.2:2"
    return [Record(text.format(block).encode(), b"blk_%d" % block, partition) for block in blocks]


def sessions(application: Application) -> set[int]:
    return {int(record["session"].removeprefix("blk_")) for record in application.scores() if record["kind"] == "final"}


def status(worker: WorkerProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(worker.get("/status")[1])
    return found


def topics(broker: KafkaBroker) -> dict[str, int]:
    """How many partitions each topic of the broker has."""
    found = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).topics
    return {name: len(topic.partitions) for name, topic in found.items()}


def delete_topic(bootstrap: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.delete_topics([name])[name].result(30)

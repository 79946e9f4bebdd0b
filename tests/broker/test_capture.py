"""What is captured from a real broker is scored from the file as the worker scores the topic; no group sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import yaml
from confluent_kafka import Producer

from detector.text.vocabulary import Vocabulary
from tests.broker.harness import Application, read_all
from tests.broker.kafka import KafkaBroker
from tests.detector.small_models import save_random
from tests.worker.command_line import logmamba
from worker.files.record_files import read_record_file

VISITS, BEGIN_MS = 40, 1_714_978_800_000


def produce(application: Application) -> int:
    """Visits whose key is in a header, twenty minutes apart; each visitor comes twice. Returns how many records."""
    producer = Producer({"bootstrap.servers": application.bootstrap, "enable.idempotence": True})
    count = 0
    for visit in range(VISITS):
        name = f"visitor{visit % (VISITS // 2)}".encode()
        for second, step in enumerate((b"open", b"read", b"odd", b"\xff not text", b"close")):
            producer.produce(
                application.input_topic,
                step,
                b"\x00\x01",
                partition=visit % (VISITS // 2) % 2,
                timestamp=BEGIN_MS + visit * 1_200_000 + second * 1_000,
                headers=[("visitor", name)],
            )
            count += 1
    assert producer.flush(30) == 0
    return count


def comparable(record: dict[str, Any]) -> str:
    """A session at the end is ended by an idle partition there, after what was aborted too, and by the file's here."""
    if record["closed_by"] in ("idle", "end_of_input"):
        record = {**record, "closed_by": "end", "source": {**record["source"], "cause_offset": None}}
    return json.dumps(record)


def ended(*arguments: object) -> str:
    """What a command that went well said."""
    done = logmamba(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_captured_file_gives_the_scores_of_the_worker_and_commits_nothing(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    save_random(checkpoint, Vocabulary(("open", "read", "odd", "close")))
    sessions = {"key": {"header": "visitor"}, "gap": "10m"}
    application = Application(broker.bootstrap, tmp_path, checkpoint, 2)
    application.settings["sessions"] = {**sessions, "idle_flush": "1s"}
    application.settings["input"]["timestamp"] = None
    application.config.write_text(yaml.safe_dump(application.settings))
    count = produce(application)
    open_one = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": f"{application.input_topic}-open"})
    open_one.init_transactions(60)
    open_one.begin_transaction()
    open_one.produce(application.input_topic, b"aborted", partition=0, headers=[("visitor", b"nobody")])
    assert open_one.flush(30) == 0
    open_one.abort_transaction(60)

    captured, output = tmp_path / "visits.jsonl.gz", tmp_path / "scores.jsonl"
    assert f"{count} records written" in ended("capture", "--config", application.config, "--output", captured)
    assert {partition: each.offset for partition, each in application.committed().items()} == {0: -1001, 1: -1001}
    files = "--input", captured, "--output", output
    told = ended("score", "--checkpoint", checkpoint, "--config", application.config, *files)
    assert f"{VISITS} of {count} lines refused: not_utf8" in told
    with application.start() as worker:
        worker.wait_until(lambda: sum(each["kind"] == "final" for each in application.scores()) >= VISITS)
        assert worker.stop() == 0, worker.tail()
    finals = [each for each in application.scores() if each["kind"] == "final"]
    from_file = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert len(from_file) == VISITS
    assert sorted(map(comparable, finals)) == sorted(map(comparable, from_file))


def test_only_the_newest_records_or_those_since_a_time_are_captured(broker: KafkaBroker, tmp_path: Path) -> None:
    application = Application(broker.bootstrap, tmp_path, tmp_path, 2)
    produce(application)
    newest, since = tmp_path / "newest.jsonl", tmp_path / "since.jsonl"
    ended("capture", "--config", application.config, "--output", newest, "--records", 30)
    found = [(each.partition, each.offsets) for each in read_record_file(newest)]
    assert found == [(0, list(range(85, 100))), (1, list(range(85, 100)))]
    ended("capture", "--config", application.config, "--output", since, "--since", "2024-05-06T15:00:02Z")
    times = [time for each in read_record_file(since) for time in each.timestamps or ()]
    expected = [message.timestamp()[1] for message in read_all(broker.bootstrap, application.input_topic)]
    assert times == [time for time in expected if time >= BEGIN_MS + 24 * 1_200_000 + 2_000]
    assert len(times) == 5 * 16 - 2

"""`logmamba rekey` on a real broker: blocks whose lines lie in all partitions are scored as if each lay in one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Producer

from tests.broker.harness import Application, Record, RekeyProcess, hdfs_lines, merged, read_all
from tests.broker.kafka import KafkaBroker
from tests.shared import needs_shared
from tests.worker.command_line import logmamba
from worker.processing.token_records import decode, joined_keys

LINES = 6_000
RAW_PARTITIONS, TOKEN_PARTITIONS = 4, 3
WHAT = ("session", "score", "severity", "surprise", "events", "unknown_events", "first_event_time", "last_event_time")
# Half a second between two lines, so that their order is told by nothing but their times, and gaps end sessions.
INPUT = {"timestamp": {"pattern": r"^(\d+) ", "format": "epoch"}, "message": {"pattern": r"^\d+ (.*)"}}


def essence(record: dict[str, Any]) -> tuple[Any, ...]:
    top = tuple((event["template"], event["surprise"]) for event in record["top_events"])
    return *(record[name] for name in WHAT), top


@needs_shared
def test_blocks_over_all_partitions_are_scored_once_and_whole_though_rekey_is_killed(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    lines = [b"%d %b" % (1_700_000_000_000 + 500 * at, line) for at, line in enumerate(hdfs_lines(LINES))]
    of = np.random.default_rng(0).integers(0, RAW_PARTITIONS, LINES).tolist()
    stage = Application(
        broker.bootstrap, tmp_path, checkpoint, RAW_PARTITIONS, output={"partitions": TOKEN_PARTITIONS}, input=INPUT
    )
    records = [Record(line, None, partition) for line, partition in zip(lines, of, strict=True)]
    raw: dict[tuple[int, int], bytes] = {}
    counts: Counter[int] = Counter()
    for line, partition in zip(lines, of, strict=True):
        raw[partition, counts[partition]] = line
        counts[partition] += 1

    # A commit each batch, and a static member, so that the group does not wait for the one that was killed.
    often = ("worker.batch_records=200", "worker.commit_interval=1ms", "kafka.group.instance.id=w0")
    stage.produce(records[: LINES // 2])
    with RekeyProcess(stage.config, tmp_path / "killed.log", often) as killed:
        killed.wait_until(lambda: consumed(stage) > LINES / 10)
        killed.kill()
    produce_in_a_transaction(stage, records[LINES // 2 :])
    with RekeyProcess(stage.config, tmp_path / "rekey.log", often) as rekey:
        rekey.wait_until(lambda: consumed(stage) == LINES)
        assert rekey.stop() == 0, rekey.tail()
    assert stage.dead_letters() == []

    events: Counter[tuple[int, int]] = Counter()
    partition_of: dict[str, set[int]] = {}
    for message in read_all(broker.bootstrap, stage.score_topic):
        found = decode(message.value() or b"")
        for key, (origin, offset) in zip(joined_keys([found]).to_pylist(), found.origins.each(), strict=True):
            assert origin.topic == stage.input_topic
            assert key.encode() in raw[origin.partition, offset]
            events[origin.partition, offset] += 1
            partition_of.setdefault(key, set()).add(message.partition())
    assert events == Counter(raw.keys()), "a line is missing, or is there twice"
    assert max(map(len, partition_of.values())) == 1
    assert set.union(*partition_of.values()) == set(range(TOKEN_PARTITIONS))

    scoring = reader_of(stage, tmp_path)
    with scoring.start() as worker:
        worker.wait_until(lambda: sum(each["events"] for each in scoring.scores() if each["kind"] == "final") >= LINES)
        assert worker.stop() == 0, worker.tail()
    finals = [record for record in scoring.scores() if record["kind"] == "final"]
    assert sorted(map(essence, finals)) == sorted(map(essence, truth(tmp_path, checkpoint, lines)))
    assert {record["closed_by"] for record in finals} == {"gap", "idle"}
    assert Counter(line for record in finals for line in lines_of(record)) == Counter(raw.keys())
    for record in finals:
        assert all(record["session"].encode() in raw[place] for place in lines_of(record))
        assert record["source"]["topic"] == stage.score_topic

    record = max(finals, key=lambda each: each["events"])
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    done = logmamba("explain", "--config", scoring.config, "--record", path, "--json")
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    assert explained["record"] == record
    for event in explained["events"]:
        assert event["text"].encode() == raw[event["origin"]["partition"], event["offset"]]


def produce_in_a_transaction(application: Application, records: list[Record]) -> None:
    """So that each partition ends with what is no record."""
    producer = Producer({"bootstrap.servers": application.bootstrap, "transactional.id": application.input_topic})
    producer.init_transactions(60)
    producer.begin_transaction()
    for record in records:
        producer.produce(application.input_topic, record.value, record.key, record.partition)
    producer.commit_transaction(60)


def reader_of(stage: Application, folder: Path) -> Application:
    """The application that scores what another one has rekeyed."""
    checkpoint = Path(stage.settings["model"]["checkpoint"])
    scoring = Application(stage.bootstrap, folder, checkpoint, TOKEN_PARTITIONS, stage.score_topic)
    scoring.settings["input"] = {"topics": [stage.score_topic], "format": "tokens"}
    scoring.settings["sessions"] = {"idle_flush": "2s"}
    scoring.config.write_text(orjson.dumps(merged(scoring.settings)).decode())
    return scoring


def truth(folder: Path, checkpoint: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    """What `logmamba score` says of the lines as they were before they were spread."""
    config, log, output = folder / "hdfs.yaml", folder / "hdfs.log", folder / "truth.jsonl"
    config.write_text(orjson.dumps({"input": INPUT}).decode())
    log.write_bytes(b"\n".join(lines) + b"\n")
    scored = logmamba("score", "--checkpoint", checkpoint, "--config", config, "--input", log, "--output", output)
    assert scored.returncode == 0, scored.stderr
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


def lines_of(record: dict[str, Any]) -> list[tuple[int, int]]:
    return [(each["partition"], offset) for each in record["origins"] for offset in each["offsets"]]


def consumed(application: Application) -> int:
    return sum(max(0, each.offset) for each in application.committed().values())

"""Score records in Avro on a real broker are those of JSON."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Message

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, keyed_by_block, read_all
from tests.broker.kafka import KafkaBroker
from tests.worker.command_line import logmamba
from tests.worker.kafka.registry import SchemaRegistry
from worker.files.record_files import write_records
from worker.generator.log import GeneratedLog
from worker.kafka.avro import score_reader
from worker.processing.records import Records
from worker.settings.document import load_settings

pytest.importorskip("confluent_kafka.schema_registry.avro", reason="too old a client", exc_type=ImportError)

LINES = 3_000


def test_a_worker_writes_in_avro_what_logmamba_score_says_of_the_same_records(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint())
    records = keyed_by_block((line.text.encode() for line in GeneratedLog(lines=LINES, seed=3, anomaly_rate=0.1)), 1)
    application.produce(records)
    expected = said_of(application, [record.value for record in records], tmp_path)

    def written() -> list[Message]:
        return read_all(application.bootstrap, application.score_topic)

    with SchemaRegistry() as registry:
        avro = ("output.format=avro", "output.cloud_events=true", f"output.schema_registry={{url: '{registry.url}'}}")
        with score_reader(load_settings(application.config, avro)) as as_json, application.start(*avro) as worker:
            worker.wait_until(
                lambda: sum(dict(each.headers())["ce_type"] == FINAL for each in written()) >= len(expected)
            )
            assert worker.stop() == 0, worker.tail()
            found = written()
            read = [orjson.loads(as_json(each.value()) or b"") for each in found]
        told = logmamba("check", "--config", application.config, *(each for one in avro for each in ("--set", one)))
        assert "it has the schema of" in told.stdout, told.stdout
    assert all(each.value().startswith(b"\0") for each in found)
    finals = [record for record in read if record["kind"] == "final"]
    assert sorted(map(content, finals), key=itemgetter("id")) == sorted(map(content, expected), key=itemgetter("id"))
    headers = [dict(each.headers()) for each in found]
    assert {each["content-type"] for each in headers} == {b"application/avro"}
    assert [each["ce_id"].decode() for each in headers] == [each["id"] for each in read]


FINAL = b"logmamba.score.final"


def said_of(application: Application, values: list[bytes | None], folder: Path) -> list[dict[str, Any]]:
    """What `logmamba score` says of records of the input topic."""
    records, scores = folder / "some.records.jsonl", folder / "scores.jsonl"
    with records.open("wb") as file:
        write_records(file, Records(application.input_topic, 0, [*range(len(values))], values, None, None, None))
    done = logmamba(
        *("score", "--config", application.config, "--checkpoint", demo_checkpoint()),
        *("--input", records, "--output", scores),
    )
    assert done.returncode == 0, done.stderr
    return [orjson.loads(line) for line in scores.read_bytes().splitlines()]


def content(record: dict[str, Any]) -> dict[str, Any]:
    """All but what a file has not: an idle partition, and early scores to take back."""
    closed_by = "end_of_input" if record["closed_by"] == "idle" else record["closed_by"]
    return {name: value for name, value in record.items() if name != "retracts"} | {"closed_by": closed_by}

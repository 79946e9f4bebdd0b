"""Records that hold ten events each, some of them with a poisoned one, through workers that are killed."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.broker.harness import Application, Record
from tests.broker.kafka import KafkaBroker
from tests.faults.conftest import Size
from tests.faults.report import FaultReport
from tests.worker.command_line import logmamba
from worker.generator.log import GeneratedLog

PARTITIONS = 2
IN_A_RECORD = 10
POISON_EVERY = 7  # records
POISON = {"massage": "blk_1"}
INPUT = {"format": "json", "split": "/records/*", "timestamp": "/time"}
STEPS = ("worker.batch_records=20", "worker.commit_interval=0ms", "state.snapshot_interval=100ms")

Event = dict[str, str]


@pytest.mark.fault(row=31, core=True)
def test_a_poisoned_event_leaves_the_nine_beside_it_and_is_one_dead_letter_that_names_its_place(
    size: Size, checkpoint: Path, broker: KafkaBroker, tmp_path: Path, fault_report: FaultReport
) -> None:
    parts = events_by_partition(size.records if size.full else 6_000)
    batches = {number: list(batches_of(events)) for number, events in parts.items()}
    records = [
        Record(orjson.dumps({"source": "test", "records": batch}), None, number)
        for number, part in batches.items()
        for batch in part
    ]
    poisoned = {
        (number, offset): batch
        for number, part in batches.items()
        for offset, batch in enumerate(part)
        if POISON in batch
    }
    expected = scores_one_by_one(parts, batches, tmp_path, checkpoint)

    kafka = {"session.timeout.ms": 3_000, "heartbeat.interval.ms": 500}
    application = Application(broker.bootstrap, tmp_path, checkpoint, PARTITIONS, input=INPUT, kafka=kafka)
    application.produce(records)
    total = sum(expected.values())
    for share in (0.05, 0.15):
        with application.start(*STEPS, "sessions.idle_flush=null") as worker:
            worker.wait_until(lambda share=share: len(finals(application)) >= share * total)
            worker.kill()
    with application.start(*STEPS, "sessions.idle_flush=1s") as worker:
        worker.wait_until(lambda: len(finals(application)) >= total)
        assert worker.stop() == 0, worker.tail()
    fault_report("a poisoned event in a record of ten, kill -9", records=len(records), rounds=2)

    assert Counter(map(content, finals(application))) == expected
    letters: dict[tuple[int, int], Any] = {}
    for message in application.dead_letters():
        headers = {name: (value or b"").decode() for name, value in message.headers() or ()}
        place = int(headers["logmamba-error-partition"]), int(headers["logmamba-error-offset"])
        assert place not in letters, "written twice"
        letters[place] = headers, message.value()
    assert letters.keys() == poisoned.keys()
    for (number, offset), (headers, value) in letters.items():
        at = poisoned[number, offset].index(POISON)
        assert headers["logmamba-error-reason"] == "no_message"
        assert headers["logmamba-error-message"] == f"at /records/{at}: the message at /message is missing"
        assert orjson.loads(value) == {"source": "test", "records": [POISON]}


def events_by_partition(count: int) -> dict[int, list[Event]]:
    parts: dict[int, list[Event]] = defaultdict(list)
    for line in GeneratedLog(count, seed=9):
        time = datetime.strptime(line.text[:13], "%y%m%d %H%M%S").replace(tzinfo=UTC).isoformat()
        parts[zlib.crc32(line.block.encode()) % PARTITIONS].append({"message": line.text, "time": time})
    return dict(parts)


def batches_of(events: list[Event]) -> Iterator[list[Event]]:
    """Ten events a record; in some, the last one or one in the middle is poison beside the others."""
    for number, start in enumerate(range(0, len(events), IN_A_RECORD)):
        batch = events[start : start + IN_A_RECORD]
        if number % POISON_EVERY == 0:
            batch.insert(len(batch) if number % 2 else 4, POISON)
        yield batch


def scores_one_by_one(
    parts: dict[int, list[Event]], batches: dict[int, list[list[Event]]], folder: Path, checkpoint: Path
) -> Counter[object]:
    """What `logmamba score` says of the same events, each on a line of its own, without the poison."""
    config = folder / "one.yaml"
    config.write_text(yaml.safe_dump({"input": {"format": "json", "timestamp": "/time"}}))
    outputs: list[Path] = []
    for number, events in parts.items():
        assert [event for batch in batches[number] for event in batch if event != POISON] == events
        path = folder / f"{number}.jsonl"
        path.write_bytes(b"".join(orjson.dumps(event) + b"\n" for event in events))
        one = folder / f"one-{number}.jsonl"
        done = logmamba("score", "--checkpoint", checkpoint, "--config", config, "--input", path, "--output", one)
        assert done.returncode == 0, done.stderr
        outputs.append(one)
    scored = (orjson.loads(line) for path in outputs for line in path.read_bytes().splitlines())
    return Counter(content(record) for record in scored if record["kind"] == "final")


def finals(application: Application) -> list[dict[str, Any]]:
    return [record for record in application.scores() if record["kind"] == "final"]


def content(record: dict[str, Any]) -> object:
    """What does not depend on how the events lie in records."""
    closed_by = "end" if record["closed_by"] in ("idle", "end_of_input") else record["closed_by"]
    names: Iterable[str] = (
        "session",
        "score",
        "severity",
        "events",
        "unknown_events",
        "first_event_time",
        "last_event_time",
    )
    return (*(record[name] for name in names), closed_by)

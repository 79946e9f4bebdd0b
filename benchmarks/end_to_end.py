"""How fast is one worker process from topic to topic, exactly once, beside what the client library alone can do?

A real broker on this machine, HDFS lines in 4 partitions, one worker process on the CPU. In the same run:

(a) a plain consumer of the same topic that looks at every value, and
(b) a plain transactional copy: consume, produce every record again, commit offsets in the same transactions.

The lines are repeated with new block ids, each repetition later in time than the one before. The first pass meets a
cold score cache, the last one a warm one: the same event sequences have been scored before. The rate of a pass is taken
from its first committed position on, so start-up is in none of them. A worker that is behind commits once a second, and
what lies between two commits is taken for equally fast.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from tests.broker.harness import Application, Record, create_topic, hdfs_lines
from tests.broker.kafka import KafkaBroker
from tests.shared import shared
from tests.worker.command_line import logmamba

PARTITIONS = 4
BLOCK = re.compile(rb"blk_-?\d+")
Size = Literal["tiny", "small", "reference"]
_STAMP = "%y%m%d %H%M%S"
STAMP_BYTES = 13
_HOLE = b"\0"  # where the number of a pass goes


@dataclass
class Result:
    """Lines a second of one measurement."""

    what: str
    lines_per_second: float
    ratio_to_consume: float
    ratio_to_copy: float
    resident_mb: float | None = None


class Passes:
    """Passes over lines, each later in time and with other blocks than the one before."""

    def __init__(self, lines: list[bytes], partitions: int) -> None:
        self._parts = []
        for line in lines:
            found = BLOCK.search(line)
            assert found is not None
            text = BLOCK.sub(rb"\g<0>" + _HOLE, line[STAMP_BYTES:])
            self._parts.append((line[:STAMP_BYTES], text, found.group(), partition_of(line, partitions)))
        stamps = {stamp for stamp, *_ in self._parts}
        self._times = {stamp: datetime.strptime(stamp.decode(), _STAMP).replace(tzinfo=UTC) for stamp in stamps}

    def records(self, number: int) -> list[Record]:
        """Of one of them, the first of which has the number 0."""
        span = max(self._times.values()) - min(self._times.values()) + timedelta(minutes=30)
        moved = {stamp: (at + number * span).strftime(_STAMP).encode() for stamp, at in self._times.items()}
        suffix = b"%02d" % number
        return [
            Record(moved[stamp] + text.replace(_HOLE, suffix), key + suffix, partition)
            for stamp, text, key, partition in self._parts
        ]


def repeated(lines: list[bytes], repeats: int, partitions: int = PARTITIONS) -> Iterator[list[Record]]:
    """The records of so many passes over the lines."""
    passes = Passes(lines, partitions)
    return map(passes.records, range(repeats))


def partition_of(line: bytes, partitions: int) -> int:
    """Where all lines of a block go, those of its repetitions too."""
    found = BLOCK.search(line)
    assert found is not None
    return zlib.crc32(found.group()) % partitions


def plain_consume(bootstrap: str, topic: str, total: int, partitions: int = PARTITIONS) -> float:
    """(a): lines a second of a consumer that looks at every value."""
    consumer = _consumer(bootstrap, topic, partitions)
    consumer.consume(1, 30)
    seen, began = 1, time.perf_counter()
    while seen < total:
        values = [message.value() for message in consumer.consume(10_000, 0.1)]
        seen += len(values)
    rate = seen / (time.perf_counter() - began)
    consumer.close()
    return rate


def transactional_copy(bootstrap: str, topic: str, target: str, total: int) -> float:
    """(b): lines a second of consume, produce and commit in transactions of 100 ms."""
    consumer = _consumer(bootstrap, topic, PARTITIONS)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": "copy",
            "linger.ms": 5,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
            "retry.backoff.ms": 10,
        }
    )
    producer.init_transactions(30)
    consumer.consume(1, 30)
    seen, began = 1, time.perf_counter()
    while seen < total:
        producer.begin_transaction()
        until = time.perf_counter() + 0.1
        positions: dict[int, int] = {}
        while time.perf_counter() < until and seen < total:
            for message in consumer.consume(10_000, 0.02):
                partition = message.partition()
                positions[partition] = message.offset() + 1
                producer.produce(target, message.value(), message.key(), partition)
                seen += 1
            producer.poll(0)
        offsets = [TopicPartition(topic, partition, offset) for partition, offset in positions.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
    rate = seen / (time.perf_counter() - began)
    consumer.close()
    return rate


def worker_rates(application: Application, pass_lines: int, passes: int, *overrides: str) -> tuple[float, float, float]:
    """Lines a second of the first and of the last pass, and the largest resident memory in MB."""
    asked = [TopicPartition(application.input_topic, number) for number in range(PARTITIONS)]
    watcher = Consumer({"bootstrap.servers": application.bootstrap, "group.id": application.settings["application_id"]})
    marks: list[tuple[float, int]] = []
    peak = 0
    with application.start(*overrides) as worker:
        process = psutil.Process(worker.process.pid)

        def done() -> bool:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)
            committed = sum(max(0, each.offset) for each in watcher.committed(asked, timeout=30))
            if committed and (not marks or committed > marks[-1][1]):
                marks.append((time.perf_counter(), committed))
            return committed >= pass_lines * passes

        worker.wait_until(done, timeout_s=900)
        assert worker.stop() == 0, worker.tail()
    watcher.close()
    return _rate(marks, 0, pass_lines), _rate(marks, pass_lines * (passes - 1), pass_lines * passes), peak / 1e6


def _rate(marks: list[tuple[float, int]], start: int, end: int) -> float:
    """Of what lies between two positions; when they were passed is told by the commits before and after each.

    What was done before the first commit has no beginning: a pass that ended before it goes to the second.
    """
    times, positions = zip(*marks, strict=True)
    first = max(start, positions[0])
    last = end if end > first else positions[1]
    began, ended = np.interp((first, last), positions, times).tolist()
    return (last - first) / (ended - began)


def _consumer(bootstrap: str, topic: str, partitions: int) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "baseline",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            # As the worker's: librdkafka's own second is the most that its default measures.
            "fetch.queue.backoff.ms": 20,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    return consumer


def checkpoint_of_hdfs(folder: Path) -> Path:
    """A checkpoint with the templates of HDFS; its speed does not depend on how good it is."""
    lines, config, target = folder / "train.log", folder / "train.json", folder / "checkpoint"
    lines.write_bytes(b"\n".join(hdfs_lines(20_000)) + b"\n")
    rule = {"pattern": r"^(\d{6} \d{6})", "format": _STAMP}
    config.write_text(json.dumps({"input": {"timestamp": rule}, "model": {"device": "cpu"}}))
    labels = shared("data/hdfs/raw_labels.csv.gz")
    trained = logmamba(
        "train", "--config", config, "--input", lines, "--labels", labels, "--output", target, "--steps", 20
    )
    assert trained.returncode == 0, trained.stderr
    return target


def enlarged(checkpoint: Path, target: Path, size: Size) -> Path:
    """A checkpoint with a model of another size, which has learnt nothing.

    On a GPU whose kernels are not compiled yet, a few steps would take longer than everything that is measured.
    """
    import torch  # which whoever only produces records need not wait for

    from detector.checkpoint import load, save
    from detector.model.model import DetectorModel, ModelConfig

    known = load(checkpoint)
    manifest, vocabulary = known.manifest, known.vocabulary
    config = ModelConfig.preset(size, manifest.model.vocabulary_size)
    torch.manual_seed(0)
    save(
        target,
        model=DetectorModel(config, torch.from_numpy(vocabulary.template_features())),
        vocabulary=vocabulary,
        profile=known.profile,
        calibration=manifest.calibration,
        training=manifest.training,
        reading=manifest.reading,
        pace=known.pace,
        fingerprint=manifest.fingerprint,
        replay=known.replay,
    )
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=4, help="over the 177,952 lines")
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    console = Console()
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = file.read().splitlines()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = KafkaBroker(folder / "kafka", heap="1g").start()
        try:
            checkpoint = arguments.checkpoint or checkpoint_of_hdfs(folder)
            total = len(lines) * arguments.passes
            first = Application(broker.bootstrap, folder, checkpoint, PARTITIONS)
            first.produce(chain.from_iterable(repeated(lines, arguments.passes)))
            consume = plain_consume(broker.bootstrap, first.input_topic, total)
            create_topic(broker.bootstrap, "copy", PARTITIONS)
            copy = transactional_copy(broker.bootstrap, first.input_topic, "copy", total)

            def add(what: str, rate: float, resident_mb: float | None = None) -> None:
                results.append(Result(what, rate, rate / consume, rate / copy, resident_mb))
                print(f"{what}: {rate:,.0f} lines/s", flush=True)
                if arguments.output is not None:  # as far as it has come: one that is cut short has said something
                    arguments.output.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")

            add("(a) plain consume", consume)
            add("(b) plain transactional copy", copy)
            for early in ("false", "true"):
                use = first if early == "false" else first.again()
                cold, warm, resident = worker_rates(
                    use, len(lines), arguments.passes, f"scoring.early={early}", "state.snapshot_interval=10s"
                )
                add(f"worker, early: {early}, cold cache", cold, resident)
                add(f"worker, early: {early}, warm cache", warm, resident)
        finally:
            broker.stop()
    table = Table("", "lines/s", "of (a)", "of (b)", "resident MB", title=f"{total:,} lines, {PARTITIONS} partitions")
    for each in results:
        resident_text = "" if each.resident_mb is None else f"{each.resident_mb:,.0f}"
        table.add_row(
            each.what,
            f"{each.lines_per_second:,.0f}",
            f"{each.ratio_to_consume:.2f}",
            f"{each.ratio_to_copy:.2f}",
            resident_text,
        )
    console.print(table)


if __name__ == "__main__":
    main()

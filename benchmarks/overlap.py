"""Would a thread that fills the next batch while one is worked on make a worker faster?

A real broker on this machine, HDFS lines in 4 partitions. In one process records are consumed and made columns, and
`Pipeline.process` takes them: one after the other, as a worker does, or with all of the first in a thread of its own
that is a batch ahead and never has to be waited for. No output is sent and nothing committed, so this is the most that
such a thread could give. Beside them stands what consuming alone takes. Kinds take turns; medians.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import PARTITIONS, checkpoint_of_hdfs, repeated
from benchmarks.pipeline import SETTINGS
from detector.scoring.scorer import Scorer
from tests.broker.harness import Application
from tests.broker.kafka import KafkaBroker
from tests.shared import shared
from worker.kafka.clients import ClientProperties
from worker.kafka.source import by_partition
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.settings.document import load_settings

BATCH = 10_000
LINGER_S = 0.02
Batches = Iterator[list[Records]]


@dataclass(frozen=True)
class Cost:
    """Of a line, in us; `thread` is the CPU time of the thread that works on the batches."""

    what: str
    lines_per_second: float
    wall: float
    cpu: float
    thread: float


def consumed(consumer: Consumer, total: int) -> Batches:
    """All records, as columns."""
    while total > 0:
        batch = by_partition(consumer.consume(BATCH, LINGER_S), with_headers=False)
        total -= sum(len(records.offsets) for records in batch)
        yield batch


def ahead(batches: Batches) -> Batches:
    """The same, made in a thread that is a batch ahead."""
    ready: queue.Queue[list[Records] | None] = queue.Queue(1)

    def fill() -> None:
        for batch in batches:
            ready.put(batch)
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch


def cost(what: str, total: int, batches: Callable[[], Batches], work: Callable[[list[Records]], object]) -> Cost:
    """Of working on all batches."""
    begun, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
    for batch in batches():
        if batch:
            work(batch)
    wall = time.perf_counter() - begun
    spent = (wall, time.process_time() - cpu, time.thread_time() - thread)
    return Cost(what, total / wall, *(1e6 * seconds / total for seconds in spent))


def measure(application: Application, scorer: Scorer, total: int) -> Iterator[Cost]:
    """Each kind once."""
    topic, places = application.input_topic, range(PARTITIONS)
    for what in ("consume alone", "one after the other", "a thread ahead"):
        properties = ClientProperties(load_settings(application.config)).consumer()
        consumer = Consumer({**properties, "isolation.level": "read_committed", "enable.auto.commit": False})
        consumer.assign([TopicPartition(topic, number, 0) for number in places])
        assert consumer.consume(1, 60), "nothing came"
        for number in places:
            consumer.seek(TopicPartition(topic, number, 0))
        pipeline = Pipeline(load_settings(None, [*SETTINGS, "sessions.gap=10m"]), scorer, Metrics())
        for number in places:
            pipeline.open(Partition(topic, number))
        batches = consumed(consumer, total)
        come = ahead(batches) if what == "a thread ahead" else batches
        yield cost(what, total, lambda come=come: come, len if what == "consume alone" else pipeline.process)  # type: ignore[misc]
        consumer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5, help="over the 177,952 lines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    gc.set_threshold(100_000, 50, 100)  # as a worker does
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = file.read().splitlines()
    total = len(lines) * arguments.passes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = KafkaBroker(folder / "kafka", heap="1g").start()
        try:
            checkpoint = arguments.checkpoint or checkpoint_of_hdfs(folder)
            application = Application(broker.bootstrap, folder, checkpoint, PARTITIONS)
            for records in repeated(lines, arguments.passes):
                application.produce(records)
            scorer = Scorer.load(checkpoint, device="cpu")
            list(measure(application, scorer, total))  # fills the score cache
            found = [each for _ in range(arguments.rounds) for each in measure(application, scorer, total)]
        finally:
            broker.stop()
    table = Table("", "lines/s", "wall", "CPU", "of that, the thread that works", title="us a line")
    medians = []
    for what in dict.fromkeys(each.what for each in found):
        of_kind = [each for each in found if each.what == what]
        names = ("lines_per_second", "wall", "cpu", "thread")
        medians.append(Cost(what, *(statistics.median(getattr(each, name) for each in of_kind) for name in names)))
        last = medians[-1]
        table.add_row(
            what, f"{last.lines_per_second:,.0f}", f"{last.wall:.2f}", f"{last.cpu:.2f}", f"{last.thread:.2f}"
        )
    Console().print(table)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(each) for each in medians], indent=2) + "\n")


if __name__ == "__main__":
    main()

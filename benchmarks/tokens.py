"""What do token records cost, beside lines that are read as they are?

HDFS lines whose blocks lie in all of 4 raw partitions go through `Rekeying.process`, and what it makes through
`Pipeline.process` with `input.format: tokens`, beside the same lines keyed by block through `Pipeline.process`. All
three take turns, in one process and without the client; as in `benchmarks.pipeline` the passes are repeated with other
block ids, and figures are CPU time, each stage's the least of all passes but the first.

With `--broker`, the same as processes on a real broker of this machine, exactly once, in events a second.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import PARTITIONS, checkpoint_of_hdfs, repeated, worker_rates
from benchmarks.pipeline import SETTINGS, TOPIC, CpuMetrics, Run
from detector.checkpoint import load
from detector.scoring.scorer import Scorer
from tests.broker.harness import Application, Record, RekeyProcess, WorkerProcess, read_all
from tests.broker.kafka import KafkaBroker
from tests.shared import shared
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.rekeying import Rekeying, Tokens
from worker.processing.token_records import decode
from worker.settings.document import load_settings

TOKENS = "tokens"
STAGES = ("decode", "sessions", "score", "encode", "other")


@dataclass
class Cost:
    """In ns of CPU time an event."""

    what: str
    stages: dict[str, float]
    total: float


class Passes:
    """CPU time of something that gets pass after pass."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.metrics = CpuMetrics()
        self.least: dict[str, float] = {}

    @contextmanager
    def measured(self, events: int, *, counts: bool) -> Iterator[None]:
        """Measures a pass of so many events, and remembers it if it counts."""
        self.metrics.spent.clear()
        begun = time.process_time()
        yield
        total = time.process_time() - begun
        found = {**self.metrics.spent, "other": total - sum(self.metrics.spent.values()), "total": total}
        if counts:
            ns = {stage: 1e9 * spent / events for stage, spent in found.items()}
            self.least = {stage: min(spent, self.least.get(stage, spent)) for stage, spent in ns.items()}

    def cost(self) -> Cost:
        """Of the passes that counted."""
        return Cost(self.what, {name: self.least.get(name, 0.0) for name in STAGES}, self.least["total"])


class Stage:
    """Rekeying and reading what it made."""

    def __init__(self, scorer: Scorer, targets: int) -> None:
        self.rekey, self.read = Passes("rekey, a line"), Passes("token records, an event")
        self.events = self.bytes = self.records = 0
        raw = load_settings(None, [*SETTINGS, f"output.topic={TOKENS}"])
        made_by = Tokens(scorer.checkpoint, scorer.vocabulary, None)
        self._rekeying = Rekeying(raw, made_by, self.rekey.metrics, lambda: targets)
        use = load_settings(None, [f"input.topics={TOKENS}", "input.format=tokens", "scoring.early=false"])
        self._pipeline = Pipeline(use, scorer, self.read.metrics)
        self._raw_ends, self._ends = [0] * PARTITIONS, [0] * targets
        for number in range(PARTITIONS):
            self._rekeying.open(Partition(TOPIC, number))
        for number in range(targets):
            self._pipeline.open(Partition(TOKENS, number))

    def process(self, records: Sequence[Record], batch_records: int, *, counts: bool) -> int:
        """Take a pass in; returns how many score records came of it."""
        batches = [self._raw(records[at : at + batch_records]) for at in range(0, len(records), batch_records)]
        made: list[list[Output]] = []
        with self.rekey.measured(len(records), counts=counts):
            for batch in batches:
                made.append(self._rekeying.process(batch))
                for number, end in enumerate(self._raw_ends):
                    self._rekeying.reached_end(Partition(TOPIC, number), end)
            made.append(self._rekeying.process([]))
        tokens = [self._tokens(outputs) for outputs in made]
        with self.read.measured(len(records), counts=counts):
            return sum(len(self._pipeline.process(batch)) for batch in tokens)

    def _raw(self, records: Sequence[Record]) -> list[Records]:
        """A batch whose lines lie in all partitions in turn."""
        batch = []
        for number in range(PARTITIONS):
            some: list[bytes | None] = [record.value for record in records[number::PARTITIONS]]
            first = self._raw_ends[number]
            self._raw_ends[number] = first + len(some)
            offsets = list(range(first, first + len(some)))
            batch.append(Records(TOPIC, number, offsets, some, None, [1_700_000_000_000] * len(some), None))
        return batch

    def _tokens(self, outputs: Sequence[Output]) -> list[Records]:
        values: dict[int, list[bytes | None]] = {}
        for output in outputs:
            values.setdefault(output.partition or 0, []).append(output.value)
            self.records += 1
            self.bytes += len(output.value or b"")
        batch = []
        for number, some in sorted(values.items()):
            first = self._ends[number]
            self._ends[number] = first + len(some)
            offsets = list(range(first, first + len(some)))
            batch.append(Records(TOKENS, number, offsets, some, None, [1_700_000_000_000] * len(some), None))
        return batch


@dataclass
class Rate:
    """Events a second of a process on a real broker; of lines those of the last pass."""

    what: str
    events_per_second: float


def on_a_broker(folder: Path, checkpoint: Path, lines: list[bytes], passes: int, targets: int) -> Iterator[Rate]:
    """Rates of reading lines, of rekeying them and of reading what that made, one after the other."""
    broker = KafkaBroker(folder / "kafka", heap="1g").start()
    try:
        keyed = Application(broker.bootstrap, folder, checkpoint, PARTITIONS, scoring={"early": False})
        spread = Application(broker.bootstrap, folder, checkpoint, PARTITIONS, output={"partitions": targets})
        keyed.produce(chain.from_iterable(repeated(lines, passes)))
        records = enumerate(chain.from_iterable(repeated(lines, passes)))
        spread.produce(record._replace(partition=at % PARTITIONS) for at, record in records)
        _, warm, _ = worker_rates(keyed, len(lines), passes, "state.snapshot_interval=10s")
        yield Rate("run, lines", warm)
        total = len(lines) * passes
        with RekeyProcess(spread.config, folder / "rekey.log", ["state.snapshot_interval=10s"]) as rekey:
            marks = marks_of(spread, rekey, dict.fromkeys(range(PARTITIONS)), total)
        yield Rate("rekey, lines", rate_of(marks))
        events: dict[int, list[tuple[int, int]]] = {number: [] for number in range(targets)}
        counts: Counter[int] = Counter()
        for message in read_all(broker.bootstrap, spread.score_topic):
            partition = message.partition() or 0
            counts[partition] += len(decode(message.value() or b""))
            events[partition].append((message.offset() or 0, counts[partition]))
        reading = Application(
            broker.bootstrap, folder, checkpoint, targets, spread.score_topic, scoring={"early": False}
        )
        reading.settings["input"] = {"topics": [spread.score_topic], "format": "tokens"}
        reading.settings["sessions"] = {"idle_flush": "2s"}
        reading.config.write_text(json.dumps(reading.settings))
        with reading.start("state.snapshot_interval=10s") as worker:
            marks = marks_of(reading, worker, events, total)
        yield Rate("run, token records", rate_of(marks))
    finally:
        broker.stop()


def marks_of(
    application: Application,
    worker: WorkerProcess,
    events: dict[int, list[tuple[int, int]]] | dict[int, None],
    total: int,
) -> list[tuple[float, int]]:
    """When how many events were committed; `events` has, by partition, offset and events up to each record."""
    group = {"bootstrap.servers": application.bootstrap, "group.id": application.settings["application_id"]}
    watcher = Consumer(group)
    asked = [TopicPartition(application.input_topic, number) for number in events]
    process, marks = psutil.Process(worker.process.pid), [(0.0, 0)]

    def done() -> bool:
        committed = 0
        for each in watcher.committed(asked, timeout=30):
            known, offset = events[each.partition], max(0, each.offset)
            if known is None:
                committed += offset
            else:
                at = int(np.searchsorted([record for record, _ in known], offset))
                committed += known[at - 1][1] if at else 0
        if committed > marks[-1][1]:
            marks.append((time.perf_counter(), committed))
        return committed >= total or not process.is_running()

    worker.wait_until(done, timeout_s=900)
    assert worker.stop() == 0, worker.tail()
    watcher.close()
    return marks[1:]


def rate_of(marks: Sequence[tuple[float, int]]) -> float:
    """Events a second between the first and the last commit that was seen."""
    if len(marks) < 2:
        raise SystemExit("all was done between two looks: ask for more --passes")
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=4, help="over the lines; the first is not counted")
    parser.add_argument("--lines", type=int, default=177_952, help="of them")
    parser.add_argument("--batch", type=int, default=10_000, help="lines in a call")
    parser.add_argument("--partitions", type=int, default=4, help="of the topic of token records")
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--broker", type=int, default=0, metavar="PASSES", help="also processes on a real broker")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    gc.set_threshold(100_000, 50, 100)  # as a worker does
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = file.read().splitlines()[: arguments.lines]
    rates: list[Rate] = []
    with tempfile.TemporaryDirectory() as name:
        checkpoint = arguments.checkpoint or checkpoint_of_hdfs(Path(name))
        scorer = Scorer(load(checkpoint), device="cpu")
        stage, keyed = Stage(scorer, arguments.partitions), Run(scorer, early=False, gap="10m")
        found: list[tuple[int, int]] = []
        for number, records in enumerate(repeated(lines, arguments.passes)):
            keyed.process(records, arguments.batch, measured=number > 0)
            found.append((keyed.records, stage.process(records, arguments.batch, counts=number > 0)))
        if arguments.broker:
            for rate in on_a_broker(Path(name), checkpoint, lines, arguments.broker, arguments.partitions):
                rates.append(rate)
                print(f"{rate.what}: {rate.events_per_second:,.0f} events/s", flush=True)

    of_lines = keyed.cost()
    costs = [Cost("lines, a line", of_lines.stages, of_lines.total), stage.read.cost(), stage.rekey.cost()]
    table = Table("", *STAGES, "total", "of lines", title="ns of CPU")
    for each in costs:
        row = (f"{each.stages.get(name, 0.0):,.0f}" for name in STAGES)
        table.add_row(each.what, *row, f"{each.total:,.0f}", f"{each.total / of_lines.total:.2f}")
    console = Console()
    console.print(table)
    events = len(lines) * arguments.passes
    size, of_line = stage.bytes / events, sum(map(len, lines)) / len(lines)
    console.print(f"{size:.1f} bytes an event, {of_line:.1f} a line; {events / stage.records:,.0f} events a record")
    console.print(f"score records by pass, of lines and of token records: {found}")
    for rate in rates:
        ratio = rate.events_per_second / rates[0].events_per_second
        console.print(f"{rate.what}: {rate.events_per_second:,.0f} events/s ({ratio:.2f})")
    if arguments.output:
        figures = {"costs": [*map(asdict, costs)], "bytes": size, "line_bytes": of_line, "rates": [*map(asdict, rates)]}
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

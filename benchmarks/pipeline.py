"""What does a line cost on its way from a record of Kafka to score records, stage by stage and without the client?

HDFS lines in 4 partitions go through `Pipeline.process` in batches as a worker polls them, repeated with other block
ids and at later times, so that all passes but the first meet a score cache that knows their sequences. Figures are CPU
time, each stage's the least of all passes but the first; passes without and with early scores take turns.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import PARTITIONS, checkpoint_of_hdfs, repeated
from detector.scoring.scorer import Scorer
from tests.broker.harness import Record
from tests.shared import shared
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline, Stage
from worker.processing.records import Partition, Records
from worker.settings.document import load_settings

TOPIC = "raw-logs"
STAGES = get_args(Stage)
SETTINGS = (
    r"sessions.key={regex: 'blk_-?\d+'}",
    r"input.timestamp={pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}",
)


class CpuMetrics(Metrics):
    """Metrics that know what the stages have taken, in seconds of CPU time."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """As `Metrics.stage`."""
        begun = time.process_time()
        yield
        self.spent[stage] += time.process_time() - begun


@dataclass
class Cost:
    """Of a pass, in ns of CPU time a line; `other` is what stands between the stages."""

    early: bool
    gap: str
    line_text: int
    lines: int
    records: int
    stages: dict[str, float]
    total: float
    encode_ns_a_record: float


class Run:
    """A pipeline that gets pass after pass."""

    def __init__(self, scorer: Scorer, *, early: bool, gap: str, line_text: int = 0) -> None:
        self.early, self.gap, self.line_text = early, gap, line_text
        self.least: dict[str, float] = {}
        self.lines = self.records = 0
        self._metrics = CpuMetrics()
        flags = f"scoring.early={str(early).lower()}", f"sessions.gap={gap}", f"output.line_text={line_text}"
        self._pipeline = Pipeline(load_settings(None, [*SETTINGS, *flags]), scorer, self._metrics)
        self._ends = [0] * PARTITIONS
        for number in range(PARTITIONS):
            self._pipeline.open(Partition(TOPIC, number))

    def process(self, records: Sequence[Record], batch_records: int, *, measured: bool) -> None:
        """Take a pass in."""
        batches = [self._batch(records[at : at + batch_records]) for at in range(0, len(records), batch_records)]
        self._metrics.spent.clear()
        self.lines, self.records = len(records), 0
        begun = time.process_time()
        for batch in batches:
            self.records += len(self._pipeline.process(batch))
        total = time.process_time() - begun
        found = {**self._metrics.spent, "other": total - sum(self._metrics.spent.values()), "total": total}
        if measured:
            self.least = {stage: min(spent, self.least.get(stage, spent)) for stage, spent in found.items()}

    def _batch(self, records: Sequence[Record]) -> list[Records]:
        values: list[list[bytes | None]] = [[] for _ in range(PARTITIONS)]
        for record in records:
            values[record.partition].append(record.value)
        batch = []
        for number, some in enumerate(values):
            first = self._ends[number]
            self._ends[number] = first + len(some)
            # As arrays, as the Kafka source has them.
            offsets, timestamps = np.arange(first, first + len(some)), np.full(len(some), 1_700_000_000_000)
            if some:
                batch.append(Records(TOPIC, number, offsets, some, None, timestamps, None))
        return batch

    def cost(self) -> Cost:
        """Of the passes that were measured."""
        ns = {stage: 1e9 * spent / self.lines for stage, spent in self.least.items()}
        total = ns.pop("total")
        a_record = ns.get("encode", 0.0) * self.lines / max(1, self.records)
        return Cost(self.early, self.gap, self.line_text, self.lines, self.records, ns, total, a_record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=4, help="over the lines; the first is not counted")
    parser.add_argument("--lines", type=int, default=177_952, help="of them")
    parser.add_argument("--batch", type=int, default=10_000, help="records in a call")
    parser.add_argument("--gap", nargs="+", default=["10m", "1h"])
    parser.add_argument("--line-text", type=int, nargs="+", default=[0], help="output.line_text, each in turn")
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    gc.set_threshold(100_000, 50, 100)  # as a worker does
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = file.read().splitlines()[: arguments.lines]
    with tempfile.TemporaryDirectory() as name:
        scorer = Scorer.load(arguments.checkpoint or checkpoint_of_hdfs(Path(name)), device="cpu")
    runs = [
        Run(scorer, early=early, gap=gap, line_text=line_text)
        for gap in arguments.gap
        for early in (False, True)
        for line_text in arguments.line_text
    ]
    for number, records in enumerate(repeated(lines, arguments.passes)):
        for run in runs:
            run.process(records, arguments.batch, measured=number > 0)

    costs = [run.cost() for run in runs]
    columns = *STAGES, "other"
    table = Table(
        "gap", "early", "text", "records", *columns, "total", "a record", title="ns of CPU a line; encode: a record"
    )
    for each in costs:
        row = (f"{ns:,.0f}" for ns in (*(each.stages.get(stage, 0.0) for stage in columns), each.total))
        table.add_row(
            each.gap, str(each.early), str(each.line_text), f"{each.records:,}", *row, f"{each.encode_ns_a_record:,.0f}"
        )
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(each) for each in costs], indent=2) + "\n")


if __name__ == "__main__":
    main()

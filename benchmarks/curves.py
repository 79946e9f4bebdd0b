"""What does a record cost against partitions, open sessions, a session's length and how many sequences are known?

Lines of made-up sessions go through `Pipeline.process` in one process, without a client and without early scores. Every
session gets as many events as its case says and then closes by `max_events`; any of the open ones may get the next
event, so at many sessions each event touches memory that no cache holds. All sessions have one sequence, but for the
share of distinct ones that a case asks for: only these does the model score, on the CPU, which is in `score`.

Each curve has a reference case, the same in all; the cases of a curve take turns, and a ratio is of two figures of one
round. Figures are CPU time, medians of the rounds. A snapshot's pause is what the loop waits for before it goes on, by
the clock; `made` is the CPU time that the snapshot costs in all. A replay takes in records that were scored before.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.pipeline import SETTINGS, STAGES, TOPIC, CpuMetrics
from detector.checkpoint import demo_checkpoint
from detector.scoring.scorer import Scorer
from worker.delivery.snapshots import Snapshot, encode
from worker.processing.clock import ClockState
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.session_columns import Image
from worker.processing.session_state import SessionsState
from worker.settings.document import load_settings

BATCH: Final = 10_000  # records in a call, of all partitions together
SCORING: Final = ("scoring.early=false", "scoring.warning=0.99999", "scoring.critical=1")  # made-up sessions are odd
PATTERN: Final = 10  # templates that the one sequence repeats
PART_BYTES: Final = 1_000_000
STAMP: Final = b"081109 203615"
STREAM_TIME: Final = 1_226_262_975_000  # that of the stamp, in ms
PARTS_OF_A_LINE: Final = {"<num>": "7", "<ip>": "10.250.19.102", "<path>": "/user/root/part-7"}


@dataclass(frozen=True)
class Case:
    """A point of a curve."""

    partitions: int = 4
    open_sessions: int = 10_000
    events_per_session: int = 20
    distinct: float = 0.0  # share of the sessions whose sequence no other has
    replayed: bool = False


REFERENCE: Final = Case()
CURVES: Final[dict[str, list[Case]]] = {
    "partitions": [replace(REFERENCE, partitions=n) for n in (1, 4, 16, 64)],
    "open_sessions": [replace(REFERENCE, open_sessions=n) for n in (1_000, 10_000, 100_000, 1_000_000)],
    "events_per_session": [replace(REFERENCE, events_per_session=n) for n in (5, 20, 100, 1_000)],
    "distinct": [replace(REFERENCE, open_sessions=1_000, distinct=share) for share in (1.0, 0.5, 0.1, 0.01)],
    "replayed": [REFERENCE, replace(REFERENCE, replayed=True)],
}


@dataclass(frozen=True)
class Cost:
    """Of a case: ns of CPU time a record, and what the reference of the same round is less."""

    curve: str
    case: Case
    records: int
    score_records: int
    stages: dict[str, float]
    total: float
    ratio: float
    without_score_ratio: float


@dataclass(frozen=True)
class Pause:
    """Of a snapshot of open sessions of 20 events in one partition, in ms: by the clock, and of CPU time in all."""

    open_sessions: int
    pause_ms: float
    made_ms: float


class Lines:
    """The lines of sessions, and their tokens."""

    def __init__(self, scorer: Scorer) -> None:
        texts = []
        for template in scorer.vocabulary.templates:
            line = template.replace("<num> <num>", STAMP.decode(), 1).replace("blk_<num>", "blk_{}")
            for name, value in PARTS_OF_A_LINE.items():
                line = line.replace(name, value)
            texts.append(line)
        self._around = [tuple(part.encode() for part in text.split("{}", 1)) for text in texts]
        self.tokens = [scorer.vocabulary.token_of(template) for template in scorer.vocabulary.templates]

    def line(self, template: int, key: int) -> bytes:
        """A line of a session."""
        before, after = self._around[template]
        return b"%sblk_%d%s" % (before.removesuffix(b"blk_"), key, after)


class Run:
    """A pipeline with as many open sessions as its case has, which stay as many."""

    def __init__(self, scorer: Scorer, lines: Lines, case: Case) -> None:
        self.case, self._lines, self._random = case, lines, Random(1)
        self._metrics = CpuMetrics()
        limits = f"sessions.max_events={case.events_per_session}", "sessions.max_open=2000000", "sessions.gap=1h"
        settings = load_settings(None, [*SETTINGS, *SCORING, *limits])
        self._pipeline = Pipeline(settings, scorer, self._metrics)
        each = case.open_sessions // case.partitions
        self._keys = [[self._random.getrandbits(62) for _ in range(each)] for _ in range(case.partitions)]
        self._ages = [[self._random.randrange(case.events_per_session) for _ in keys] for keys in self._keys]
        self._own = [[False] * each for _ in range(case.partitions)]
        self._ends = [0] * case.partitions
        for number in range(case.partitions):
            state = self._open_already(number)
            self._ends[number] = first = int(state.offsets.max(initial=0)) + 1
            live_from = 2**60 if case.replayed else first
            self._pipeline.open(Partition(TOPIC, number), first, live_from, state)

    def _open_already(self, number: int) -> SessionsState:
        begun = [at for at, age in enumerate(self._ages[number]) if age]
        lengths = np.array([self._ages[number][at] for at in begun], np.int64)
        events, n = int(lengths.sum()), len(begun)
        pattern = np.array([self._lines.tokens[at] for at in range(PATTERN)], np.int64)
        within = np.arange(events) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        # As if the events of all had come in turns.
        offsets = np.repeat(np.arange(n), lengths) + within * max(n, 1)
        times = np.full(n, STREAM_TIME)
        return SessionsState(
            ClockState(STREAM_TIME),
            [f"blk_{self._keys[number][at]}" for at in begun],
            lengths,
            times,
            times,
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            pattern[within % PATTERN],
            offsets,
            np.full(events, STREAM_TIME),
        )

    def _batch(self) -> list[Records]:
        case, pick, batch = self.case, self._random, []
        for number in range(case.partitions):
            keys, ages, own = self._keys[number], self._ages[number], self._own[number]
            values: list[bytes | None] = []
            for _ in range(BATCH // case.partitions):
                at = pick.randrange(len(keys))
                if ages[at] == 0:
                    keys[at], own[at] = pick.getrandbits(62), pick.random() < case.distinct
                template = pick.randrange(len(self._lines.tokens)) if own[at] else ages[at] % PATTERN
                values.append(self._lines.line(template, keys[at]))
                ages[at] = (ages[at] + 1) % case.events_per_session
            first = self._ends[number]
            self._ends[number] = first + len(values)
            # As arrays, as the Kafka source has them.
            offsets, timestamps = np.arange(first, first + len(values)), np.full(len(values), STREAM_TIME)
            batch.append(Records(TOPIC, number, offsets, values, None, timestamps, None))
        return batch

    def image(self) -> Image:
        """What the loop waits for when the snapshot of the first partition is due."""
        return self._pipeline.image(Partition(TOPIC, 0))[0]

    def measure(self, batches: int) -> tuple[dict[str, float], int]:
        """Ns of CPU a record by stage, and how many score records came."""
        made = [self._batch() for _ in range(batches)]
        self._metrics.spent.clear()
        outputs, begun = 0, time.process_time()
        for batch in made:
            outputs += len(self._pipeline.process(batch))
        total = time.process_time() - begun
        spent = {stage: self._metrics.spent.get(stage, 0.0) for stage in STAGES}
        spent["other"] = total - sum(spent.values())
        return {stage: 1e9 * seconds / (batches * BATCH) for stage, seconds in spent.items()}, outputs


def curve(name: str, cases: Sequence[Case], scorer: Scorer, batches: int, rounds: int) -> list[Cost]:
    """The cases of a curve in turns, and the reference in each round."""
    lines = Lines(scorer)
    runs = [Run(scorer, lines, case) for case in dict.fromkeys((REFERENCE, *cases))]
    for run in runs:
        # What only the first records cost, and until the sequences are as the case says.
        run.measure(2 + (2 * run.case.open_sessions * run.case.events_per_session // BATCH if run.case.distinct else 0))
    found: dict[Case, list[tuple[dict[str, float], int]]] = {run.case: [] for run in runs}
    for _ in range(rounds):
        for run in runs:
            found[run.case].append(run.measure(batches))
    costs = []
    for case in cases:
        rows = [stages for stages, _ in found[case]]
        ratios, bare = [], []
        for stages, (reference, _) in zip(rows, found[REFERENCE], strict=True):
            ratios.append(sum(stages.values()) / sum(reference.values()))
            bare.append((sum(stages.values()) - stages["score"]) / (sum(reference.values()) - reference["score"]))
        stages = {stage: median(row[stage] for row in rows) for stage in rows[0]}
        total = median(sum(row.values()) for row in rows)
        outputs = found[case][-1][1]
        costs.append(Cost(name, case, batches * BATCH, outputs, stages, total, median(ratios), median(bare)))
    return costs


def pause(open_sessions: int, scorer: Scorer, rounds: int) -> Pause:
    """Of the loop, and what the snapshot costs in all."""
    case = replace(REFERENCE, partitions=1, open_sessions=open_sessions, events_per_session=40)
    run = Run(scorer, Lines(scorer), case)
    pauses, all_of_it = [], []
    for _ in range(rounds):
        run.measure(1)
        begun, spent = time.perf_counter(), time.process_time()
        image = run.image()
        pauses.append(time.perf_counter() - begun)
        encode(Snapshot(0, "sha256:0", 40, image.state()), PART_BYTES)
        all_of_it.append(time.process_time() - spent)
        del image
    return Pause(open_sessions, 1e3 * median(pauses), 1e3 * median(all_of_it))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10, help=f"of {BATCH:,} records, in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--curve", nargs="+", choices=[*CURVES, "pause"], default=[*CURVES, "pause"])
    parser.add_argument("--checkpoint", type=Path, default=demo_checkpoint())
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    gc.set_threshold(100_000, 50, 100)  # as a worker does
    scorer = Scorer.load(arguments.checkpoint, device="cpu")
    costs: list[Cost] = []
    for name, cases in CURVES.items():
        if name in arguments.curve:
            costs += curve(name, cases, scorer, arguments.batches, arguments.rounds)
    counts = [case.open_sessions for case in CURVES["open_sessions"]] if "pause" in arguments.curve else []
    pauses = [pause(count, scorer, arguments.rounds) for count in counts]

    console, columns = Console(), (*STAGES, "other")
    table = Table("curve", "", *columns, "total", "ratio", "but for score", title="ns of CPU a record")
    for each in costs:
        ns = (f"{each.stages[stage]:,.0f}" for stage in columns)
        ratios = f"{each.ratio:.2f}", f"{each.without_score_ratio:.2f}"
        table.add_row(each.curve, f"{getattr(each.case, each.curve):,}", *ns, f"{each.total:,.0f}", *ratios)
    console.print(table)
    table = Table("open sessions", "pause", "made", title="ms of a snapshot")
    for one in pauses:
        table.add_row(f"{one.open_sessions:,}", f"{one.pause_ms:.1f}", f"{one.made_ms:.1f}")
    console.print(table)
    if arguments.output:
        written = {"costs": [asdict(each) for each in costs], "pauses": [asdict(each) for each in pauses]}
        arguments.output.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()

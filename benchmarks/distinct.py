"""Do memory and CPU time stay flat under a million distinct lines, session keys and event sequences?

Each kind goes through `Pipeline.process` in a process of its own: lines that no template matches, each with words that
no other has; keys of sessions of one event; sequences of events, each of a session that ends after as many. Nothing
comes twice, which is the worst for whatever remembers what it has seen. Resident memory is what the process holds after
what is free was given back to the system, as a worker does. It may grow until every cache is full, and no further:
`growth` is that of the second half. What one of them costs may not grow either; of sequences that is the model's work.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.curves import BATCH, SCORING, STREAM_TIME, Lines
from benchmarks.pipeline import SETTINGS, TOPIC
from detector.checkpoint import demo_checkpoint
from detector.scoring.scorer import Scorer
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.settings.document import load_settings

EVENTS: Final = 4  # of a sequence
LOOKS: Final = 10


@dataclass(frozen=True)
class Held:
    """Resident MB (10^6 bytes) after each tenth of the distinct ones, the first after none, and us of CPU for one."""

    kind: str
    distinct: int
    resident_mb: list[float]
    cpu_us: list[float]

    @property
    def growth_mb(self) -> float:
        """Of the second half."""
        return self.resident_mb[-1] - self.resident_mb[len(self.resident_mb) // 2]


def unknown_lines(lines: Lines) -> Iterator[bytes]:
    """Of sessions of one event."""
    del lines
    random = Random(1)
    while True:
        words = " ".join("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(6))
        yield b"081109 203615 7 INFO blk_%d %s" % (random.getrandbits(62), words.encode())


def keys(lines: Lines) -> Iterator[bytes]:
    """Of sessions of one event, always the same."""
    random = Random(2)
    while True:
        yield lines.line(0, random.getrandbits(62))


def sequences(lines: Lines) -> Iterator[bytes]:
    """No two alike: the n-th is n, its digits being templates."""
    random, n = Random(3), 0
    while True:
        key, left = random.getrandbits(62), n
        for _ in range(EVENTS):
            left, template = divmod(left, len(lines.tokens))
            yield lines.line(template, key)
        n += 1


#: With how many lines each of the distinct ones takes.
KINDS: Final[dict[str, tuple[Callable[[Lines], Iterator[bytes]], int]]] = {
    "lines": (unknown_lines, 1),
    "keys": (keys, 1),
    "sequences": (sequences, EVENTS),
}


def measure(kind: str, distinct: int, score_cache: int) -> Held:
    """Of one kind, in this process."""
    make, events = KINDS[kind]
    scorer = Scorer.load(demo_checkpoint(), device="cpu", cache_size=score_cache)
    settings = load_settings(None, [*SETTINGS, *SCORING, f"sessions.max_events={events}"])
    pipeline, partition = Pipeline(settings, scorer, Metrics()), Partition(TOPIC, 0)
    pipeline.open(partition)
    stream, process, offset = make(Lines(scorer)), psutil.Process(), 0
    resident, cpu_us = [], []
    for look in range(LOOKS + 1):
        begin, until, spent = offset, distinct * events * look // LOOKS, 0.0
        while offset < until:
            values: list[bytes | None] = [*islice(stream, min(BATCH, until - offset))]
            offsets = [*range(offset, offset + len(values))]
            begun = time.process_time()
            pipeline.process([Records(TOPIC, 0, offsets, values, None, [STREAM_TIME] * len(values), None)])
            spent += time.process_time() - begun
            offset += len(values)
        if look:
            cpu_us.append(1e6 * spent * events / (until - begin))
        ctypes.CDLL(None).malloc_trim(0)
        resident.append(process.memory_info().rss / 1e6)
        told = f", {cpu_us[-1]:.1f} us each" if look else ""
        print(f"{kind}, {until // events:,}: {resident[-1]:.0f} MB{told}", flush=True)
    return Held(kind, distinct, resident, cpu_us)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distinct", type=int, default=1_000_000)
    parser.add_argument("--score-cache", type=int, default=100_000, help="sequences, as model.score_cache")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    held = []
    for kind in arguments.kind:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            held.append(alone.apply(measure, (kind, arguments.distinct, arguments.score_cache)))
    table = Table("distinct", "how many", *(f"{look}/{LOOKS}" for look in range(LOOKS + 1)), "growth", title="MB")
    for each in held:
        row = (f"{resident:.0f}" for resident in each.resident_mb)
        table.add_row(each.kind, f"{each.distinct:,}", *row, f"{each.growth_mb:+.0f}")
    Console().print(table)
    table = Table(
        "distinct", "how many", *(f"{look}/{LOOKS}" for look in range(1, LOOKS + 1)), title="us of CPU for one"
    )
    for each in held:
        table.add_row(each.kind, f"{each.distinct:,}", *(f"{us:.1f}" for us in each.cpu_us))
    Console().print(table)
    if arguments.output:
        written = [{**asdict(each), "growth_mb": each.growth_mb} for each in held]
        arguments.output.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()

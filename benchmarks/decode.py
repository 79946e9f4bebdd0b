"""What does decoding a line cost, part by part?

The same lines are decoded with more and more of the settings: first they only become texts (`sessions.key=partition`,
Kafka's timestamps, every line alike to the tokenizer), then they get keys, times of their own and tokens. A part is
what its step costs more than the one before, in ns of CPU time a line, the best of several rounds, which alternate.
Tokens come from a warm dictionary, as they do for nearly all lines of a worker that has run for a minute.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import Alike
from benchmarks.tokenizer import BATCH, DATA, learn_vocabulary, read
from detector.text.tokenizer import Tokenizer
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.document import load_settings

LINES = 100_000
LEARNT = 20_000
PARTITIONS = 4
KAFKA_MS = 1_226_262_975_000
PARTS = ("texts", "keys", "times", "tokens")


@dataclass(frozen=True)
class Input:
    """Lines, and the settings by which they get keys and times."""

    name: str
    values: list[bytes]
    texts: list[str]
    shape: tuple[str, ...]
    key: str
    timestamp: str


@dataclass(frozen=True)
class Cost:
    """Of one kind of lines, ns a line."""

    name: str
    texts: float
    keys: float
    times: float
    tokens: float
    decode: float


def inputs() -> list[Input]:
    hdfs = read(DATA / "hdfs/raw.log.gz")[:LINES]
    ssh = read(DATA / "loghub_2k/OpenSSH_2k.log.gz")
    ssh *= LINES // len(ssh)
    documents = [
        orjson.dumps(
            {
                "ts": f"2008-11-09T{n // 3_600_000 % 24:02}:{n // 60_000 % 60:02}:{n // 1000 % 60:02}.{n % 1000:03}Z",
                "level": "INFO",
                "trace": {"id": f"{n * 7919 % LINES:016x}"},
                "msg": line,
            }
        )
        for n, line in enumerate(hdfs)
    ]
    return [
        Input(
            "text, HDFS",
            [line.encode() for line in hdfs],
            hdfs,
            (),
            r"{regex: 'blk_-?\d+'}",
            r"{pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}",
        ),
        Input(
            "text, OpenSSH",
            [line.encode() for line in ssh],
            ssh,
            (),
            r"{regex: 'sshd\[(\d+)\]'}",
            "{format: syslog}",
        ),
        Input(
            "JSON",
            documents,
            hdfs,
            ("input.format=json", "input.message=/msg"),
            "{pointer: /trace/id}",
            "/ts",
        ),
    ]


def polls(values: Sequence[bytes]) -> list[list[Records]]:
    """Batches of several partitions each."""
    found = []
    size = BATCH // PARTITIONS
    for start in range(0, len(values), BATCH):
        poll = []
        for partition in range(PARTITIONS):
            own: list[bytes | None] = list(values[start + partition * size : start + (partition + 1) * size])
            offsets = list(range(start, start + len(own)))
            poll.append(Records("raw", partition, offsets, own, None, [KAFKA_MS] * len(own), None))
        found.append(poll)
    return found


def measure(given: Input, rounds: int) -> Cost:
    key, timestamp = f"sessions.key={given.key}", f"input.timestamp={given.timestamp}"
    tokenizer = Tokenizer(learn_vocabulary([pa.array(given.texts[:LEARNT], pa.string())]))
    steps = [
        (["sessions.key=partition"], Alike()),
        ([key], Alike()),
        ([key, timestamp], Alike()),
        ([key, timestamp], tokenizer),
    ]
    decoders = []
    for changes, encoder in steps:
        settings = load_settings(None, [*given.shape, *changes])
        decoders.append(Decoder(settings.input, settings.sessions, encoder))
    batches = polls(given.values)
    best = [float("inf")] * len(steps)
    for _ in range(rounds):
        for step, decoder in enumerate(decoders):
            began = time.process_time()
            events = sum(len(part.keys) for poll in batches for part in decoder.decode(poll))
            best[step] = min(best[step], time.process_time() - began)
            if events != len(given.values):
                raise SystemExit(f"{given.name}: {events} of {len(given.values)} lines were read; no figures")
    spent = [1e9 * each / len(given.values) for each in best]
    return Cost(given.name, *(after - before for before, after in zip([0.0, *spent], spent, strict=False)), spent[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        Console().print(f"There are no logs at {DATA}; LOGMAMBA_SHARED names the folder that holds data/.")
        return
    gc.set_threshold(100_000, 50, 100)  # as a worker does: a batch of documents is many objects
    costs = [measure(each, arguments.rounds) for each in inputs()]
    table = Table("ns a line", *PARTS, "decode")
    for cost in costs:
        table.add_row(cost.name, *(f"{getattr(cost, part):,.0f}" for part in (*PARTS, "decode")))
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(each) for each in costs], indent=2) + "\n")


if __name__ == "__main__":
    main()

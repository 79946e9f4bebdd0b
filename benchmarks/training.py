"""How long does `logmamba train` take on HDFS at its full size, the command as a whole?

The public log has 575,061 sessions, of which the shared data hold a part. Training sessions of that part are drawn
again and again until there are as many, 2.93 % of them anomalous as in the whole. There are fewer distinct ones than
the whole log has, but a training takes no more steps for those. The test part is the sample's own, and none of its
sessions is drawn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.datasets import Dataset, Integers, hdfs, require_data
from benchmarks.accuracy.devices import device_name
from benchmarks.accuracy.early import finals
from benchmarks.accuracy.protocols import random_split
from detector.checkpoint import load
from detector.model.devices import resolve_device
from detector.quality.metrics import Detection, average_precision
from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE
from detector.scoring.scorer import Scorer
from detector.text.tokenizer import Tokenizer

NORMAL_SESSIONS, ANOMALOUS_SESSIONS = 558_223, 16_838


@dataclass(frozen=True)
class Worth:
    """What a checkpoint says of the test part.

    Attributes:
        f1, auprc: normal sessions weighing as many as in the whole log; F1 by threshold.
        missed, false_alarms: of the sample's sessions at 0.7.
    """

    f1: dict[str, float]
    auprc: float
    missed: int
    false_alarms: int


@dataclass(frozen=True)
class Trained:
    """What a training took.

    Attributes:
        size: of the model.
        sessions, distinct, events: that it learnt from and was validated by.
        seconds: of the whole command.
        training: of them between the first step and the last report.
        tokens: that the steps saw, BOS and EOS included.
        worth: of what came out.
    """

    size: str
    sessions: int
    distinct: int
    events: int
    seconds: float
    training: float
    tokens: int
    worth: Worth


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, test, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=NORMAL_SESSIONS + ANOMALOUS_SESSIONS, help="to learn from")
    parser.add_argument("--sizes", nargs="+", default=["reference", "tiny"], choices=["tiny", "small", "reference"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, help="tokens of a step; as the command has it")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    options = parser.parse_args(arguments)
    require_data()
    device = device_name(resolve_device("auto"))
    data = hdfs()
    split = random_split(data, options.seed)
    rows = np.concatenate((split.training, split.validation))
    rng = np.random.default_rng(options.seed)
    drawn = _drawn(data, rows, options.sessions, rng)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sessions.tsv")
        events, distinct = _write(path, data, drawn)
        for size in options.sizes:
            checkpoint = Path(folder, size)
            command = [sys.executable, "-m", "worker", "train", "--input", str(path), "--output", str(checkpoint)]
            command += ["--size", size, "--seed", str(options.seed)]
            if options.batch_tokens is not None:
                command += ["--batch-tokens", str(options.batch_tokens)]
            began = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = time.perf_counter() - began
            reports = [orjson.loads(line) for line in Path(f"{checkpoint}.training.jsonl").read_bytes().splitlines()]
            worth = _worth(checkpoint, data.select(split.test, data.normal_weight))
            last = reports[-1]
            found.append(Trained(size, len(drawn), distinct, events, seconds, last["seconds"], last["tokens"], worth))
    _show(Console(), found, device)
    if options.output is not None:
        document = {"device": device, "torch": torch.__version__, "trained": [asdict(one) for one in found]}
        options.output.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def _drawn(data: Dataset, rows: Integers, sessions: int, rng: np.random.Generator) -> Integers:
    """Rows as often as they are drawn, in random order."""
    anomalous = round(sessions * ANOMALOUS_SESSIONS / (NORMAL_SESSIONS + ANOMALOUS_SESSIONS))
    parts = [
        rng.choice(rows[data.anomalous[rows] == kind], size)
        for kind, size in ((False, sessions - anomalous), (True, anomalous))
    ]
    return rng.permutation(np.concatenate(parts))


def _write(path: Path, data: Dataset, drawn: Integers) -> tuple[int, int]:
    """The sessions as TSV; how many events and how many distinct sessions they are."""
    names = [text.split(" ", 1)[0] for text in data.texts]
    events, distinct = 0, set()
    with path.open("w") as file:
        file.write("session_id\tlabel\tevents\n")
        for number, row in enumerate(drawn.tolist()):
            session = data.sessions[row].tolist()
            text = " ".join(names[event] for event in session)
            file.write(f"s{number}\t{int(data.anomalous[row])}\t{text}\n")
            events += len(session)
            distinct.add(text)
    return events, len(distinct)


def _worth(checkpoint: Path, test: Dataset) -> Worth:
    """Of the test part's sessions."""
    vocabulary = load(checkpoint).vocabulary
    tokens = Tokenizer(vocabulary).encode(pa.array([text.split(" ", 1)[0] for text in test.texts], pa.string()))
    scores = finals(Scorer.load(checkpoint).score([tokens[session].tobytes() for session in test.sessions]))
    weights = np.where(test.anomalous, 1.0, test.normal_weight)
    return Worth(
        f1={
            name: Detection.at(threshold, scores, test.anomalous, weights).f1
            for name, threshold in (("0.7", WARNING_SCORE), ("0.95", CRITICAL_SCORE))
        },
        auprc=average_precision(scores, test.anomalous, weights),
        missed=int((test.anomalous & (scores < WARNING_SCORE)).sum()),
        false_alarms=int((~test.anomalous & (scores >= WARNING_SCORE)).sum()),
    )


def _show(console: Console, found: Sequence[Trained], device: str) -> None:
    table = Table(box=SIMPLE_HEAD, title=f"logmamba train on {device}")
    for column in ("size", "sessions", "distinct", "events", "s, all", "s, training", "F1 at 0.7", "at 0.95", "AUPRC"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(
            one.size,
            f"{one.sessions:,}",
            f"{one.distinct:,}",
            f"{one.events:,}",
            f"{one.seconds:.1f}",
            f"{one.training:.1f}",
            *(f"{value:.4f}" for value in one.worth.f1.values()),
            f"{one.worth.auprc:.4f}",
        )
    console.print(table)
    for one in found:
        console.print(f"{one.size}: {one.worth.missed} missed and {one.worth.false_alarms} false alarms at 0.7")


if __name__ == "__main__":
    main()

"""How fast is a worker beside a Quix Streams program with Drain3, on the same broker, lines and guarantee?

The program (`benchmarks/quix/program.py`) reads the same topic of HDFS lines in 4 partitions, takes a template of each
from Drain3, puts sessions together by the record's key and writes a record for each that ends, as JSON, exactly once.
Both run as one process, one after the other. Pinned versions of both libraries are installed into an environment of
their own, which is a temporary folder unless `--venv` names one. A machine that reaches no index takes them from a
folder of wheels, which `pip wheel` makes elsewhere: `PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER`.

It is given what makes it faster: its settings are the library's own; records have the block as their key already,
which saves it a topic in between; Drain3 has no masks and gets messages without the header; a score is a count and a
logarithm where the worker runs a model. Its sessions come in two kinds, and the faster is compared:

- *windows*: `session_window`, which closes sessions as the time of the partition goes on, as the worker does;
- *state*: a list in the state of each key, closed by the key's own next line alone, so that most never are.

It leaves out offsets and lines of a session, unknown lines, early scores, dead letters, and a bound of what is open.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import PARTITIONS, checkpoint_of_hdfs, repeated, worker_rates
from tests.broker.harness import Application, create_topic
from tests.broker.kafka import KafkaBroker
from tests.shared import shared

PINNED = ("quixstreams==3.28.1", "drain3==0.9.11")
GAP_MINUTES = 10
SESSIONS = ("windows", "state")


@dataclass
class Result:
    """Of one process; `ratio` is the worker's rate over its own."""

    what: str
    lines_per_second: float
    records_per_line: float | None = None
    ratio: float | None = None


def environment(folder: Path) -> Path:
    """The Python of an environment with the pinned libraries, made where it is missing."""
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
    return python


def quix_rate(python: Path, application: Application, folder: Path, sessions: str, lines: int) -> Result:
    """Lines a second of the Quix Streams program over the first lines of the application's topic."""
    name = f"quix-{sessions}"
    create_topic(application.bootstrap, name, PARTITIONS)
    asked = {
        "bootstrap": application.bootstrap,
        "group": name,
        "state": str(folder / name),
        "input": application.input_topic,
        "output": name,
        "sessions": sessions,
        "gap_ms": GAP_MINUTES * 60_000,
        "lines": lines,
    }
    program = Path(__file__).parent / "quix/program.py"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([python, program, json.dumps(asked)], env=environ, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"the Quix Streams program ended with {run.returncode}; no figures\n{run.stderr[-4_000:]}")
    found = json.loads(run.stdout.splitlines()[-1])
    rate = found["lines"] / found["seconds"]
    return Result(f"Quix Streams + Drain3, {sessions}", rate, found["records"] / found["lines"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=2, help="over the 177,952 lines, of the worker")
    parser.add_argument("--quix-lines", type=int, default=20_000, help="of the first pass, for Quix Streams")
    parser.add_argument("--venv", type=Path, help="environment with the pinned libraries; made where it is missing")
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = file.read().splitlines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = environment(arguments.venv or folder / "venv")
        broker = KafkaBroker(folder / "kafka", heap="1g").start()
        try:
            checkpoint = arguments.checkpoint or checkpoint_of_hdfs(folder)
            first = Application(broker.bootstrap, folder, checkpoint, PARTITIONS)
            first.produce(chain.from_iterable(repeated(lines, arguments.passes)))
            others = [quix_rate(python, first, folder, kind, arguments.quix_lines) for kind in SESSIONS]
            overrides = f"sessions.gap={GAP_MINUTES}m", "scoring.early=false", "state.snapshot_interval=10s"
            cold, warm, _ = worker_rates(first, len(lines), arguments.passes, *overrides)
        finally:
            broker.stop()
    results = [Result("worker, cold cache", cold), Result("worker, warm cache", warm), *others]
    for each in results:
        each.ratio = warm / each.lines_per_second
    table = Table("", "lines/s", "records a line", "worker over it", title=f"exactly once, {', '.join(PINNED)}")
    for each in results:
        told = "" if each.records_per_line is None else f"{each.records_per_line:.3f}"
        table.add_row(each.what, f"{each.lines_per_second:,.0f}", told, f"{each.ratio:.1f}")
    Console().print(table)
    if arguments.output is not None:
        document = {"versions": PINNED, "results": [asdict(each) for each in results]}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

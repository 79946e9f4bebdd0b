"""How long are scores away after kill -9 of one of two workers, and where does the time go?

A real broker with Kafka's own defaults (copies of a topic apart), two workers of different names with the worker's own
defaults but for `session.timeout.ms`, generated logs that come steadily in 4 partitions. One worker is killed amid a
transaction: by turns just before it commits, when scores and positions are in it, and 30 ms after it has handed over
some score. Nobody starts it again; when the other has taken over, a worker of a new name joins and is killed next. A
reader of committed records notes when each record becomes visible.

All figures are seconds after the kill: until the other worker has the partitions (`assigned`), has ended what the dead
one left open, or has waited for its end, and knows what is committed (`decided`), has restored the partitions
(`restored`), until the slowest of them has written a score (`written`), until that is visible (`visible`); and the
longest time for which a reader saw nothing of a partition of the dead worker, and of the other's own, which the same
open transaction hides. What came out is held against what must be there: no figures unless it is exact.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import WorkerProcess
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport
from tests.faults.stream import PARTITIONS, Run, Stream

SESSION_TIMEOUT_MS = 6_000
LINES = 120_000
LINES_PER_S = 400
PATIENCE_S = 150
STRIKES = (
    ("--at", "commit", "--nth", "100"),
    ("--at", "produce", "--nth", "200", "--delay-ms", "30"),
)
# What Kafka does unless told otherwise, where the tests' broker is told otherwise; but for the least session timeout.
KAFKA_DEFAULTS = {
    "offsets.topic.num.partitions": "50",
    "transaction.state.log.num.partitions": "50",
    "group.initial.rebalance.delay.ms": "3000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "10000",
    "broker.session.timeout.ms": "9000",
    "broker.heartbeat.interval.ms": "2000",
    "log.cleaner.backoff.ms": "15000",
    "message.max.bytes": "1048588",
}


@dataclass(frozen=True)
class Takeover:
    """Seconds, of one kill -9."""

    assigned_s: float
    decided_s: float
    restored_s: float
    written_s: float
    visible_s: float
    gap_s: float  # of the dead worker's partitions, as a reader sees it
    other_gap_s: float  # of the other worker's own partitions


def watch(run: Run, dying: WorkerProcess, other: WorkerProcess) -> Takeover:
    """Wait until a worker has killed itself and another has taken over."""
    dying.process.wait(PATIENCE_S)
    killed = next(each["time"] for each in log_of(dying) if each["event"] == "strike")
    other.wait_until(partial(all_flows, run, killed), PATIENCE_S)
    events = [each for each in log_of(other) if "timestamp" in each and at(each) > killed]
    restored = [each for each in events if each["event"] == "partition_restored"]
    fenced = [at(each) - each["seconds"] for each in events if each["event"] == "dead_worker_fenced"]
    waited = [at(each) for each in events if each["event"] == "committed_offsets_undecided"]
    decided = at(restored[0]) - restored[0]["seconds"]
    taken = {int(each["partition"].rstrip("]").rpartition("[")[2]) for each in restored}
    written, visible = zip(*(run.output.first_since(killed, each) for each in taken), strict=True)
    gaps = {each: run.output.longest_gap_of_s(each, killed - 1) for each in range(PARTITIONS)}
    return Takeover(
        assigned_s=min([decided, *fenced, *waited]) - killed,
        decided_s=decided - killed,
        restored_s=at(restored[-1]) - killed,
        written_s=max(written) - killed,
        visible_s=max(visible) - killed,
        gap_s=max(gaps[each] for each in taken),
        other_gap_s=max([gap for each, gap in gaps.items() if each not in taken], default=0.0),
    )


@contextmanager
def fed(run: Run) -> Iterator[None]:
    """Send the records one by one while the block runs, so that there is always one on its way; the rest at its end."""
    over, records = threading.Event(), run.stream.records
    producer = Producer({"bootstrap.servers": run.application.bootstrap, "linger.ms": 0, "enable.idempotence": True})

    def feed() -> None:
        began = time.monotonic()
        for number, record in enumerate(records):
            if not over.is_set():
                time.sleep(max(0.0, began + number / LINES_PER_S - time.monotonic()))
            while len(producer) > 10_000:
                producer.poll(0.1)
            producer.produce(run.application.input_topic, record.value, record.key, record.partition)
            producer.poll(0)
        assert producer.flush(60) == 0

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def all_flows(run: Run, moment: float) -> bool:
    """Whether of every partition something is visible that was made after the moment."""
    return run.output.partitions_since(moment) == set(range(PARTITIONS))


def log_of(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What a worker has logged."""
    return [orjson.loads(line) for line in worker.log.read_bytes().splitlines() if line.endswith(b"}")]


def at(event: dict[str, Any]) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def measure(run: Run, rounds: int) -> list[Takeover]:
    """Have one of two workers killed again and again."""
    takeovers = []
    with ExitStack() as running, fed(run):
        lasting = running.enter_context(run.application.start("worker.instance=w0"))
        lasting.wait_until(partial(all_flows, run, 0.0), PATIENCE_S)
        for number, strike in zip(range(rounds), itertools.cycle(STRIKES)):
            program = ("tests.faults.striking_worker", *strike, "--signal", "KILL")
            with run.application.start(f"worker.instance=w{number + 1}", program=program) as dying:
                takeovers.append(watch(run, dying, lasting))
            print(takeovers[-1], flush=True)
        if run.share() >= 1:
            raise SystemExit("all was done before the last strike: no figures")
        assert lasting.stop() == 0, lasting.tail()
    return takeovers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--session-timeout-ms", type=int, default=SESSION_TIMEOUT_MS)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    kafka = {
        "session.timeout.ms": arguments.session_timeout_ms,
        "heartbeat.interval.ms": arguments.session_timeout_ms // 3,
        "transaction.timeout.ms": 60_000,
        "max.poll.interval.ms": 300_000,
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        broker = KafkaBroker(folder / "kafka", KAFKA_DEFAULTS).start()
        running.callback(broker.stop)
        stream = Stream.make(LINES, folder, demo_checkpoint(), broker.bootstrap)
        run = running.enter_context(
            stream.unsent(folder, kafka=kafka, sessions={"idle_flush": None}, state={"snapshot_interval": "10s"})
        )
        takeovers = measure(run, arguments.rounds)
        run.finish()
        run.assert_exact(FaultReport(lambda _: None), "")

    names = [each.name for each in fields(Takeover)]
    table = Table(*(each.removesuffix("_s").replace("_", " ") + ", s" for each in names))
    for each in takeovers:
        table.add_row(*(f"{value:.1f}" for value in asdict(each).values()))
    table.add_section()
    table.add_row(*(f"{max(getattr(each, name) for each in takeovers):.1f}" for name in names))
    Console().print(table)
    if arguments.output is not None:
        arguments.output.write_text(
            json.dumps(
                {"session_timeout_ms": arguments.session_timeout_ms, "takeovers": [asdict(each) for each in takeovers]},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()

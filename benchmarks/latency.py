"""How long after a record that causes a score is the score there for readers, by load, and where does the time go?

A real broker on this machine, HDFS lines in 4 partitions, one worker process on the CPU, exactly once. A producer in a
process of its own writes at a steady rate, and a `read_committed` consumer in a third one looks at the score topic. The
delay of a record that closes a session, or takes one across a threshold, is from its Kafka timestamp (when it was
produced) to the moment at which the last of the scores that it caused was read. Producer, broker, worker and reader
share the cores, so the maximum, of which the rates are shares, is what the worker reads while as much is written as it
would read of a filled topic.

Beside the delays stands what the worker's metrics say of the same time: how long each stage of a turn took, and how old
the oldest record of a batch was when it had been polled, when its outputs were sent, and when they were committed.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import orjson
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import PARTITIONS, checkpoint_of_hdfs, repeated, worker_rates
from tests.broker.harness import Application, Record, WorkerProcess
from tests.broker.kafka import KafkaBroker
from tests.shared import shared

WARM_S = 5.0
TICK_S = 0.002
PERCENTILES = (50, 90, 99)
STAGES = ("poll", "decode", "sessions", "score", "encode", "send", "commit")
_spawn = get_context("spawn")


@dataclass(frozen=True)
class Delays:
    """Of one rate. Times are in ms."""

    settings: Sequence[str]
    share: float  # of the maximum
    lines_per_second: float  # as produced
    read_per_second: float
    causes: int  # records that caused scores
    p50: float
    p90: float
    p99: float
    most: float
    left_behind: int  # records that the worker had not committed a second after the last one was produced
    turns_per_second: float
    commits_per_second: float
    stages: Mapping[str, float]  # of a turn, `commit` of a commit, in the mean
    ages: Mapping[str, float]  # of the oldest record of a batch, in the mean, by when
    worker_cores: float  # CPU time, of the time
    broker_cores: float


def produce(bootstrap: str, topic: str, lines: Path, per_second: float, seconds: float, ready: Event) -> None:
    """Write records at a steady rate, each with the time at which it was written; tells when it begins."""
    records = list(read_lines(lines, int(per_second * seconds) + 1))
    # Room for what a broker that has just started leaves waiting: its first second under load takes longer.
    room = {"queue.buffering.max.messages": 10_000_000, "queue.buffering.max.kbytes": 2_000_000}
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "enable.idempotence": True, **room})
    producer.list_topics(topic, timeout=30)
    ready.set()
    written, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        due = int(per_second * passed)
        for record in records[written:due]:
            producer.produce(topic, record.value, record.key, record.partition)
        written = due
        producer.poll(0)
        time.sleep(max(0.0, began + passed + TICK_S - time.perf_counter()))
    assert producer.flush(60) == 0


def read_lines(path: Path, most: int) -> itertools.islice[Record]:
    """Records of HDFS lines, again and again at later times and with other blocks."""
    with gzip.open(path) as file:
        lines = file.read().splitlines()
    passes = repeated(lines, most // len(lines) + 1)
    return itertools.islice(itertools.chain.from_iterable(passes), most)


class Reader:
    """Reads the score topic as its subscribers do, in a thread; `seen` has when each record came, in ms since 1970."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.seen: list[tuple[float, bytes]] = []
        self._ending = threading.Event()
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "reader", "isolation.level": "read_committed"}
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._ending.is_set():
            first = self._consumer.poll(0.1)
            if first is None:
                continue
            now = time.time() * 1000
            messages = [first, *self._consumer.consume(10_000, 0)]
            self.seen += [(now, message.value() or b"") for message in messages if message.error() is None]

    def close(self) -> None:
        """Stop reading."""
        self._ending.set()
        self._thread.join()
        self._consumer.close()


def timestamps(bootstrap: str, topic: str) -> dict[int, list[int]]:
    """Kafka's, in ms, of every record of a topic, by partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "timestamps", "enable.auto.commit": False})
    ends = {each: consumer.get_watermark_offsets(TopicPartition(topic, each))[1] for each in range(PARTITIONS)}
    consumer.assign([TopicPartition(topic, number, 0) for number in ends])
    found: dict[int, list[int]] = {number: [] for number in ends}
    while any(len(found[number]) < end for number, end in ends.items()):
        for message in consumer.consume(1_000, 1.0):
            found[message.partition() or 0].append(message.timestamp()[1])
    consumer.close()
    return found


def metrics_of(worker: WorkerProcess) -> dict[tuple[str, str], float]:
    """The worker's series that have one label at most, by name and label."""
    families = text_string_to_metric_families(worker.get("/metrics")[1])
    samples = [each for family in families for each in family.samples]
    return {(each.name, "".join(each.labels.values())): each.value for each in samples if len(each.labels) < 2}


def delays_at(
    application: Application,
    broker: psutil.Process,
    lines: Path,
    load: tuple[float, float],
    seconds: float,
    settings: Sequence[str] = (),
) -> Delays:
    """Run a worker beside a producer, for so many seconds after it has warmed up, at a share of a rate."""
    bootstrap, (maximum, share) = application.bootstrap, load
    per_second = maximum * share
    ready = _spawn.Event()
    arguments = bootstrap, application.input_topic, lines, per_second, WARM_S + seconds, ready
    producer = _spawn.Process(target=produce, args=arguments, daemon=True)
    rules = "observability.port=0", "sessions.idle_flush=null", "state.snapshot_interval=10s"
    with application.start(*rules, *settings) as worker:
        worker.wait_until(lambda: worker.get("/readyz")[0] == 200)
        reader = Reader(bootstrap, application.score_topic)
        producer.start()
        while not ready.wait(1.0):
            assert producer.is_alive(), "the producer has failed"
        time.sleep(WARM_S)
        process = psutil.Process(worker.process.pid)
        begins, before, cpu = time.time() * 1000, metrics_of(worker), (process.cpu_times(), broker.cpu_times())
        time.sleep(seconds - 0.5)
        ends, after, spent = time.time() * 1000, metrics_of(worker), (process.cpu_times(), broker.cpu_times())
        producer.join()
        time.sleep(1.0)
        committed = sum(max(0, each.offset) for each in application.committed().values())
        reader.close()
        assert worker.stop() == 0, worker.tail()
    came = timestamps(bootstrap, application.input_topic)
    last: dict[tuple[int, int], float] = {}
    for at, value in reader.seen:
        source = orjson.loads(value)["source"]
        last[source["partition"], source["cause_offset"]] = at
    caused = {
        (partition, offset): came[partition][offset] for partition, offset in last if offset < len(came[partition])
    }
    found = [last[place] - at for place, at in caused.items() if begins <= at < ends]
    passed = (ends - begins) / 1000

    def mean(name: str, label: str) -> float:
        count, total = ((name + suffix, label) for suffix in ("_count", "_sum"))
        times = after.get(count, 0.0) - before.get(count, 0.0)
        return 1000 * (after[total] - before[total]) / times if times else 0.0

    def rate(name: str, label: str) -> float:
        return (after[name, label] - before[name, label]) / passed

    cores = [(new.user + new.system - old.user - old.system) / passed for old, new in zip(cpu, spent, strict=True)]
    ages = sorted({label for name, label in after if name == "logmamba_batch_age_seconds_count"})
    return Delays(
        settings=settings,
        share=share,
        lines_per_second=sum(map(len, came.values())) / (WARM_S + seconds),
        read_per_second=rate("logmamba_records_total", ""),
        causes=len(found),
        **dict(zip(("p50", "p90", "p99"), np.percentile(found, PERCENTILES).tolist(), strict=True)),
        most=max(found),
        left_behind=sum(map(len, came.values())) - committed,
        turns_per_second=rate("logmamba_stage_seconds_count", "poll"),
        commits_per_second=rate("logmamba_transactions_total", "committed"),
        stages={stage: mean("logmamba_stage_seconds", stage) for stage in STAGES},
        ages={when: mean("logmamba_batch_age_seconds", when) for when in ages},
        worker_cores=cores[0],
        broker_cores=cores[1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[10, 25, 50, 75, 90], help="of the maximum, in %%")
    parser.add_argument("--seconds", type=float, default=20.0, help="at each of them, after the worker has warmed up")
    parser.add_argument("--maximum", type=float, help="lines a second; otherwise it is measured")
    parser.add_argument(
        "--set", nargs="*", action="append", default=[], metavar="PATH=VALUE", help="again with these settings"
    )
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    lines = shared("data/hdfs/raw.log.gz")
    results: list[Delays] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = KafkaBroker(folder / "kafka", heap="1g").start()
        try:
            checkpoint = arguments.checkpoint or checkpoint_of_hdfs(folder)
            process = psutil.Process(broker.pid)

            def application() -> Application:
                return Application(broker.bootstrap, folder, checkpoint, PARTITIONS)

            maximum = arguments.maximum
            if maximum is None:
                filled = _of_a_filled_topic(application(), lines)
                beside = delays_at(application(), process, lines, (filled, 1.0), arguments.seconds)
                maximum = min(filled, beside.read_per_second)
                print(f"the maximum is {maximum:,.0f} lines/s", flush=True)
            for share, settings in itertools.product(arguments.shares, arguments.set or [()]):
                load = maximum, share / 100
                results.append(delays_at(application(), process, lines, load, arguments.seconds, settings))
                _show(maximum, results[-1:])
                _write(arguments.output, maximum, results)
        finally:
            broker.stop()
    _show(maximum, results)


def _write(output: Path | None, maximum: float, results: Sequence[Delays]) -> None:
    """As far as it has come: a benchmark that is cut short has said something."""
    if output is not None:
        found = {"maximum_lines_per_second": maximum, "loads": [asdict(each) for each in results]}
        output.write_text(json.dumps(found, indent=2) + "\n")


def _of_a_filled_topic(application: Application, lines: Path, passes: int = 5) -> float:
    """Lines a second of a worker that has all of them before it, its score cache warm."""
    with gzip.open(lines) as file:
        texts = file.read().splitlines()
    application.produce(itertools.chain.from_iterable(repeated(texts, passes)))
    return worker_rates(application, len(texts), passes, "state.snapshot_interval=10s")[1]


def _show(maximum: float, results: Sequence[Delays]) -> None:
    console = Console(width=200)
    table = Table(
        *("load", "lines/s", "p50", "p90", "p99", "most", "behind", "turns/s", "commits/s", *STAGES),
        *(results[0].ages if results else ()),
        *("worker", "broker", "settings"),
        title=f"delays, stages and ages in ms; CPU in cores; the maximum is {maximum:,.0f} lines/s",
    )
    for each in results:
        delays = (f"{ms:.0f}" for ms in (each.p50, each.p90, each.p99, each.most))
        rates = f"{each.left_behind:,}", f"{each.turns_per_second:.0f}", f"{each.commits_per_second:.1f}"
        times = (f"{ms:.1f}" for ms in (*each.stages.values(), *each.ages.values()))
        cores = f"{each.worker_cores:.2f}", f"{each.broker_cores:.2f}"
        own = " ".join(each.settings)
        table.add_row(f"{each.share:.0%}", f"{each.lines_per_second:,.0f}", *delays, *rates, *times, *cores, own)
    console.print(table)


if __name__ == "__main__":
    main()

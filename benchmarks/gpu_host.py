"""What does a host with a GPU take from topic to topic, exactly once, by one worker process and by many?

A real broker on this machine, HDFS lines in 16 partitions, the reference model, `worker.processes: N` that share the
GPU. The lines are repeated with new block ids, each repetition later in time than the one before: so with a score
cache nearly every sequence has been scored before, and without one each goes through the model. Of the share of
sessions asked for by `--distinct`, the lines of a block stand in another order with every repetition, each at a place,
and with the time, of another: the same lines and counts, but a sequence that no cache knows. What share of all
sequences, complete ones and events so far, went through the model in the end is measured: many a beginning is that of
others. A model that is larger than the shipped one has learnt nothing. No score is an alert in any run (`QUIET`),
since such an order is odd and records of alerts are larger. Rates are taken from where a tenth of the lines is
committed and every process has its partitions, for all of which the group waits, to the last committed position, so
start-up is in none of them where there are enough `--passes`. The CPU of a line is that of all worker processes. A
plain consumer of the same topic is beside them. Without a GPU the CPU scores (`--size tiny`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from random import Random

import psutil
from confluent_kafka import Consumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import BLOCK, STAMP_BYTES, Passes, checkpoint_of_hdfs, enlarged, partition_of, plain_consume
from tests.broker.harness import Application, Record, SupervisedWorker
from tests.broker.kafka import KafkaBroker
from tests.shared import shared

PARTITIONS = 16
PRODUCERS = 4
CONSUMED = 5_000_000  # by the plain consumer, at most
TOGETHER_S = 4  # that the group waits for the next member before it gives the first ones partitions
QUIET = ("scoring.warning=0.99999", "scoring.critical=1")
_spawn = get_context("spawn")


@dataclass
class Result:
    """One run; the share of time that the GPU is busy is by its own clock, summed over the processes.

    The microseconds of a line that the loops spend in each stage are of wall time, of all processes together.
    """

    processes: int
    score_cache: int
    distinct: float
    through_model: float
    lines_per_second: float
    ratio_to_consume: float
    cpu_us_per_line: float
    gpu_busy: float | None
    resident_mb: float
    stages_us_per_line: dict[str, float]


@dataclass
class _Mark:
    """What is known at a moment."""

    at: float
    committed: int
    cpu_s: float
    gpu_s: float | None
    resident: int
    stages_s: dict[str, float]
    sequences: dict[str, float]


def reordered(lines: list[bytes], share: float, seed: int) -> list[bytes]:
    """The lines, of a share of the blocks in another order within the block; times stay at their places."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, line in enumerate(lines):
        found = BLOCK.search(line)
        assert found is not None
        places[found.group()].append(place)
    random, result = Random(seed), lines.copy()
    for of_block in places.values():
        if random.random() < share:
            for place, other in zip(of_block, random.sample(of_block, len(of_block)), strict=True):
                result[place] = lines[place][:STAMP_BYTES] + lines[other][STAMP_BYTES:]
    return result


def produce(application: Application, lines: list[bytes], passes: int, distinct: float, producers: int) -> None:
    """Fill the topic, each process its share of the partitions."""
    shares: list[list[bytes]] = [[] for _ in range(producers)]
    for line in lines:
        shares[partition_of(line, PARTITIONS) % producers].append(line)
    running = [_spawn.Process(target=_produce, args=(application, share, passes, distinct)) for share in shares]
    for each in running:
        each.start()
    for each in running:
        each.join()
        if each.exitcode:
            raise SystemExit("a producer has failed; no figures")


def _produce(application: Application, lines: list[bytes], passes: int, distinct: float) -> None:
    same = Passes(lines, PARTITIONS)

    def records(number: int) -> list[Record]:
        own = Passes(reordered(lines, distinct, number), PARTITIONS) if distinct else same
        return own.records(number)

    application.produce(chain.from_iterable(map(records, range(passes))))  # by one client, which takes a while to start


def run(
    application: Application,
    total: int,
    processes: int,
    cache: int,
    distinct: float,
    precision: str,
    consume: float,
    most_s: float,
) -> Result | None:
    """One run over all lines, or for so long; None where all were committed before every process had partitions."""
    overrides = (
        f"worker.processes={processes}",
        f"model.score_cache={cache}",
        f"model.precision={precision}",
        "state.snapshot_interval=10s",
        *QUIET,
    )
    partitions = [TopicPartition(application.input_topic, number) for number in range(PARTITIONS)]
    watcher = Consumer({"bootstrap.servers": application.bootstrap, "group.id": application.settings["application_id"]})
    begun: list[_Mark] = []
    ended: list[_Mark] = []
    log = application.folder / f"{processes}-{cache}-{distinct}.log"
    with SupervisedWorker(application.config, log, overrides) as worker:

        def done() -> bool:
            committed = sum(max(0, each.offset) for each in watcher.committed(partitions, timeout=30))
            if not begun and committed >= total // 10 and _all_work(worker, processes):
                begun.append(_mark(worker, committed))
            if committed >= total or (begun and time.perf_counter() - begun[0].at >= most_s):
                ended.append(_mark(worker, committed))
            return bool(ended)

        worker.wait_until(done, timeout_s=900)
        assert worker.stop() == 0, worker.tail()
    watcher.close()
    if not begun:
        return None
    (first,), (last,) = begun, ended
    lines, seconds = last.committed - first.committed, last.at - first.at
    rate = lines / seconds
    busy = None if first.gpu_s is None or last.gpu_s is None else (last.gpu_s - first.gpu_s) / seconds
    cpu_us = (last.cpu_s - first.cpu_s) / lines * 1e6
    stages = {stage: (seconds - first.stages_s[stage]) / lines * 1e6 for stage, seconds in last.stages_s.items()}
    asked = {result: count - first.sequences[result] for result, count in last.sequences.items()}
    through_model = asked["miss"] / max(1, asked["hit"] + asked["miss"])
    ratio, resident_mb = rate / consume, last.resident / 1e6
    return Result(processes, cache, distinct, through_model, rate, ratio, cpu_us, busy, resident_mb, stages)


def _all_work(worker: SupervisedWorker, processes: int) -> bool:
    """Whether each process has joined the group and has its share of the partitions."""
    if processes == 1:
        return True
    held = [each["partitions"] for each in json.loads(worker.get("/status")[1])["processes"]]
    return len(held) == processes and all(held)


def _mark(worker: SupervisedWorker, committed: int) -> _Mark:
    at = time.perf_counter()
    process = psutil.Process(worker.process.pid)
    family = [process, *process.children(recursive=True)]
    times = [each.cpu_times() for each in family]
    resident = sum(each.memory_info().rss for each in family)
    metrics = text_string_to_metric_families(worker.get("/metrics")[1])
    samples = [sample for metric in metrics for sample in metric.samples]
    gpu = [sample.value for sample in samples if sample.name == "logmamba_gpu_busy_seconds_total"]
    stages: Counter[str] = Counter()
    sequences: Counter[str] = Counter()
    for sample in samples:
        if sample.name == "logmamba_stage_seconds_sum":
            stages[sample.labels["stage"]] += sample.value
        elif sample.name == "logmamba_score_cache_total":
            sequences[sample.labels["result"]] += sample.value
    cpu_s = sum(each.user + each.system for each in times)
    return _Mark(at, committed, cpu_s, sum(gpu) if gpu else None, resident, dict(stages), dict(sequences))


def show(results: Iterable[Result], title: str) -> None:
    """Print the table."""
    table = Table(
        "processes",
        "score cache",
        "distinct",
        "by the model",
        "lines/s",
        "of a consume",
        "CPU us/line",
        "GPU busy",
        "MB",
        "us of a line by stage",
        title=title,
    )
    for each in results:
        table.add_row(
            str(each.processes),
            f"{each.score_cache:,}",
            f"{each.distinct:.0%}",
            f"{each.through_model:.0%}",
            f"{each.lines_per_second:,.0f}",
            f"{each.ratio_to_consume:.2f}",
            f"{each.cpu_us_per_line:.2f}",
            "" if each.gpu_busy is None else f"{each.gpu_busy:.0%}",
            f"{each.resident_mb:,.0f}",
            ", ".join(f"{stage} {us:.2f}" for stage, us in each.stages_us_per_line.items()),
        )
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=4, help="over the lines")
    parser.add_argument("--lines", type=int, default=177_952, help="of these, the first")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="one run each, by score cache")
    parser.add_argument("--cache", type=int, nargs="+", default=[100_000, 0])
    parser.add_argument(
        "--distinct", type=float, nargs="+", default=[0], help="shares of the sessions; without a cache the first alone"
    )
    parser.add_argument("--size", choices=("tiny", "small", "reference"), default="tiny")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=600, help="of a run that are measured at most")
    parser.add_argument("--checkpoint", type=Path, help="of HDFS; otherwise one is trained, for a few steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = file.read().splitlines()[: arguments.lines]
    results: list[Result] = []
    began = time.perf_counter()

    def tell(text: str) -> None:
        print(f"{time.perf_counter() - began:.0f} s: {text}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together = {"group.initial.rebalance.delay.ms": str(1_000 * TOGETHER_S)}
        broker = KafkaBroker(folder / "kafka", together, heap="4g", quick_start=False).start()
        try:
            checkpoint = arguments.checkpoint or checkpoint_of_hdfs(folder)
            if arguments.size != "tiny":
                checkpoint = enlarged(checkpoint, folder / "enlarged", arguments.size)
            tell("there is a checkpoint")
            total, consume = len(lines) * arguments.passes, None
            for distinct in arguments.distinct:
                application = Application(broker.bootstrap, folder, checkpoint, PARTITIONS)
                produce(application, lines, arguments.passes, distinct, min(PRODUCERS, os.cpu_count() or 1))
                tell(f"{total:,} lines are written")
                if consume is None:
                    consume = plain_consume(broker.bootstrap, application.input_topic, min(total, CONSUMED), PARTITIONS)
                    tell(f"a plain consume takes {consume:,.0f} lines/s")
                caches = [each for each in arguments.cache if each or distinct == arguments.distinct[0]]
                for processes, cache in product(arguments.processes, caches):
                    of = processes, cache, distinct, arguments.precision, consume, arguments.seconds
                    result = run(application, total, *of)
                    if result is None:
                        tell(f"{processes} processes were too slow to start for so few --passes")
                    else:
                        results.append(result)
                        tell(f"{processes} processes took {result.lines_per_second:,.0f} lines/s")
                        show([result], "")
                        _write(arguments, total, consume, results)
                    application = application.again()
        finally:
            broker.stop()
    show(results, f"{total:,} lines, {PARTITIONS} partitions; a plain consume takes {consume:,.0f} lines/s")


def _write(arguments: argparse.Namespace, total: int, consume: float, results: Iterable[Result]) -> None:
    """As far as it has come: a benchmark that is cut short has said something."""
    if arguments.output is not None:
        import torch  # which the producers need not wait for

        found = {
            "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cpus": os.cpu_count(),
            "precision": arguments.precision,
            "lines": total,
            "size": arguments.size,
            "consume": consume,
            "results": [*map(asdict, results)],
        }
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

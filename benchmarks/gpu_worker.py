"""How fast is one `logmamba run` on a GPU, topic to topic, through the reference-size model?

Generated lines in 128 partitions of librdkafka's mock broker, which lives in this process: no JDK is needed. It keeps
5 MiB of a partition and has no usable transactions, so the worker delivers at least once (`benchmarks/end_to_end.py`
measures exactly once). In the same run:

(a) a plain consumer of the same topics that looks at every value,
(b) the same worker with the reference kernels on the same device, on an eighth of the lines, and
(c) the scorer alone: the distinct sessions of a sample in one call after the other, in both precisions.

A rate is taken between the first committed position and the last, so start-up is in none of them. The GPU counts as
busy while at least one kernel runs on it (NVML's figure, from nvidia-ml-py); memory of the GPU is the whole card's.
Resident memory is the workers' alone. A line is an event.

Nothing is printed before this holds: every run scored every session once; runs with other batch sizes wrote the same
records byte for byte, and the scorer gives the same bits; the worker's final scores are within 1e-3 of the CPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread

import numpy as np
import orjson
import psutil
import pyarrow as pa
import torch
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from detector.model.devices import Precision
from detector.scoring.scorer import Scorer
from detector.scoring.scores import EventScores
from detector.text.tokenizer import Tokenizer
from tests.broker.harness import WorkerProcess, read_all
from tests.worker.command_line import logmamba
from worker.generator.log import GeneratedLog, write_files
from worker.kafka.mock_broker import PARTITIONS, MockBroker

TOPICS = [f"raw-{number:02}" for number in range(32)]
PART = TOPICS[: len(TOPICS) // 8]
TOLERANCE = 1e-3
STAGES = ("decode", "sessions", "score", "encode")


@dataclass(frozen=True)
class Input:
    """What was sent: the lines of each topic, every block, and the lines of the first blocks."""

    lines: Counter[str]
    blocks: dict[str, str]  # block to topic
    sample: dict[str, list[str]]


@dataclass(frozen=True)
class Result:
    """One measurement; seconds are of wall time, `score_s` and so on those that the worker's loop spent in a stage."""

    what: str
    lines_per_second: float
    ratio_to_consume: float
    sessions_per_second: float | None = None
    model_runs_per_second: float | None = None
    seconds: float | None = None
    stages_s: dict[str, float] = field(default_factory=dict)
    gpu_busy: float | None = None
    gpu_mb: float | None = None
    resident_mb: float | None = None


@dataclass(frozen=True)
class Run:
    """A worker's run and the score records it wrote: (key, kind, severity) to value."""

    result: Result
    records: dict[tuple[bytes, str, str], bytes]


class Gpu:
    """What NVML says of the first GPU, twenty times a second; nothing where the device is a CPU."""

    def __init__(self, device: str) -> None:
        self._samples: list[tuple[float, float, float]] = []  # time, share of time busy, bytes in use
        if device.startswith("cuda"):
            Thread(target=self._watch, args=[self._nvml()], daemon=True).start()

    @staticmethod
    def _nvml() -> Callable[[], tuple[float, float]]:
        # Not through PyTorch, which would bring this process onto the GPU beside the workers.
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return lambda: (
            pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        )

    def _watch(self, look: Callable[[], tuple[float, float]]) -> None:
        while True:
            self._samples.append((time.perf_counter(), *look()))
            time.sleep(0.05)

    def since(self, began: float) -> tuple[float, float] | tuple[None, None]:
        """Mean share of time that it was busy until now, and most MB in use."""
        inside = [sample for sample in self._samples if sample[0] >= began]
        if not inside:
            return None, None
        return statistics.fmean(sample[1] for sample in inside), max(sample[2] for sample in inside) / 1e6


def trained(folder: Path, size: str, device: str, blocks: int, steps: int) -> Path:
    """A checkpoint of that size, trained on other generated logs, with labels."""
    lines, labels, target = folder / "train.log", folder / "labels.csv", folder / "checkpoint"
    write_files(GeneratedLog(blocks=blocks, seed=0, anomaly_rate=0.2), lines, labels)
    config = folder / "train.yaml"
    config.write_text(yaml.safe_dump({"model": {"device": device}}))
    options = ["--config", config, "--input", lines, "--labels", labels, "--size", size, "--steps", steps]
    done = logmamba("train", *options, "--output", target)
    assert done.returncode == 0, done.stderr
    return target


def send(bootstrap: str, log: GeneratedLog, sampled: int) -> Input:
    """Send the log: each block's lines to one partition of one topic, in order."""
    properties = {"linger.ms": 20, "compression.type": "lz4", "enable.idempotence": True}
    producer = Producer({"bootstrap.servers": bootstrap, **properties})
    sent = Input(Counter(), {}, {})
    for batch in log.batches():
        for text, block, at in zip(batch.texts, batch.blocks, batch.times_ms, strict=True):
            topic = sent.blocks.get(block)
            if topic is None:
                topic = sent.blocks[block] = TOPICS[zlib.crc32(block.encode()) % len(TOPICS)]
                if len(sent.sample) < sampled:
                    sent.sample[block] = []
            sent.lines[topic] += 1
            if block in sent.sample:
                sent.sample[block].append(text)
            while True:
                try:
                    producer.produce(topic, text, block, timestamp=at)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0
    return sent


def plain_consume(bootstrap: str, total: int) -> float:
    """(a): lines a second; fails when the broker does not have them all."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "plain", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, number, 0) for topic in TOPICS for number in range(PARTITIONS)])
    consumer.consume(1, 30)
    seen, began = 1, time.perf_counter()
    while seen < total:
        values = [message.value() for message in consumer.consume(10_000, 5.0)]
        if not values:
            raise SystemExit(f"the mock broker has only {seen:,} of {total:,} lines; send fewer")
        seen += len(values)
    rate = seen / (time.perf_counter() - began)
    consumer.close()
    return rate


class Bench:
    """Runs workers on what was sent."""

    def __init__(self, broker: MockBroker, folder: Path, checkpoint: Path, device: str, sent: Input, gpu: Gpu) -> None:
        self._broker, self._folder, self._sent, self._gpu = broker, folder, sent, gpu
        self._model = {"checkpoint": str(checkpoint), "device": device}
        self.consume = plain_consume(broker.bootstrap, sent.lines.total())

    def run(self, what: str, name: str, *overrides: str, topics: Sequence[str] = TOPICS, workers: int = 1) -> Run:
        """Workers of one group from the first line to the last, every session closed."""
        scores, dead, state = f"{name}-scores", f"{name}-dead", f"{name}-state"
        self._broker.make(scores, dead, state)
        config = self._folder / f"{name}.yaml"
        settings = {
            "application_id": name,
            "kafka": {"bootstrap.servers": self._broker.bootstrap},
            "input": {"topics": list(topics)},
            "sessions": {"idle_flush": "1s"},
            "model": self._model,
            "output": {"topic": scores, "dead_letter_topic": dead},
            "state": {"topic": state},
            "worker": {"delivery": "at_least_once"},
            "observability": {"port": 0, "log_format": "json"},
        }
        config.write_text(yaml.safe_dump(settings))
        asked = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
        total = sum(self._sent.lines[topic] for topic in topics)
        expected = sum(topic in topics for topic in self._sent.blocks.values())
        watcher = Consumer({"bootstrap.servers": self._broker.bootstrap, "group.id": name})
        marks: list[tuple[float, int, Counter[str]]] = []
        resident = 0
        with ExitStack() as stack:
            started = [
                stack.enter_context(
                    WorkerProcess(
                        config, self._folder / f"{name}-{number}.log", [*overrides, f"worker.instance=w{number}"]
                    )
                )
                for number in range(workers)
            ]
            processes = [psutil.Process(each.process.pid) for each in started]
            started[0].wait_until(lambda: all('"url":' in each.log.read_text() for each in started))

            def counted() -> Counter[str]:
                return sum((_counters(each.address()) for each in started), Counter())

            def all_read() -> bool:
                nonlocal resident
                resident = max(resident, sum(each.memory_info().rss for each in processes))
                committed = sum(max(0, each.offset) for each in watcher.committed(asked, timeout=30))
                if committed and (not marks or committed == total):
                    marks.append((time.perf_counter(), committed, counted()))
                return committed == total

            started[0].wait_until(all_read, timeout_s=600)
            busy, memory_mb = self._gpu.since(marks[0][0])
            started[0].wait_until(lambda: counted()["scores/final"] >= expected)
            for each in started:
                assert each.stop() == 0, each.tail()
        watcher.close()
        (began, first, before), (ended, last, after) = marks[0], marks[-1]
        if first == last:
            raise SystemExit(f"{what}: {total:,} lines are too few to time")
        records = _records(self._broker.bootstrap, scores)
        finals = Counter(key for key, kind, _ in records if kind == "final")
        if len(finals) != expected or finals.total() != expected:
            raise SystemExit(f"{what}: {finals.total():,} final scores of {len(finals):,} of {expected:,} sessions")
        seconds, counts = ended - began, after - before
        rate = (last - first) / seconds
        result = Result(
            what=what,
            lines_per_second=rate,
            ratio_to_consume=rate / self.consume,
            sessions_per_second=counts["scores/final"] / seconds,
            model_runs_per_second=counts["cache/miss"] / seconds,
            seconds=seconds,
            stages_s={stage: counts[f"stage/{stage}"] / 1000 for stage in STAGES},
            gpu_busy=busy,
            gpu_mb=memory_mb,
            resident_mb=resident / 1e6,
        )
        tell(f"{what}: {rate:,.0f} lines/s")
        return Run(result, records)


def tell(progress: str) -> None:
    print(progress, file=sys.stderr)


def _counters(address: str) -> Counter[str]:
    """A worker's counters that are reported here; seconds as whole milliseconds."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: Counter[str] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        match sample.name:
            case "logmamba_scores_total":
                found[f"scores/{sample.labels['kind']}"] += int(sample.value)
            case "logmamba_score_cache_total":
                found[f"cache/{sample.labels['result']}"] += int(sample.value)
            case "logmamba_stage_seconds_sum":
                found[f"stage/{sample.labels['stage']}"] += round(sample.value * 1000)
    return found


def _records(bootstrap: str, topic: str) -> dict[tuple[bytes, str, str], bytes]:
    records = {}
    for message in read_all(bootstrap, topic):
        key, value = message.key(), message.value()
        assert key is not None
        assert value is not None
        parsed = orjson.loads(value)
        place = key, parsed["kind"], parsed["severity"]
        if place in records:
            raise SystemExit(f"{topic}: a session has two records {place}")
        records[place] = value
    return records


def sequences_of(scorer: Scorer, sample: dict[str, list[str]]) -> list[bytes]:
    """The sessions' tokens as the scorer takes them."""
    tokenizer = Tokenizer(scorer.vocabulary)
    return [array("q", tokenizer.encode(pa.array(lines, pa.string())).tolist()).tobytes() for lines in sample.values()]


def check_scores(
    checkpoint: Path, device: str, sample: dict[str, list[str]], written: dict[tuple[bytes, str, str], bytes]
) -> dict[str, float]:
    """The largest difference between the worker's final scores, or the scorer's, and the CPU's.

    Raises:
        SystemExit: it is more than `TOLERANCE`, or the batch shows in the scorer's bits.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    cpu = Scorer.load(checkpoint, device="cpu", kernels="reference", cache_size=0)
    sequences = sequences_of(cpu, sample)
    began = time.perf_counter()
    expected = cpu.score(sequences)
    seconds = time.perf_counter() - began

    whole, pieces = (
        Scorer.load(checkpoint, device=device, batch_tokens=tokens, cache_size=0) for tokens in (65_536, 500)
    )
    got = whole.score(sequences)
    for few in (pieces.score(sequences), [each for one in sequences for each in whole.score([one])]):
        if any(map(_differ, got, few)):
            raise SystemExit("a session has other bits among other sessions; no speed to tell")

    final = {key: orjson.loads(value)["score"] for (key, kind, _), value in written.items() if kind == "final"}
    differences = {
        "worker_final": max(
            abs(final[block.encode()] - scores.final) for block, scores in zip(sample, expected, strict=True)
        ),
        "final": max(abs(a.final - b.final) for a, b in zip(got, expected, strict=True)),
        "early": max(float(np.abs(a.scores - b.scores).max()) for a, b in zip(got, expected, strict=True)),
        "surprise_nats": max(
            float(np.abs(a.surprises - b.surprises).max()) for a, b in zip(got, expected, strict=True)
        ),
    }
    if max(differences["worker_final"], differences["final"], differences["early"]) > TOLERANCE:
        raise SystemExit(f"scores differ from the CPU's by more than {TOLERANCE}: {differences}")
    return differences | {"sessions": len(sequences), "cpu_sessions_per_second": len(sequences) / seconds}


def _differ(one: EventScores, other: EventScores) -> bool:
    return not (
        np.array_equal(one.surprises, other.surprises)
        and np.array_equal(one.scores, other.scores)
        and one.final == other.final
    )


def scorer_alone(
    checkpoint: Path, device: str, precision: Precision, sample: dict[str, list[str]], gpu: Gpu, consume: float
) -> Result:
    """(c): the scorer without a cache, on the distinct sessions of the sample in one call after the other."""
    scorer = Scorer.load(checkpoint, device=device, precision=precision, cache_size=0)
    distinct = list(dict.fromkeys(sequences_of(scorer, sample)))
    scorer.score(distinct)
    began, before = time.perf_counter(), scorer.events_scored
    rounds = 0
    while rounds == 0 or time.perf_counter() - began < 3:
        scorer.score(distinct)
        rounds += 1
    seconds = time.perf_counter() - began
    rate = (scorer.events_scored - before) / seconds
    sessions = rounds * len(distinct) / seconds
    busy, memory_mb = gpu.since(began)
    return Result(
        what=f"(c) the scorer alone, {precision}",
        lines_per_second=rate,
        ratio_to_consume=rate / consume,
        sessions_per_second=sessions,
        model_runs_per_second=sessions,
        seconds=seconds,
        gpu_busy=busy,
        gpu_mb=memory_mb,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4, help="in the run of several")
    parser.add_argument("--size", choices=("tiny", "small", "reference"), default="reference")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--training-blocks", type=int, default=6_000)
    parser.add_argument("--training-steps", type=int, default=150, help="most, in each of the two stages")
    parser.add_argument("--sample", type=int, default=1_000, help="sessions that the CPU scores, too")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    device = arguments.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here, so nothing is measured (--device cpu --size tiny tries the benchmark itself)")
        return
    gpu = Gpu(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = trained(folder, arguments.size, device, arguments.training_blocks, arguments.training_steps)
        tell("trained a checkpoint")
        broker = MockBroker()
        broker.make(*TOPICS)
        sent = send(broker.bootstrap, GeneratedLog(lines=arguments.lines, seed=1), arguments.sample)
        tell(f"sent {sent.lines.total():,} lines of {len(sent.blocks):,} sessions")
        bench = Bench(broker, folder, checkpoint, device, sent, gpu)
        off, other = "model.score_cache=0", ("worker.batch_records=2000", "model.batch_tokens=8192")
        runs = [
            bench.run("cache on", "on"),
            bench.run("cache off", "off", off),
            bench.run("cache off, 2,000 lines, 8,192 tokens", "pieces", off, *other),
            bench.run(f"cache off, {arguments.workers} workers", "many", off, workers=arguments.workers),
            bench.run("(b) reference kernels, cache off", "reference", off, "model.kernels=reference", topics=PART),
        ]
        on, whole, pieces, many, _ = (run.records for run in runs)
        if not on == whole == pieces == many:
            raise SystemExit("the records of a run depend on its cache, batches or workers; no speed to tell")
        differences = check_scores(checkpoint, device, sent.sample, whole)
        precisions: tuple[Precision, ...] = ("float32", "bfloat16")
        alone = [scorer_alone(checkpoint, device, each, sent.sample, gpu, bench.consume) for each in precisions]
    results = [
        Result("(a) plain consume", bench.consume, 1.0),
        *(run.result for run in runs),
        *alone,
    ]
    show(results, f"{sum(sent.lines.values()):,} lines, {len(sent.blocks):,} sessions, {arguments.size}, {device}")
    agreement = ", ".join(f"{name} {value:.4g}" for name, value in differences.items())
    speedup = runs[1].result.lines_per_second / runs[-1].result.lines_per_second
    Console(width=170).print(
        f"on {card(device)}: {speedup:.1f} times the lines of (b); differences from the CPU: {agreement}",
        highlight=False,
    )
    if arguments.output is not None:
        report = {
            "card": card(device),
            "cpus": os.cpu_count(),
            "torch": torch.__version__,
            "size": arguments.size,
            "lines": arguments.lines,
            "sessions": len(sent.blocks),
            "ratio_to_reference_kernels": speedup,
            "against_cpu": differences,
            "results": [asdict(each) for each in results],
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def card(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "the CPU"


def show(results: list[Result], title: str) -> None:
    stages = [f"{stage} s" for stage in STAGES]
    table = Table(
        "",
        "lines/s",
        "of (a)",
        "sessions/s",
        "runs of model/s",
        "s",
        *stages,
        "GPU busy",
        "GPU MB",
        "RSS MB",
        title=title,
    )
    for each in results:
        numbers = (each.sessions_per_second, each.model_runs_per_second)
        table.add_row(
            each.what,
            f"{each.lines_per_second:,.0f}",
            f"{each.ratio_to_consume:.2f}",
            *("" if number is None else f"{number:,.0f}" for number in numbers),
            "" if each.seconds is None else f"{each.seconds:.1f}",
            *(f"{each.stages_s[stage]:.1f}" if each.stages_s else "" for stage in STAGES),
            "" if each.gpu_busy is None else f"{each.gpu_busy:.0%}",
            "" if each.gpu_mb is None else f"{each.gpu_mb:,.0f}",
            "" if each.resident_mb is None else f"{each.resident_mb:,.0f}",
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()

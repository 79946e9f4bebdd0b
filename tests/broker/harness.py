"""Topics, worker processes and readers for the tests against a real broker."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.broker.forked import ForkedProcess
from tests.shared import shared
from worker.files.record_files import write_records
from worker.processing.records import Records

_PATIENCE_S = 150.0  # with what takes a second on a machine that has nothing else to do
_numbers = itertools.count(1)
_BLOCK = re.compile(rb"blk_-?\d+")

HDFS_SETTINGS: dict[str, Any] = {
    "input": {"timestamp": {"pattern": r"^(\d{6} \d{6})", "format": "%y%m%d %H%M%S"}},
    "sessions": {"key": {"regex": r"blk_-?\d+"}, "idle_flush": "2s"},
    "state": {"snapshot_interval": "500ms"},
    "observability": {"port": None, "log_format": "json"},
}


class Record(NamedTuple):
    """A record to produce."""

    value: bytes | None
    key: bytes | None = None
    partition: int = 0


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, later ones on top."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def hdfs_lines(count: int, start: int = 0) -> list[bytes]:
    """Real HDFS lines, in order."""
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        return [line.rstrip(b"\n") for line in itertools.islice(file, start, start + count)]


def keyed_by_block(lines: Iterable[bytes], partitions: int) -> list[Record]:
    """The lines as records keyed by their block, each block's in one partition."""
    records = []
    for line in lines:
        found = _BLOCK.search(line)
        assert found is not None
        records.append(Record(line, found.group(), zlib.crc32(found.group()) % partitions))
    return records


def wait_until(
    condition: Callable[[], bool], why_not: Callable[[], str] = lambda: "", timeout_s: float = _PATIENCE_S
) -> None:
    """Wait for something that can be seen from outside; `why_not` is what fails with when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {why_not()}"
        time.sleep(0.1)


class Application:
    """An application of its own on the broker: its topics, its configuration file, its processes."""

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        checkpoint: Path,
        partitions: int = 1,
        input_topic: str | None = None,
        **settings: Mapping[str, Any],
    ) -> None:
        name = f"app{next(_numbers)}-{os.getpid()}"
        self.bootstrap = bootstrap
        self.folder = folder
        self.input_topic = input_topic or f"{name}-raw"
        self.score_topic, self.dead_topic = f"{name}-scores", f"{name}-dead"
        self.settings = merged(
            HDFS_SETTINGS,
            {
                "application_id": name,
                "kafka": {"bootstrap.servers": bootstrap},
                "input": {"topics": [self.input_topic]},
                "model": {"checkpoint": str(checkpoint)},
                "output": {"topic": self.score_topic, "dead_letter_topic": self.dead_topic},
                "worker": {"instance": "w0"},
            },
            settings,
        )
        self.config = folder / f"{name}.yaml"
        self.config.write_text(yaml.safe_dump(self.settings))
        self.partitions = partitions
        if input_topic is None:
            create_topic(bootstrap, self.input_topic, partitions)

    def again(self) -> Application:
        """Another application on the same input topic, which has to be produced only once."""
        checkpoint = Path(self.settings["model"]["checkpoint"])
        return Application(self.bootstrap, self.folder, checkpoint, self.partitions, self.input_topic)

    def produce(self, records: Iterable[Record]) -> None:
        # Idempotent: a retried batch must not overtake the one after it, or the lines' order would be lost.
        properties = {"linger.ms": 20, "message.max.bytes": 12_000_000, "enable.idempotence": True}
        producer = Producer({"bootstrap.servers": self.bootstrap, **properties})
        for record in records:
            while True:
                try:
                    producer.produce(self.input_topic, record.value, record.key, record.partition)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0

    def start(self, *overrides: str, program: Sequence[str] = ("worker",)) -> WorkerProcess:
        log = self.folder / f"{self.config.stem}-{next(_numbers)}.log"
        return WorkerProcess(self.config, log, overrides, program)

    def scores(self) -> list[dict[str, Any]]:
        """Every committed score record, as JSON, in the order of their partitions."""
        return list(itertools.chain.from_iterable(self.scores_by_partition().values()))

    def scores_by_partition(self) -> dict[int, list[dict[str, Any]]]:
        """The committed score records of each partition of the score topic, as JSON, as they stand there."""
        found: dict[int, list[dict[str, Any]]] = {}
        for message in read_all(self.bootstrap, self.score_topic):
            found.setdefault(message.partition() or 0, []).append(orjson.loads(message.value() or b""))
        return found

    def dead_letters(self) -> list[Message]:
        return read_all(self.bootstrap, self.dead_topic)

    def committed(self) -> dict[int, TopicPartition]:
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.settings["application_id"]})
        asked = [TopicPartition(self.input_topic, number) for number in range(self.partitions)]
        try:
            return {each.partition: each for each in consumer.committed(asked, timeout=30)}
        except KafkaException as error:
            # A new broker's coordinator is still making its topic: nothing can be committed yet.
            if error.args[0].code() not in (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE):
                raise
            return dict(zip(range(self.partitions), asked, strict=True))
        finally:
            consumer.close()


class WorkerProcess:
    """`logmamba run` as an operator starts it, or another program that takes its arguments after its own."""

    def __init__(
        self, config: Path, log: Path, overrides: Sequence[str] = (), program: Sequence[str] = ("worker",)
    ) -> None:
        self.log = log
        arguments = [*program, "run", "--config", str(config)]
        for override in overrides:
            arguments += ["--set", override]
        self.process = ForkedProcess(arguments, log)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = _PATIENCE_S) -> None:
        """Wait for something observable while the process runs; fails with its log when it ends or time is up."""

        def came() -> bool:
            try:
                if condition():
                    return True
            except OSError:
                pass  # an endpoint goes before its process does, and why is in the log
            assert self.process.poll() is None, f"the worker ended early:\n{self.tail()}"
            return False

        wait_until(came, self.tail, timeout_s)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What its log has of these events by now, or of all; the line that is being written is left for later."""
        whole = self.log.read_bytes().rpartition(b"\n")[0]
        events = [orjson.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return [event for event in events if not names or event["event"] in names]

    def logged(self, *names: str) -> bool:
        """Whether its log has one of these events by now."""
        return bool(self.events(*names))

    def address(self) -> str:
        """Where its HTTP endpoint is, once it listens."""
        self.wait_until(lambda: self.logged("http_endpoint"))
        [endpoint] = self.events("http_endpoint")
        return str(endpoint["url"]).rstrip("/")

    def get(self, path: str) -> tuple[int, str]:
        """What its HTTP endpoint answers: the status and the text."""
        try:
            with urllib.request.urlopen(self.address() + path, timeout=_PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ended(self) -> int:
        """Wait until it ends by itself; returns its exit code."""
        try:
            return self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {_PATIENCE_S} s:\n{self.tail()}") from None

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.ended()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to finish, once it has said that it starts, and so listens to signals; returns its exit code."""
        while self.process.poll() is None and not self.logged("starting"):
            time.sleep(0.05)
        self.process.send_signal(number)
        return self.ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    def stopped_at(self) -> float:
        """When it had done all of its stop, by its log; seconds since 1970."""
        [stopped] = self.events("stopped")
        return datetime.fromisoformat(stopped["timestamp"]).timestamp()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


class RekeyProcess(WorkerProcess):
    """`logmamba rekey` as an operator starts it."""

    def __init__(self, config: Path, log: Path, overrides: Sequence[str] = ()) -> None:
        self.log = log
        arguments = ["worker", "rekey", "--config", str(config)]
        self.process = ForkedProcess(arguments + [part for each in overrides for part in ("--set", each)], log)


class SupervisedWorker(WorkerProcess):
    """`logmamba run` in a process of its own, which may have children, as that of several processes has."""

    def __init__(self, config: Path, log: Path, overrides: Sequence[str]) -> None:
        self.log = log
        command = [sys.executable, "-m", "worker", "run", "--config", str(config), "--set", "observability.port=0"]
        for override in overrides:
            command += ["--set", override]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stderr=file, cwd=Path(__file__).parents[2])


class AlertProcess(WorkerProcess):
    """`logmamba alert` as an operator starts it."""

    def __init__(self, config: Path, log: Path) -> None:
        self.log = log
        self.process = ForkedProcess(["worker", "alert", "--config", str(config)], log)


def write_partitions(path: Path, parts: Sequence[Sequence[bytes | None]]) -> None:
    """A file of records that `logmamba score` reads as partitions: those of the n-th part are of the topic n.log."""
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            offsets = list(range(len(part)))
            write_records(file, Records(f"{number}.log", 0, offsets, list(part), None, None, None))


def create_topic(bootstrap: str, name: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)
            break
        except KafkaException as error:
            # A busy machine's broker may miss the controller's heartbeats, and is fenced until the next one.
            fenced = error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR
            if not fenced or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    # The broker learns of it after the controller has made it.
    while name not in (found := admin.list_topics(timeout=30).topics) or len(found[name].partitions) < partitions:
        assert time.monotonic() < deadline, f"{name} was made and is not listed"
        time.sleep(0.05)


def read_all(bootstrap: str, topic: str, isolation: str = "read_committed") -> list[Message]:
    """Every record of a topic that a reader sees now; none when there is no such topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
        }
    )
    try:
        found = consumer.list_topics(topic, timeout=30).topics[topic]
        if found.error is not None:
            return []
        left = set(found.partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        messages = []
        while left:
            for message in consumer.consume(10_000, 1.0):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                else:
                    raise AssertionError(error)
        return sorted(messages, key=lambda message: (message.partition(), message.offset()))
    finally:
        consumer.close()

"""A log with known sessions, sent to a topic; a reader that watches the scores come; what is exact about them."""

from __future__ import annotations

import itertools
import math
import random
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import psutil
import yaml
from confluent_kafka import Consumer, Message, TopicPartition

from tests.broker.harness import (
    HDFS_SETTINGS,
    Application,
    Record,
    WorkerProcess,
    create_topic,
    merged,
    read_all,
    write_partitions,
)
from tests.faults.checker import DeadLetter, Expected, RawRecord, Rules, Score, check, expected_of
from tests.faults.report import FaultReport, Size
from tests.worker.command_line import logmamba
from worker.generator.log import GeneratedLog

PARTITIONS = 4
RULES = Rules(gap_ms=120_000, max_age_ms=200_000, max_events=16, max_open=60)
# How soon a dead worker is noticed, and what it had open is given up: the least that two busy cores keep.
_TIMEOUTS = {
    "session.timeout.ms": 3_000,
    "heartbeat.interval.ms": 500,
    "transaction.timeout.ms": 4_000,
    "max.poll.interval.ms": 16_000,
}
# Where all records are there, a partition is idle at its end only, and a worker that takes it for idle as soon as it
# can must close the same sessions. While records are being sent, that would be a matter of the clock: there it must not
# before they have failed to come for longer than their sender ever pauses.
_IDLE_AT_ONCE, _IDLE_WHILE_FED = "sessions.idle_flush=1ms", "sessions.idle_flush=10s"
_FED_AT_MOST = 0.95  # of the records, before the block is over in which they are sent
_STEPS = (
    "worker.batch_records=50",
    "worker.commit_interval=0ms",
    "state.snapshot_interval=100ms",
)
# Where kill -9 strikes: how often a worker may pass there first, and how much later it may die (ms).
KILLED_AT = {
    "consume": (80, 0),
    "score": (80, 0),
    "produce": (400, 5),
    "send_offsets": (80, 0),
    "commit": (80, 10),
}

_BROKEN = (b"", b"   ", b"\xff\xfe line", None, b"240301 120000 7 INFO a line of no block", b"blk_1 of no time")


@dataclass(frozen=True)
class Stream:
    """Records, and all that must come of them.

    Attributes:
        records: those of a partition in its order.
        expected: sessions and dead letters.
        values: what `logmamba score` says of each partition.
        early: the early scores of a worker that nothing happened to.
        checkpoint: that scored.
        bootstrap, topic: where the records are already.
    """

    records: Sequence[Record]
    expected: Expected
    values: Mapping[int, Sequence[dict[str, Any]]]
    early: Sequence[dict[str, Any]]
    checkpoint: Path
    bootstrap: str
    topic: str

    @classmethod
    def make(cls, count: int, folder: Path, checkpoint: Path, bootstrap: str) -> Stream:
        """Generate records, have them scored, and send them to a topic of the broker."""
        return cls.of(_records(count), folder, checkpoint, bootstrap)

    @classmethod
    def of(cls, records: Sequence[Record], folder: Path, checkpoint: Path, bootstrap: str) -> Stream:
        """Have records scored, and send them to a topic of the broker."""
        parts = [[record.value for record in records if record.partition == each] for each in range(PARTITIONS)]
        raw = [RawRecord(each, offset, value) for each, part in enumerate(parts) for offset, value in enumerate(part)]
        values = scores_of_files(parts, folder, checkpoint)
        undisturbed = cls(records, expected_of(raw, RULES), values, [], checkpoint, bootstrap, "")
        with undisturbed.unsent(folder) as run:
            application = run.application
            application.produce(records)
            run.finish()
            early = [score for score in application.scores() if score["kind"] == "early"]
            return replace(undisturbed, early=early, topic=application.input_topic)

    def sent(self, folder: Path, **settings: Mapping[str, Any]) -> Run:
        """A new application, all of whose input is there."""
        return Run(self, folder, self.bootstrap, self.topic, settings)

    def unsent(self, folder: Path, bootstrap: str | None = None, **settings: Mapping[str, Any]) -> Run:
        """A new application on an empty topic, of this or of another broker."""
        return Run(self, folder, bootstrap or self.bootstrap, None, settings)


def _records(count: int) -> list[Record]:
    """A generated log: some of its lines are late, some cannot be read, and its sessions end in every way."""
    rng = random.Random(0)
    log = GeneratedLog(lines=count, seed=0, anomaly_rate=0.1)
    # One line in fifty comes up to 300 lines late.
    order = sorted(enumerate(log), key=lambda each: each[0] + (rng.randrange(300) if rng.random() < 0.02 else 0))
    records = [
        Record(line.text.encode(), line.block.encode(), zlib.crc32(line.block.encode()) % PARTITIONS)
        for _, line in order
    ]
    for at in range(500, count, 997):
        records[at] = records[at]._replace(value=rng.choice(_BROKEN))
    return records


def scores_of_files(
    parts: Sequence[Sequence[bytes | None]], folder: Path, checkpoint: Path
) -> dict[int, list[dict[str, Any]]]:
    """What `logmamba score` says of each partition's lines; a file's end closes sessions as an idle end does."""
    config, output = folder / "files.yaml", folder / "scores.jsonl"
    config.write_text(yaml.safe_dump(merged(HDFS_SETTINGS, {"sessions": RULES.as_settings()})))
    records = folder / "parts.records.jsonl"
    write_partitions(records, parts)
    scored = logmamba("score", "--checkpoint", checkpoint, "--config", config, "--input", records, "--output", output)
    assert scored.returncode == 0, scored.stderr
    values: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(parts))}
    for line in output.read_bytes().splitlines():
        value = orjson.loads(line)
        values[int(value["source"]["topic"].removesuffix(".log"))].append(value)
    return values


class Run:
    """An application that works on a stream, watched from outside.

    Attributes:
        application: its settings, topics and processes.
        output: its scores as they become visible.
    """

    def __init__(
        self,
        stream: Stream,
        folder: Path,
        bootstrap: str,
        input_topic: str | None,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.stream = stream
        defaults = {"sessions": RULES.as_settings(), "kafka": _TIMEOUTS}
        self.application = application = Application(
            bootstrap, folder, stream.checkpoint, PARTITIONS, input_topic, **merged(defaults, settings)
        )
        for topic in (application.score_topic, application.dead_topic):
            create_topic(application.bootstrap, topic, PARTITIONS)
        self.output = Follower(application.bootstrap, application.score_topic)
        self._struck: list[float] = []
        self._idle = _IDLE_AT_ONCE

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.output.close()

    def share(self) -> float:
        """Of the final scores that must come, those that are visible."""
        return self.output.finals / len(self.stream.expected.sessions)

    def struck(self) -> None:
        """Note that a fault strikes now."""
        self._struck.append(time.time())

    @contextmanager
    def fed(self, seconds: float) -> Iterator[None]:
        """Send the records evenly over this time while the block runs; the last ones come when it is over, however long
        it takes."""
        self._idle = _IDLE_WHILE_FED
        over = threading.Event()
        records, began = self.stream.records, time.monotonic()

        def feed() -> None:
            sent = 0
            while sent < len(records):
                share = 1.0 if over.wait(0.2) else min(_FED_AT_MOST, (time.monotonic() - began) / seconds)
                due = int(share * len(records))
                if due > sent:
                    self.application.produce(records[sent:due])
                sent = due

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._idle = _IDLE_AT_ONCE

    @property
    def steps(self) -> Sequence[str]:
        """Settings of a worker that goes through the records in small steps, so that there is a middle."""
        return [*_STEPS, self._idle]

    def start(self, *overrides: str) -> WorkerProcess:
        """Such a worker."""
        return self.application.start(*self.steps, *overrides)

    def striking(self, *strike: str, settings: Sequence[str] = ()) -> WorkerProcess:
        """Such a worker that sends itself a signal; the arguments are those of `tests.faults.striking_worker`."""
        return self.application.start(*self.steps, *settings, program=("tests.faults.striking_worker", *strike))

    def kill_at_each_step(self, rng: random.Random, size: Size) -> None:
        """Worker after worker dies at a chance moment of each step: all of them before the work is done."""
        # A core stream lasts for about 200 passes of a step in all.
        rounds, share = (4, 1.0) if size.full else (1, 0.4)
        for step, (most_passes, most_ms) in [*KILLED_AT.items()] * rounds:
            nth, delay_ms = rng.randint(1, int(share * most_passes)), rng.uniform(0, most_ms)
            strike = ["--at", step, "--nth", str(nth), "--delay-ms", f"{delay_ms:.1f}", "--signal", "KILL"]
            with self.striking(*strike) as worker:
                assert worker.ended() == -signal.SIGKILL, worker.tail()
                self.struck()
        assert self.share() < 1, "all was done before the last worker was killed"

    def finish(self) -> None:
        """One more worker does what is left and stops."""
        with self.application.start(self._idle) as worker:
            worker.wait_until(lambda: self.output.finals >= len(self.stream.expected.sessions))
            assert worker.stop() == 0, worker.tail()

    def assert_exact(self, report: FaultReport, fault: str, recovery_s: float | None = None) -> None:
        """What a new reader finds is what must be there: nothing else, nothing twice, in order, the same values.

        `recovery_s` is how long it took to go on, if that is not from the fault to the next record of each partition.
        """
        application = self.application
        messages = read_all(application.bootstrap, application.score_topic)
        contents = [orjson.loads(each.value() or b"") for each in messages]
        if most := application.settings["output"].get("line_text"):
            self._take_texts(contents, most)
        verdict = check(
            self.stream.expected,
            topic=application.input_topic,
            scores=[Score(each.partition() or 0, it) for each, it in zip(messages, contents, strict=True)],
            dead_letters=[_dead_letter(each) for each in application.dead_letters()],
            values=self.stream.values,
            early=self.stream.early,
        )
        report(
            fault,
            records=len(self.stream.records),
            rounds=len(self._struck),
            verdict=verdict,
            longest_gap_s=self.output.longest_gap_s(),
            recovery_s=self.output.recovery_s(self._struck) if recovery_s is None else recovery_s,
        )
        assert verdict.exact, str(verdict)

    def _take_texts(self, contents: Sequence[dict[str, Any]], most: int) -> None:
        """Take the texts of lines out of score records that have to have them; each must be that of its own line."""
        lines: dict[int, list[bytes | None]] = {}
        for record in self.stream.records:
            lines.setdefault(record.partition, []).append(record.value)
        for content in contents:
            for event in content["top_events"]:
                line = lines[content["source"]["partition"]][event["offset"]] or b""
                expected = None if content["severity"] == "normal" else line.decode()[:most]
                assert event.pop("text", None) == expected, content


def stopped(worker: WorkerProcess) -> bool:
    """Whether the process was stopped by a signal and has not been told to go on."""
    return psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED


class Follower:
    """Reads a score topic from its beginning as an application downstream does, and notes when records come."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._seen: list[_Seen] = []
        self.finals = 0
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "follower",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        while not self._closing.is_set():
            for message in self._consumer.consume(1_000, 0.1):
                if message.error() is None:
                    content = orjson.loads(message.value() or b"")
                    place, end = content["source"]["partition"], content["closed_by"] == "idle"
                    self._seen.append(_Seen(time.time(), message.timestamp()[1] / 1000, place, end))
                    self.finals += content["kind"] == "final"

    def longest_gap_s(self) -> float:
        """Longest time between two records, those aside that only the end of a partition caused."""
        times = [each.at for each in self._seen if not each.end]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def recovery_s(self, faults: Sequence[float]) -> float | None:
        """From a fault to the next visible record made after it, for the fault and the input partition it took longest.

        Args:
            faults: seconds since 1970. One that is followed by another before anything came has no recovery.
        """
        waits = []
        for fault, following in itertools.pairwise([*faults, math.inf]):
            for partition in range(PARTITIONS):
                after = (each.at for each in self._seen if each.partition == partition and each.made > fault)
                waits += [at - fault for at in itertools.islice(after, 1) if at < following]
        return max(waits, default=None)

    def next_s(self, moment: float) -> float | None:
        """From that moment (seconds since 1970) to the next visible record made after it, of whatever partition."""
        return next((each.at - moment for each in self._seen if each.made > moment), None)

    def partitions_since(self, moment: float) -> set[int]:
        """The input partitions of which a record is visible that was made after this moment."""
        return {each.partition for each in self._seen if each.made > moment}

    def first_since(self, moment: float, partition: int) -> tuple[float, float]:
        """When the first record of an input partition after this moment was made, and when it became visible."""
        return next((each.made, each.at) for each in self._seen if each.partition == partition and each.made > moment)

    def longest_gap_of_s(self, partition: int, moment: float) -> float:
        """Longest time between two visible records of an input partition, from this moment on."""
        times = [each.at for each in self._seen if each.partition == partition and each.at > moment]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._consumer.close()


class _Seen(NamedTuple):
    at: float  # when it was read; seconds since 1970
    made: float  # when its worker sent it
    partition: int  # of the input
    end: bool  # whether the idle end of the input closed the session


def _dead_letter(message: Message) -> DeadLetter:
    headers = {name: (value or b"").decode() for name, value in message.headers() or ()}
    place = int(headers["logmamba-error-partition"]), int(headers["logmamba-error-offset"])
    return DeadLetter(*place, headers["logmamba-error-reason"])

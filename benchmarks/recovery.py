"""How long is a worker away after kill -9, and what do the snapshots cost that bring it back?

First without Kafka, on one core: a snapshot of open sessions is written and restored, beside the least that a restore
must do (Arrow reads the same columns, and a dictionary finds the keys).

Then on a real broker with real worker processes, HDFS lines in 4 partitions. A snapshot of as many open sessions as
asked and a committed position as many records behind it are put where a worker would have left them. A worker starts
there, becomes live, is killed, and another one is started at once with one more record in every partition: "away" is
the time from the kill to the commit of the last of those. `session.timeout.ms` is 6 s here: that long the group waits
for the dead worker, whatever else is done meanwhile. A plain consumer of the same topic is the baseline of the replay.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end import PARTITIONS, plain_consume, repeated
from benchmarks.sessions import rules
from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, Record, WorkerProcess, hdfs_lines
from tests.broker.kafka import KafkaBroker
from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed
from worker.delivery.restore import StateStore
from worker.delivery.snapshots import Snapshot, decode, encode
from worker.kafka.clients import ClientProperties
from worker.kafka.sink import TransactionalSink
from worker.kafka.source import KafkaReader
from worker.kafka.topics import Topics
from worker.observability.metrics import Metrics
from worker.processing.clock import ClockState
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition
from worker.processing.scorer import load_scorer
from worker.processing.session_state import SessionsState
from worker.processing.sessions import Sessions
from worker.settings.document import load_settings

EVENTS_PER_SESSION = 19
PART_BYTES, PART_HEADER_BYTES = 1_000_000, 50
SESSION_TIMEOUT_MS = 6_000
GAP_MS = 600_000
OPEN_SESSIONS = (1_000, 100_000, 1_000_000)
CASES = [  # open sessions, records since the snapshot
    *((sessions, 0) for sessions in OPEN_SESSIONS),
    *((OPEN_SESSIONS[0], records) for records in (100_000, 1_000_000)),
]
LINES_OF_A_PASS = 177_952
STAMP = "%y%m%d %H%M%S"


@dataclass(frozen=True)
class SnapshotRates:
    """On one core."""

    sessions: int
    events: int
    bytes: int
    save_sessions_per_s: float  # of sessions that all had events since the restore
    baseline_sessions_per_s: float
    restore_sessions_per_s: float  # from the parts to sessions that can take events
    ratio: float


@dataclass(frozen=True)
class Recovery:
    """Seconds, of one kill -9."""

    open_sessions: int
    records_since: int
    snapshot_bytes: int
    snapshot_write_s: float  # encoding and the broker's acknowledgement, all partitions one after the other
    snapshot_read_s: float  # by a consumer, not decoded
    away_s: float  # from the kill to the next commit of the slowest partition
    start_s: float  # process, imports, model
    join_s: float  # of the group: until the dead worker's session has timed out
    restore_s: float  # reading and decoding the snapshots
    replay_s: float
    replay_records_per_s: float | None
    baseline_records_per_s: float


def state_of(sessions: int, stream_time: int, seed: int = 0) -> SessionsState:
    """Open sessions as a worker would hold them at a stream time (ms): none has been quiet for the gap."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(EVENTS_PER_SESSION - 6, EVENTS_PER_SESSION + 7, sessions)
    ends, events = np.cumsum(lengths), int(lengths.sum())
    # Offsets grow from event to event, and from the first event of a session to that of the next.
    along = np.cumsum(rng.integers(1, 1000, events))
    opened = np.sort(rng.integers(0, 10 * events, sessions))
    offsets = np.repeat(opened - along[ends - lengths], lengths) + along
    last_at = stream_time - rng.integers(0, GAP_MS, sessions)
    times = np.repeat(last_at - offsets[ends - 1], lengths) + offsets
    return SessionsState(
        clock=ClockState(stream_time),
        keys=[f"blk_{number}" for number in rng.integers(10**18, 9 * 10**18, sessions).tolist()],
        lengths=lengths,
        opened_at=np.sort(times[ends - lengths]),
        last_at=last_at,
        alerted=np.zeros(sessions, np.int64),
        evaluated=lengths,
        tokens=rng.integers(3, 40, events),
        offsets=offsets,
        times=times,
    )


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """The best of several rounds."""
    best = float("inf")
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def measure_snapshot(open_sessions: int, rounds: int) -> SnapshotRates:
    """From live sessions to parts, and from parts to live sessions."""
    stream_time = 1_226_000_000_000
    state = state_of(open_sessions, stream_time)
    use = replace(rules(GAP_MS), max_open=open_sessions)
    live = Sessions(use, state)
    offset = int(state.offsets.max()) + 1
    live.process(state.keys, [3] * open_sessions, [stream_time] * open_sessions, [offset] * open_sessions)
    parts: list[bytes] = []

    def save() -> None:
        parts[:] = encode(Snapshot(0, "sha256:0", 40, live.state()), PART_BYTES)

    def restore() -> Sessions:
        return Sessions(use, decode(parts).sessions)

    def read_columns() -> dict[str, int]:
        with pa.ipc.open_stream(stream) as reader:
            (batch,) = list(reader)
        return dict(zip(batch["keys"].to_pylist(), range(open_sessions), strict=True))

    save_s = cpu_seconds(save, rounds)
    stream = b"".join(part[PART_HEADER_BYTES:] for part in parts)
    if restore().state() != live.state():
        raise SystemExit("the restored sessions differ: no figures")
    restore_s, baseline_s = cpu_seconds(restore, rounds), cpu_seconds(read_columns, rounds)
    return SnapshotRates(
        sessions=open_sessions,
        events=len(live.state().tokens),
        bytes=sum(map(len, parts)),
        save_sessions_per_s=open_sessions / save_s,
        baseline_sessions_per_s=open_sessions / baseline_s,
        restore_sessions_per_s=open_sessions / restore_s,
        ratio=baseline_s / restore_s,
    )


class Lines:
    """A topic of HDFS lines in 4 partitions, which each measurement makes one record a partition longer.

    Attributes:
        topic: its name.
    """

    def __init__(self, application: Application, passes: int) -> None:
        self._application = application
        self.topic = application.input_topic
        self._stamps: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        for records in repeated(hdfs_lines(LINES_OF_A_PASS), passes):
            application.produce(records)
            for record in records:
                self._stamps[record.partition].append((record.value or b"")[:13])

    @property
    def total(self) -> int:
        """How many records the topic has."""
        return sum(map(len, self._stamps))

    def ends(self) -> list[int]:
        """Offset after the last record of each partition."""
        return [len(stamps) for stamps in self._stamps]

    def stream_time(self, partition: int, offset: int) -> int:
        """Milliseconds since 1970 at which a partition stands before an offset."""
        latest = max(self._stamps[partition][max(0, offset - 1000) : max(1, offset)])
        return int(datetime.strptime(latest.decode(), STAMP).replace(tzinfo=UTC).timestamp() * 1000)

    def one_more(self) -> None:
        """A record in each partition, of a new block."""
        records = []
        for partition, stamps in enumerate(self._stamps):
            stamps.append(max(stamps[-1000:]))
            block = b"blk_%d" % time.monotonic_ns()
            text = (
                stamps[-1]
                + b" 148 INFO dfs.DataNode$PacketResponder: PacketResponder 1 for block %s terminating" % block
            )
            records.append(Record(text, block, partition))
        self._application.produce(records)


class Interrupted:
    """An application as a killed worker leaves it: its snapshots at P, its positions X, records up to X.

    Attributes:
        application: its settings, topics and processes.
        snapshot_bytes, snapshot_write_s, snapshot_read_s: of the snapshots of all partitions.
    """

    def __init__(self, bootstrap: str, folder: Path, lines: Lines, open_sessions: int, records_since: int) -> None:
        self.application = Application(
            bootstrap,
            folder,
            demo_checkpoint(),
            PARTITIONS,
            lines.topic,
            kafka={"session.timeout.ms": SESSION_TIMEOUT_MS},
            sessions={"gap": f"{GAP_MS}ms", "max_open": 1_000_000, "idle_flush": None},
            state={"snapshot_interval": "1h"},
            observability={"port": 0},
        )
        settings = load_settings(self.application.config, [])
        properties = ClientProperties(settings)
        Topics(properties.admin(), settings).create_missing_outputs()
        scorer = load_scorer(settings)
        outage = Outage()
        reader = KafkaReader(properties.reader(), outage, batch_records=10_000)
        decoder = Pipeline(settings, scorer, Metrics()).decoder
        store = StateStore(settings, vocabulary=scorer.vocabulary, decoder=decoder, reader=reader)
        sink = TransactionalSink(properties.producer(), outage)
        offsets: dict[Partition, Committed] = {}
        self.snapshot_bytes, self.snapshot_write_s = 0, 0.0
        for number, end in enumerate(lines.ends()):
            partition, position = Partition(lines.topic, number), end - records_since // PARTITIONS
            state = state_of(open_sessions // PARTITIONS, lines.stream_time(number, position), seed=number)
            began = time.perf_counter()
            parts = store.maker(partition, position)(state, None, None)
            [first] = sink.send_snapshots([parts], Deadline())
            self.snapshot_write_s += time.perf_counter() - began
            self.snapshot_bytes += sum(len(part.value or b"") for part in parts)
            pointer = store.pointer(partition, position, first, len(parts))
            offsets[partition] = Committed(end, pointer.to_metadata(settings.instance))
        group = Consumer(properties.consumer())
        sink.commit(offsets, group.consumer_group_metadata, Deadline())
        sink.close(Deadline())
        group.close()
        began, read = time.perf_counter(), 0
        for number in reader.partitions(settings.state_topic):
            place = Partition(settings.state_topic, number)
            for records in reader.read(place, *reader.watermarks(place), committed=False):
                read += sum(len(value or b"") for value in records.values)
        self.snapshot_read_s = time.perf_counter() - began
        assert read == self.snapshot_bytes
        reader.close()


def measure_recovery(
    bootstrap: str, folder: Path, lines: Lines, open_sessions: int, records_since: int, baseline: float
) -> Recovery:
    interrupted = Interrupted(bootstrap, folder, lines, open_sessions, records_since)
    application = interrupted.application
    back = "partition_live" if records_since else "partition_restored"
    with application.start() as worker:
        worker.wait_until(lambda: len(moments(worker, back)) == PARTITIONS, timeout_s=120)
        killed = time.time()
        worker.kill()
    with application.start() as worker:
        lines.one_more()
        watcher = Consumer({"bootstrap.servers": bootstrap, "group.id": application.settings["application_id"]})
        asked = [TopicPartition(lines.topic, number) for number in range(PARTITIONS)]
        ends = lines.ends()
        worker.wait_until(lambda: [each.offset for each in watcher.committed(asked, timeout=60)] == ends, timeout_s=120)
        away_s = time.time() - killed
        watcher.close()
        (ready,) = moments(worker, "http_endpoint")
        restored, live = moments(worker, "partition_restored"), moments(worker, "partition_live")
        assigned = restored[0].at - restored[0].seconds
        replay_s = live[-1].at - restored[-1].at if live else 0.0
        return Recovery(
            open_sessions=open_sessions,
            records_since=records_since,
            snapshot_bytes=interrupted.snapshot_bytes,
            snapshot_write_s=interrupted.snapshot_write_s,
            snapshot_read_s=interrupted.snapshot_read_s,
            away_s=away_s,
            start_s=ready.at - killed,
            join_s=assigned - ready.at,
            restore_s=restored[-1].at - assigned,
            replay_s=replay_s,
            replay_records_per_s=records_since / replay_s if live else None,
            baseline_records_per_s=baseline,
        )


class Moment(NamedTuple):
    """A line of a worker's log."""

    at: float  # seconds since 1970
    seconds: float  # that what it tells of took


def moments(worker: WorkerProcess, event: str) -> list[Moment]:
    """The log lines of an event, in their order."""
    lines = [orjson.loads(line) for line in worker.log.read_bytes().splitlines() if line.endswith(b"}")]
    return [
        Moment(datetime.fromisoformat(line["timestamp"]).timestamp(), line.get("seconds", 0.0))
        for line in lines
        if line["event"] == event
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--passes", type=int, default=6, help=f"over {LINES_OF_A_PASS:,} lines")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurements without Kafka")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    snapshots = [measure_snapshot(sessions, arguments.rounds) for sessions in OPEN_SESSIONS]
    recoveries: list[Recovery] = []
    with tempfile.TemporaryDirectory() as name:
        broker = KafkaBroker(Path(name) / "kafka", heap="1g").start()
        try:
            lines = Lines(Application(broker.bootstrap, Path(name), demo_checkpoint(), PARTITIONS), arguments.passes)
            baseline = plain_consume(broker.bootstrap, lines.topic, lines.total)
            most = PARTITIONS * min(lines.ends())
            for open_sessions, records_since in CASES:
                recoveries.append(
                    measure_recovery(
                        broker.bootstrap, Path(name), lines, open_sessions, min(records_since, most), baseline
                    )
                )
        finally:
            broker.stop()
    show(snapshots, recoveries)
    if arguments.output is not None:
        figures = {
            "snapshots": [asdict(each) for each in snapshots],
            "recoveries": [asdict(each) for each in recoveries],
        }
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def show(snapshots: Sequence[SnapshotRates], recoveries: Sequence[Recovery]) -> None:
    console = Console()
    table = Table(
        "open", "MB", "save k/s", "columns only k/s", "restore k/s", "ratio", title="sessions, one core, no Kafka"
    )
    for rates in snapshots:
        table.add_row(
            short(rates.sessions),
            f"{rates.bytes / 1e6:.1f}",
            f"{rates.save_sessions_per_s / 1e3:,.0f}",
            f"{rates.baseline_sessions_per_s / 1e3:,.0f}",
            f"{rates.restore_sessions_per_s / 1e3:,.0f}",
            f"{rates.ratio:.2f}",
        )
    console.print(table)
    table = Table("open", "MB", "write s", "read s", title="snapshots of 4 partitions, with the broker")
    for each in recoveries:
        if not each.records_since:
            table.add_row(
                short(each.open_sessions),
                f"{each.snapshot_bytes / 1e6:.1f}",
                f"{each.snapshot_write_s:.2f}",
                f"{each.snapshot_read_s:.2f}",
            )
    console.print(table)
    table = Table(
        "open", "since", "away s", "start", "join", "restore", "replay", "k/s", "ratio", title="after kill -9"
    )
    for each in recoveries:
        rate = each.replay_records_per_s
        table.add_row(
            short(each.open_sessions),
            short(each.records_since),
            f"{each.away_s:.1f}",
            f"{each.start_s:.1f}",
            f"{each.join_s:.1f}",
            f"{each.restore_s:.2f}",
            f"{each.replay_s:.1f}",
            "" if rate is None else f"{rate / 1e3:,.0f}",
            "" if rate is None else f"{rate / each.baseline_records_per_s:.2f}",
        )
    console.print(table)


def short(count: int) -> str:
    """A large number in few characters."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


if __name__ == "__main__":
    main()

"""Row 13: what a restart needs is gone. The worker does what `input.on_lost_offsets` says and never jumps silently."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.broker.harness import Application, Record, WorkerProcess, read_all, wait_until
from tests.broker.kafka import KafkaBroker
from tests.faults.checker import RawRecord, Rules, expected_of
from tests.faults.report import FaultReport
from worker.generator.log import GeneratedLog

RECORDS = 4_000
HALF = RECORDS // 2
FIRST_COMMIT = HALF // 4
RULES = Rules(gap_ms=120_000, max_age_ms=200_000, max_events=16, max_open=60)
# Compaction as soon as there is something to compact.
STATE_CONFIG = {
    "cleanup.policy": "compact",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.0",
    "delete.retention.ms": "0",
}


class Lost:
    """An application on one partition, and what is done to it.

    Attributes:
        application: its settings, topics and processes.
        lines: the records of the partition.
    """

    def __init__(self, broker: KafkaBroker, folder: Path, checkpoint: Path) -> None:
        self.application = application = Application(
            broker.bootstrap,
            folder,
            checkpoint,
            sessions=RULES.as_settings(),
            kafka={"session.timeout.ms": 2_000, "heartbeat.interval.ms": 500},
            state={"snapshot_interval": "1h"},
            scoring={"early": False},
        )
        self.admin = AdminClient({"bootstrap.servers": application.bootstrap})
        self.group = application.settings["application_id"]
        self.state_topic = f"{self.group}-state"
        self.admin.create_topics([NewTopic(self.state_topic, 1, 1, config=STATE_CONFIG)])[self.state_topic].result(30)
        self.lines = [line.text.encode() for line in GeneratedLog(lines=RECORDS, seed=13, anomaly_rate=0.1)]

    def produce(self, start: int, end: int) -> None:
        self.application.produce(Record(line) for line in self.lines[start:end])

    def interrupted(self) -> Lost:
        """A worker has committed HALF, long after its only snapshot, and was killed; then the other half came."""
        application = self.application
        with application.start("sessions.idle_flush=null", "worker.batch_records=200") as worker:
            # The snapshot comes with the first commit, so the records after it must not be there before.
            for start, end in pairwise((0, FIRST_COMMIT, HALF)):
                self.produce(start, end)
                worker.wait_until(partial(self.has_committed, end))
            worker.kill()
        self.produce(HALF, RECORDS)
        return self

    def has_committed(self, offset: int) -> bool:
        return self.application.committed()[0].offset == offset

    def pointer(self) -> dict[str, int]:
        pointer: dict[str, int] = orjson.loads(self.application.committed()[0].metadata or "")
        return pointer

    def delete_before(self, offset: int) -> None:
        """As retention does."""
        partition = TopicPartition(self.application.input_topic, 0, offset)
        (done,) = self.admin.delete_records([partition]).values()
        assert done.result(30).low_watermark == offset

    def overwrite_part(self, value: bytes | None) -> None:
        """Write another record of the snapshot's key, and wait until compaction has removed the snapshot."""
        bootstrap = self.application.bootstrap
        key = f"{self.group}/{self.application.input_topic}/0/0".encode()
        snapshot = self.pointer()["first_offset"]
        producer = Producer({"bootstrap.servers": bootstrap})
        producer.produce(self.state_topic, value, key)

        def compacted() -> bool:
            # Only full segments are compacted, and a segment is full when a record comes after its time.
            producer.produce(self.state_topic, b"", b"filler %d" % time.monotonic_ns())
            assert producer.flush(30) == 0
            return all(message.offset() != snapshot for message in read_all(bootstrap, self.state_topic))

        wait_until(compacted)

    def outcome(self) -> tuple[int, int, str | None]:
        committed = self.application.committed()[0]
        return len(self.application.scores()), committed.offset, committed.metadata

    def assert_started_over(self, worker: WorkerProcess, scores_before: int, reason: str, oldest: int) -> None:
        """It says so, and every session of the records that are left is scored, from the oldest record on."""
        left = [RawRecord(0, at, line) for at, line in enumerate(self.lines) if at >= oldest]
        expected = [
            (each.key, each.first_offset, len(each.offsets), each.closed_by, each.cause_offset)
            for each in expected_of(left, RULES).sessions
        ]
        worker.wait_until(lambda: len(self.application.scores()) >= scores_before + len(expected))
        assert worker.stop() == 0, worker.tail()
        found = []
        for each in self.application.scores()[scores_before:]:
            source = each["source"]
            found.append(
                (each["session"], source["first_offset"], each["events"], each["closed_by"], source["cause_offset"])
            )
        assert sorted(found) == sorted(expected)
        events = map(orjson.loads, worker.log.read_bytes().splitlines())
        logged = [event for event in events if event["event"] == "partition_starts_over"]
        assert logged
        for event in logged:  # twice, when the group has to be joined anew for it
            assert (event["offset"], event["level"]) == (oldest, "error")
            assert re.search(reason, event["reason"])


def assert_stopped(worker: WorkerProcess, reason: str) -> None:
    """Exit code 1, and the reason with what to do."""
    assert worker.ended() == 1, worker.tail()
    log = worker.log.read_text()
    assert re.search(reason, log), log
    assert "input.on_lost_offsets: earliest starts over at the oldest record" in log
    assert "Traceback" not in log


def position_deleted(lost: Lost) -> tuple[str, int]:
    oldest = HALF + 100
    lost.delete_before(oldest)
    return f"committed offset {HALF} is outside {oldest} to {RECORDS}", oldest


def snapshot_position_deleted(lost: Lost) -> tuple[str, int]:
    snapshot = lost.pointer()["position"]
    assert snapshot <= FIRST_COMMIT
    lost.delete_before(snapshot + 1)
    return f"its records since offset {snapshot} are deleted; the oldest is {snapshot + 1}", snapshot + 1


def part_missing(lost: Lost) -> tuple[str, int]:
    lost.overwrite_part(None)
    return "0 of 1 parts found", 0


def part_damaged(lost: Lost) -> tuple[str, int]:
    lost.overwrite_part(b"not a part of anything")
    return "is not a part of a snapshot", 0


def offsets_expired(lost: Lost) -> tuple[str, int]:
    def deleted() -> bool:
        try:
            lost.admin.delete_consumer_groups([lost.group])[lost.group].result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP:  # the killed worker is still thought alive
                raise
            return False
        return True

    wait_until(deleted)
    return "the group has no committed offset, yet the state topic holds a snapshot", 0


@pytest.mark.parametrize(
    ("fault", "lose"),
    [
        pytest.param(name, lose, marks=pytest.mark.fault(row=13, core=core))
        for name, lose, core in [
            ("committed position deleted", position_deleted, False),
            ("position of the snapshot deleted", snapshot_position_deleted, True),
            ("snapshot part missing", part_missing, False),
            ("snapshot part damaged", part_damaged, False),
            ("committed offsets expired", offsets_expired, False),
        ]
    ],
)
def test_a_worker_that_cannot_resume_stops_or_starts_over_as_it_was_told(
    fault: str,
    lose: Callable[[Lost], tuple[str, int]],
    broker: KafkaBroker,
    checkpoint: Path,
    tmp_path: Path,
    fault_report: FaultReport,
) -> None:
    lost = Lost(broker, tmp_path, checkpoint).interrupted()
    reason, oldest = lose(lost)
    fault_report(f"{fault}: stops, or starts over", records=RECORDS, rounds=2)
    before = lost.outcome()
    with lost.application.start() as worker:
        assert_stopped(worker, reason)
    assert lost.outcome() == before, "something was published or committed"
    with lost.application.start("input.on_lost_offsets=earliest", "sessions.idle_flush=1s") as worker:
        lost.assert_started_over(worker, before[0], reason, oldest)


@pytest.mark.fault(row=13, core=False)
@pytest.mark.parametrize("policy", ["fail", "earliest"])
def test_records_that_are_deleted_ahead_of_a_running_worker_are_not_skipped_silently(
    policy: str, broker: KafkaBroker, checkpoint: Path, tmp_path: Path, fault_report: FaultReport
) -> None:
    lost = Lost(broker, tmp_path, checkpoint)
    lost.produce(0, HALF)
    oldest = HALF + 500
    fault_report(f"records deleted ahead of a running worker: {policy}", records=RECORDS, rounds=1)
    with lost.application.start(f"input.on_lost_offsets={policy}", "sessions.idle_flush=1s") as worker:
        first_half = [RawRecord(0, at, line) for at, line in enumerate(lost.lines[:HALF])]
        sessions = len(expected_of(first_half, RULES).sessions)
        worker.wait_until(lambda: len(lost.application.scores()) == sessions)
        worker.process.send_signal(signal.SIGSTOP)
        # The fetch that was under way is answered with the first record that comes, and with that one alone.
        lost.produce(HALF, HALF + 1)
        lost.produce(HALF + 1, RECORDS)
        lost.delete_before(oldest)
        worker.process.send_signal(signal.SIGCONT)
        reason = f"committed offset ({HALF}|{HALF + 1}) is outside {oldest} to {RECORDS}"
        if policy == "fail":
            assert_stopped(worker, reason)
            assert len(lost.application.scores()) == sessions
        else:
            lost.assert_started_over(worker, sessions, reason, oldest)

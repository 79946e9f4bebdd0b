"""Row 26: sessions of an idle partition are closed, and none while records are to come."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.broker.harness import Application, Record
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport
from tests.faults.stream import Stream

IDLE_S = 8.0
PATIENT = {"transaction.timeout.ms": 60_000, "max.poll.interval.ms": 240_000, "session.timeout.ms": 45_000}


@pytest.mark.fault(row=26, core=True)
def test_a_worker_that_slept_longer_than_idle_flush_closes_no_session_whose_next_record_has_come_meanwhile(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    """It was told that its partitions end, and by its clock nothing has come for long."""
    half = len(stream.records) // 2
    with stream.unsent(tmp_path, kafka=PATIENT) as run:
        run.application.produce(stream.records[:half])
        with run.start(f"sessions.idle_flush={IDLE_S}s", "worker.batch_records=1000") as worker:
            worker.wait_until(lambda: sum(max(0, each.offset) for each in run.application.committed().values()) == half)
            worker.process.send_signal(signal.SIGSTOP)
            run.struck()
            run.application.produce(stream.records[half:])
            until = time.monotonic() + IDLE_S
            worker.wait_until(lambda: time.monotonic() > until)
            worker.process.send_signal(signal.SIGCONT)
            worker.wait_until(lambda: run.share() >= 1)
            assert worker.stop() == 0, worker.tail()
        run.assert_exact(fault_report, "asleep for longer than idle_flush at the input's end, which then goes on")


@pytest.mark.fault(row=26, core=True)
def test_a_partition_whose_input_is_in_an_open_transaction_is_not_idle_before_it_ends(
    broker: KafkaBroker, tmp_path: Path, checkpoint: Path, fault_report: FaultReport
) -> None:
    fault_report("input in an open transaction while idle_flush passes", rounds=1)
    application = Application(broker.bootstrap, tmp_path, checkpoint, partitions=2)
    settings = (
        "sessions.idle_flush=1ms",
        "scoring.early=false",
        "input.timestamp=null",
        "sessions.key={regex: '^\\w+'}",
    )

    def closed() -> list[tuple[str, int, str]]:
        return sorted((each["session"], each["events"], each["closed_by"]) for each in application.scores())

    def send(line: bytes, partition: int) -> None:
        producer.produce(application.input_topic, line, partition=partition)
        assert producer.flush(30) == 0

    producer = Producer({"bootstrap.servers": application.bootstrap, "transactional.id": "shipper"})
    producer.init_transactions(30)
    producer.begin_transaction()
    send(b"a open", 0)
    producer.commit_transaction(30)
    producer.begin_transaction()
    send(b"a read", 0)
    with application.start(*settings) as worker:
        for number in (1, 2):  # another partition is idle twice meanwhile
            application.produce([Record(b"b%d open" % number, partition=1)])
            worker.wait_until(lambda number=number: len(closed()) == number)
        assert closed() == [("b1", 1, "idle"), ("b2", 1, "idle")]
        producer.commit_transaction(30)
        # The end of the partition is the mark of the transaction's end, not a record.
        worker.wait_until(lambda: len(closed()) == 3)
        assert ("a", 2, "idle") in closed()
        assert worker.stop() == 0, worker.tail()

"""Rows 2 and 7, too: what a killed worker leaves open is ended by those who take its partitions over, and only that.

In these tests the coordinator would end it after ten minutes: whoever waits for that fails.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupState, Producer
from confluent_kafka.admin import AdminClient

from tests.faults.report import FaultReport
from tests.faults.stream import PARTITIONS, Run, Stream, stopped
from tests.faults.test_workers import has_worked, start

PATIENT = {"transaction.timeout.ms": 600_000, "max.poll.interval.ms": 2_400_000}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("send_offsets", marks=pytest.mark.fault(row=2, core=False)),
        pytest.param("commit", marks=pytest.mark.fault(row=2, core=True)),
    ],
)
def test_a_killed_workers_transaction_is_ended_by_its_heir_before_that_asks_what_is_committed(
    point: str, stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    strike = ["--at", point, "--nth", "5", "--signal", "KILL"]
    with stream.unsent(tmp_path, kafka=PATIENT, output={"line_text": 60}) as run:
        with run.fed(seconds=60), start(run, "w0") as heir:
            has_worked(run, heir)
            with run.striking(*strike, settings=["worker.instance=w1"]) as dying:
                assert dying.ended() < 0, dying.tail()
                run.struck()
                [struck] = dying.events("strike")
            heir.wait_until(lambda: run.output.partitions_since(struck["time"]) == set(range(PARTITIONS)))
            assert [each["worker"] for each in heir.events("dead_worker_fenced")] == ["w1"]
            names = [each["event"] for each in heir.events()]
            assert "committed_offsets_undecided" not in names
            assert "partition_restored" in names[names.index("dead_worker_fenced") :]
            assert heir.stop() == 0, heir.tail()
        run.finish()
        run.assert_exact(fault_report, f"one of two workers killed after {point}, its transaction ended by the other")


@pytest.mark.fault(row=7, core=False)
def test_a_member_that_stands_still_amid_a_commit_is_not_fenced_by_who_joins(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.unsent(tmp_path, kafka=PATIENT | {"session.timeout.ms": 60_000}) as run:
        strike = ["--at", "commit", "--nth", "20", "--signal", "STOP"]
        with run.fed(seconds=60), start(run, "w0") as first:
            has_worked(run, first)
            with run.striking(*strike, settings=["worker.instance=w1"]) as slow:
                slow.wait_until(lambda: stopped(slow))
                run.struck()
                with start(run, "w2") as third:
                    third.wait_until(lambda: rebalancing(run))
                    slow.process.send_signal(signal.SIGCONT)
                    has_worked(run, third)
                    workers = (first, slow, third)
                    assert not any(worker.logged("dead_worker_fenced") for worker in workers)
                    for worker in workers:
                        assert worker.stop() == 0, worker.tail()
        run.finish()
        run.assert_exact(fault_report, "SIGSTOP amid a commit while another worker joins, SIGCONT in time")


@pytest.mark.fault(row=2, core=True)
def test_a_worker_that_is_fenced_between_its_start_and_its_joining_goes_on(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    """As when it starts again just when others take over from the one before it."""
    strike = ["--at", "join", "--signal", "STOP"]
    with stream.sent(tmp_path) as run:
        with run.striking(*strike, settings=["worker.instance=w1"]) as late:
            late.wait_until(lambda: stopped(late))
            run.struck()
            fence(run, "w1")
            late.process.send_signal(signal.SIGCONT)
            has_worked(run, late)
            assert late.stop() == 0, late.tail()
        run.finish()
        run.assert_exact(fault_report, "fenced between its start and its joining")


@pytest.mark.fault(row=3, core=False)
def test_a_worker_that_was_taken_for_dead_while_idle_goes_on_when_it_has_partitions_again(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    half = len(stream.records) // 2
    waits = "sessions.idle_flush=null"  # the other half comes when the heir has the partitions, however late
    # The twentieth poll that finds nothing: all is committed by then.
    strike = ["--at", "idle", "--nth", "20", "--signal", "STOP"]
    with stream.unsent(tmp_path) as run:
        run.application.produce(stream.records[:half])
        with run.striking(*strike, settings=["worker.instance=w1", waits]) as sleeper:
            sleeper.wait_until(lambda: stopped(sleeper))
            run.struck()
            with start(run, "w0", waits) as heir:
                heir.wait_until(lambda: heir.logged("dead_worker_fenced"))
                sleeper.process.send_signal(signal.SIGCONT)
                sleeper.wait_until(lambda: sleeper.logged("partitions_lost"))
                assert heir.stop() == 0, heir.tail()
            seen = run.output.finals
            run.application.produce(stream.records[half:])
            sleeper.wait_until(lambda: run.output.finals > seen)
            assert sleeper.stop() == 0, sleeper.tail()
        run.finish()
        run.assert_exact(fault_report, "SIGSTOP of an idle worker until its partitions are another's")


def rebalancing(run: Run) -> bool:
    """Whether the group waits for a member to join anew."""
    name = run.application.settings["application_id"]
    admin = AdminClient({"bootstrap.servers": run.application.bootstrap})
    return admin.describe_consumer_groups([name])[name].result(30).state == ConsumerGroupState.PREPARING_REBALANCING


def fence(run: Run, instance: str) -> None:
    """As an heir does."""
    transactional_id = f"{run.application.settings['application_id']}-{instance}"
    Producer({"bootstrap.servers": run.application.bootstrap, "transactional.id": transactional_id}).init_transactions(
        30
    )

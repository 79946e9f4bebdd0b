"""Rows 2, 7 and 20: workers that share the partitions come and go."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.broker.harness import WorkerProcess
from tests.faults.report import FaultReport
from tests.faults.stream import Run, Stream


@pytest.mark.fault(row=2, core=False)
def test_two_workers_of_which_one_is_killed_again_and_again_and_each_is_bounced(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.unsent(tmp_path) as run:
        with run.fed(seconds=90), ExitStack() as running:
            workers = {name: running.enter_context(start(run, name)) for name in ("w0", "w1")}
            for _ in range(6):
                has_worked(run, workers["w1"])
                run.struck()
                workers["w1"].kill()
                workers["w1"] = running.enter_context(start(run, "w1"))
            for name in ("w0", "w1") * 3:
                has_worked(run, workers[name])
                run.struck()
                assert workers[name].stop() == 0, workers[name].tail()
                workers[name] = running.enter_context(start(run, name))
            for worker in workers.values():
                has_worked(run, worker)
                assert worker.stop() == 0, worker.tail()
        run.finish()
        run.assert_exact(fault_report, "two workers, one killed 6 times, then each restarted 3 times")


@pytest.mark.fault(row=7, core=False)
def test_a_worker_that_joins_and_leaves_with_batches_in_flight(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    waiting = "worker.commit_interval=1s"  # most of the time outputs wait for their commit, so that a revoke finds some
    with stream.unsent(tmp_path) as run:
        with run.fed(seconds=50), start(run, "w0", waiting) as lasting:
            for _ in range(3):
                has_worked(run, lasting)
                run.struck()
                with start(run, "w1", waiting) as guest:
                    has_worked(run, guest)
                    run.struck()
                    assert guest.stop() == 0, guest.tail()
            has_worked(run, lasting)
            assert lasting.stop() == 0, lasting.tail()
        run.finish()
        run.assert_exact(fault_report, "one worker, two, one again, three times, with outputs in flight")
        assert not lasting.events("revoke_aborted") + guest.events("revoke_aborted")
        revokes = lasting.events("partitions_revoked")
        assert len(revokes) >= 3
        budget_s = run.application.settings["kafka"]["max.poll.interval.ms"] / 1000 * 0.2
        assert max(each["seconds"] for each in revokes) < budget_s


@pytest.mark.fault(row=20, core=False)
def test_a_rolling_restart_of_static_members_moves_no_partition(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    # A static member that is gone keeps its partitions for the session's timeout: no other worker could end the test.
    kafka = {"session.timeout.ms": 30_000, "max.poll.interval.ms": 30_000}
    with stream.unsent(tmp_path, kafka=kafka) as run, ExitStack() as running:

        def start_static(name: str) -> WorkerProcess:
            return running.enter_context(start(run, name, f"kafka.group.instance.id={name}"))

        with run.fed(seconds=40):
            workers = {name: start_static(name) for name in ("w0", "w1")}
            for worker in workers.values():
                has_worked(run, worker)
            for name, other in (("w0", "w1"), ("w1", "w0")):
                before = moves(workers[other])
                run.struck()
                assert workers[name].stop() == 0, workers[name].tail()
                workers[name] = start_static(name)
                has_worked(run, workers[name])
                assert moves(workers[other]) == before
        for worker in workers.values():
            worker.wait_until(lambda: run.share() >= 1)
        for worker in workers.values():
            assert worker.stop() == 0, worker.tail()
        run.assert_exact(fault_report, "rolling restart of two static members")


def start(run: Run, name: str, *overrides: str) -> WorkerProcess:
    return run.start(f"worker.instance={name}", *overrides)


def has_worked(run: Run, worker: WorkerProcess) -> None:
    """Wait until the worker has partitions, and then until more scores are visible."""
    worker.wait_until(lambda: bool(moves(worker)))
    seen = run.output.finals
    worker.wait_until(lambda: run.output.finals > seen + 0.02 * len(run.stream.expected.sessions))


def moves(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What a worker's log says of partitions that came and went."""
    return worker.events("partition_starts_new", "partition_restored", "partitions_revoked", "partitions_lost")

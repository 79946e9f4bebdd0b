"""A worker of several processes: one is killed, all are restarted, and the supervisor itself goes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.broker.harness import SupervisedWorker, wait_until
from tests.faults.report import FaultReport
from tests.faults.stream import Run, Stream

# The group keeps a static member's partitions for so long while it is away.
KAFKA = {"session.timeout.ms": 120_000, "max.poll.interval.ms": 120_000}


class TwoProcesses(SupervisedWorker):
    """`logmamba run` with two processes."""

    def __init__(self, run: Run, name: str) -> None:
        application, overrides = run.application, ("worker.processes=2", "worker.instance=w0", *run.steps)
        super().__init__(application.config, application.folder / f"{name}.log", overrides)

    def status(self) -> dict[str, Any]:
        """What the endpoint says of all processes together."""
        status: dict[str, Any] = json.loads(self.get("/status")[1])
        return status

    def ready(self) -> bool:
        """Whether every process has its share, and it is live."""
        states = [each["state"] for each in self.status()["processes"]]
        held = [each["partitions"] for each in self.status()["processes"]]
        return states == ["running", "running"] and all(held) and self.status()["joined"]

    def pids(self) -> list[int]:
        """Of its processes."""
        return [each["pid"] for each in self.status()["processes"]]

    def moves(self, name: str) -> list[tuple[str, str]]:
        """What the log says of partitions that came to a process and went from it; one that an abort has it read anew
        has not moved."""
        held: set[str] = set()
        found = []
        for line in self.events("partition_starts_new", "partition_restored", "partitions_revoked", "partitions_lost"):
            if line["worker"] != name:
                continue
            if "partitions" in line:
                held -= set(line["partitions"])
                found.append((line["event"], str(line["partitions"])))
            elif line["partition"] not in held:
                held.add(line["partition"])
                found.append((line["event"], line["partition"]))
        return found

    def sample(self, series: str) -> float:
        """A value of /metrics."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


@pytest.mark.fault(row=20, core=True)
def test_of_two_processes_one_is_killed_then_the_one_that_watches_them_and_no_partition_moves(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.unsent(tmp_path, kafka=KAFKA) as run:
        with run.fed(seconds=30):
            with TwoProcesses(run, "first") as worker:
                worker.wait_until(worker.ready)
                has_worked(run, worker)
                before, undisturbed = worker.pids(), worker.moves("w0-0")
                run.struck()
                os.kill(before[1], signal.SIGKILL)
                worker.wait_until(lambda: before[1] not in worker.pids() and worker.ready())
                has_worked(run, worker)
                assert worker.pids()[0] == before[0]
                assert worker.moves("w0-0") == undisturbed
                # One that begins while the broker does not answer ends once more, and says so.
                ended = [line["reason"] for line in worker.events("process_ended")]
                assert (ended[0], ended.count(ended[0])) == ("killed by SIGKILL", 1)
                assert worker.sample("logmamba_process_restarts_total") == len(ended)
                orphans = worker.pids()
                run.struck()
                worker.kill()
            assert run.share() < 1, "all was done before the worker was started again"
            wait_until(lambda: not any(map(alive, orphans)))  # they end by themselves, in order
        with TwoProcesses(run, "second") as worker:
            worker.wait_until(lambda: run.share() >= 1)
            worker.wait_until(worker.ready)
            for name in ("w0-0", "w0-1"):
                assert {event for event, _ in worker.moves(name)} == {"partition_restored"}
            assert worker.stop() == 0, worker.tail()
        run.assert_exact(fault_report, "one of two processes of a worker killed, then their supervisor")


def has_worked(run: Run, worker: TwoProcesses) -> None:
    """Wait until more scores are visible."""
    seen = run.output.finals
    worker.wait_until(lambda: run.output.finals > seen + 0.02 * len(run.stream.expected.sessions))


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False

"""Row 19, too: SIGTERM while the worker waits for the transaction of one that died."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.report import FaultReport
from tests.faults.stream import Stream


@pytest.mark.fault(row=19, core=False)
def test_sigterm_ends_a_worker_that_waits_for_the_transaction_of_a_dead_one(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    """Its offsets stay undecided for a minute: none of its name comes back, and nobody can tell that it is dead."""
    kafka = {"transaction.timeout.ms": 60_000, "max.poll.interval.ms": 240_000, "client.id": "the same for all"}
    with stream.sent(tmp_path, kafka=kafka) as run:
        with run.striking("--at", "commit", "--nth", "6", "--signal", "KILL") as worker:
            assert worker.ended() < 0, worker.tail()
        with run.start("worker.instance=w1") as other:
            other.wait_until(lambda: other.logged("committed_offsets_undecided"))
            run.struck()
            began = time.monotonic()
            assert other.stop() == 0, other.tail()
            assert time.monotonic() - began < 15
        run.finish()
        run.assert_exact(fault_report, "SIGTERM while a dead worker's transaction is undecided")

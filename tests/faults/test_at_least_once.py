"""Row 7, without transactions: what is committed within a rebalance callback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import FaultReport
from tests.faults.stream import Stream


@pytest.mark.fault(row=7, core=False)
def test_a_revoke_commits_what_a_worker_that_delivers_at_least_once_has_done(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    """Nobody crashes, so nothing comes twice: a revoke that was not committed would show."""
    settings = {"delivery": "at_least_once", "commit_interval": "2s"}
    # Long enough for a commit that a busy machine holds up: given up, what it sent would rightly come twice.
    kafka = {"transaction.timeout.ms": 15_000, "max.poll.interval.ms": 60_000}
    with stream.unsent(tmp_path, worker=settings, kafka=kafka) as run:
        own = ["worker.commit_interval=2s"]
        with run.fed(seconds=25), run.start("worker.instance=w0", *own) as first:
            first.wait_until(lambda: run.output.finals > 0)
            run.struck()
            with run.start("worker.instance=w1", *own) as second:
                second.wait_until(lambda: second.logged("partition_restored"))
                for worker in (second, first):
                    assert worker.stop() == 0, worker.tail()
                    assert worker.logged("partitions_revoked")
                    assert not worker.logged("revoke_aborted")
        run.finish()
        run.assert_exact(fault_report, "at least once: a second worker joins, both stop")

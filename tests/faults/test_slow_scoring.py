"""Row 24: scoring one batch takes longer than a transaction, a session and the time between two polls may."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import FaultReport
from tests.faults.stream import Stream

# As long as they may be for the passes to outlast each: a busy broker takes seconds to answer.
KAFKA = {"transaction.timeout.ms": 4_000, "session.timeout.ms": 12_000, "max.poll.interval.ms": 16_000}
PASSES, PASS_MS = 33, 500  # of one batch, which has hundreds


@pytest.mark.fault(row=24, core=True)
def test_scoring_that_outlasts_every_time_out_loses_neither_the_membership_nor_a_transaction(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    slow = ["--after", "20", "--passes", str(PASSES), "--pass-ms", str(PASS_MS)]
    settings = [
        "worker.batch_records=2500",
        "worker.commit_interval=0ms",  # the first batch is committed, and nearly all records come after it
        "model.batch_tokens=64",
        "model.score_cache=0",
    ]
    with stream.sent(tmp_path, kafka=KAFKA) as run:
        with run.application.start(
            *settings, "sessions.idle_flush=null", program=("tests.faults.slow_worker", *slow)
        ) as worker:
            worker.wait_until(lambda: worker.logged("slow_passes"))
            run.struck()
            seen = run.output.finals
            worker.wait_until(lambda: run.output.finals > seen)
            assert worker.stop() == 0, worker.tail()
            [took_s] = [each["seconds"] for each in worker.events("slow_passes")]
            assert took_s > KAFKA["max.poll.interval.ms"] / 1000
            # The first batch of a busy machine may be given up, as there is no snapshot yet.
            names = [each["event"] for each in worker.events()]
            since = {*names[names.index("slow_from_here") :]}
            assert not since & {"transaction_aborted", "partitions_lost", "revoke_aborted"}
            assert "input_paused" in since
        run.finish()
        run.assert_exact(fault_report, f"a batch that takes {took_s:.0f} s to score")

"""Row 24: scoring one batch takes longer than a transaction, a session and the time between two polls may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.report import FaultReport
from tests.faults.stream import Stream

KAFKA = {"transaction.timeout.ms": 2_000, "session.timeout.ms": 3_000, "max.poll.interval.ms": 8_000}
PASSES, PASS_MS = 40, 400  # of one batch, which has hundreds


@pytest.mark.fault(row=24, core=True)
def test_scoring_that_outlasts_every_time_out_loses_neither_the_membership_nor_a_transaction(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    slow = ["--after", "60", "--passes", str(PASSES), "--pass-ms", str(PASS_MS)]
    settings = [
        "worker.batch_records=2500",
        "worker.commit_interval=1s",
        "model.batch_tokens=64",
        "model.score_cache=0",
    ]
    with stream.sent(tmp_path, kafka=KAFKA) as run:
        with run.application.start(
            *settings, "sessions.idle_flush=null", program=("tests.faults.slow_worker", *slow)
        ) as worker:
            worker.wait_until(lambda: '"slow_passes"' in worker.log.read_text())
            run.struck()
            seen = run.output.finals
            worker.wait_until(lambda: run.output.finals > seen)
            assert worker.stop() == 0, worker.tail()
            log = worker.log.read_text()
            (took_s,) = [json.loads(line)["seconds"] for line in log.splitlines() if '"slow_passes"' in line]
            assert took_s > KAFKA["max.poll.interval.ms"] / 1000
            for event in ("transaction_aborted", "partitions_lost", "revoke_aborted"):
                assert f'"{event}"' not in log, event
            assert '"input_paused"' in log
        run.finish()
        run.assert_exact(fault_report, f"a batch that takes {took_s:.0f} s to score")

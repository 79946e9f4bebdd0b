"""Row 3: a worker that stands still until others have its partitions, and then goes on where it stood."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.broker.harness import WorkerProcess
from tests.faults.report import FaultReport
from tests.faults.stream import Stream, stopped

MAX_POLL_INTERVAL_MS = 8_000
FENCED = "another worker with the same worker.instance has taken over"


@pytest.mark.parametrize(
    ("point", "heir"),
    [
        pytest.param("send_offsets", "w1", marks=pytest.mark.fault(row=3, core=True)),
        pytest.param("send_offsets", "w0", marks=pytest.mark.fault(row=3, core=False)),
        pytest.param("consume", "w1", marks=pytest.mark.fault(row=3, core=False)),
    ],
)
def test_a_zombie_publishes_nothing(
    point: str, heir: str, stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    kafka = {"transaction.timeout.ms": MAX_POLL_INTERVAL_MS // 4, "max.poll.interval.ms": MAX_POLL_INTERVAL_MS}
    with stream.unsent(tmp_path, kafka=kafka) as run:
        strike = ["--at", point, "--nth", "20", "--signal", "STOP"]
        with run.fed(seconds=20), run.striking(*strike) as zombie:
            zombie.wait_until(lambda: stopped(zombie))
            run.struck()
            fell_asleep, seen = time.monotonic(), run.output.finals
            with run.start(f"worker.instance={heir}") as other:
                other.wait_until(lambda: run.output.finals > seen)
                other.wait_until(lambda: time.monotonic() - fell_asleep > MAX_POLL_INTERVAL_MS / 1000)
                zombie.process.send_signal(signal.SIGCONT)
                other.wait_until(lambda: noticed(zombie))
                assert other.stop() == 0, other.tail()
            # It has to end if it was fenced, as it always is by an heir of its name, and is asked to if it was not.
            code = zombie.stop() if heir == "w1" else zombie.ended()
            assert code == 0 or FENCED in zombie.tail(), zombie.tail()
            assert code == 0 or code == 1
            assert heir == "w1" or code == 1
        run.finish()
        run.assert_exact(fault_report, f"SIGSTOP after {point}, SIGCONT when {heir} has taken over")


def noticed(zombie: WorkerProcess) -> bool:
    """Whether it was fenced, and ended, or has given up what it had begun."""
    return zombie.process.poll() == 1 or zombie.logged("transaction_aborted", "partitions_lost")

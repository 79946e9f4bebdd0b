"""Row 1: kill -9 at each step of a turn; what the next worker finds is whole."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.faults.report import FaultReport, Size
from tests.faults.stream import Stream

# How many passes of the step a worker may live to see, and how much later it may die (ms).
STEPS = {
    "consume": (80, 0),
    "score": (80, 0),
    "produce": (400, 5),
    "send_offsets": (80, 0),
    "commit": (80, 10),
}


@pytest.mark.fault(row=1, core=True)
def test_kill_9_at_any_step_changes_nothing(
    stream: Stream, size: Size, tmp_path: Path, fault_report: FaultReport
) -> None:
    rng = random.Random(1)
    with stream.sent(tmp_path) as run:
        for step, (most_passes, most_ms) in [*STEPS.items()] * (4 if size.full else 1):
            nth, delay_ms = rng.randint(1, most_passes), rng.uniform(0, most_ms)
            strike = ["--at", step, "--nth", str(nth), "--delay-ms", f"{delay_ms:.1f}", "--signal", "KILL"]
            with run.striking(*strike) as worker:
                assert worker.process.wait(60) == -signal.SIGKILL, worker.tail()
                run.struck()
        assert run.share() < 1, "all was done before the last worker was killed"
        run.finish()
        run.assert_exact(fault_report, f"kill -9 after {', '.join([*STEPS][:-1])} and during commit")

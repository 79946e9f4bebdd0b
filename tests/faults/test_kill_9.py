"""Row 1: kill -9 at each step of a turn; what the next worker finds is whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.report import FaultReport, Size
from tests.faults.stream import KILLED_AT, Stream


@pytest.mark.fault(row=1, core=True)
def test_kill_9_at_any_step_changes_nothing(
    stream: Stream, size: Size, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.sent(tmp_path) as run:
        run.kill_at_each_step(random.Random(1), size)
        run.finish()
        run.assert_exact(fault_report, f"kill -9 after {', '.join([*KILLED_AT][:-1])} and during commit")

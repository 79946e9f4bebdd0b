"""Row 23: kill -9 while stream time jumps over nights, passes by wrong clocks, and falls back from one it believed."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.broker.harness import Record
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport, Size
from tests.faults.stream import PARTITIONS, Stream
from tests.faults.test_kill_9 import STEPS
from worker.generator.log import GeneratedLog

_STAMP = "%y%m%d %H%M%S"
_DAY_LINES = 400  # of a partition between two pauses
_BELIEVED_EVERY = (
    2_500  # lines of a partition; each time three in a row are wrong, and time falls a thousand lines later
)
_BELIEVED = range(_DAY_LINES // 2, _DAY_LINES // 2 + 1_100)


def _shifts(rng: random.Random) -> Iterator[timedelta]:
    """How much later than its own time each line of a partition says that it is."""
    pauses, at = timedelta(), 0
    while True:
        place = at % _BELIEVED_EVERY
        if at % _DAY_LINES == 0:
            pauses += timedelta(hours=rng.choice([2, 14, 62]))
        if place in _BELIEVED[:3]:
            yield pauses + timedelta(days=9_000)
        elif place not in _BELIEVED and at % 97 == 13:
            yield pauses + timedelta(days=rng.choice([-700, 400]))
        else:
            yield pauses
        at += 1


def _records(count: int) -> list[Record]:
    """A generated log whose partitions each have nights, weekends and wrong clocks of their own."""
    shifts = [_shifts(random.Random(number)) for number in range(PARTITIONS)]
    records = []
    for line in GeneratedLog(lines=count, seed=1, anomaly_rate=0.1):
        partition = sum(line.block.encode()) % PARTITIONS
        time = datetime.strptime(line.text[:13], _STAMP) + next(shifts[partition])  # noqa: DTZ007  text again at once
        text = time.strftime(_STAMP) + line.text[13:]
        records.append(Record(text.encode(), line.block.encode(), partition))
    return records


@pytest.mark.fault(row=23, core=False)
def test_kill_9_while_time_jumps_and_falls_changes_nothing(
    size: Size, tmp_path: Path, checkpoint: Path, broker: KafkaBroker, fault_report: FaultReport
) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    stream = Stream.of(_records(size.records), folder, checkpoint, broker.bootstrap)
    reasons = Counter(session.closed_by for session in stream.expected.sessions)
    assert reasons["gap"] > 0.5 * len(stream.expected.sessions), f"time stood still: {reasons}"
    together = [
        session
        for session in stream.expected.sessions
        if any(cause != offset for cause, offset in zip(session.causes, session.offsets, strict=True))
    ]
    assert len(together) > size.records / 200, "hardly an event waited"
    rng = random.Random(23)
    with stream.sent(tmp_path) as run:
        for step, (most_passes, most_ms) in [*STEPS.items()] * (4 if size.full else 1):
            nth, delay_ms = rng.randint(1, most_passes), rng.uniform(0, most_ms)
            strike = ["--at", step, "--nth", str(nth), "--delay-ms", f"{delay_ms:.1f}", "--signal", "KILL"]
            with run.striking(*strike) as worker:
                assert worker.process.wait(60) == -signal.SIGKILL, worker.tail()
                run.struck()
        assert run.share() < 1, "all was done before the last worker was killed"
        run.finish()
        run.assert_exact(fault_report, "kill -9 while stream time jumps and falls")

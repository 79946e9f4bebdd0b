"""Row 23: kill -9 while stream time jumps over nights, passes by wrong clocks, and falls back from one it believed.

And a whole year of a partition, with nights and weekends off.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.broker.harness import Record, read_all
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport, Size
from tests.faults.stream import PARTITIONS, Stream
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


@pytest.mark.fault(row=23, core=True)
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
    with stream.sent(tmp_path) as run:
        run.kill_at_each_step(random.Random(23), size)
        run.finish()
        run.assert_exact(fault_report, "kill -9 while stream time jumps and falls")


def _year(days: int) -> list[Record]:
    """A partition's working days, of which each has one line that says another year, month or minute."""
    rng = random.Random(24)
    lines = [*GeneratedLog(lines=days * _DAY_LINES, seed=2, anomaly_rate=0.1)]
    records = []
    for day in range(days):
        today = lines[day * _DAY_LINES : (day + 1) * _DAY_LINES]
        morning = datetime(2024, 1, 1, 8) + timedelta(days=day // 5 * 7 + day % 5)  # noqa: DTZ001  text again at once
        late = morning - datetime.strptime(today[0].text[:13], _STAMP)  # noqa: DTZ007
        wrong = rng.randrange(_DAY_LINES)
        for at, line in enumerate(today):
            time = datetime.strptime(line.text[:13], _STAMP) + late  # noqa: DTZ007
            if at == wrong:
                time += rng.choice([timedelta(days=-700), timedelta(days=31), timedelta(minutes=-9), timedelta(days=1)])
            records.append(Record((time.strftime(_STAMP) + line.text[13:]).encode(), line.block.encode(), 0))
    return records


@pytest.mark.fault(row=23, core=False)
def test_a_year_with_nights_and_weekends_off_gives_the_sessions_expected_and_no_state_grows(
    tmp_path: Path, checkpoint: Path, broker: KafkaBroker, fault_report: FaultReport
) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    stream = Stream.of(_year(days=260), folder, checkpoint, broker.bootstrap)
    kept_open = [session for session in stream.expected.sessions if session.closed_by == "idle"]
    assert len(kept_open) < 100, "sessions of earlier days were open to the end"
    with stream.sent(tmp_path) as run:
        for share in (0.3, 0.6, 0.9):  # in spring, summer and autumn
            with run.start() as worker:
                worker.wait_until(lambda share=share: run.share() > share)  # type: ignore[misc]
                worker.kill()
                run.struck()
        run.finish()
        run.assert_exact(fault_report, "a year of working days, one wrong clock a day, kill -9")
        application = run.application
        sizes = [
            len(each.value() or b"")
            for each in read_all(application.bootstrap, f"{application.settings['application_id']}-state")
        ]
    quarter = len(sizes) // 4
    assert quarter > 20, "too few snapshots to see a trend"
    assert max(sizes[-quarter:]) < 1.5 * max(sizes[:quarter]), "what a worker keeps grew over the year"

"""More sessions than a partition may have open."""

from __future__ import annotations

import random

import pytest

from tests.faults.conftest import Size
from tests.faults.report import FaultReport
from tests.worker.small_worker import INPUT, SmallWorker, memory_broker, outputs, settings
from worker.delivery.memory import MemoryBroker
from worker.processing.records import Partition

P0 = Partition(INPUT, 0)
MAX_OPEN = 200
BATCH = 500


@pytest.mark.fault(row=15, core=False)
def test_at_the_cap_the_oldest_session_closes_and_is_scored_once_over_crashes_too(
    size: Size, fault_report: FaultReport
) -> None:
    calm, disturbed = filled(size.records), filled(size.records)
    rules = settings(
        f"sessions.max_open={MAX_OPEN}",
        "sessions.gap=null",
        "sessions.max_age=null",
        "sessions.idle_flush=null",
        f"worker.batch_records={BATCH}",
        "worker.commit_interval=30ms",
        "state.snapshot_interval=200ms",
        "scoring.early=false",
    )
    turns = size.records // BATCH + 1
    undisturbed = SmallWorker(calm, rules)
    undisturbed.run([None] * turns)
    expected = outputs(calm)

    crashes = 0
    while disturbed.committed.get(P0) is None or disturbed.committed[P0].offset < size.records:
        # Most die amid what they read again; the longest lives reach the next snapshot, and so get on.
        SmallWorker(disturbed, rules).crash_after([None] * (3 + crashes % 60))
        crashes += 1
    found = outputs(disturbed)
    fault_report("session cap reached, worker killed again and again", records=size.records, rounds=crashes)

    assert found == expected
    keys = [line.split()[0].decode() for line in lines(size.records)]
    assert [(each["session"], each["source"]["cause_offset"]) for each in expected] == evicted(keys)
    assert {each["closed_by"] for each in expected} == {"max_open"}
    counted = undisturbed.worker._metrics.registry.get_sample_value(
        "logmamba_sessions_closed_total", {"closed_by": "max_open"}
    )
    assert counted == len(expected)


def lines(count: int) -> list[bytes]:
    rng = random.Random(5)
    return [b"s%d read" % rng.randrange(3 * MAX_OPEN) for _ in range(count)]


def filled(count: int) -> MemoryBroker:
    broker = memory_broker()
    for number, line in enumerate(lines(count)):
        broker.append(P0, line, timestamp=number)
    return broker


def evicted(keys: list[str]) -> list[tuple[str, int]]:
    """Which sessions must close, and by which record: the rule in plain words."""
    opened: list[str] = []
    closed = []
    for offset, key in enumerate(keys):
        if key not in opened:
            opened.append(key)
        if len(opened) > MAX_OPEN:
            closed.append((opened.pop(0), offset))
    return closed

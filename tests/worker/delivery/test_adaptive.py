"""Adaptive thresholds over many workers: a function of the partition's records alone, on the broker in memory."""

from __future__ import annotations

import itertools
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.delivery.test_loop import STEPS, by_partition, run_with, undisturbed
from tests.worker.small_worker import INPUT, SmallWorker, memory_broker
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.processing.records import Partition

ADAPTIVE = ("sessions.gap=600ms", "sessions.max_events=3", "scoring.adaptive={target_rate: 0.05}")


def eventful(partitions: int = 2) -> MemoryBroker:
    """Sessions that become more odd half-way; the thresholds of each partition change three times."""
    broker, random = memory_broker(partitions), Random(0)
    lines = 3_300 * partitions
    for number in range(lines):
        line = f"{random.choice('abcd')} {'odd' if random.random() < (0.2 if number < lines / 2 else 0.6) else 'read'}"
        broker.append(Partition(INPUT, number % partitions), line.encode(), timestamp=1 + number // partitions * 40)
    return broker


@cache
def adapted() -> list[dict[str, Any]]:
    return undisturbed(eventful, *ADAPTIVE, "worker.batch_records=1000")


def test_records_show_adaptive_thresholds_that_change_from_one_output_to_the_next() -> None:
    for number in (0, 1):
        records = [record for record in adapted() if record["source"]["partition"] == number]
        finals, changes = 0, []
        for before, record in itertools.pairwise(records):
            finals += before["kind"] == "final"
            if record["thresholds"] != before["thresholds"]:
                changes.append(finals)
        assert changes == [500, 1000, 1100]
        early = {(record["severity"], record["score"]) for record in records if record["kind"] == "early"}
        assert ("warning", 0.5) in early, "below the fixed thresholds"
        assert ("critical", 1.0) in early


@pytest.mark.parametrize("size", [3, 100, 6000])
def test_adaptive_thresholds_do_not_depend_on_batches(size: int) -> None:
    broker = eventful()
    small = SmallWorker(broker, small_settings(*ADAPTIVE, f"worker.batch_records={size}"), (0, 1))
    small.run([None] * (6_600 // size + 5))
    assert by_partition(broker) == adapted()


@settings(max_examples=12)
@given(STEPS, st.sampled_from(["100ms", "1h"]))
def test_crashes_aborts_and_rebalances_change_no_adaptive_threshold(steps: list[str], interval: str) -> None:
    broker = eventful()
    run_with(steps, broker, *ADAPTIVE, "worker.batch_records=200", f"state.snapshot_interval={interval}")
    assert by_partition(broker) == adapted()


def test_alerts_only_leaves_out_what_is_normal_and_takes_nothing_back_and_changes_no_threshold() -> None:
    def session(record: dict[str, Any]) -> tuple[object, ...]:
        return record["source"]["partition"], record["session"], record["source"]["first_offset"]

    told = {session(record) for record in adapted() if record["kind"] == "early"}
    taken_back = [record for record in adapted() if record["severity"] == "normal" and session(record) in told]
    assert taken_back
    assert all("retracts" in record for record in taken_back)
    broker = eventful()
    SmallWorker(broker, small_settings(*ADAPTIVE, "output.include=alerts"), (0, 1)).run([None] * 5)
    assert by_partition(broker) == [
        record for record in adapted() if record["severity"] != "normal" or record in taken_back
    ]

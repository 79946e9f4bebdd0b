"""Early records, what takes them back, and the ids that tell all records apart."""

from __future__ import annotations

import itertools

import pytest

from tests.worker.small_worker import INPUT, Clock, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.processing.records import Partition

P0 = Partition(INPUT, 0)


def test_early_scores_come_once_a_severity_with_the_crossing_event_as_cause() -> None:
    def broker_of() -> MemoryBroker:
        broker = memory_broker()
        for line in [b"x open", b"x odd", b"x odd", b"x odd", b"x odd", b"x odd"]:
            broker.append(P0, line)
        return broker

    rules = ("scoring.warning=0.6", "scoring.critical=0.8", "sessions.max_events=6")
    for size in (1, 2, 6):
        broker = broker_of()
        SmallWorker(broker, small_settings(*rules, f"worker.batch_records={size}")).run([None] * 8)
        found = [(r["kind"], r["severity"], r["events"], r["source"]["cause_offset"]) for r in outputs(broker)]
        assert found == [
            ("early", "warning", 3, 2),
            ("early", "critical", 5, 4),
            ("final", "critical", 6, 5),
        ]


def test_a_threshold_that_is_moved_does_not_repeat_a_severity() -> None:
    broker = memory_broker()
    for line in [b"x odd", b"x odd", b"x read"]:
        broker.append(P0, line)
    SmallWorker(broker, small_settings("scoring.warning=0.5", "scoring.critical=0.9")).run([None] * 3)
    for line in itertools.repeat(b"x odd", 30):
        broker.append(P0, line)
    SmallWorker(broker, small_settings("scoring.warning=0.5", "scoring.critical=0.95")).run([None] * 3)
    assert [(r["kind"], r["severity"]) for r in outputs(broker)] == [("early", "critical")]


@pytest.mark.parametrize("turns", range(1, 9))
def test_a_final_record_takes_back_the_early_ones_that_it_does_not_bear_out_whatever_happened(turns: int) -> None:
    """After a crash or a restart too: what an open session has alerted is part of the snapshot."""
    broker = memory_broker()
    for line in [
        b"x odd",
        b"y odd",
        b"y open",
        b"x open",
        b"z odd",
        b"x open",
        b"y odd",
        b"z odd",
        b"x open",
        b"y read",
    ]:
        broker.append(P0, line)
    rules = ("scoring.warning=0.6", "scoring.critical=0.8", "sessions.max_events=4", "worker.batch_records=1")
    rules = (*rules, "worker.commit_interval=0ms", "state.snapshot_interval=0ms", "sessions.idle_flush=1ms")
    SmallWorker(broker, small_settings(*rules)).crash_after([None] * turns)
    SmallWorker(broker, small_settings(*rules), clock=Clock(tick_s=1)).run([None] * 12)
    records = outputs(broker)
    assert len({record["id"] for record in records}) == len(records)
    told = {record["id"]: record for record in records if record["kind"] == "early"}
    assert {record["session"]: record["severity"] for record in told.values()} == dict.fromkeys("xyz", "critical")
    finals = {record["session"]: record for record in records if record["kind"] == "final"}
    taken_back = {
        key: [told[each["id"]]["session"] for each in final.get("retracts", ())] for key, final in finals.items()
    }
    assert taken_back == {"x": ["x"], "y": ["y"], "z": []}
    assert {key: final["severity"] for key, final in finals.items()} == {"x": "normal", "y": "normal", "z": "critical"}


def test_no_two_records_have_one_id_though_one_record_holds_sessions_of_one_key_and_more_follow() -> None:
    broker = memory_broker()
    for value in ["x odd\nx odd\nx odd\nx odd\nx odd\nz odd", "x odd\nx read\nx read\nx read\nx read"]:
        broker.append(P0, value.encode())
    rules = ("input.multiline=true", "sessions.max_events=2", "sessions.idle_flush=1ms")
    SmallWorker(broker, small_settings(*rules), clock=Clock(tick_s=1)).run([None] * 4)
    records = outputs(broker)
    assert [
        (r["session"], r["source"]["first_offset"], r["source"]["last_offset"]) for r in records if r["kind"] == "final"
    ] == [
        ("x", 0, 0),
        ("x", 0, 0),
        ("x", 0, 1),
        ("x", 1, 1),
        ("x", 1, 1),
        ("z", 0, 0),
    ]
    assert len({record["id"] for record in records}) == len(records)

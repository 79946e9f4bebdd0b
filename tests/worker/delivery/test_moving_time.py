"""Exactly once while stream time jumps, falls and waits: whatever happens to the workers, on the broker in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from detector.text.vocabulary import Vocabulary
from tests.worker.delivery.test_loop import STEPS, by_partition, run_with, undisturbed
from tests.worker.small_worker import INPUT, VOCABULARY, Clock, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.processing.records import Partition

P0 = Partition(INPUT, 0)
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
RULES = (
    "sessions.gap=200ms",
    "sessions.max_events=4",
    "sessions.max_future_skew=1s",
    "sessions.idle_flush=null",
    "worker.batch_records=3",
    "state.snapshot_interval=100ms",
)


def stamped(*records: tuple[bytes, int]) -> MemoryBroker:
    broker = memory_broker()
    for line, at in records:
        broker.append(P0, line, timestamp=0 if at is None else START_MS + at)
    return broker


def uneasy_times(random: Random, count: int) -> Iterator[int]:
    """Every few records a pause, a clock that is wrong once or for a while, a late record, or one without a time."""
    now = 0
    while count > 0:
        kind = random.choice(["usual", "usual", "pause", "ahead", "late", "none"])
        now += random.choice([0, 40, 90]) + (kind == "pause") * random.choice([900, 5_000, HOUR_MS])
        for _ in range(random.choice([1, 1, 2, 3, 4])):
            count -= 1
            yield {"ahead": now + 9 * HOUR_MS, "late": now - 3_000, "none": -START_MS}.get(kind, now)


def uneasy(seed: int, partitions: int = 1, count: int = 32) -> MemoryBroker:
    broker, random = memory_broker(partitions), Random(seed)
    for number in range(partitions):
        for at in uneasy_times(random, count):
            line = f"{random.choice('abcd')} {random.choice(['open', 'read', 'odd', 'close'])}"
            broker.append(Partition(INPUT, number), line.encode(), timestamp=START_MS + at)
    return broker


@cache
def unbroken(seed: int, partitions: int = 1) -> list[dict[str, Any]]:
    return undisturbed(lambda: uneasy(seed, partitions), *RULES)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(0, 20), st.integers(1, 2), st.sampled_from(["100ms", "1h"]))
def test_crashes_aborts_and_rebalances_change_no_output_however_time_moves(
    steps: list[str], seed: int, partitions: int, interval: str
) -> None:
    broker = uneasy(seed, partitions)
    run_with(steps, broker, *RULES, f"state.snapshot_interval={interval}")
    assert by_partition(broker) == unbroken(seed, partitions)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("seed", range(5))
def test_batches_change_no_output_however_time_moves_and_causes_come_in_order(seed: int, size: int) -> None:
    found = undisturbed(lambda: uneasy(seed), *RULES, f"worker.batch_records={size}")
    assert found == unbroken(seed)
    causes = [record["source"]["cause_offset"] for record in found]
    assert causes == sorted(causes)
    assert {record["kind"] for record in found} == {"early", "final"}


@pytest.mark.parametrize("crash_at", [1, 5, 9, 10, 11])
def test_a_crash_amid_the_row_that_makes_time_fall_changes_no_output(crash_at: int) -> None:
    def fallen() -> MemoryBroker:
        wrong = [(b"w odd", 9_000 * HOUR_MS + at) for at in range(3)]
        right = [(b"%c read" % (97 + at // 30 % 7), at * 20) for at in range(1_400)]
        return stamped((b"a open", 0), (b"a read", 0), (b"a read", 1), *wrong, *right)

    rules = (*RULES, "worker.batch_records=100", "state.snapshot_interval=1ms")
    expected = undisturbed(fallen, *rules)
    gap = [record for record in expected if record["closed_by"] == "gap"]
    assert len(gap) > 5, "time stood still after the fall"
    broker = fallen()
    SmallWorker(broker, small_settings(*rules)).crash_after([None] * crash_at)
    SmallWorker(broker, small_settings(*rules)).run([None] * 40)
    assert by_partition(broker) == expected


# -- causes ------------------------------------------------------------------------------------------------------------

NIGHT = [(b"a read", 0), (b"a read", 1), (b"a read", 2)]
MORNING = [(b"b odd", 9 * HOUR_MS), (b"b read", 9 * HOUR_MS + 1), (b"c read", 9 * HOUR_MS + 2)]


def causes(broker: MemoryBroker) -> list[tuple[str, str, int, int]]:
    return [
        (
            record["session"],
            record["closed_by"] or record["severity"],
            record["events"],
            record["source"]["cause_offset"],
        )
        for record in outputs(broker)
    ]


def test_an_early_score_of_an_event_that_waited_is_caused_by_the_record_that_ended_its_wait() -> None:
    broker = stamped(*NIGHT, *MORNING)
    SmallWorker(broker, small_settings(*RULES)).run([None] * 6)
    assert causes(broker) == [("a", "gap", 3, 5), ("b", "critical", 1, 5)]


def test_an_early_score_comes_before_its_session_s_final_one_though_both_have_one_cause() -> None:
    morning = [(b"b odd", 9 * HOUR_MS), (b"c odd", 9 * HOUR_MS + 600), (b"c odd", 9 * HOUR_MS + 601)]
    broker = stamped(*NIGHT, *morning)
    SmallWorker(broker, small_settings(*RULES)).run([None] * 6)
    assert causes(broker) == [("a", "gap", 3, 5), ("b", "critical", 1, 5), ("b", "gap", 1, 5), ("c", "critical", 1, 5)]


@pytest.mark.parametrize("turns", range(1, 8))
def test_it_is_published_once_wherever_a_crash_falls_between_the_event_and_its_cause(turns: int) -> None:
    broker = stamped(*NIGHT, *MORNING)
    rules = small_settings(*RULES, "worker.batch_records=1", "worker.commit_interval=0ms")
    SmallWorker(broker, rules).crash_after([None] * turns)
    SmallWorker(broker, rules).run([None] * 10)
    assert causes(broker) == [("a", "gap", 3, 5), ("b", "critical", 1, 5)]


# -- an idle partition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_an_idle_partition_in_which_events_only_wait_is_flushed_too(restart: bool) -> None:
    broker = stamped((b"a open", 0), (b"b open", 9 * HOUR_MS))
    rules, clock = small_settings(*RULES, "sessions.idle_flush=10s"), Clock()
    if restart:
        SmallWorker(broker, rules, clock=clock).run([None] * 3)
        assert outputs(broker) == []
    later = [None, None, lambda: setattr(clock, "now", clock.now + 11), None, None]
    SmallWorker(broker, rules, clock=clock).run(later)
    assert causes(broker) == [("a", "gap", 1, 2), ("b", "idle", 1, 2)]


# -- another vocabulary ------------------------------------------------------------------------------------------------

REORDERED = Vocabulary((*VOCABULARY.templates[2:], *VOCABULARY.templates[:2]))


def test_waiting_events_are_tokenised_anew_by_another_vocabulary_with_the_sessions_beside_them() -> None:
    use = (*RULES, "scoring.early=false", "output.top_events=9")
    wrong = (b"a odd", 90 * HOUR_MS)
    broker = stamped(*NIGHT[:2], (b"c close", 2), (b"a close", 9 * HOUR_MS), wrong, (b"a open", 9 * HOUR_MS))
    SmallWorker(broker, small_settings(*use)).run([None] * 4)
    for at, line in enumerate((b"c open", b"d open")):
        broker.append(P0, line, timestamp=START_MS + 9 * HOUR_MS + at)
    flush = (*use, "sessions.idle_flush=1ms")
    SmallWorker(broker, small_settings(*flush), clock=Clock(tick_s=1), vocabulary=REORDERED).run([None] * 4)
    found = [
        (record["session"], [event["template"] for event in in_order(record)], record["source"]["cause_offset"])
        for record in outputs(broker)
    ]
    assert found == [
        ("a", ["<*> read", "<*> read", "<*> odd"], 6),
        ("c", ["<*> close"], 6),
        ("a", ["<*> close", "<*> open"], 8),
        ("c", ["<*> open"], 8),
        ("d", ["<*> open"], 8),
    ]


def in_order(record: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return sorted(record["top_events"], key=lambda event: event["offset"])


# -- what an operator sees ---------------------------------------------------------------------------------------------


def test_a_jump_is_logged_and_counted_once_also_when_it_is_replayed() -> None:
    rules = small_settings(*RULES, "state.snapshot_interval=1h", "worker.commit_interval=0ms")
    broker = stamped(*NIGHT, *MORNING, (b"w odd", 90 * HOUR_MS))
    with capture_logs() as logged:
        first = SmallWorker(broker, rules)
        first.crash_after([None] * 6)
        second = SmallWorker(broker, rules)
        second.run([None] * 6)
    moves = [event for event in logged if event["event"].startswith("stream_time_")]
    assert moves == [
        {
            "event": "stream_time_jumped",
            "log_level": "info",
            "partition": "raw-logs[0]",
            "from": "2023-11-14T22:13:20.002Z",
            "to": "2023-11-15T07:13:20.000Z",
        }
    ]
    samples = [small.worker._metrics.registry.get_sample_value for small in (first, second)]
    assert [sample("logmamba_stream_time_jumps_total") for sample in samples] == [1, 0]
    assert samples[0]("logmamba_waiting_events", {"topic": INPUT, "partition": "0"}) == 1


def test_a_fall_is_logged_and_counted_with_where_it_went() -> None:
    wrong = [(b"w odd", 9_000 * HOUR_MS)] * 3
    broker = stamped(*wrong, *[(b"a read", at) for at in range(1_000)])
    small = SmallWorker(broker, small_settings(*RULES, "worker.batch_records=2000"))
    with capture_logs() as logged:
        small.run([None] * 2)
    moves = [event for event in logged if event["event"].startswith("stream_time_")]
    assert [(move["event"], move["from"], move["to"]) for move in moves] == [
        ("stream_time_fell", "2024-11-23T22:13:20.000Z", "2023-11-14T22:13:20.999Z")
    ]
    assert small.worker._metrics.registry.get_sample_value("logmamba_stream_time_falls_total") == 1


def test_every_pause_of_a_week_is_logged_once() -> None:
    days = itertools.chain.from_iterable(
        [(b"%c read" % (97 + day), day * 24 * HOUR_MS + at) for at in range(5)] for day in range(7)
    )
    with capture_logs() as logged:
        SmallWorker(stamped(*days), small_settings(*RULES)).run([None] * 20)
    assert [event["event"] for event in logged].count("stream_time_jumped") == 6

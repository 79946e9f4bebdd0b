"""The loop on the broker in memory: whatever happens, every output is committed once, in the order of causes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import inf
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.text.vocabulary import Vocabulary
from tests.worker.small_worker import (
    DEAD,
    INPUT,
    STATE,
    VOCABULARY,
    Clock,
    OddScorer,
    SmallWorker,
    memory_broker,
    outputs,
)
from tests.worker.small_worker import settings as small_settings
from worker.delivery.deadline import Deadline
from worker.delivery.memory import MemoryBroker, Operation
from worker.delivery.protocols import Committed
from worker.errors import RunError, TransactionAborted
from worker.processing.outputs import Output
from worker.processing.records import Partition, Records

P0 = Partition(INPUT, 0)
LINES = [b"a open", b"b open", b"a odd", b"b read", b"a odd", b"", b"c odd", b"b close", b"a read", b"\xff", b"c close"]


def filled(partitions: int = 1, repeat: int = 1) -> MemoryBroker:
    broker = memory_broker(partitions)
    for number, line in enumerate(LINES * repeat):
        partition = Partition(INPUT, number % partitions)
        broker.append(partition, line, timestamp=1 + number * 40)
    return broker


def undisturbed(
    broker_of: Callable[[], MemoryBroker], *overrides: str, scorer: OddScorer | None = None
) -> list[dict[str, Any]]:
    broker = broker_of()
    numbers = broker.partitions(INPUT)
    SmallWorker(broker, small_settings(*overrides), numbers, scorer=scorer).run([None] * 40)
    return by_partition(broker)


def by_partition(broker: MemoryBroker) -> list[dict[str, Any]]:
    """Score records grouped by input partition, each group in the order of publication."""
    return sorted(outputs(broker), key=lambda record: record["source"]["partition"])


RULES = ("sessions.gap=200ms", "sessions.max_events=4", "worker.batch_records=3", "state.snapshot_interval=100ms")

STEPS = st.lists(
    st.sampled_from(
        [
            *("turn", "crash", "abort", "revoke", "lose", "revoke amid a batch", "lose amid a batch", "stop"),
            *("hang in flush", "hang in send_offsets", "hang in commit", "hang in abort", "answer"),
        ]
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(STEPS, st.integers(1, 2))
def test_crashes_aborts_and_rebalances_change_no_output(steps: list[str], partitions: int) -> None:
    broker = filled(partitions, repeat=3)
    run_with(steps, broker, *RULES)
    assert by_partition(broker) == calm(partitions)


@cache
def calm(partitions: int) -> list[dict[str, Any]]:
    return undisturbed(lambda: filled(partitions, repeat=3), *RULES)


def run_with(steps: list[str], broker: MemoryBroker, *overrides: str, scorer: OddScorer | None = None) -> None:
    """Workers, one after the other, until every record is processed."""
    clock = Clock()
    remaining = list(steps)
    while True:
        small = SmallWorker(broker, small_settings(*overrides), broker.partitions(INPUT), clock, scorer=scorer)
        script: list[Callable[[], object] | None] = []
        ending = "stop"
        while remaining:
            step = remaining.pop(0)
            if step in ("crash", "stop"):
                ending = step
                break
            script.append(partial(disturb, small, step))
        if ending == "crash":
            small.crash_after([None, *script])
        elif remaining:
            small.run([None, *script])
        else:
            small.run([None, *script, small.sink.takes_s.clear, *[None] * 40])
            # The commit of the stop may have been the one that a step let fail: then another worker does the work.
            done = {partition: committed.offset for partition, committed in broker.committed.items()}
            if done == {
                each: broker.watermarks(each)[1]
                for each in (Partition(INPUT, number) for number in broker.partitions(INPUT))
            }:
                break


def disturb(small: SmallWorker, step: str) -> None:
    """What happens to the worker at the next turn of its loop."""
    source = small.source
    if step.endswith(" amid a batch"):
        keep_alive = small.sink.while_waiting

        def wait() -> None:
            small.sink.while_waiting = keep_alive
            if small.worker._doing == "working":  # else it is a revoke's commit that waits
                disturb(small, step.removesuffix(" amid a batch"))
            keep_alive()

        small.sink.while_waiting = wait
        small.sink.stalls = 1
    elif step.startswith("hang in "):
        small.sink.takes_s[cast(Operation, step.removeprefix("hang in "))] = inf
    elif step == "answer":
        small.sink.takes_s.clear()
    elif step == "abort":
        small.sink.fail_next_commit = TransactionAborted("the coordinator said so")
    elif step in ("revoke", "lose"):
        source.assign_next[:] = source.revoke_next[:] = source.lose_next[:] = []
        moved = list(source._positions)[:1]
        (source.revoke_next if step == "revoke" else source.lose_next).extend(moved)
        source.assign_next.extend(moved)


@pytest.mark.parametrize("step", ["revoke amid a batch", "lose amid a batch"])
def test_partitions_that_go_away_amid_a_batch_take_the_whole_transaction_with_them(step: str) -> None:
    broker = filled(partitions=2)
    rules = small_settings("sessions.max_events=2", "worker.batch_records=3", "worker.commit_interval=30s")
    small = SmallWorker(broker, rules, (0, 1))
    small.crash_after([None, partial(disturb, small, step), None])
    assert small.worker._report.totals["aborts"] == 1
    assert outputs(broker) == []
    assert broker.committed == {}


@pytest.mark.parametrize("message", range(1, 9))
def test_a_partition_that_comes_amid_a_batch_changes_no_output(message: int) -> None:
    """Amid scores, or amid the snapshots that a commit writes."""
    broker = filled(partitions=2, repeat=3)
    small = SmallWorker(broker, small_settings(*RULES), partitions=(0,))
    keep_alive, left = small.sink.while_waiting, [message]

    def wait() -> None:
        left[0] -= 1
        if left[0] == 0:
            small.source.assign_next.append(Partition(INPUT, 1))
        keep_alive()

    small.sink.while_waiting, small.sink.stalls = wait, message
    small.run([None] * 40)
    assert by_partition(broker) == undisturbed(lambda: filled(2, repeat=3), *RULES)


def test_partitions_can_come_and_go_while_many_sessions_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed(lambda: filled(2, repeat=3), *RULES)
    monkeypatch.setattr("worker.processing.pipeline._CALL_EVERY_S", 0.0)
    broker = filled(partitions=2, repeat=3)
    small = SmallWorker(broker, small_settings(*RULES), partitions=(0,))
    pipeline = small.worker._pipeline
    keep_alive = pipeline.while_scoring
    steps = [lambda: small.source.assign_next.append(Partition(INPUT, 1)), partial(disturb, small, "revoke")]

    def wait() -> None:
        if steps:
            steps.pop(0)()
        keep_alive()

    pipeline.while_scoring = wait
    small.run([None] * 40)
    assert steps == []
    assert by_partition(broker) == expected


@pytest.mark.parametrize("size", [1, 7, 150])
@pytest.mark.parametrize("seconds", [0.0, 5.0], ids=["quick", "slow"])
def test_no_batch_has_more_records_than_batch_records_however_slow_the_scorer_is(size: int, seconds: float) -> None:
    broker, sizes = filled(partitions=2, repeat=100), []
    small = SmallWorker(broker, small_settings(f"worker.batch_records={size}"), (0, 1))
    process = small.worker._pipeline.process

    def counted(batch: Sequence[Records]) -> list[Output]:
        sizes.append(sum(len(records.offsets) for records in batch))
        small.clock.now += seconds
        return process(batch)

    small.worker._pipeline.process = counted  # type: ignore[method-assign]
    small.run([None] * 50)
    assert max(sizes) == size


def test_a_last_commit_that_is_aborted_leaves_everything_to_the_next_worker() -> None:
    broker = filled()
    small = SmallWorker(broker, small_settings(*RULES, "worker.commit_interval=30s"))
    small.run([None, None, lambda: disturb(small, "abort")])
    assert outputs(broker) == []
    SmallWorker(broker, small_settings(*RULES)).run([None] * 40)
    assert by_partition(broker) == undisturbed(filled, *RULES)


def test_partitions_that_come_while_a_worker_leaves_are_not_read_and_do_not_hold_it_up() -> None:
    broker = filled()
    small = SmallWorker(broker, small_settings(*RULES), partitions=[0])
    asked: list[Partition] = []
    committed = small.source.committed

    def undecided(partitions: Sequence[Partition], stopping: Callable[[], bool]) -> dict[Partition, Committed | None]:
        asked.extend(partitions)
        if P1 in partitions:
            raise TransactionAborted("told to stop while the committed offsets were undecided", "stop")
        return committed(partitions, stopping)

    small.source.committed = undecided  # type: ignore[method-assign]
    leave = small.source.close

    def close(deadline: Deadline) -> None:
        small.source.assign_next.append(P1)
        leave(deadline)

    small.source.close = close  # type: ignore[method-assign]
    small.run([None] * 40)
    assert asked == [Partition(INPUT, 0)]
    SmallWorker(broker, small_settings(*RULES)).run([None] * 40)
    assert by_partition(broker) == undisturbed(filled, *RULES)


def test_a_worker_that_cannot_go_on_leaves_the_group_and_commits_nothing() -> None:
    broker = filled()
    small = SmallWorker(broker, small_settings(*RULES, "worker.commit_interval=30s"))
    with pytest.raises(RunError, match="came again"):
        small.run([None, None, lambda: small.source._positions.update({P0: 2}), None])
    assert small.source._positions == {}
    assert outputs(broker) == []
    assert broker.committed == {}


def test_an_output_is_visible_only_together_with_the_position_that_caused_it() -> None:
    broker = filled()
    small = SmallWorker(broker, small_settings("sessions.max_events=2", "worker.commit_interval=30s"))
    small.crash_after([None, None, None])
    assert outputs(broker) == []
    assert P0 not in broker.committed


def test_a_partition_that_is_replayed_is_silent_until_the_committed_position() -> None:
    broker = filled()
    rules = small_settings("sessions.max_events=2", "state.snapshot_interval=1h", "worker.batch_records=2")
    SmallWorker(broker, rules).crash_after([None] * 12)
    published = outputs(broker)
    assert published, "nothing was committed before the crash"
    assert broker.committed[P0].offset > 0
    SmallWorker(broker, rules).run([None] * 12)
    assert outputs(broker)[: len(published)] == published
    identities = [(r["source"]["first_offset"], r["kind"], r["severity"]) for r in outputs(broker)]
    assert len(identities) == len(set(identities))


def test_an_idle_partition_closes_its_sessions_once_with_its_end_as_cause() -> None:
    broker = filled()
    clock = Clock()
    rules = small_settings("sessions.idle_flush=10s", "scoring.early=false")
    small = SmallWorker(broker, rules, clock=clock)
    small.run([None, None, lambda: setattr(clock, "now", clock.now + 11), None, None])
    records = outputs(broker)
    assert [(r["session"], r["closed_by"], r["source"]["cause_offset"]) for r in records] == [
        ("a", "idle", 11),
        ("b", "idle", 11),
        ("c", "idle", 11),
    ]
    SmallWorker(broker, rules, clock=clock).run([None, lambda: setattr(clock, "now", clock.now + 11), None, None])
    assert outputs(broker) == records, "a restart after the flush published again"


def idle_after(disturbance: Callable[[SmallWorker, MemoryBroker], None], *overrides: str) -> list[tuple[str, int, str]]:
    """The sessions that come of two partitions, the second of which gets its second record only in the disturbance."""
    broker, clock = memory_broker(2), Clock()
    use = small_settings("sessions.idle_flush=10s", "scoring.early=false", "worker.batch_records=3", *overrides)
    small = SmallWorker(broker, use, (0, 1), clock)
    broker.append(P1, b"quiet open")
    disturbed = partial(disturbance, small, broker)
    later = partial(setattr, clock, "tick_s", 1)  # 10 s pass within a few turns
    small.run([None, None, disturbed, *[None] * 8, later, *[None] * 12])
    return sorted((r["session"], r["events"], r["closed_by"]) for r in outputs(broker))


P1 = Partition(INPUT, 1)


def test_no_session_closes_as_idle_while_its_partition_waits_behind_the_records_of_another() -> None:
    def starve(small: SmallWorker, broker: MemoryBroker) -> None:
        for _ in range(12):
            broker.append(P0, b"busy read")
        broker.append(P1, b"quiet close")
        small.clock.now += 11

    assert idle_after(starve) == [("busy", 12, "idle"), ("quiet", 2, "idle")]


def test_no_session_closes_as_idle_because_of_an_end_from_before_a_pause() -> None:
    def pause(small: SmallWorker, broker: MemoryBroker) -> None:
        for _ in range(2):
            broker.append(P0, b"busy read")
        small.sink.stalls, keep_alive = 1, small.sink.while_waiting

        def wait() -> None:
            small.sink.while_waiting = keep_alive
            broker.append(P1, b"quiet close")
            small.clock.now += 11
            keep_alive()

        small.sink.while_waiting = wait

    assert idle_after(pause, "sessions.max_events=2") == [("busy", 2, "max_events"), ("quiet", 2, "max_events")]


def test_no_session_closes_as_idle_when_its_next_record_came_during_a_long_turn() -> None:
    def dawdle(small: SmallWorker, broker: MemoryBroker) -> None:
        broker.append(P0, b"busy read")
        process = small.worker._pipeline.process

        def slowly(batch: Sequence[Records]) -> list[Output]:
            small.worker._pipeline.process = process  # type: ignore[method-assign]
            broker.append(P1, b"quiet close")
            small.clock.now += 11
            return process(batch)

        small.worker._pipeline.process = slowly  # type: ignore[method-assign]

    assert idle_after(dawdle) == [("busy", 1, "idle"), ("quiet", 2, "idle")]


def test_what_cannot_be_decoded_is_dead_lettered_once_and_the_rest_is_unharmed() -> None:
    broker = filled()
    rules = small_settings("worker.batch_records=2", "worker.commit_interval=0ms", "state.snapshot_interval=1h")
    SmallWorker(broker, rules).crash_after([None] * 5)
    SmallWorker(broker, rules).run([None] * 12)
    letters = [dict(message.headers) for message in broker.visible(DEAD)]
    assert [(each["logmamba-error-reason"], each["logmamba-error-offset"]) for each in letters] == [
        (b"empty", b"5"),
        (b"not_utf8", b"9"),
    ]


def test_records_left_over_of_a_partition_that_is_no_longer_ours_are_left_alone() -> None:
    broker = filled(partitions=2)
    small = SmallWorker(broker, small_settings("sessions.idle_flush=1ms"), partitions=[0], clock=Clock(tick_s=1))
    small.run([None, lambda: small.source._positions.update({Partition(INPUT, 1): 0}), None, None])
    assert {record["source"]["partition"] for record in outputs(broker)} == {0}
    assert set(broker.committed) == {P0}


def test_records_that_come_twice_stop_the_worker() -> None:
    broker = filled()
    small = SmallWorker(broker, small_settings())
    with pytest.raises(RunError, match="came again"):
        small.run([None, lambda: small.source._positions.update({P0: 2}), None])


def test_a_clean_stop_leaves_nothing_to_replay() -> None:
    broker = filled()
    SmallWorker(broker, small_settings()).run([None] * 4)
    committed = broker.committed[P0]
    assert committed.offset == len(LINES)
    assert f'"position":{len(LINES)}' in committed.metadata


def snapshot_parts(broker: MemoryBroker) -> list[Any]:
    return [part for number in broker.partitions(STATE) for part in broker._logs[Partition(STATE, number)]]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda broker: broker.delete_before(P0, 4), "deleted"),
        (lambda broker: broker.committed.update({P0: Committed(99, "")}), "outside"),
        (lambda broker: broker.committed.update({P0: Committed(4, "")}), "names no snapshot"),
        (lambda broker: broker.committed.clear(), "state topic holds a snapshot"),
        (lambda broker: [broker.delete_before(Partition(STATE, n), 10**6) for n in (0, 1)], "outside"),
        (lambda broker: [setattr(part, "key", b"another") for part in snapshot_parts(broker)], "0 of 1 parts found"),
        (lambda broker: [setattr(part, "value", b"no part") for part in snapshot_parts(broker)], "is not a part"),
    ],
)
def test_a_lost_position_or_snapshot_stops_the_worker_unless_told_to_start_over(
    damage: Callable[[MemoryBroker], object], reason: str
) -> None:
    broker = filled()
    rules = ("state.snapshot_interval=1h", "worker.batch_records=2", "worker.commit_interval=0ms")
    SmallWorker(broker, small_settings(*rules)).crash_after([None] * 3)
    assert broker.committed[P0].offset > 0
    damage(broker)
    with pytest.raises(RunError, match=f"{reason}.*input.on_lost_offsets: earliest"):
        SmallWorker(broker, small_settings(*rules)).run([None] * 12)
    SmallWorker(broker, small_settings(*rules, "input.on_lost_offsets=earliest")).run([None] * 12)
    assert broker.committed[P0].offset == len(LINES)


def test_a_worker_that_ends_before_its_first_commit_leaves_nothing_in_the_way_of_the_next() -> None:
    broker = filled()
    small = SmallWorker(broker, small_settings("worker.commit_interval=0ms"))
    small.sink.fail_next_commit = RunError("gone")
    with pytest.raises(RunError, match="gone"):
        small.run([None])
    small.sink.abort(Deadline())
    assert broker.committed == {}
    assert any(broker.watermarks(Partition(STATE, number))[1] for number in (0, 1)), "no snapshot was begun"
    SmallWorker(broker, small_settings()).run([None] * 4)
    assert broker.committed[P0].offset == len(LINES)


def test_latest_starts_at_the_end_and_stays_there_over_a_crash() -> None:
    broker = filled()
    rules = small_settings("input.start=latest", "worker.commit_interval=0ms")
    SmallWorker(broker, rules).crash_after([None, None])
    for line in (b"d open", b"d close"):
        broker.append(P0, line, timestamp=1000)
    SmallWorker(broker, rules).run([None] * 3)
    closing = small_settings("sessions.idle_flush=1ms", "scoring.early=false")
    clock = Clock(tick_s=1)
    SmallWorker(broker, closing, clock=clock).run([None] * 4)
    assert [(r["session"], r["source"]["first_offset"]) for r in outputs(broker)] == [("d", len(LINES))]


def test_open_sessions_are_tokenised_anew_when_the_vocabulary_changes() -> None:
    broker = filled()
    rules = small_settings("scoring.early=false")
    SmallWorker(broker, rules).run([None] * 3)
    reordered = Vocabulary((*VOCABULARY.templates[2:], *VOCABULARY.templates[:2]))
    ending = small_settings("sessions.idle_flush=1ms", "scoring.early=false")
    SmallWorker(broker, ending, clock=Clock(tick_s=1), vocabulary=reordered).run([None] * 4)
    templates = {r["session"]: {event["template"] for event in r["top_events"]} for r in outputs(broker)}
    assert templates["c"] == {"<*> odd", "<*> close"}
    assert templates["b"] == {"<*> open", "<*> read", "<*> close"}


def test_aborts_in_a_row_are_followed_by_longer_waits_of_two_seconds_at_most() -> None:
    slept = []

    class Watched(Clock):
        def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            super().sleep(seconds)

    broker = filled()
    small = SmallWorker(broker, small_settings(*RULES, "worker.commit_interval=0ms"), clock=Watched())

    def abort() -> None:
        small.sink.fail_next_commit = TransactionAborted("the coordinator said so")

    small.run([*[abort] * 12, *[None] * 20])
    waits = [seconds for seconds in slept if seconds]
    assert len(waits) > 3
    assert waits[:4] == [0.4, 0.8, 1.6, 2.0]
    assert {*waits[4:]} <= {2.0}
    assert by_partition(broker) == undisturbed(filled, *RULES)

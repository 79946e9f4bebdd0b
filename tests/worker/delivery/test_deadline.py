"""One deadline for all that a revoke, a commit, an abort and a stop do; on the broker in memory, with a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any

import pytest
import structlog

from detector.scoring.scores import EventScores
from tests.worker.small_worker import INPUT, Clock, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.deadline import Deadline, StopDeadline
from worker.delivery.memory import MemoryBroker, Operation
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed
from worker.observability.status import WorkerStatus
from worker.processing.records import Partition

BUDGET_S = 10.0  # of a revoke, in a small worker
MANY = 16
RULES = ("sessions.max_events=2", "worker.batch_records=100")
ALWAYS = ("worker.commit_interval=0ms", "state.snapshot_interval=0ms")


def filled(partitions: int = MANY, rounds: int = 6) -> MemoryBroker:
    """Every other record of a partition closes a session."""
    broker = memory_broker(partitions)
    add_to(broker, partitions, rounds)
    return broker


def add_to(broker: MemoryBroker, partitions: int, rounds: int) -> None:
    for number in range(rounds):
        for partition in range(partitions):
            line = f"s{number // 2} {'odd' if number % 2 else 'open'}".encode()
            broker.append(Partition(INPUT, partition), line, timestamp=number)


def worker(broker: MemoryBroker, *overrides: str, partitions: int = MANY, clock: Clock | None = None) -> SmallWorker:
    return SmallWorker(broker, small_settings(*RULES, *overrides), range(partitions), clock or Clock(0.0))


def finals(broker: MemoryBroker) -> list[tuple[int, str]]:
    return sorted((each["source"]["partition"], each["session"]) for each in outputs(broker) if each["kind"] == "final")


def expected(partitions: int = MANY, rounds: int = 6) -> list[tuple[int, str]]:
    return [(partition, f"s{number}") for partition in range(partitions) for number in range(rounds // 2)]


# -- the deadline ------------------------------------------------------------------------------------------------------


def test_a_deadline_is_never_outlasted_by_those_within_it() -> None:
    clock = Clock(0.0)
    whole = Deadline(10, clock)
    inner, part, early = Deadline(20, clock, within=(whole,)), whole.part(0.5), whole.earlier(2)
    assert (inner.left_s, part.left_s, early.left_s) == (10, 5, 8)
    clock.sleep(4)
    assert (inner.left_s, part.left_s, early.left_s) == (6, 1, 4)
    clock.sleep(5)
    assert (whole.passed, inner.passed, part.passed, early.passed) == (False, False, True, True)
    clock.sleep(5)
    assert (whole.left_s, inner.left_s) == (0, 0)


def test_a_stop_has_its_time_from_when_it_is_asked_for() -> None:
    clock, told = Clock(0.0), list[bool]()
    stop = StopDeadline(lambda: bool(told), 30, clock)
    early = stop.earlier(10)
    clock.sleep(100)
    assert (stop.left_s, early.left_s, stop.begun) == (inf, inf, False)
    told.append(True)
    assert (early.left_s, stop.left_s) == (20, 30)
    clock.sleep(25)
    assert (early.passed, stop.passed) == (True, False)


# -- a slow broker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["flush", "send_offsets", "commit"])
def test_a_slow_broker_during_a_revoke_with_16_snapshots_ends_in_an_abort_not_a_stop(slow: Operation) -> None:
    broker, clock = filled(), Clock(0.0)
    small = worker(broker, "worker.commit_interval=30s", clock=clock)
    took: list[float] = []

    def revoke() -> None:
        small.sink.takes_s = {slow: 8.0}
        small.source.revoke_next = [Partition(INPUT, number) for number in range(MANY)]
        on_revoked, began = small.worker.on_revoked, clock.now
        small.source.assign_next = [*small.source.revoke_next]
        small.worker.on_revoked = lambda partitions: (on_revoked(partitions), took.append(clock.now - began))[0]  # type: ignore[method-assign]

    def answer() -> None:
        small.sink.takes_s = {}
        del small.worker.on_revoked

    small.run([None, lambda: add_to(broker, MANY, rounds=6), revoke, answer, None, None])
    assert len(took) == 1
    assert took[0] <= BUDGET_S
    assert small.worker.status().totals["aborts"] == 1
    assert finals(broker) == sorted(expected() + expected())


def test_the_snapshots_of_16_partitions_wait_for_the_broker_once() -> None:
    broker, clock = filled(), Clock(0.0)
    small = worker(broker, *ALWAYS, clock=clock)
    small.sink.takes_s = {"flush": 1.0}
    small.crash_after([None, None])
    assert len(broker.committed) == MANY
    assert clock.now == 2.0, "one flush for the first parts' offsets, one for the rest"


def test_a_commit_that_takes_too_long_is_aborted_before_the_coordinator_gives_the_transaction_up() -> None:
    broker = filled()
    small = worker(broker, *ALWAYS)
    small.sink.takes_s = {"commit": 50.0}  # of 60
    small.run([None, None, small.sink.takes_s.clear, None, None])
    assert small.worker.status().totals["aborts"] > 0
    assert finals(broker) == expected()


def test_what_an_abort_could_not_end_is_ended_before_anything_is_read_again() -> None:
    broker, clock = filled(), Clock(0.0)
    small = worker(broker, *ALWAYS, clock=clock)
    read = small.source.committed
    open_when_read: list[int] = []

    def committed(partitions: Sequence[Partition], stopping: Callable[[], bool]) -> dict[Partition, Committed | None]:
        open_when_read.append(len(small.sink._given_up))
        return read(partitions, stopping)

    small.source.committed = committed  # type: ignore[method-assign]
    small.sink.takes_s = {"commit": inf, "abort": inf}
    small.run([None, None, small.sink.takes_s.clear, None, None])
    assert len(open_when_read) > 1
    assert not any(open_when_read)
    assert finals(broker) == expected()


# -- a stop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hung", [["flush"], ["send_offsets"], ["commit"], ["flush", "abort"], ["commit", "abort"]])
def test_a_stop_ends_in_time_with_a_broker_that_hangs(hung: list[Operation]) -> None:
    broker, clock = filled(), Clock(0.0)
    small = worker(broker, "worker.commit_interval=30s", "worker.shutdown_timeout=20s", clock=clock)

    def hang() -> None:
        add_to(broker, MANY, rounds=6)
        small.sink.takes_s = dict.fromkeys(hung, inf)

    small.run([lambda: clock.sleep(30), hang])  # told to stop in its last turn
    assert clock.now - 30 <= 20
    assert finals(broker) == expected()
    small.sink.settle()
    worker(broker).run([None, None])
    assert finals(broker) == sorted(expected() + expected())


def test_a_stop_that_comes_amid_a_slow_commit_has_its_time_from_then() -> None:
    broker, clock = filled(), Clock(0.0)
    small = worker(broker, *ALWAYS, "worker.shutdown_timeout=20s", clock=clock)
    small.sink.takes_s = {"commit": inf, "abort": inf}
    small.run([None])  # told to stop in its only turn, of which the commit is part
    assert clock.now <= 20


# -- scoring takes long ------------------------------------------------------------------------------------------------


class SlowScorer(OddScorer):
    """Each pass takes some seconds of the clock, and may be watched."""

    def __init__(self, clock: Clock, pass_s: Callable[[], float], watch: Callable[[], object]) -> None:
        super().__init__()
        self.score_pass = (clock, pass_s, watch)

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> list[EventScores]:
        clock, pass_s, watch = self.score_pass

        def passed() -> None:
            clock.sleep(pass_s())
            after_pass()
            watch()

        return super().score(sequences, unfinished, passed)


def slow_worker(
    broker: MemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
    pass_s: Callable[[], float],
    watch: Callable[[], object],
    *overrides: str,
) -> SmallWorker:
    monkeypatch.setattr("worker.processing.pipeline._CALL_EVERY_S", 0.0)
    small = worker(broker, *overrides, partitions=2)
    small.worker._pipeline.scorer = SlowScorer(small.clock, pass_s, watch)
    return small


def test_outputs_do_not_wait_for_a_batch_whose_scoring_outlasts_every_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass takes a sixth of the transaction's longest life, and there are more than six."""
    broker = filled(2, rounds=4)
    pass_s, visible = [0.0], list[list[tuple[int, str]]]()
    small = slow_worker(
        broker, monkeypatch, lambda: pass_s[0], lambda: visible.append(finals(broker)), "worker.commit_interval=1s"
    )

    def slowly() -> None:
        add_to(broker, 2, rounds=8)
        visible.clear()
        pass_s[0] = 10.0

    small.run(
        [
            lambda: small.clock.sleep(2),
            lambda: add_to(broker, 2, rounds=4),
            slowly,
            lambda: pass_s.__setitem__(0, 0.0),
            None,
            lambda: small.clock.sleep(1),
            None,
        ]
    )
    assert small.worker.status().totals["aborts"] == 0
    assert len(visible) > 6
    assert visible[0] == sorted(2 * expected(2, rounds=4)), "the outputs of the batch before"
    assert finals(broker) == sorted(2 * expected(2, rounds=4) + expected(2, rounds=8))


def test_a_crash_while_scoring_takes_long_changes_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = filled(2, rounds=4)
    pass_s, left = [0.0], [5]

    class Gone(BaseException):
        pass

    def watch() -> None:
        if pass_s[0]:
            left[0] -= 1
            if not left[0]:
                raise Gone

    small = slow_worker(broker, monkeypatch, lambda: pass_s[0], watch, "worker.commit_interval=1s")

    def slowly() -> None:
        add_to(broker, 2, rounds=8)
        pass_s[0] = 10.0

    with pytest.raises(Gone):
        small.run([lambda: small.clock.sleep(2), lambda: add_to(broker, 2, rounds=4), slowly, None])
    small.sink.abort(Deadline())
    assert finals(broker) == sorted(2 * expected(2, rounds=4)), "what had been scored and nothing else"
    worker(broker, partitions=2).run([None, None, None])
    assert finals(broker) == sorted(2 * expected(2, rounds=4) + expected(2, rounds=8))


def test_a_batch_that_takes_long_before_a_first_snapshot_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction can be neither kept nor committed: it is aborted once, and the next has no outputs to wait."""
    broker = filled(2, rounds=4)
    pass_s = [0.0]
    small = slow_worker(broker, monkeypatch, lambda: pass_s[0], lambda: None, "worker.commit_interval=1s")

    def slowly() -> None:
        add_to(broker, 2, rounds=8)
        pass_s[0] = 10.0

    small.run([None, slowly, None, None, None])
    assert small.worker.status().totals["aborts"] == 1
    assert finals(broker) == sorted(expected(2, rounds=4) + expected(2, rounds=8))


def test_a_stop_does_not_wait_for_a_batch_that_takes_long_to_score(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = filled(2, rounds=20)
    small = slow_worker(broker, monkeypatch, lambda: 3.0, lambda: None, "worker.shutdown_timeout=20s")
    small.run([None])  # told to stop in its only turn
    assert small.clock.now <= 20
    assert finals(broker) == []
    worker(broker, partitions=2).run([None, None])
    assert finals(broker) == expected(2, rounds=20)


# -- a broker that is away ---------------------------------------------------------------------------------------------


def test_a_worker_that_waits_for_its_broker_is_alive_but_not_ready_and_stops_when_told() -> None:
    broker, clock = filled(2), Clock(0.0)
    small = worker(broker, *ALWAYS, partitions=2, clock=clock)
    outage, seen = small.worker._report._outage, list[tuple[WorkerStatus, float]]()

    def away(partitions: Iterable[Partition], stopping: Callable[[], bool]) -> Mapping[Partition, Committed | None]:
        while True:
            clock.sleep(30)
            outage.wait("refused")
            seen.append((small.worker.status(), small.worker._metrics.heartbeat_age_s()))
            if len(seen) == 20:
                small.source.begin([])  # told to stop

    def goes_away() -> None:
        small.source.committed = away  # type: ignore[assignment,method-assign]
        small.source.lose_next = [Partition(INPUT, 0)]

    small.run([None, None, goes_away, *[None] * 100])
    assert len(seen) == 20
    assert {(status.ready, status.broker_away, age) for status, age in seen} == {(False, True, 0.0)}


def test_a_broker_that_is_away_is_logged_once_a_minute_with_a_count() -> None:
    clock = Clock(0.0)
    outage = Outage(clock)
    with structlog.testing.capture_logs() as logs:
        for _ in range(200):
            outage.wait("refused")
            clock.sleep(1)
        outage.over()
        outage.over()
    events: list[tuple[Any, ...]] = [(each["event"], each["seconds"], each["unanswered"]) for each in logs]
    assert events == [
        ("broker_away", 0, 1),
        ("broker_away", 60, 61),
        ("broker_away", 120, 121),
        ("broker_away", 180, 181),
        ("broker_back", 200, 200),
    ]
    assert not outage.lasts


def test_a_broker_that_is_silent_is_asked_twice_before_it_counts_as_away_and_one_that_is_suspected_once() -> None:
    clock, answers, told = Clock(0.0), list[str | None](), list[bool]()
    outage = Outage(clock)
    outage.ask = lambda: answers.pop(0)
    outage.changed = lambda: told.append(outage.lasts)
    for _ in range(100):  # records come every two seconds: nobody is asked
        clock.sleep(2)
        outage.look()
        outage.over()
    clock.sleep(3)
    answers += [None]
    outage.look()
    outage.look()
    clock.sleep(3)
    answers += ["timed out", None]  # it was slow once
    outage.look()
    outage.look()
    assert (told, answers) == ([], [])
    clock.sleep(3)
    answers += ["timed out", "timed out", "timed out", None]
    outage.look()
    assert not outage.lasts
    for lasts in (True, True, False):
        outage.look()
        assert outage.lasts == lasts
    outage.suspect("connection refused")
    answers += ["timed out"]
    outage.look()
    assert (told, answers) == ([True, False, True], [])

"""When a commit is due: scores are soon visible, and a worker with much to do does not spend its time on commits."""

from __future__ import annotations

import itertools

import pytest

from tests.worker.small_worker import INPUT, Clock, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.commit_pace import CommitPace
from worker.processing.records import Partition


def waits_s(pace: CommitPace, clock: Clock, *, outputs: bool) -> float:
    """How long after now a commit is due, to the millisecond."""
    began = clock.now
    for waited_ms in itertools.count():
        clock.now = began + waited_ms / 1000 + 1e-9
        if pace.due(outputs=outputs):
            return waited_ms / 1000
    raise AssertionError


def after_a_commit(interval_s: float, fullness: float) -> tuple[CommitPace, Clock]:
    clock = Clock(tick_s=0.0)
    pace = CommitPace(interval_s, clock)
    pace.fullness = fullness
    clock.now += 3.0
    pace.committed()
    return pace, clock


def test_outputs_of_small_batches_wait_for_the_interval() -> None:
    assert waits_s(*after_a_commit(0.025, fullness=0.0), outputs=True) == 0.025
    assert waits_s(*after_a_commit(0.025, fullness=0.1), outputs=True) == 0.025


def test_the_fuller_the_batches_the_longer_they_wait_up_to_a_tenth_of_a_second() -> None:
    assert waits_s(*after_a_commit(0.025, fullness=0.25), outputs=True) == 0.05
    assert waits_s(*after_a_commit(0.025, fullness=0.5), outputs=True) == 0.1
    assert waits_s(*after_a_commit(0.025, fullness=0.99), outputs=True) == 0.1


def test_full_batches_leave_records_behind_that_are_worked_off_first() -> None:
    assert waits_s(*after_a_commit(0.025, fullness=1.0), outputs=True) == 1.0
    assert waits_s(*after_a_commit(0.025, fullness=1.0), outputs=False) == 1.0


def test_positions_alone_are_in_no_hurry() -> None:
    assert waits_s(*after_a_commit(0.025, fullness=0.0), outputs=False) == 0.1


@pytest.mark.parametrize("outputs", [True, False])
def test_a_longer_interval_is_kept_and_none_is_none(outputs: bool) -> None:
    assert waits_s(*after_a_commit(2.0, fullness=1.0), outputs=outputs) == 2.0
    assert waits_s(*after_a_commit(0.0, fullness=1.0), outputs=outputs) == 0.0


@pytest.mark.parametrize(("batch_records", "keeps_up"), [(100, True), (2, False)])
def test_scores_are_visible_after_the_interval_where_a_worker_keeps_up_and_later_where_it_is_behind(
    batch_records: int, keeps_up: bool
) -> None:
    broker, clock, seen = memory_broker(), Clock(tick_s=0.0), list[int]()
    for number in range(8):
        broker.append(Partition(INPUT, 0), b"k%d read" % (number // 2))
    rules = "sessions.max_events=2", "worker.commit_interval=25ms", f"worker.batch_records={batch_records}"
    small = SmallWorker(broker, small_settings(*rules), clock=clock)

    def look() -> None:
        seen.append(len(outputs(broker)))
        clock.now += 0.03

    small.run([None, look, look])
    assert seen == [0, 4 if keeps_up else 0]
    assert len(outputs(broker)) >= 3

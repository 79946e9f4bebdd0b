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


def after_a_commit(took_s: float, interval_s: float, *, behind: bool = False) -> tuple[CommitPace, Clock]:
    clock = Clock(tick_s=0.0)
    pace = CommitPace(interval_s, clock)
    pace.behind = behind
    began, clock.now = clock.now, clock.now + took_s
    pace.committed(began)
    return pace, clock


def test_outputs_wait_for_the_interval() -> None:
    assert waits_s(*after_a_commit(0.005, 0.025), outputs=True) == 0.025


def test_positions_alone_and_a_worker_that_is_behind_are_in_no_hurry() -> None:
    assert waits_s(*after_a_commit(0.005, 0.025), outputs=False) == 0.1
    assert waits_s(*after_a_commit(0.005, 0.025, behind=True), outputs=True) == 0.1


def test_commits_that_take_long_get_a_fifth_of_the_time_and_never_hold_outputs_back_for_long() -> None:
    assert waits_s(*after_a_commit(0.015, 0.025), outputs=True) == 0.06
    assert waits_s(*after_a_commit(30.0, 0.025), outputs=True) == 0.1


def test_a_longer_interval_is_kept_and_none_is_none() -> None:
    for outputs_wait in (True, False):
        assert waits_s(*after_a_commit(0.005, 2.0, behind=True), outputs=outputs_wait) == 2.0
        assert waits_s(*after_a_commit(0.005, 0.0, behind=True), outputs=outputs_wait) == 0.0


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

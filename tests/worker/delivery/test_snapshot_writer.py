"""A snapshot that is due is made while the worker goes on; whatever happens then, each output is committed once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.worker.small_worker import INPUT, STATE, Clock, Result, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.delivery.snapshots import SnapshotPointer
from worker.errors import TransactionAborted
from worker.processing.records import Partition

P0 = Partition(INPUT, 0)
LINES = [b"a open", b"b open", b"a odd", b"b read", b"c odd", b"b close", b"a read", b"c close", b"d open", b"a odd"]
RULES = ("sessions.max_events=4", "worker.batch_records=1", "worker.commit_interval=0ms", "state.snapshot_interval=0ms")


class WhenTold(Executor):
    """Does what it got only when told to."""

    def __init__(self) -> None:
        self.left: list[Callable[[], None]] = []

    def submit(self, work: Callable[..., Result], /, *args: Any, **named: Any) -> Future[Result]:
        future: Future[Result] = Future()

        def do() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(work(*args, **named))

        self.left.append(do)
        return future

    def go_on(self) -> None:
        left, self.left = self.left, []
        for do in left:
            do()


def filled(partitions: int = 1) -> MemoryBroker:
    broker = memory_broker(partitions)
    for number in range(partitions):
        for at, line in enumerate(LINES):
            broker.append(Partition(INPUT, number), line, timestamp=1 + at)
    return broker


def scores(broker: MemoryBroker) -> list[dict[str, Any]]:
    return sorted(outputs(broker), key=lambda record: record["source"]["partition"])


def undisturbed(partitions: int = 1) -> list[dict[str, Any]]:
    broker = filled(partitions)
    SmallWorker(broker, small_settings(*RULES), range(partitions)).run([None] * 30)
    return scores(broker)


def saved_and_committed(broker: MemoryBroker, partition: Partition = P0) -> tuple[int, int]:
    """Positions of the snapshot that the committed offset names, and of that offset."""
    committed = broker.committed[partition]
    pointer = SnapshotPointer.from_metadata(committed.metadata)
    assert pointer is not None
    return pointer.position, committed.offset


def finish(broker: MemoryBroker, partitions: int = 1) -> None:
    SmallWorker(broker, small_settings(*RULES), range(partitions), Clock()).run([None] * 30)


def test_commits_go_on_while_a_snapshot_is_made_and_the_next_one_names_it() -> None:
    broker, background = filled(), WhenTold()
    small = SmallWorker(broker, small_settings(*RULES), background=background)
    seen = []

    def look() -> None:
        seen.append(saved_and_committed(broker))

    # The first commit has a snapshot at once. That of the second is begun then, of position 2.
    small.crash_after([None, look, look, look, background.go_on, look, look])
    assert seen == [(1, 1), (1, 2), (1, 3), (2, 5), (2, 6)]
    finish(broker)
    assert scores(broker) == undisturbed()


def test_a_crash_while_a_snapshot_is_made_leaves_the_one_before() -> None:
    broker, background = filled(), WhenTold()
    SmallWorker(broker, small_settings(*RULES), background=background).crash_after([None] * 6)
    assert len(background.left) == 1, "one is made at a time"
    assert saved_and_committed(broker) == (1, 6)
    finish(broker)
    assert scores(broker) == undisturbed()


def test_a_stop_writes_where_it_ends_and_not_what_was_being_made() -> None:
    broker, background = filled(), WhenTold()
    SmallWorker(broker, small_settings(*RULES), background=background).run([None] * 6)
    assert saved_and_committed(broker) == (6, 6)
    written = len(broker.visible(STATE))
    background.go_on()
    finish(broker)
    assert len(broker.visible(STATE)) > written
    assert scores(broker) == undisturbed()


def test_a_worker_that_stopped_leaves_no_thread_behind() -> None:
    background = ThreadPoolExecutor(1)
    SmallWorker(filled(), small_settings(*RULES), background=background).run([None] * 6)
    with pytest.raises(RuntimeError, match="after shutdown"):
        background.submit(print)


@pytest.mark.parametrize("lost", [False, True])
def test_an_abort_gives_up_what_was_being_made(lost: bool) -> None:
    """Its position may be one that was never committed."""
    broker, background = filled(), WhenTold()
    small = SmallWorker(broker, small_settings(*RULES), background=background)
    seen = []

    def disturb() -> None:
        if lost:
            small.source.lose_next = [P0]
            small.source.assign_next = [P0]
        else:
            small.sink.fail_next_commit = TransactionAborted("the coordinator said so")

    def look() -> None:
        seen.append(saved_and_committed(broker))

    small.crash_after([None, None, None, disturb, None, background.go_on, None, look, look])
    assert {saved for saved, _ in seen} == {1}
    assert seen[-1][1] > 3
    finish(broker)
    assert scores(broker) == undisturbed()


def test_a_revoke_writes_its_partition_at_once_and_leaves_the_snapshots_of_others_alone() -> None:
    broker, background = filled(2), WhenTold()
    small = SmallWorker(broker, small_settings(*RULES), (0, 1), background=background)
    other = Partition(INPUT, 1)

    def revoke() -> None:
        assert saved_and_committed(broker, other) == (0, 3)
        small.source.revoke_next = [other]

    def look() -> None:
        assert saved_and_committed(broker, other) == (3, 3), "no other worker has to read again"
        assert saved_and_committed(broker) == (1, 10)
        background.go_on()

    # All records of one partition come first.
    small.crash_after([*[None] * 13, revoke, look, None])
    assert saved_and_committed(broker) == (2, 10)
    finish(broker, 2)
    assert scores(broker) == undisturbed(2)

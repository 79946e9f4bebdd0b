"""Dead letters are sent again once each, whatever is chosen at each time and however transactions end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.commands.replay_dead_letters import Steps, Tally, send_all
from worker.delivery.deadline import Deadline
from worker.delivery.memory import MemoryBroker, MemorySink
from worker.delivery.protocols import Committed
from worker.errors import TransactionAborted
from worker.processing.dead_letters import dead_letter
from worker.processing.lines import DeadLetter, Reason
from worker.processing.records import Partition, Records

DEAD, RAW = "dead", "raw"
REASONS: tuple[Reason, ...] = ("no_key", "empty")
ENDS = ("well", "aborted", "unanswered", "killed")


class Broker(MemoryBroker):
    """Also finds offsets by time, and gives what it reads in batches of two."""

    def offset_at(self, partition: Partition, time_ms: int, end: int) -> int:
        times = self.slice(partition, 0, end).timestamps or []
        return next((offset for offset, time in enumerate(times) if time >= time_ms), end)

    def read(self, partition: Partition, start: int, end: int, *, committed: bool = True):  # type: ignore[no-untyped-def]
        for at in range(start, end, 2):
            yield from super().read(partition, at, min(at + 2, end), committed=committed)


class Killed(BaseException):
    """As by kill -9."""


class Sink(MemorySink):
    """Each commit ends as it is told to."""

    def __init__(self, broker: MemoryBroker, ends: list[str]) -> None:
        super().__init__(broker)
        self.ends = ends

    def commit(
        self, offsets: Mapping[Partition, Committed], group_metadata: Callable[[], object], deadline: Deadline
    ) -> None:
        end = self.ends.pop(0) if self.ends else "well"
        if end == "killed":
            self.abort(deadline)  # what the coordinator does for a dead producer
            raise Killed
        if end == "aborted":
            raise TransactionAborted("the broker said so")
        super().commit(offsets, group_metadata, deadline)
        if end == "unanswered":
            raise TransactionAborted("it was committed, and nobody heard of it", "no_answer")


class Group:
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed | None]:
        return {each: self._broker.committed.get(each) for each in partitions}

    def metadata(self) -> object:
        return None


def with_letters(reasons: Sequence[Reason]) -> Broker:
    """One dead letter of each reason, in two partitions by turns; their values are their numbers."""
    broker = Broker({RAW: 1, DEAD: 2})
    for number, reason in enumerate(reasons):
        record = Records(RAW, 0, [number], [b"%d" % number], [None], [1_000 + number], None)
        key, value, headers = dead_letter(record, DeadLetter(0, reason, "bad"), 10_000)
        broker.append(Partition(DEAD, number % 2), value, key, 5_000 + number, headers)
    return broker


RUNS = st.lists(
    st.tuples(
        st.sampled_from([("no_key",), ("empty",), REASONS]),
        st.none() | st.integers(5_000, 5_010),  # since
        st.none() | st.integers(1, 4),  # limit
        st.lists(st.sampled_from(ENDS), max_size=4),
    ),
    max_size=4,
)


@settings(max_examples=80)
@given(st.lists(st.sampled_from(REASONS), max_size=10), RUNS)
def test_each_is_sent_once_and_all_that_are_left_at_last(
    letters: list[Reason], runs: list[tuple[tuple[Reason, ...], int | None, int | None, list[str]]]
) -> None:
    broker, partitions = with_letters(letters), [Partition(DEAD, 0), Partition(DEAD, 1)]
    sent = 0
    for reasons, since, limit, ends in [*runs, (REASONS, None, None, [])]:
        tally = Tally()
        steps = Steps(broker, {RAW: 1}, [*reasons], since)
        with suppress(Killed):
            send_all(steps, partitions, Sink(broker, [*ends]), Group(broker), tally, limit)
        now = broker.visible(RAW)
        new = [int(each.value or b"") for each in now[sent:]]
        assert all(letters[each] in reasons for each in new)
        assert all(since is None or 5_000 + each >= since for each in new)
        assert limit is None or len(new) <= limit
        assert tally.total == len(new) or "killed" in ends
        sent = len(now)
    assert sorted(int(each.value or b"") for each in broker.visible(RAW)) == list(range(len(letters)))

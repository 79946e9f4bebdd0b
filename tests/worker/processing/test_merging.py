"""Events of several partitions in the order of their times, whichever partition is read first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.small_worker import Clock
from worker.processing.decoder import Events
from worker.processing.merging import PATIENCE_S, Merged, Merging
from worker.processing.outputs import Output
from worker.processing.records import Partition

A, B, C = (Partition("raw-logs", number) for number in range(3))


def merging(*partitions: Partition, most_held: int = 1_000, clock: Clock | None = None) -> Merging:
    made = Merging(most_held, clock or Clock(0.0))
    for partition in partitions:
        made.open(partition, 0)
    return made


def put(made: Merging, partition: Partition, events: Sequence[tuple[int, int]], letters: Sequence[int] = ()) -> None:
    """Events as (offset, time), and the offsets of dead letters."""
    offsets, times = (np.array(column, np.int64) for column in zip(*events, strict=True)) if events else ([], [])
    keys = pa.array([f"{partition.partition}/{at}" for at in offsets], pa.string())
    columns = (np.asarray(column, np.int64) for column in (times, times, offsets))
    read_to = max([*offsets, *letters]) + 1
    dead = [(at, Output(None, None, str(at).encode(), [])) for at in letters]
    made.put(partition, Events(keys, *columns, [], 0, 0), dead, int(read_to))


def times_of(merged: Merged) -> list[int]:
    return merged.times.tolist()


def test_an_event_waits_until_every_other_partition_has_come_as_far() -> None:
    made = merging(A, B, C)
    put(made, A, [(0, 10), (1, 20), (2, 30)])
    assert (times_of(made.take()), made.position(A), made.holds) == ([], 0, True)
    put(made, B, [(0, 15), (1, 25)])
    assert times_of(made.take()) == []
    put(made, C, [(0, 21), (1, 22)])
    assert times_of(made.take()) == [10, 15, 20, 21, 22]
    assert [made.position(each) for each in (A, B, C)] == [2, 1, 2]
    made.ended(B)
    made.ended(C)
    assert times_of(made.take()) == [25, 30]
    assert not made.holds
    assert [made.position(each) for each in (A, B, C)] == [3, 2, 2]


def test_a_partition_that_delivers_again_is_waited_for_again() -> None:
    made = merging(A, B)
    made.ended(B)
    put(made, A, [(0, 10)])
    assert times_of(made.take()) == [10]
    put(made, B, [(0, 5)])
    put(made, A, [(1, 20)])
    assert times_of(made.take()) == [5]


ROWS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=12)


@given(ROWS, ROWS, st.data())
def test_whatever_is_read_first_all_events_come_once_and_in_order(
    first: list[list[int]], second: list[list[int]], data: st.DataObject
) -> None:
    """Rows of gaps between times: each list is read at once."""
    made, given_, ends = merging(A, B), {A: first, B: second}, {A: 0, B: 0}
    times = {A: 0, B: 0}
    came: list[Merged] = []
    fed: list[int] = []
    queues = {A: [*first], B: [*second]}
    while any(queues.values()):
        partition = data.draw(st.sampled_from([each for each, queue in queues.items() if queue]))
        rows = []
        for gap in queues[partition].pop(0):
            times[partition] += gap
            rows.append((ends[partition], times[partition]))
            fed.append(times[partition])
            ends[partition] += 1
        put(made, partition, rows)
        came.append(made.take())
        for each in given_:
            of_each = [offset for merged in came for at, offset in merged.origins.each() if at == each]
            assert of_each == [*range(made.position(each))], "the position is after what was handed on, and no further"
    for partition in (A, B):
        made.ended(partition)
    came.append(made.take())
    assert [time for merged in came for time in times_of(merged)] == sorted(fed)


def test_events_of_one_partition_stay_in_their_order_and_those_of_a_record_together() -> None:
    made = merging(A, B)
    put(made, A, [(0, 100), (1, 40), (2, 90), (2, 300), (3, 310)])
    put(made, B, [(0, 105), (1, 250)])
    merged = made.take()
    assert [offset for _, offset in merged.origins.each()] == [0, 1, 0, 1]
    assert times_of(merged) == [100, 40, 105, 250]
    assert made.position(A) == 2


def test_a_clock_that_is_ahead_holds_up_no_more_than_what_was_read_with_it() -> None:
    made = merging(A, B)
    put(made, A, [(0, 10), (1, 999_999), (2, 12)])
    put(made, A, [(3, 20), (4, 21)])
    put(made, B, [(0, 20)])
    assert [offset for at, offset in made.take().origins.each() if at == A] == [0, 1, 2, 3]


def test_nobody_waits_for_long_for_a_partition_that_says_nothing() -> None:
    clock = Clock(0.0)
    made = merging(A, B, clock=clock)
    put(made, A, [(0, 10)])
    clock.sleep(10 * PATIENCE_S)
    assert times_of(made.take()) == [], "while the machine stands still nobody can say anything"
    for _ in range(int(PATIENCE_S) - 1):  # a second is gone already
        assert made.holds
        clock.sleep(1)
        came = times_of(made.take())
    assert came == [10]
    put(made, B, [(0, 5)])
    put(made, A, [(1, 11)])
    assert times_of(made.take()) == [5], "it is waited for again once it delivers"


def test_no_more_is_held_than_there_is_room_for() -> None:
    made = merging(A, B, most_held=10)
    put(made, A, [(at, at) for at in range(11)])
    assert times_of(made.take()) == [0, 1, 2, 3, 4, 5]
    assert times_of(made.take()) == []


def test_a_dead_letter_goes_with_the_position() -> None:
    made = merging(A, B)
    put(made, A, [(1, 10), (3, 20)], letters=[0, 2, 4])
    put(made, B, [(0, 10)])
    merged = made.take()
    assert [letter.value for letter in merged.letters] == [b"0", b"2"]
    assert made.position(A) == 3
    made.ended(B)
    assert [letter.value for letter in made.take().letters] == [b"4"]
    assert made.position(A) == 5


@pytest.mark.parametrize("partition", [A, B])
def test_what_is_held_of_a_partition_that_goes_is_forgotten(partition: Partition) -> None:
    made = merging(A, B)
    put(made, A, [(0, 10)])
    made.drop(partition)
    assert times_of(made.take()) == ([] if partition == A else [10])

"""Messages of the client as columns: each partition's records as they came."""

from __future__ import annotations

import numpy as np
from confluent_kafka import Message

from worker.kafka.messages import by_partition

NO_TIMESTAMP = 0, -1


def message(partition: int, offset: int, topic: str = "raw", time_ms: int = 1_000) -> Message:
    value = b"%d" % offset
    return Message(topic, partition, offset, b"k" + value, value, [("h", value)], timestamp=(1, time_ms + offset))


def test_runs_of_partitions_and_topics_become_one_batch_each_in_their_order() -> None:
    asked = [(0, 5), (0, 6), (1, 8), (0, 7)]
    messages = [message(*each) for each in asked] + [message(0, 3, "other")]
    found = by_partition(messages, with_headers=False)
    assert [(each.topic, each.partition, [*each.offsets]) for each in found] == [
        ("raw", 0, [5, 6, 7]),
        ("raw", 1, [8]),
        ("other", 0, [3]),
    ]
    assert found[0].values == [b"5", b"6", b"7"]
    assert found[0].keys == [b"k5", b"k6", b"k7"]
    assert found[0].headers is None
    assert found[0].headers_at(2) == [("h", b"7")]
    assert by_partition(messages, with_headers=True)[0].headers == [[("h", b"%d" % offset)] for offset in (5, 6, 7)]


def test_offsets_that_are_missing_are_missing() -> None:
    (found,) = by_partition([message(0, offset) for offset in (3, 4, 9, 11)], with_headers=False)
    assert [*found.offsets] == [3, 4, 9, 11]


def test_timestamps_are_those_of_the_messages_however_they_are_asked_for() -> None:
    (found,) = by_partition([message(0, offset) for offset in (3, 4, 9)], with_headers=False)
    assert found.timestamps is not None
    assert np.asarray(found.timestamps, np.int64).tolist() == [1_003, 1_004, 1_009]
    assert [*found.timestamps] == [*found.timestamps[0:]] == [1_003, 1_004, 1_009]
    assert found.timestamps_at([9, 4, 5]) == [1_009, 1_004, None]
    assert (found.first_ms, found.last_ms) == (1_003, 1_009)


def test_a_message_without_a_timestamp_has_none() -> None:
    without = Message("raw", 0, 4, b"", b"", timestamp=NO_TIMESTAMP)
    (found,) = by_partition([without, message(0, 5)], with_headers=False)
    assert found.timestamps_at([4, 5]) == [None, 1_005]
    assert (found.first_ms, found.last_ms) == (None, 1_005)

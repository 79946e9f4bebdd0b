"""Which topics a worker reads, on librdkafka's broker in the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from worker.kafka.topics import Topics
from worker.settings.document import load_settings

NAMES = ["raw-1", "raw-22", "not-raw-1", "a" * 200]


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    """A broker that has these topics."""
    owner = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1, "log_level": 0})
    for name in NAMES:
        owner.list_topics(name, timeout=10)  # the broker makes a topic when it is asked for one
    [broker] = owner.list_topics(timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"
    owner.flush(1)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("^raw-", ["raw-1", "raw-22"]),
        ("^raw-[0-9]$", ["raw-1"]),
        ("^[[:alpha:]]+-[[:digit:]]+$", ["raw-1", "raw-22"]),  # POSIX, as the client library takes it
        ("^(a+)+!$", []),  # a backtracking engine would never come to an end
    ],
)
def test_a_pattern_names_the_topics_that_match_it(bootstrap: str, pattern: str, names: list[str]) -> None:
    settings = load_settings(
        None, [f"kafka.bootstrap.servers={bootstrap}", f"input.topics='{pattern}'", "state.topic=state"]
    )
    assert [
        topic.name for topic in Topics({"bootstrap.servers": bootstrap, "log_level": 0}, settings).inputs()
    ] == names

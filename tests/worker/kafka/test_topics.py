"""Which topics a worker reads, on librdkafka's broker in the process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest
from confluent_kafka import Producer

from worker.errors import RunError
from worker.kafka import topics
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


def test_a_broker_that_takes_its_time_is_said_to_give_no_answer_and_not_to_want_another_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topics, "REACH_TIMEOUT_S", 0.5)
    monkeypatch.setattr(topics, "_REFUSED_AFTER_S", 0.2)
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if (
                connection.recv(1) == b"\x16"
            ):  # what begins a TLS handshake, to which a plain listener has nothing to say
                connection.close()
            else:
                held.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, daemon=True).start()
        bootstrap = f"127.0.0.1:{listener.getsockname()[1]}"
        settings = load_settings(None, [f"kafka.bootstrap.servers={bootstrap}"])
        with pytest.raises(RunError, match=f"no Kafka broker answers at {bootstrap}"):
            Topics({"bootstrap.servers": bootstrap, "log_level": 0}, settings)
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()

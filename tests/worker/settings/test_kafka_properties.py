"""Properties of the client library: which are taken, and which are refused with what reason."""

from pathlib import Path

import pytest

from tests.worker.settings.written import load, only_error


@pytest.mark.parametrize(
    "name",
    [
        "group.id",
        "transactional.id",
        "isolation.level",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "auto.offset.reset",
        "enable.partition.eof",
        "partition.assignment.strategy",
        "group.protocol",
        "enable.idempotence",
        "acks",
    ],
)
def test_a_property_that_the_guarantees_fix_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    error = only_error(tmp_path, f"kafka: {{bootstrap.servers: a, {name}: x}}")
    assert error.startswith(f"kafka.{name}: cannot be set: ")
    assert len(error) > len(f"kafka.{name}: cannot be set: ") + 10


def test_other_properties_are_passed_through(tmp_path: Path) -> None:
    kafka = load(
        tmp_path,
        "kafka: {bootstrap.servers: a, linger.ms: 5, check.crcs: true, client.rack: r1, "
        "message.max.bytes: 2000000, max.poll.interval.ms: 240000}",
    )
    assert dict(kafka.kafka) == {
        "bootstrap.servers": "a",
        "linger.ms": 5,
        "check.crcs": True,
        "client.rack": "r1",
        "message.max.bytes": 2_000_000,
        "max.poll.interval.ms": 240_000,
    }
    assert (kafka.message_max_bytes, kafka.max_poll_interval_ms, kafka.transaction_timeout_ms) == (
        2_000_000,
        240_000,
        60_000,
    )


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        (
            "security.protocol: tls",
            "kafka.security.protocol: 'tls' is not a value that the client library takes",
        ),
        ("batch.size: big", "kafka.batch.size: 'big' is not a value that the client library takes"),
        ("check.crcs: perhaps", "kafka.check.crcs: 'perhaps' is not a value that the client library takes"),
        ("message.max.bytes: 5", "kafka.message.max.bytes: 5 is out of range; allowed: 1000 to 1000000000"),
        ("error_cb: print", "kafka.error_cb: takes a function and cannot be set in a file"),
        ("sasl.jaas.config: a", "kafka.sasl.jaas.config: cannot be set: only Java clients read it"),
        ("linger.ms: [5]", "kafka.linger.ms: [5] is not a text, a number, true or false"),
        ("bootstrap.servers: 'a b'", "kafka.bootstrap.servers: 'a b' is no list of brokers; allowed: host:port"),
        ("bootstrap.servers: 'a:port'", "kafka.bootstrap.servers: 'a:port' is no list of brokers"),
        ("bootstrap.servers: ''", "kafka.bootstrap.servers: '' is no list of brokers"),
        ("bootstrap.servers: 9092", "kafka.bootstrap.servers: 9092 is no list of brokers"),
        ("sasl: {username: me}", "kafka.sasl: is a mapping; allowed: whole names such as sasl.username"),
        ("client.idd: a", "kafka.client.idd: is not a librdkafka property; did you mean client.id?"),
    ],
)
def test_a_property_that_the_client_does_not_take_is_refused(tmp_path: Path, setting: str, error: str) -> None:
    servers = "" if setting.startswith("bootstrap") else "bootstrap.servers: a, "
    assert only_error(tmp_path, f"kafka: {{{servers}{setting}}}").startswith(error)

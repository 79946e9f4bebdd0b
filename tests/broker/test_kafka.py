"""The broker that the other tests stand on: it comes back from a kill with what was acknowledged."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka import Producer

from tests.broker.harness import create_topic, read_all
from tests.broker.kafka import KafkaBroker


def test_records_survive_a_kill_and_a_clean_stop_of_the_broker(broker: KafkaBroker, tmp_path: Path) -> None:
    own = KafkaBroker(tmp_path / "kafka")
    assert own.bootstrap != broker.bootstrap
    try:
        own.start()
        create_topic(own.bootstrap, "kept", 1)
        values = []
        for end in (own.kill, own.stop):
            producer = Producer({"bootstrap.servers": own.bootstrap, "acks": "all"})
            producer.produce("kept", f"{len(values)}")
            assert producer.flush(30) == 0
            values.append(f"{len(values)}".encode())
            end()
            own.start()
            assert [message.value() for message in read_all(own.bootstrap, "kept")] == values
    finally:
        own.kill()

"""`logmamba run` on a CPU and on a GPU: one worker, many partitions, the shipped checkpoint."""

from __future__ import annotations

import itertools
from pathlib import Path

import orjson
import pytest
import torch
import yaml
from confluent_kafka import Producer

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import WorkerProcess, read_all
from worker.generator.log import GeneratedLog
from worker.kafka.mock_broker import MockBroker

TOPICS = [f"raw-{number}" for number in range(3)]
BLOCKS = 150
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def broker() -> MockBroker:
    """With the lines of some blocks, each block's in one partition."""
    broker = MockBroker()
    broker.make(*TOPICS)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "linger.ms": 5})
    for text, block, at in GeneratedLog(blocks=BLOCKS, seed=5, anomaly_rate=0.2, unseen_pool=1):
        producer.produce(TOPICS[sum(block.encode()) % len(TOPICS)], text, block, timestamp=at)
    assert producer.flush(30) == 0
    return broker


def records(
    broker: MockBroker, folder: Path, *, device: str, batch_records: int = 10_000, **model: int
) -> dict[tuple[str, ...], bytes]:
    """What a worker with these settings writes until every session is scored: session, kind, severity to the record."""
    name = f"devices{next(_numbers)}"
    settings = {
        "application_id": name,
        "kafka": {"bootstrap.servers": broker.bootstrap},
        "input": {"topics": TOPICS},
        "sessions": {"idle_flush": "500ms"},
        "model": {"checkpoint": str(demo_checkpoint()), "device": device, **model},
        "output": {"topic": f"{name}-scores", "dead_letter_topic": f"{name}-dead"},
        "state": {"topic": f"{name}-state"},
        "worker": {"delivery": "at_least_once", "batch_records": batch_records},
        "observability": {"port": None},
    }
    broker.make(f"{name}-scores", f"{name}-dead", f"{name}-state")
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    written: dict[tuple[str, ...], bytes] = {}

    def every_session_is_scored() -> bool:
        for message in read_all(broker.bootstrap, f"{name}-scores"):
            value = message.value() or b""
            record = orjson.loads(value)
            written[record["session"], record["kind"], record["severity"]] = value
        return sum(kind == "final" for _, kind, _ in written) == BLOCKS

    with WorkerProcess(config, folder / f"{name}.log") as worker:
        worker.wait_until(every_session_is_scored)
        assert worker.stop() == 0, worker.tail()
    return written


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_no_byte_of_a_record_depends_on_what_was_read_or_scored_together(
    broker: MockBroker, tmp_path: Path, device: str
) -> None:
    together = records(broker, tmp_path, device=device)
    apart = records(broker, tmp_path, device=device, batch_records=300, batch_tokens=1026, score_cache=0)
    assert any(kind == "early" for _, kind, _ in together)
    assert together == apart


@needs_cuda
def test_a_gpu_gives_the_scores_of_a_cpu(broker: MockBroker, tmp_path: Path) -> None:
    on_cpu, on_gpu = (records(broker, tmp_path, device=device) for device in ("cpu", "cuda"))
    finals = {session: orjson.loads(value) for (session, kind, _), value in on_cpu.items() if kind == "final"}
    for (session, kind, _), value in on_gpu.items():
        if kind == "final":
            record, expected = orjson.loads(value), finals.pop(session)
            assert record["score"] == pytest.approx(expected["score"], abs=1e-3)
            assert record["surprise"] == pytest.approx(expected["surprise"], abs=1e-3)
            assert record["source"] == expected["source"]
    assert not finals

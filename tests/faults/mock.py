"""librdkafka's mock broker with errors to order, and a worker on it, in the test's own process.

The mock broker answers every transactional request, but transactions mean nothing to it: what they write is visible at
once and offsets sent in them are not stored. It shows what the worker does after an error, not that the outputs
are exact.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.worker.small_worker import DEAD, INPUT, SCORES, STATE, OddScorer
from worker.delivery.loop import Worker
from worker.kafka.clients import ClientProperties
from worker.kafka.connect import connect
from worker.kafka.topics import Topics
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.records import Records
from worker.settings.document import Settings, load_settings

# Kafka's numbers of the requests that a worker writes with.
PRODUCE, OFFSET_COMMIT, INIT_PRODUCER_ID, ADD_PARTITIONS, ADD_OFFSETS, END_TRANSACTION, COMMIT_OFFSETS = (
    *(0, 8, 22, 24, 25, 26, 28),
)
_PATIENCE_S = 150.0
_workers: list[Worker] = []  # that were made for the cluster that there is


class MockCluster:
    """One mock broker with the topics of the small worker.

    Args:
        partitions: of the input topic.
    """

    def __init__(self, partitions: int = 1) -> None:
        self._library = library = ctypes.CDLL(_loaded_library())
        for name in ("conf_new", "new", "mock_cluster_new", "mock_cluster_bootstraps"):
            getattr(library, f"rd_kafka_{name}").restype = ctypes.c_void_p
        handle = library.rd_kafka_new(0, ctypes.c_void_p(library.rd_kafka_conf_new()), None, 0)
        self._handle = ctypes.c_void_p(handle)
        self._cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(self._handle, 1))
        self.bootstrap = ctypes.string_at(library.rd_kafka_mock_cluster_bootstraps(self._cluster)).decode()
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, ctypes.c_int32(0))
        for topic, count in {INPUT: partitions, SCORES: 1, DEAD: 1, STATE: 1}.items():
            library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), count, 1)

    def fail(self, request: int, *errors: int) -> None:
        """Answer the next requests of this kind with these errors (Kafka's numbers)."""
        array = (ctypes.c_int * len(errors))(*errors)
        push = self._library.rd_kafka_mock_push_request_errors_array
        push(self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(errors)), array)

    def recover(self, request: int) -> None:
        """Answer requests of this kind as they should be, from now on."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(request))

    def produce(self, lines: list[bytes], partition: int = 0) -> None:
        """Write lines to the input topic."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 0})
        for line in lines:
            producer.produce(INPUT, line, partition=partition)
        assert producer.flush(_PATIENCE_S) == 0

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)


@contextmanager
def mock_cluster(partitions: int = 1) -> Iterator[MockCluster]:
    cluster = MockCluster(partitions)
    try:
        yield cluster
    finally:
        # Python finds no garbage across the client's callbacks: the worker's clients would look for the cluster for
        # as long as the tests go on.
        for worker in _workers:
            vars(worker).clear()
        _workers.clear()
        cluster.close()


def mock_settings(cluster: MockCluster, *overrides: str, **kafka: object) -> Settings:
    """Settings of the small worker. What the mock broker does not store is begun anew after an abort."""
    properties = {"bootstrap.servers": cluster.bootstrap, **{name.replace("_", "."): v for name, v in kafka.items()}}
    return load_settings(
        None,
        [
            f"kafka={properties}",
            r"sessions.key={regex: '^\w+'}",
            "sessions.max_events=2",
            "scoring.early=false",
            "input.on_lost_offsets=earliest",
            "worker.commit_interval=0ms",
            *overrides,
        ],
    )


def in_process(settings: Settings) -> Worker:
    """A worker on real Kafka clients, with the small worker's scorer."""
    topics = Topics(ClientProperties(settings).admin(), settings)
    metrics = Metrics()
    worker = connect(settings, topics, Pipeline(settings, OddScorer(), metrics), metrics)
    _workers.append(worker)
    return worker


def run_script(worker: Worker, script: Callable[[], Iterator[Callable[[], bool]]]) -> None:
    """Run the worker along a script, a generator: what it yields must come true before it goes on; at its end the
    worker is asked to stop. Everything happens in the worker's thread, between two turns of its loop."""
    steps = script()
    waiting_for: list[Callable[[], bool]] = [lambda: True]
    deadline = [time.monotonic() + _PATIENCE_S]
    over: list[bool] = []
    poll = worker._source.poll

    def poll_after_a_step(max_records: int, timeout_s: float) -> list[Records]:
        while waiting_for[0]():
            try:
                waiting_for[0] = next(steps)
            except StopIteration:
                over.append(True)
                return []
            deadline[0] = time.monotonic() + _PATIENCE_S
        assert time.monotonic() < deadline[0], "the script waited in vain"
        return poll(max_records, timeout_s)

    worker._source.poll = poll_after_a_step  # type: ignore[method-assign]
    worker.run(lambda: bool(over))


def totals(worker: Worker) -> dict[str, Any]:
    """The worker's counts as of now."""
    return worker._report.totals


def _loaded_library() -> str:
    """The file that the Kafka client of this process was loaded from."""
    found = re.search(r"\S*/librdkafka[^/\s]*\.so\S*", Path("/proc/self/maps").read_text())
    assert found is not None
    return found.group()

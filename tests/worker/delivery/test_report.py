"""What the loop tells of itself: delays, lag, rebalances, aborts and stages, as an operator reads them."""

from __future__ import annotations

import time
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from tests.worker.small_worker import INPUT, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker, MemorySource
from worker.delivery.outage import Outage
from worker.delivery.protocols import NoReloads
from worker.delivery.report import Age, Report
from worker.errors import AbortCause, TransactionAborted
from worker.observability.metrics import Metrics
from worker.observability.status import WorkerStatus
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition

P0 = Partition(INPUT, 0)
DAY_MS = 86_400_000


def filled(count: int = 9) -> MemoryBroker:
    """Sessions of two events; every second record closes one and so causes a score."""
    broker = memory_broker()
    for number in range(count):
        broker.append(P0, b"k%d open" % (number // 2), timestamp=DAY_MS + number)
    return broker


def worker(broker: MemoryBroker, *overrides: str) -> SmallWorker:
    rules = ("sessions.max_events=2", "sessions.idle_flush=null", "scoring.early=false", "worker.batch_records=3")
    return SmallWorker(broker, small_settings(*rules, *overrides))


def sample(small: SmallWorker, name: str, **labels: str) -> float | None:
    return small.worker._metrics.registry.get_sample_value(name, labels)


def test_each_published_score_has_its_delay_and_an_aborted_one_counts_when_it_is_published() -> None:
    broker = filled()
    small = worker(broker, "worker.commit_interval=30s")

    def abort() -> None:
        raise TransactionAborted("the coordinator said so")

    small.run([None, None, abort, *[None] * 6])
    assert len(outputs(broker)) == 4
    assert sample(small, "logmamba_end_to_end_seconds_count") == 4
    assert sample(small, "logmamba_commit_failures_total", cause="broker") == 1


def test_the_age_of_each_batch_is_told_on_its_way_and_an_aborted_one_is_committed_when_it_is_published() -> None:
    def counts(small: SmallWorker) -> list[float | None]:
        return [sample(small, "logmamba_batch_age_seconds_count", when=when) for when in get_args(Age)]

    small = worker(filled(), "worker.commit_interval=30s")

    def abort() -> None:
        assert counts(small) == [2, 2, 0]
        raise TransactionAborted("the coordinator said so")

    begun = time.time()
    small.run([None, None, abort, *[None] * 6])
    assert counts(small) == [2 + 3, 2 + 3, 1]
    age_s = sample(small, "logmamba_batch_age_seconds_sum", when="committed")
    assert age_s is not None
    assert begun <= DAY_MS / 1000 + age_s <= time.time()


def test_a_batch_without_times_has_no_age() -> None:
    broker = memory_broker()
    broker.append(P0, b"a open", timestamp=0)
    small = worker(broker)
    small.run([None, None])
    assert sample(small, "logmamba_records_total") == 1
    assert sample(small, "logmamba_batch_age_seconds_count", when="polled") == 0


def test_an_alert_is_told_of_once_it_is_published() -> None:
    broker = memory_broker()
    for number, text in enumerate((b"a odd", b"a odd", b"b open", b"b read")):
        broker.append(P0, text, timestamp=DAY_MS + number)
    small = worker(broker, "worker.commit_interval=30s")
    seen: list[int] = []

    def look() -> None:
        seen.append(len(small.worker.alerts.latest()))

    small.run([None, None, look])
    assert seen == [0]
    assert [alert.record for alert in small.worker.alerts.latest()] == [outputs(broker)[0]]


def test_a_score_that_no_record_caused_has_no_delay() -> None:
    broker = filled()
    small = worker(broker, "sessions.idle_flush=1ms")
    small.run([None] * 12)
    assert [record["closed_by"] for record in outputs(broker)] == ["max_events"] * 4 + ["idle"]
    assert small.worker._metrics.score_histogram.sum() == 5
    assert sample(small, "logmamba_end_to_end_seconds_count") == 4


def test_partitions_that_are_taken_amid_a_batch_are_a_cause_of_their_own() -> None:
    broker = filled()
    small = worker(broker)

    def revoke_amid() -> None:
        keep_alive = small.sink.while_waiting

        def wait() -> None:
            small.sink.while_waiting = keep_alive
            small.source.revoke_next = [P0]
            keep_alive()

        small.sink.while_waiting = wait
        small.sink.stalls = 1

    small.run([None, revoke_amid, None, None])
    assert sample(small, "logmamba_rebalances_total", event="assigned") == 1
    assert sample(small, "logmamba_rebalances_total", event="revoked") == 1
    assert sample(small, "logmamba_commit_failures_total", cause="rebalance") == 1


def series(registry: CollectorRegistry) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (each.name, tuple(sorted(each.labels.items())))
        for family in registry.collect()
        for each in family.samples
        if each.name.startswith("logmamba_")
    }


def test_every_series_is_there_before_the_first_record() -> None:
    broker = memory_broker()
    small = worker(broker)
    seen = []

    def look() -> None:
        seen.append(series(small.worker._metrics.registry))

    def come() -> None:
        look()
        for number in range(50):
            broker.append(P0, [b"k%d open", b"k%d odd", b"%d", b"k%d other"][number % 4] % (number % 8), timestamp=1)

    def abort() -> None:
        raise TransactionAborted("told to", "stop")

    small.run([None, come, None, abort, *[None] * 20, look])
    before, after = seen
    assert sample(small, "logmamba_records_total")
    assert sample(small, "logmamba_dead_letters_total", reason="no_key") is not None
    assert after == before
    causes = {dict(labels)["cause"] for name, labels in before if name == "logmamba_commit_failures_total"}
    assert causes == set(get_args(AbortCause))
    stages = {dict(labels)["stage"] for name, labels in before if name == "logmamba_stage_seconds_count"}
    assert stages == {"poll", "decode", "sessions", "score", "drift", "encode", "send", "commit"}


def test_every_stage_of_the_loop_is_measured() -> None:
    small = worker(filled())
    small.run([None] * 8)
    for stage in ("poll", "decode", "sessions", "score", "drift", "encode", "send", "commit"):
        assert sample(small, "logmamba_stage_seconds_count", stage=stage), stage


class Lagging:
    """A partition whose lag a test decides, and what is reported of it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.end: int | None = 0
        self.outage = Outage(lambda: self.now)
        self.pipeline = Pipeline(small_settings(), OddScorer(), Metrics())
        self.pipeline.open(P0)
        source = MemorySource(memory_broker())
        source.end_offset = lambda _partition: self.end  # type: ignore[method-assign]
        self.report = Report(
            WorkerStatus("app", "w0", "", {}, "", ""),
            partitions=[P0],
            source=source,
            pipeline=self.pipeline,
            reloads=NoReloads(),
            outage=self.outage,
            metrics=Metrics(),
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
        )

    def processed(self, came: float) -> None:
        """One more record is, which came at that time."""
        broker = memory_broker()
        position = self.pipeline.position(P0)
        for _ in range(position + 1):
            broker.append(P0, b"a open", timestamp=int(came * 1000))
        (records,) = broker.read(P0, position, position + 1)
        self.pipeline.process([records])

    def lag(self) -> tuple[int | None, float | None]:
        self.report.publish()
        (partition,) = self.report.status.partitions
        return partition.lag, partition.lag_seconds


@pytest.fixture
def lagging() -> Lagging:
    return Lagging()


def test_a_lag_in_seconds_is_how_long_ago_the_newest_processed_record_came(lagging: Lagging) -> None:
    lagging.end = 9
    assert lagging.lag() == (9, None)  # nothing is known of when the records came
    lagging.processed(came=lagging.now - 40)
    assert lagging.lag() == (8, 40.0)
    lagging.now += 5
    assert lagging.lag() == (8, 45.0)


def test_a_pause_without_records_is_no_lag(lagging: Lagging) -> None:
    lagging.end = 1
    lagging.processed(came=lagging.now)
    assert lagging.lag() == (0, 0.0)
    lagging.now += 3_600
    assert lagging.lag() == (0, 0.0)
    lagging.now += 2
    lagging.end = 2
    assert lagging.lag() == (1, 2.0)


def test_a_record_from_the_future_is_no_lag_below_nothing(lagging: Lagging) -> None:
    lagging.end = 9
    lagging.processed(came=lagging.now + 60)
    assert lagging.lag() == (8, 0.0)


def test_no_lag_is_told_while_no_broker_answers(lagging: Lagging) -> None:
    lagging.end = 0
    lagging.outage.noticed("gone")
    assert lagging.lag() == (None, None)
    lagging.outage.over()
    assert lagging.lag() == (0, 0.0)

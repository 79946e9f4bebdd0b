"""What a worker counts."""

import math
from dataclasses import replace
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from worker.observability.metrics import Metrics
from worker.observability.status import PartitionStatus, WorkerStatus
from worker.processing.records import Partition

PARTITION = Partition("raw", 3)
PLACE = {"topic": "raw", "partition": "3"}
STATUS = WorkerStatus(
    application_id="shop",
    instance="blue",
    started_at="2024-03-01T12:00:00Z",
    versions={"logmamba": "0.1.0", "confluent-kafka": "2.11", "torch": "2.11"},
    checkpoint="sha256:c0",
    vocabulary="sha256:b0",
)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_decoded_records_are_counted_with_all_that_was_not_usual() -> None:
    metrics = Metrics()
    for unknown in (7, 0):
        metrics.decoded(records=3, events=1, unknown=unknown, cut=1, ignored=1, skipped=2, dead_letters={"not_utf8": 1})
    assert sample(metrics, "logmamba_records_total") == 6
    assert sample(metrics, "logmamba_events_total") == 2
    assert sample(metrics, "logmamba_dead_letters_total", reason="not_utf8") == 2
    assert sample(metrics, "logmamba_records_skipped_total") == 4
    assert sample(metrics, "logmamba_lines_cut_total") == 2
    assert sample(metrics, "logmamba_events_ignored_total") == 2
    assert sample(metrics, "logmamba_unknown_lines_total") == 7


def test_sessions_and_their_closings_are_counted() -> None:
    metrics = Metrics()
    metrics.sessions(*PARTITION, open_sessions=1, waiting=2, closed={"gap": 2}, late=1, skewed=0, jumps=1, falls=0)
    metrics.sessions(*PARTITION, open_sessions=3, waiting=0, closed={}, late=1, skewed=4, jumps=1, falls=1)
    assert sample(metrics, "logmamba_open_sessions", **PLACE) == 3
    assert sample(metrics, "logmamba_sessions_closed_total", closed_by="gap") == 2
    assert sample(metrics, "logmamba_late_events_total") == 2
    assert sample(metrics, "logmamba_skewed_events_total") == 4
    assert sample(metrics, "logmamba_waiting_events", **PLACE) == 0
    assert sample(metrics, "logmamba_stream_time_jumps_total") == 2
    assert sample(metrics, "logmamba_stream_time_falls_total") == 1
    metrics.forget(*PARTITION)
    assert sample(metrics, "logmamba_open_sessions", **PLACE) is None
    assert sample(metrics, "logmamba_waiting_events", **PLACE) is None
    metrics.forget(*PARTITION)


def test_scores_transactions_snapshots_and_stages_are_measured() -> None:
    metrics = Metrics()
    metrics.scored({("final", "critical"): 1})
    metrics.committed(0.02)
    metrics.aborted("broker")
    metrics.snapshot(5_000, 0.1)
    metrics.replayed(4)
    with metrics.stage("score"):
        pass
    assert sample(metrics, "logmamba_scores_total", kind="final", severity="critical") == 1
    assert sample(metrics, "logmamba_transactions_total", result="committed") == 1
    assert sample(metrics, "logmamba_transactions_total", result="aborted") == 1
    assert sample(metrics, "logmamba_commit_seconds_sum") == 0.02
    assert sample(metrics, "logmamba_snapshot_bytes_sum") == 5_000
    assert sample(metrics, "logmamba_snapshot_seconds_count") == 1
    assert sample(metrics, "logmamba_stage_seconds_count", stage="score") == 1
    assert sample(metrics, "logmamba_replayed_records_total") == 4


def test_what_is_expected_is_there_before_it_happens() -> None:
    metrics = Metrics()
    metrics.expect(stages=["score"], closed_by=["gap"], kinds=["early"], severities=["normal", "warning"])
    assert sample(metrics, "logmamba_stage_seconds_count", stage="score") == 0
    assert sample(metrics, "logmamba_sessions_closed_total", closed_by="gap") == 0
    assert sample(metrics, "logmamba_scores_total", kind="early", severity="warning") == 0


def test_the_score_cache_is_read_when_the_metrics_are() -> None:
    metrics = Metrics()
    hits = 0
    metrics.watch_score_cache(lambda: hits, lambda: 5)
    hits = 9
    assert sample(metrics, "logmamba_score_cache_total", result="hit") == 9
    assert sample(metrics, "logmamba_score_cache_total", result="miss") == 5


def test_split_batches_are_counted_as_the_scorer_does_when_the_metrics_are_read() -> None:
    metrics = Metrics()
    split = 0
    metrics.watch_batches_split(lambda: split)
    split = 3
    assert sample(metrics, "logmamba_batches_split_total") == 3


def test_the_state_is_shown_and_what_is_not_known_is_no_number() -> None:
    metrics = Metrics()
    metrics.show(STATUS)
    assert sample(metrics, "logmamba_ready") == 0
    assert sample(metrics, "logmamba_broker_connected") == 1
    lagging = PartitionStatus(*PARTITION, "live", 10, 42, 17, 1.5)
    metrics.show(replace(STATUS, joined=True, partitions=(lagging,)))
    assert sample(metrics, "logmamba_ready") == 1
    assert sample(metrics, "logmamba_partitions", state="live") == 1
    assert sample(metrics, "logmamba_partitions", state="replaying") == 0
    assert sample(metrics, "logmamba_consumer_lag", **PLACE) == 42
    assert sample(metrics, "logmamba_consumer_lag_seconds", **PLACE) == 1.5
    unknown = replace(lagging, lag=None, lag_seconds=None)
    metrics.show(replace(STATUS, joined=True, broker_away=True, partitions=(unknown,)))
    assert (sample(metrics, "logmamba_ready"), sample(metrics, "logmamba_broker_connected")) == (0, 0)
    for name in ("logmamba_consumer_lag", "logmamba_consumer_lag_seconds"):
        assert math.isnan(sample(metrics, name, **PLACE) or 0)


def test_who_the_worker_is_and_what_it_scores_with_are_told_once() -> None:
    metrics = Metrics()
    metrics.show(STATUS)
    metrics.show(replace(STATUS, checkpoint="sha256:c1", vocabulary="sha256:b1"))
    build = {"version": "0.1.0", "confluent_kafka": "2.11", "torch": "2.11"}
    assert sample(metrics, "logmamba_build_info", **build) == 1
    assert sample(metrics, "logmamba_worker_info", application="shop", worker="blue") == 1
    assert sample(metrics, "logmamba_model_info", checkpoint="sha256:c0", vocabulary="sha256:b0") is None
    assert sample(metrics, "logmamba_model_info", checkpoint="sha256:c1", vocabulary="sha256:b1") == 1


def test_a_hung_loop_shows_in_the_age_of_its_heartbeat() -> None:
    now = 100.0
    metrics = Metrics(clock=lambda: now)
    metrics.heartbeat()
    now = 160.0
    assert sample(metrics, "logmamba_heartbeat_age_seconds") == 60


def test_a_commit_tells_how_long_ago_the_records_came_that_caused_its_scores() -> None:
    metrics = Metrics(wall_clock=lambda: 1_000.0)
    metrics.committed(0.01, [1_000_000 - 70, 1_000_000 - 100, 1_000_000 - 3_000, 1_000_000 + 5_000])
    metrics.committed(0.01)
    metrics.committed(0.01, [0])
    name = "logmamba_end_to_end_seconds"
    buckets = {bound: sample(metrics, f"{name}_bucket", le=bound) for bound in ("0.06", "0.1", "2.0", "5.0", "+Inf")}
    assert buckets == {"0.06": 1, "0.1": 3, "2.0": 3, "5.0": 4, "+Inf": 5}
    assert sample(metrics, f"{name}_count") == 5
    total = sample(metrics, f"{name}_sum")
    assert total is not None
    assert math.isclose(total, 0.07 + 0.1 + 3 + 1_000)


def test_a_batch_tells_how_old_its_oldest_record_is_and_clocks_that_disagree_count_as_no_age() -> None:
    metrics = Metrics(wall_clock=lambda: 1_000.0)
    metrics.expect(ages=("polled", "committed"))
    assert sample(metrics, "logmamba_batch_age_seconds_count", when="committed") == 0
    for oldest_ms in (1_000_000 - 25, 1_000_000 + 5_000):
        metrics.batch_age("polled", oldest_ms)
    assert sample(metrics, "logmamba_batch_age_seconds_count", when="polled") == 2
    total = sample(metrics, "logmamba_batch_age_seconds_sum", when="polled")
    assert total is not None
    assert math.isclose(total, 0.025)


def test_aborts_rebalances_brokers_and_new_kinds_of_line_are_counted() -> None:
    metrics = Metrics()
    for cause in ("no_answer", "no_answer", "rebalance"):
        metrics.aborted(cause)
    metrics.rebalanced("lost")
    metrics.brokers(up=2, down=1)
    metrics.new_templates(3)
    assert sample(metrics, "logmamba_transactions_total", result="aborted") == 3
    assert sample(metrics, "logmamba_commit_failures_total", cause="no_answer") == 2
    assert sample(metrics, "logmamba_commit_failures_total", cause="rebalance") == 1
    assert sample(metrics, "logmamba_rebalances_total", event="lost") == 1
    assert sample(metrics, "logmamba_rebalances_total", event="revoked") == 0
    assert sample(metrics, "logmamba_brokers", state="up") == 2
    assert sample(metrics, "logmamba_brokers", state="down") == 1
    assert sample(metrics, "logmamba_new_templates_total") == 3


class Usage(NamedTuple):
    busy_s: float
    memory_bytes: int = 100
    free_bytes: int = 60
    reserved_bytes: int = 30


def test_without_a_gpu_there_are_none_of_its_series() -> None:
    metrics = Metrics()
    metrics.watch_gpu(lambda: None)
    metrics.show(STATUS)
    assert sample(metrics, "logmamba_gpu_memory_bytes") is None


def test_a_gpu_is_asked_with_the_state_and_not_by_whoever_reads_the_metrics() -> None:
    metrics, asked = Metrics(), []

    def usage() -> Usage:
        asked.append(len(asked))
        return Usage(busy_s=len(asked) / 2)

    metrics.watch_gpu(usage)
    assert sample(metrics, "logmamba_gpu_busy_seconds_total") == 0.5
    metrics.show(STATUS)
    metrics.show(STATUS)
    assert len(asked) == 3
    assert sample(metrics, "logmamba_gpu_busy_seconds_total") == 1.5
    assert sample(metrics, "logmamba_gpu_memory_bytes") == 100
    assert sample(metrics, "logmamba_gpu_memory_free_bytes") == 60
    assert sample(metrics, "logmamba_gpu_memory_reserved_bytes") == 30


def test_two_workers_in_one_process_share_no_metrics() -> None:
    first, second = Metrics(), Metrics(CollectorRegistry())
    first.scored({("final", "normal"): 1})
    assert sample(second, "logmamba_scores_total", kind="final", severity="normal") is None

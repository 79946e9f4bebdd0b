"""What a worker counts."""

from prometheus_client import CollectorRegistry

from worker.observability.metrics import Metrics
from worker.processing.records import Partition

PARTITION = Partition("raw", 3)


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
    labels = {"topic": "raw", "partition": "3"}
    assert sample(metrics, "logmamba_open_sessions", **labels) == 3
    assert sample(metrics, "logmamba_sessions_closed_total", closed_by="gap") == 2
    assert sample(metrics, "logmamba_late_events_total") == 2
    assert sample(metrics, "logmamba_skewed_events_total") == 4
    assert sample(metrics, "logmamba_waiting_events", **labels) == 0
    assert sample(metrics, "logmamba_stream_time_jumps_total") == 2
    assert sample(metrics, "logmamba_stream_time_falls_total") == 1
    metrics.forget(*PARTITION)
    assert sample(metrics, "logmamba_open_sessions", **labels) is None
    assert sample(metrics, "logmamba_waiting_events", **labels) is None
    metrics.forget(*PARTITION)


def test_scores_transactions_snapshots_lag_and_stages_are_measured() -> None:
    metrics = Metrics()
    metrics.scored("final", "critical")
    metrics.committed(0.02)
    metrics.aborted()
    metrics.snapshot(5_000, 0.1)
    metrics.lag(*PARTITION, 12)
    metrics.replayed(4)
    with metrics.stage("score"):
        pass
    assert sample(metrics, "logmamba_scores_total", kind="final", severity="critical") == 1
    assert sample(metrics, "logmamba_transactions_total", result="committed") == 1
    assert sample(metrics, "logmamba_transactions_total", result="aborted") == 1
    assert sample(metrics, "logmamba_commit_seconds_sum") == 0.02
    assert sample(metrics, "logmamba_snapshot_bytes_sum") == 5_000
    assert sample(metrics, "logmamba_snapshot_seconds_count") == 1
    assert sample(metrics, "logmamba_consumer_lag", topic="raw", partition="3") == 12
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


def test_two_workers_in_one_process_share_no_metrics() -> None:
    first, second = Metrics(), Metrics(CollectorRegistry())
    first.scored("final", "normal")
    assert sample(second, "logmamba_scores_total", kind="final", severity="normal") is None

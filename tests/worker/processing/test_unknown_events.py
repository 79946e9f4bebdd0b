"""A worker whose events are mostly unknown says so."""

import numpy as np
from structlog.testing import capture_logs

from tests.worker.small_worker import INPUT, OddScorer
from tests.worker.small_worker import settings as small_settings
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.unknown_events import UnknownEvents


def test_it_is_said_once_every_ten_minutes_while_it_lasts_and_when_it_is_over() -> None:
    times = iter([1.0, 2.0, 599.0, 602.0, 603.0, 604.0])
    events = UnknownEvents(clock=lambda: next(times))
    with capture_logs() as log:
        events.count(999, 999)
        assert (events.share, log) == (None, [])
        for _ in range(4):
            events.count(1_000, 600)
        events.count(500, 200)
        events.count(500, 200)
        events.count(1_000, 0)
    assert [(each["event"], each["share"]) for each in log] == [
        ("events_mostly_unknown", 0.8),
        ("events_mostly_unknown", 0.6),
        ("events_known_again", 0.4),
    ]
    assert events.share == 0.0


def test_lines_of_another_kind_show_in_the_log_the_metric_and_the_share() -> None:
    metrics = Metrics()
    pipeline = Pipeline(small_settings(), OddScorer(), metrics)
    partition = Partition(INPUT, 0)
    pipeline.open(partition)
    values: list[bytes | None] = [b"k%d nobody ever wrote this" % number for number in range(1_500)]
    with capture_logs() as log:
        pipeline.process([Records(*partition, list(range(1_500)), values, None, None, None)])
    assert [each["event"] for each in log] == ["events_mostly_unknown"]
    assert pipeline.unknown_share == 1.0
    assert metrics.registry.get_sample_value("logmamba_unknown_event_share") == 1.0


def test_a_kind_of_unknown_line_is_new_once_whatever_its_numbers() -> None:
    metrics = Metrics()
    pipeline = Pipeline(small_settings(), OddScorer(), metrics)
    partition = Partition(INPUT, 0)
    pipeline.open(partition)

    def new(position: int, *texts: bytes) -> float | None:
        offsets = list(range(position, position + len(texts)))
        pipeline.process([Records(*partition, offsets, list(texts), None, None, None)])
        return metrics.registry.get_sample_value("logmamba_new_templates_total")

    assert new(0, b"k1 open", b"k1 read") == 0
    assert new(2, b"k1 cannot open 17", b"k1 cannot open 18", b"k1 cannot read") == 2
    assert new(5, b"k2 cannot read", b"k2 cannot open 3", b"k2 a thing of its own") == 3


def test_of_kinds_beyond_those_remembered_the_oldest_are_new_again() -> None:
    events = UnknownEvents()
    assert events.new_kinds([np.arange(-100_000, 0)]) == 100_000
    assert events.new_kinds([np.array([-100_001, 7])]) == 1
    assert events.new_kinds([np.array([-1, -100_000])]) == 1

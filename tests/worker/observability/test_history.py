"""The last hour of a worker, as its status page shows it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.worker.observability.test_metrics import STATUS
from worker.observability.history import INTERVAL_S, SPAN_S, History, quantile
from worker.observability.metrics import Metrics
from worker.observability.status import PartitionStatus, WorkerStatus


class Watched:
    """A worker that a test drives, and its history."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.status: WorkerStatus = STATUS
        self.metrics = Metrics(clock=lambda: self.now, wall_clock=lambda: self.now)
        self.history = History(self.metrics, lambda: self.status, lambda: self.now)
        self.history.look()

    def pass_by(self, *, records: int = 0, unknown: int = 0, lag: int | None = 0) -> None:
        """One interval, in which so many records of an event each came."""
        self.now += INTERVAL_S
        counts = {"records": records, "events": records, "unknown": unknown, "cut": 0, "ignored": 0}
        self.metrics.decoded(**counts, dead_letters={})
        partitions = (PartitionStatus("raw", 0, "live", 0, lag, 0, None if lag is None else 2.0 * lag),)
        self.status = replace(STATUS, partitions=partitions)
        self.history.look()


def test_rates_lag_and_unknown_share_are_those_of_each_interval() -> None:
    watched = Watched()
    watched.pass_by(records=50, unknown=5, lag=7)
    watched.pass_by(records=100, lag=None)
    watched.pass_by()
    hour = watched.history.hour()
    assert hour.records == [10, 20, 0]
    assert hour.ago == [10, 5, 0]
    assert hour.span_s == 15
    assert hour.unknown[:2] == [0.1, 0]
    assert math.isnan(hour.unknown[2])
    assert [hour.lag[0], hour.lag[2]] == [7, 0]
    assert math.isnan(hour.lag[1])
    assert hour.lag_seconds[0] == 14
    assert hour.all_unknown == pytest.approx(5 / 150)


def test_alerts_delays_scores_and_failures_are_counted_since_the_first_look() -> None:
    watched = Watched()
    watched.metrics.scored({("final", "critical"): 1, ("early", "warning"): 1, ("final", "normal"): 1})
    watched.metrics.final_scores([0.0, 0.69, 0.7, 0.949, 0.95, 1.0])
    watched.metrics.committed(0.1, [int((watched.now - 1.5) * 1000)] * 99)
    watched.metrics.aborted("rebalance")
    watched.metrics.brokers(up=2, down=1)
    watched.pass_by()
    hour = watched.history.hour()
    assert hour.alerts == [24]
    assert 1 < hour.all_delay < hour.all_slow_delay < 2
    assert [at for at, count in enumerate(hour.scores) for _ in range(int(count))] == [0, 13, 14, 18, 19, 19]
    assert (hour.failures, hour.brokers) == ({"rebalance": 1}, (2, 1))


def test_it_remembers_an_hour_in_a_bounded_number_of_points() -> None:
    watched = Watched()
    for _ in range(int(1.2 * SPAN_S / INTERVAL_S)):
        watched.pass_by(records=5)
    hour = watched.history.hour()
    assert hour.span_s == SPAN_S
    assert len(hour.ago) <= 120
    assert set(hour.records) == {1.0}


def test_before_the_second_look_there_is_no_hour() -> None:
    hour = Watched().history.hour()
    assert (hour.span_s, list(hour.records)) == (0.0, [])


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [([0, 4, 4], 0.5, 1.5), ([4, 4, 4], 0.25, 0.25), ([0, 1, 2], 0.99, 2.0), ([0, 0, 0], 0.5, math.nan)],
)
def test_a_quantile_lies_within_its_bucket(counts: list[int], share: float, value: float) -> None:
    found = quantile([1.0, 2.0, math.inf], np.array(counts, float), share)
    assert found == pytest.approx(value, nan_ok=True)

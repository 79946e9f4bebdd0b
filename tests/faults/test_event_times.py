"""Clocks that are wrong: two days ahead, an hour late; and once a day for a year of office hours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.conftest import Size
from tests.faults.report import FaultReport
from tests.worker.small_worker import INPUT, SmallWorker, memory_broker, outputs, settings
from worker.observability.metrics import Metrics
from worker.processing.clock import ClockState
from worker.processing.records import Partition

P0 = Partition(INPUT, 0)
START_MS = 1_700_000_000_000
STEP_MS = 1_000
HOUR_MS = 3_600_000
ODD_EVERY = 50
RULES = ("sessions.gap=10s", "sessions.max_age=null", "sessions.idle_flush=null", "scoring.early=false")

Stamped = tuple[bytes, int]


@pytest.mark.fault(row=18, core=False)
def test_wrong_clocks_leave_stream_time_and_the_other_sessions_alone_and_are_counted(
    size: Size, fault_report: FaultReport
) -> None:
    usual: list[Stamped] = [(b"s%d read" % (at // 3), START_MS + at * STEP_MS) for at in range(size.records)]
    odd: list[Stamped] = []
    for at, (line, time) in enumerate(usual):
        odd.append((line, time))
        if at % ODD_EVERY == 7:
            odd.append((b"ahead%d read" % at, time + 48 * HOUR_MS))
        if at % ODD_EVERY == 31:
            odd.append((b"late%d read" % at, time - HOUR_MS))
    calm, _, _ = work(usual)
    found, clock, metrics = work(odd)
    strange = [each for each in found if not each["session"].startswith("s")]
    others = [each for each in found if each["session"].startswith("s")]
    fault_report("events two days ahead, others an hour late", records=len(odd), rounds=len(odd) - len(usual))

    assert [content(each) for each in others] == [content(each) for each in calm]
    # They are sessions like others: each ends when stream time, which they did not move, is past its gap.
    assert len(strange) > 0.9 * (len(odd) - len(usual))
    assert {each["closed_by"] for each in strange} == {"gap"}
    assert clock.stream_time == usual[-1][1]
    sample = metrics.registry.get_sample_value
    assert sample("logmamba_skewed_events_total") == sum(line.startswith(b"ahead") for line, _ in odd)
    assert sample("logmamba_late_events_total") == sum(line.startswith(b"late") for line, _ in odd)


@pytest.mark.fault(row=23, core=False)
def test_a_year_with_nights_weekends_and_a_wrong_clock_a_day_has_the_sessions_of_a_year_without(
    size: Size, fault_report: FaultReport
) -> None:
    days = [day for day in range(365) if day % 7 < 5]
    per_day = size.records // len(days)
    usual: list[Stamped] = []
    odd: list[Stamped] = []
    for day in days:
        begins = START_MS + day * 24 * HOUR_MS
        own = [(b"s%d_%d read" % (day, at // 3), begins + at * STEP_MS) for at in range(per_day)]
        usual += own
        wrong = (b"wrong%d read" % day, begins + (1_000 if day % 2 else -1_000) * 24 * HOUR_MS)
        place = 3 + day * 7 % (per_day - 4)
        odd += [*own[:place], wrong, *own[place:]]
    calm, _, _ = work(usual)
    found, clock, metrics = work(odd)
    fault_report("a year with nights, weekends and a wrong clock a day", records=len(odd), rounds=len(days))
    others = [each for each in found if each["session"].startswith("s")]
    assert [content(each) for each in others] == [content(each) for each in calm]
    assert len(calm) >= len(days) * (per_day // 3) - 5
    assert {each["closed_by"] for each in found} == {"gap"}
    assert clock.stream_time == usual[-1][1]
    sample = metrics.registry.get_sample_value
    assert sample("logmamba_stream_time_jumps_total") == len(days) - 1
    assert sample("logmamba_stream_time_falls_total") == 0
    assert clock.waiting == ()


def work(records: list[Stamped]) -> tuple[list[dict[str, Any]], ClockState, Metrics]:
    """The scores of these records, the clock after them, and what was counted."""
    broker = memory_broker()
    for line, time in records:
        broker.append(P0, line, timestamp=time)
    small = SmallWorker(broker, settings(*RULES))
    worker, clocks = small.worker, []
    small.run([*[None] * (len(records) // 10_000 + 2), lambda: clocks.append(worker._pipeline.state(P0)[0].clock)])
    return outputs(broker), clocks[0], worker._metrics


def content(record: dict[str, Any]) -> dict[str, Any]:
    """All but the offsets, which the strange records shift, and what is made of them."""
    return {key: value for key, value in record.items() if key not in ("source", "top_events", "lines", "id")}

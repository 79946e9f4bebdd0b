"""A worker tells of drift: in its status, its metrics and, once, in its log; its records stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from detector.quality.fingerprint import Fingerprint, Stream
from tests.worker.small_worker import INPUT, ODD, VOCABULARY, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.report import log_drift
from worker.observability.metrics import Metrics
from worker.observability.status import DriftStatus, MovedTemplate
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records

OPEN, READ, CLOSE = (VOCABULARY.token_of(f"<*> {word}") for word in ("open", "read", "close"))
SECOND = 1_000


def lines_of(session: int, *words: str) -> list[bytes]:
    return [f"k{session} {word}".encode() for word in words]


def usual(session: int) -> list[bytes]:
    return lines_of(session, "open", *["read"] * (1 + session % 3), "close")


def odd(session: int) -> list[bytes]:
    return lines_of(session, "open", "odd", "read", "close")


def fingerprint() -> Fingerprint:
    """Of the sessions of `usual`, a quarter of which were held out."""
    sequences = [np.array([OPEN, *[READ] * (1 + number % 3), CLOSE]) for number in range(1_200)]
    held_out = np.arange(len(sequences)) % 4 == 0
    found = Fingerprint.of(Stream.of(sequences), np.where(held_out, 0.0, np.nan), held_out)
    assert found is not None
    return found


def knowing() -> OddScorer:
    scorer = OddScorer()
    scorer.fingerprint = fingerprint()
    return scorer


def records(sessions: range, lines: object = usual, first_offset: int = 0) -> Records:
    """A session every five seconds, closed by its last line."""
    values = [(number, line) for number in sessions for line in lines(number)]  # type: ignore[operator]
    offsets = list(range(first_offset, first_offset + len(values)))
    times = np.array([number * 5 * SECOND for number, _ in values])
    return Records(INPUT, 0, offsets, [line for _, line in values], None, times, None)


def settings(*more: str) -> object:
    return small_settings("sessions.end_events=['<*> close']", "sessions.gap=10m", *more)


def piped(scorer: OddScorer, *batches: Records) -> tuple[Pipeline, list[bytes | None], list[tuple[DriftStatus, str]]]:
    pipeline = Pipeline(settings(), scorer, Metrics())  # type: ignore[arg-type]
    told: list[tuple[DriftStatus, str]] = []
    pipeline.drifted = lambda drift, before: told.append((drift, before))
    pipeline.open(Partition(INPUT, 0))
    values = []
    for batch in batches:
        values += [output.value for output in pipeline.process([batch])]
        pipeline.drift()  # as the worker asks each second
    return pipeline, values, told


def drifting() -> list[Records]:
    batches = [records(range(400))]
    for begin in range(400, 2_000, 200):
        batches.append(records(range(begin, begin + 200), odd, batches[-1].last_offset + 1))
    return batches


def test_each_new_verdict_is_told_once_with_what_moved() -> None:
    pipeline, _, told = piped(knowing(), *drifting())
    assert [(drift.verdict, before) for drift, before in told] == [("watch", "ok"), ("retrain", "watch")]
    (now,) = pipeline.drift() or ()
    assert (now.topic, now.verdict, now.unknown) == (INPUT, "retrain", 0.0)
    assert now.moved[0] == MovedTemplate(VOCABULARY.text(ODD), 0.0, 1.0)
    assert now.since is not None
    assert "1970-01-01T00:33:20Z" < now.since < "1970-01-01T00:42:00Z"
    with capture_logs() as log:
        for drift, before in told:
            log_drift(drift, before)
    assert [(each["event"], each["log_level"], each["verdict"]) for each in log] == [
        ("drift", "warning", "watch"),
        ("drift", "warning", "retrain"),
    ]
    assert log[1]["moved"][0] == f"0% to 100% of sessions: {VOCABULARY.text(ODD)}"


def test_records_are_the_same_whether_drift_is_watched_or_not() -> None:
    assert piped(knowing(), *drifting())[1] == piped(OddScorer(), *drifting())[1] != []


def test_without_a_fingerprint_nothing_is_said() -> None:
    pipeline, _, told = piped(OddScorer(), *drifting())
    assert (pipeline.drift(), told) == (None, [])


def test_usual_sessions_are_ok_and_unknown_lines_are_named_as_such() -> None:
    pipeline, _, told = piped(knowing(), records(range(1_000)))
    (now,) = pipeline.drift() or ()
    assert (now.verdict, now.because, told) == ("ok", (), [])
    unknown = records(range(1_000), lambda number: lines_of(number, "open", "said nobody ever", "close"))
    (now,) = piped(knowing(), unknown)[0].drift() or ()
    assert now.unknown == 1.0
    assert "lines that no template matches" in [each.template for each in now.moved]


def test_a_worker_shows_it_in_metrics_and_status_and_forgets_it_when_it_starts_anew() -> None:
    broker = memory_broker()
    lines = [
        (line, number * 5 * SECOND)
        for number in range(1_000)
        for line in (usual(number) if number < 300 else odd(number))
    ]
    for line, at in lines:
        broker.append(Partition(INPUT, 0), line, timestamp=at)
    worker = SmallWorker(broker, settings(), scorer=knowing())  # type: ignore[arg-type]
    seen: list[tuple[DriftStatus, ...] | None] = []

    def look() -> None:
        worker.worker._report.publish()
        seen.append(worker.worker.status().drift)

    with capture_logs() as log:
        worker.run([*[None] * 20, look])
    assert [each["verdict"] for each in log if each["event"] == "drift"] == ["watch"]
    (now,) = seen[0] or ()
    assert now.verdict == "watch"
    value = worker.worker._metrics.registry.get_sample_value
    for verdict in ("ok", "watch", "retrain"):
        labels = {"topic": INPUT, "verdict": verdict}
        assert value("logmamba_drift_verdict", labels) == float(verdict == "watch")
    assert value("logmamba_drift_moved", {"topic": INPUT, "template": VOCABULARY.text(ODD)}) == now.moved[0].now > 0.5
    assert value("logmamba_drift_share", {"topic": INPUT, "of": "new"}) == now.new > 0
    assert len(outputs(broker)) == 1_000
    again = SmallWorker(broker, settings(), scorer=knowing())  # type: ignore[arg-type]
    again.run([None, lambda: seen.append(again.worker.status().drift)])
    assert seen[1] == ()


def test_partitions_that_come_and_go_amid_a_window_make_no_verdict() -> None:
    told: list[DriftStatus] = []
    pipeline = Pipeline(settings(), knowing(), Metrics())  # type: ignore[arg-type]
    pipeline.drifted = lambda drift, _before: told.append(drift)
    partitions = [Partition(INPUT, number) for number in range(3)]
    for turn in range(12):  # of 60 sessions, so no whole blocks; each time another partition, and an hour back or ahead
        partition = partitions[turn % 3]
        pipeline.open(partition, 0)
        first = 10_000 + turn * 60 + 720 * (turn % 2)
        usual_ones = records(range(first, first + 60))
        pipeline.process([replace(usual_ones, partition=partition.partition)])
        pipeline.drift()
        pipeline.drop(partition)
    (now,) = pipeline.drift() or ()
    assert (now.verdict, now.because, told) == ("ok", (), [])


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_workers_processes_the_worst_is_shown(order: int) -> None:
    from worker.observability.processes import _worst_drift

    told = [
        (DriftStatus("a", "ok", sessions=900), DriftStatus("b", None)),
        (DriftStatus("a", "watch", sessions=200),),
        None,
    ][::order]
    assert _worst_drift(told) == (DriftStatus("a", "watch", sessions=200), DriftStatus("b", None))
    assert _worst_drift([None, None]) is None

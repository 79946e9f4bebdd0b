"""Processes of one worker: what becomes of them when they end, are killed, hang, or are told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tests.broker.harness import wait_until
from tests.worker.alerting.receiving import score_record
from tests.worker.statuses import STATUS
from worker.commands.supervise import Ended, Supervisor
from worker.errors import RunError, SettingsError
from worker.observability.history import History
from worker.observability.metrics import Metrics
from worker.observability.processes import JoinedProcesses, ProcessReport
from worker.observability.recent_alerts import Published
from worker.observability.status import ProcessStatus

NAMES = ("blue-0", "blue-1")
PATIENCE_S = 60.0


def serve(number: int, pipe: Connection, folder: Path) -> None:
    """A process that says that it has joined, and what it reads in a file of its own tells it to do."""
    asked: list[int] = []  # no event: whose lock this thread may hold when the signal comes
    signal.signal(signal.SIGHUP, lambda *_: (folder / f"reload-{number}").touch())
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    metrics = Metrics()
    metrics.decoded(records=10, events=10, unknown=0, cut=0, ignored=0, dead_letters={})
    orders = folder / f"orders-{number}"
    while not asked:
        time.sleep(0.02)
        order = orders.read_text() if orders.exists() else ""
        if order == "hang":
            asked.clear()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(PATIENCE_S)
        if order.startswith("end"):
            pipe.send(Ended([order.removeprefix("end ")], wrong_settings="settings" in order))
            raise SystemExit(1)
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        status = replace(STATUS, instance=NAMES[number])
        pipe.send(ProcessReport(status, 0.0, list(metrics.registry.collect()), metrics.score_histogram, None))


class Watched:
    """Two processes and who watches over them."""

    def __init__(self, folder: Path, shutdown_s: float) -> None:
        self.folder = folder
        self.joined = JoinedProcesses(replace(STATUS, partitions=(), joined=False), NAMES)
        self.supervisor = Supervisor(NAMES, self._start, self.joined, shutdown_s)
        self.stop = threading.Event()

    def _start(self, number: int, pipe: Connection) -> BaseProcess:
        process = get_context("fork").Process(target=serve, args=(number, pipe, self.folder), daemon=True)
        process.start()
        return process

    def order(self, number: int, what: str) -> None:
        place = self.folder / "new"
        place.write_text(what)
        place.rename(self.folder / f"orders-{number}")

    def states(self) -> list[str]:
        return [each.state for each in self.joined.status().processes]

    def process(self, number: int) -> ProcessStatus:
        return self.joined.status().processes[number]

    def run(self, then: Callable[[], None]) -> None:
        """Watch over them until something else, which is done meanwhile, has ended."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                then()
            except BaseException as error:
                failed.append(error)
            finally:
                self.stop.set()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            self.supervisor.run(self.stop.is_set)
        finally:
            thread.join()
            if failed:
                raise failed[0]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path, shutdown_s=20.0)


def test_both_run_are_shown_together_and_stop_when_told_to(watched: Watched) -> None:
    seen: list[bool] = []

    def then() -> None:
        seen.append(watched.joined.status().ready)
        wait_until(lambda: watched.joined.status().ready)
        pids = {each.pid for each in watched.joined.status().processes}
        assert len(pids) == 2
        assert len(watched.joined.status().partitions) == 2

    watched.run(then)
    assert seen == [False]


def test_one_that_is_killed_is_started_again_while_the_other_goes_on(watched: Watched) -> None:
    def then() -> None:
        wait_until(lambda: watched.joined.status().ready)
        before = [each.pid for each in watched.joined.status().processes]
        watched.order(1, "die")
        wait_until(lambda: watched.states() == ["running", "restarting"])
        assert not watched.joined.status().ready
        assert watched.process(1).reason == "killed by SIGKILL"
        watched.order(1, "")
        wait_until(lambda: watched.joined.status().ready)
        assert watched.process(0).pid == before[0]
        assert watched.process(1).pid not in before
        assert watched.process(1).restarts == 1

    watched.run(then)


def test_what_it_counts_goes_on_over_a_restart(watched: Watched) -> None:
    def records() -> dict[str, float]:
        return {
            sample.labels["process"]: sample.value
            for family in watched.joined.registry.collect()
            for sample in family.samples
            if sample.name == "logmamba_records_total"
        }

    def then() -> None:
        wait_until(lambda: watched.joined.status().ready)
        assert records() == {"0": 10.0, "1": 10.0}
        watched.order(1, "die")
        wait_until(lambda: watched.states() == ["running", "restarting"])
        assert records() == {"0": 10.0, "1": 10.0}
        watched.order(1, "")
        wait_until(lambda: watched.joined.status().ready)
        assert records() == {"0": 10.0, "1": 20.0}
        assert watched.joined.status().totals == {"score_records": 3 * 99}

    watched.run(then)


def test_the_page_and_metrics_are_of_both(watched: Watched) -> None:
    def told(number: int, at: float) -> ProcessReport:
        metrics = Metrics()
        metrics.decoded(records=number + 1, events=0, unknown=0, cut=0, ignored=0, dead_letters={})
        metrics.final_scores([0.1] * (number + 1))
        alert = Published([score_record(f"s{number}", "critical", id=f"id-{number}")], at)
        return ProcessReport(STATUS, 1.0, list(metrics.registry.collect()), metrics.score_histogram, [alert])

    joined = watched.joined
    for number in (0, 1):
        joined.started(number, 100 + number)
        joined.told(number, told(number, at=50.0 + number))
    joined.told(0, told(0, at=50.0)._replace(alerts=None))  # as before
    assert [alert.record["session"] for alert in joined.latest()] == ["s1", "s0"]
    assert joined.find("id-0") is not None
    assert joined.score_histogram.sum() == 3
    page = generate_latest(joined.registry).decode()
    for line in (
        'logmamba_records_total{process="0"} 1.0',
        'logmamba_records_total{process="1"} 2.0',
        'logmamba_processes{state="running"} 2.0',
        "logmamba_process_restarts_total 0.0",
    ):
        assert line in page.splitlines(), line
    assert page.count("# TYPE logmamba_records_total counter") == 1
    history = History(joined, joined.status)
    history.look()
    joined.told(0, told(4, at=60.0))
    history.look()
    assert sum(history.hour().scores) == 4


def test_one_that_cannot_be_kept_up_is_given_up_with_the_reason_and_the_other_goes_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.commands.supervise._LEAST_BACKOFF_S", 0.01)

    def then() -> None:
        wait_until(lambda: watched.joined.status().ready)
        watched.order(1, "end no room on the device")
        wait_until(lambda: watched.states() == ["running", "given_up"])
        assert watched.process(1).reason == "no room on the device"
        assert not watched.joined.status().ready

    watched.run(then)


def test_where_none_can_be_kept_up_the_worker_ends_with_the_last_reason(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.commands.supervise._LEAST_BACKOFF_S", 0.01)

    def then() -> None:
        wait_until(lambda: watched.joined.status().ready)
        for number in (0, 1):
            watched.order(number, "end no room on the device")
        wait_until(lambda: watched.states() == ["given_up", "given_up"])

    with pytest.raises(RunError, match=r"no process could be kept up; the last one, blue-.: no room on the device"):
        watched.run(then)


def test_what_stops_the_first_one_before_any_has_worked_stops_the_worker(watched: Watched) -> None:
    for number in (0, 1):
        watched.order(number, "end the settings are wrong")
    with pytest.raises(SettingsError) as caught:
        watched.supervisor.run(watched.stop.is_set)
    assert caught.value.errors[0].removeprefix("process blue-") in {
        f"{each}: the settings are wrong" for each in (0, 1)
    }


def test_one_that_does_not_end_in_time_is_killed_and_said_so(tmp_path: Path) -> None:
    watched = Watched(tmp_path, shutdown_s=0.0)

    def then() -> None:
        wait_until(lambda: watched.joined.status().ready)
        watched.order(0, "hang")
        wait_until(lambda: watched.joined.heartbeat_age_s() > 0.5)

    with pytest.raises(RunError, match="process blue-0: killed by SIGKILL"):
        watched.run(then)


def test_sighup_reaches_each_also_one_that_is_only_starting(watched: Watched) -> None:
    watched.supervisor.reload()

    def then() -> None:
        wait_until(lambda: all((watched.folder / f"reload-{number}").exists() for number in (0, 1)))

    watched.run(then)

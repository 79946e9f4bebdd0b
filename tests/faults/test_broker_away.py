"""Rows 25 and 28: a broker that does not answer, for longer than every time-out, or while the worker is to stop."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.broker.harness import WorkerProcess
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport, Size
from tests.faults.stream import Run, Stream, stopped

TRANSACTION_S, SESSION_S, POLL_S = 3, 3, 12
KAFKA = {
    "transaction.timeout.ms": TRANSACTION_S * 1000,
    "session.timeout.ms": SESSION_S * 1000,
    "max.poll.interval.ms": POLL_S * 1000,
}
ENDPOINT = "observability.port=0"
SHUTDOWN_TIMEOUT_S = 10


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("kill", marks=pytest.mark.fault(row=28, core=True)),
        pytest.param("pause", marks=pytest.mark.fault(row=28, core=False)),
    ],
)
def test_a_worker_outlives_its_broker_and_goes_on_when_it_is_back(
    how: str, own_broker: KafkaBroker, stream: Stream, size: Size, tmp_path: Path, fault_report: FaultReport
) -> None:
    away_s = 600 if size.full and how == "kill" else TRANSACTION_S + SESSION_S + POLL_S + 2
    with stream.unsent(tmp_path, own_broker.bootstrap, kafka=KAFKA) as run:
        run.application.produce(stream.records)
        strike = ["--at", "commit", "--nth", "30", "--signal", "STOP"]
        with run.striking(*strike, settings=[ENDPOINT]) as worker:
            worker.wait_until(lambda: stopped(worker))
            getattr(own_broker, how)()
            left = time.monotonic()
            worker.process.send_signal(signal.SIGCONT)
            worker.wait_until(lambda: answer(worker, "/readyz") == 503)
            while time.monotonic() < left + away_s:
                assert worker.process.poll() is None, worker.tail()
                assert answer(worker, "/healthz") == 200, worker.tail()
                assert answer(worker, "/readyz") == 503, worker.tail()
                time.sleep(0.5)
            if how == "kill":
                own_broker.start()
            else:
                own_broker.resume()
            run.struck()
            back = time.time()
            worker.wait_until(lambda: run.output.next_s(back) is not None)
            worker.wait_until(lambda: answer(worker, "/readyz") == 200)
            assert run.share() < 1, "all was done before the broker went away"
            assert worker.stop() == 0, worker.tail()
            lines = [json.loads(line) for line in worker.log.read_text().splitlines() if '"broker_away"' in line]
            assert len(lines) <= 2 + away_s / 60
        run.finish()
        what = "killed" if how == "kill" else "hangs"
        fault = f"broker {what} amid a commit, away for {away_s} s; recovery: from its return"
        run.assert_exact(fault_report, fault, run.output.next_s(back))


@pytest.mark.fault(row=25, core=True)
def test_sigterm_ends_a_worker_in_time_whose_broker_hangs(
    own_broker: KafkaBroker, stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.unsent(tmp_path, own_broker.bootstrap, worker={"shutdown_timeout": f"{SHUTDOWN_TIMEOUT_S}s"}) as run:
        run.application.produce(stream.records)
        for delay_s in (0.0, 2.0):  # at once, and while the worker waits for the broker
            with run.start() as worker:
                wait_for_more(run, worker)
                own_broker.pause()
                run.struck()
                time.sleep(delay_s)
                began = time.monotonic()
                code = worker.stop()
                took_s = time.monotonic() - began
                own_broker.resume()
                assert code == 0, worker.tail()
                assert took_s < SHUTDOWN_TIMEOUT_S, worker.tail()
        assert run.share() < 1, "all was done before the last worker was stopped"
        run.finish()
        run.assert_exact(fault_report, "SIGTERM while the broker hangs")


def wait_for_more(run: Run, worker: WorkerProcess) -> None:
    seen = run.output.finals
    worker.wait_until(lambda: run.output.finals > seen)


def answer(worker: WorkerProcess, path: str) -> int:
    """The status of an HTTP request to the worker's endpoint."""
    try:
        with urllib.request.urlopen(worker.address() + path, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code

"""Rows 25 and 28: a broker that does not answer, for longer than every time-out, or while the worker is to stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.broker.harness import Application, Record, WorkerProcess
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport, Size
from tests.faults.stream import Stream, stopped

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
            worker.wait_until(lambda: worker.get("/readyz")[0] == 503)
            worker.wait_until(lambda: shown(worker, "logmamba_broker_connected") == [0])
            assert all(map(math.isnan, shown(worker, "logmamba_consumer_lag"))), "it shows a lag that nobody knows"
            while time.monotonic() < left + away_s:
                assert worker.process.poll() is None, worker.tail()
                assert worker.get("/healthz")[0] == 200, worker.tail()
                assert worker.get("/readyz")[0] == 503, worker.tail()
                time.sleep(0.5)
            assert run.share() < 1, "all was done before the broker went away"
            if how == "kill":
                own_broker.start()
            else:
                own_broker.resume()
            run.struck()
            back = time.time()
            worker.wait_until(lambda: run.output.next_s(back) is not None)
            worker.wait_until(lambda: worker.get("/readyz")[0] == 200)
            worker.wait_until(lambda: shown(worker, "logmamba_broker_connected") == [1])
            assert worker.stop() == 0, worker.tail()
            assert len(worker.events("broker_away")) <= 2 + away_s / 60
        run.finish()
        what = "killed" if how == "kill" else "hangs"
        fault = f"broker {what} amid a commit, away for {away_s} s; recovery: from its return"
        run.assert_exact(fault_report, fault, run.output.next_s(back))


@pytest.mark.fault(row=28, core=True)
def test_a_broker_that_hangs_is_told_before_any_call_gives_it_up(
    own_broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    """Its connections stay open, and every time-out of the client is a minute or most of one."""
    more: dict[str, dict[str, Any]] = {"observability": {"port": 0}, "kafka": {"statistics.interval.ms": 500}}
    quiet = Application(own_broker.bootstrap, tmp_path, checkpoint, **more)
    with quiet.start() as worker:
        worker.wait_until(lambda: worker.get("/readyz")[0] == 200)
        worker.wait_until(lambda: shown(worker, "logmamba_transactions_total") == [1, 0])  # the first snapshot's
        hangs_for_a_while(own_broker, worker)
        assert worker.stop() == 0, worker.tail()

    busy = Application(own_broker.bootstrap, tmp_path, checkpoint, observability={"port": 0})
    busy.produce([Record(b"240301 120000 7 INFO x: blk_1 is here"), Record(b"240301 120900 7 INFO x: blk_2 is here")])
    strike = ("tests.faults.striking_worker", "--at", "commit", "--nth", "1", "--signal", "STOP")
    with busy.start(program=strike) as worker:
        worker.wait_until(lambda: stopped(worker))
        hangs_for_a_while(own_broker, worker, lambda: worker.process.send_signal(signal.SIGCONT))
        worker.wait_until(lambda: bool(busy.scores()))
        assert worker.stop() == 0, worker.tail()


def hangs_for_a_while(broker: KafkaBroker, worker: WorkerProcess, then: Callable[[], object] = lambda: None) -> None:
    """Let the broker hang until the worker says that it is not ready, and then until it is again."""
    broker.pause()
    then()
    worker.wait_until(lambda: worker.get("/readyz")[0] == 503)
    worker.wait_until(lambda: shown(worker, "logmamba_broker_connected") == [0])
    assert worker.logged("broker_away"), worker.tail()
    if not worker.logged("strike"):  # one amid a commit does not poll, and so has no statistics
        worker.wait_until(lambda: shown(worker, "logmamba_brokers") == [0, 1])
    assert not worker.logged("kafka_client_error", "transaction_aborted"), worker.tail()
    broker.resume()
    worker.wait_until(lambda: worker.get("/readyz")[0] == 200)
    worker.wait_until(lambda: shown(worker, "logmamba_broker_connected") == [1])
    assert not worker.logged("transaction_aborted"), worker.tail()


@pytest.mark.fault(row=25, core=True)
def test_sigterm_ends_a_worker_in_time_whose_broker_hangs(
    own_broker: KafkaBroker, stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.unsent(tmp_path, own_broker.bootstrap, worker={"shutdown_timeout": f"{SHUTDOWN_TIMEOUT_S}s"}) as run:
        run.application.produce(stream.records)
        for delay_s in (0.0, 2.0):  # at once, and while the worker waits for the broker
            started = time.time()
            with run.start() as worker:
                worker.wait_until(lambda since=started: run.output.next_s(since) is not None)  # type: ignore[misc]
                own_broker.pause()
                run.struck()
                time.sleep(delay_s)
                asked = time.time()
                code = worker.stop()
                own_broker.resume()
                assert code == 0, worker.tail()
                assert worker.stopped_at() - asked < SHUTDOWN_TIMEOUT_S, worker.tail()
        assert run.share() < 1, "all was done before the last worker was stopped"
        run.finish()
        run.assert_exact(fault_report, "SIGTERM while the broker hangs")


def shown(worker: WorkerProcess, metric: str) -> list[float]:
    """The values of a metric's series at the worker's endpoint."""
    families = text_string_to_metric_families(worker.get("/metrics")[1])
    return [sample.value for family in families for sample in family.samples if sample.name == metric]

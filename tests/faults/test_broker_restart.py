"""Row 4: the broker goes away in the middle of a transaction and comes back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.broker.harness import WorkerProcess
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport
from tests.faults.stream import Run, Stream, stopped


@pytest.mark.fault(row=4, core=False)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_restarts_in_the_middle_of_a_transaction_changes_nothing(
    how: str, own_broker: KafkaBroker, stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    # Long enough that the broker is back before it gives the transaction up: the worker then has to go on with it.
    kafka = {"transaction.timeout.ms": 20_000, "max.poll.interval.ms": 80_000, "session.timeout.ms": 6_000}
    with stream.unsent(tmp_path, own_broker.bootstrap, kafka=kafka) as run:
        run.application.produce(stream.records)
        for point, nth in (("produce", 300), ("send_offsets", 10), ("commit", 10)):
            with run.striking("--at", point, "--nth", str(nth), "--signal", "STOP") as worker:
                worker.wait_until(lambda: stopped(worker))
                run.struck()
                getattr(own_broker, how)()
                own_broker.start()
                seen = run.output.finals
                worker.process.send_signal(signal.SIGCONT)
                goes_on(run, worker, seen)
        with run.start() as worker:
            seen = run.output.finals
            worker.wait_until(lambda: run.output.finals > seen)
            run.struck()
            getattr(own_broker, how)()
            seen = run.output.finals
            own_broker.start()
            goes_on(run, worker, seen)
        run.finish()
        run.assert_exact(fault_report, f"broker {'restarted' if how == 'stop' else 'killed'} in mid-transaction")


def goes_on(run: Run, worker: WorkerProcess, seen: int) -> None:
    """Wait until the worker, which must not end, publishes again."""
    worker.wait_until(lambda: run.output.finals > seen)

"""Row 19: SIGTERM, whatever the worker is doing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.broker.harness import Application, create_topic
from tests.broker.kafka import KafkaBroker
from tests.faults.report import FaultReport
from tests.faults.stream import Stream
from worker.settings.document import load_settings

SHUTDOWN_TIMEOUT_S = 15


@pytest.mark.fault(row=19, core=True)
def test_sigterm_in_any_phase_ends_the_worker_in_time_and_loses_nothing(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    """Each worker goes on where the one before it was stopped."""
    with stream.sent(tmp_path, worker={"shutdown_timeout": f"{SHUTDOWN_TIMEOUT_S}s"}) as run:

        def sigterm(phase: str, point: str, nth: int = 1, delay_ms: int = 0) -> None:
            strike = ["--at", point, "--nth", str(nth), "--delay-ms", str(delay_ms), "--signal", "TERM"]
            with run.striking(*strike) as worker:
                assert worker.ended() == 0, f"{phase}: {worker.tail()}"
                [struck] = worker.events("strike")
                assert worker.stopped_at() - struck["time"] < SHUTDOWN_TIMEOUT_S, phase
                run.struck()

        def nothing_to_replay() -> bool:
            """Whether the newest snapshots were taken at the committed positions."""
            committed = run.application.committed().values()
            return all(json.loads(each.metadata or "{}").get("position") == each.offset for each in committed)

        sigterm("joining", "join", delay_ms=20)
        sigterm("processing", "score", nth=6)
        assert nothing_to_replay()
        sigterm("committing", "commit", nth=6, delay_ms=2)
        # Long after its only snapshot, this one dies: the next ones have something to replay.
        with run.striking(
            *["--at", "commit", "--nth", "15", "--signal", "KILL"], settings=["state.snapshot_interval=1h"]
        ) as worker:
            assert worker.ended() < 0, worker.tail()
        assert not nothing_to_replay()
        sigterm("restoring", "restore")
        sigterm("replaying", "replay", nth=2)
        assert run.share() < 1, "all was done before the worker was idle"
        sigterm("idle", "idle", nth=3)
        assert nothing_to_replay()
        run.finish()
        run.assert_exact(fault_report, "SIGTERM in every phase")


@pytest.mark.fault(row=19, core=True)
def test_sigterm_while_a_worker_starts_ends_it_before_it_takes_the_place_of_one_of_its_name(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path, fault_report: FaultReport
) -> None:
    fault_report("SIGTERM while the checkpoint is loaded", rounds=1)
    application = Application(broker.bootstrap, tmp_path, checkpoint)
    create_topic(application.bootstrap, application.score_topic, 1)
    name = load_settings(application.config, []).transactional_id
    other = Producer({"bootstrap.servers": application.bootstrap, "transactional.id": name})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(application.score_topic, b"{}")
    strike = ("tests.faults.striking_worker", "--at", "load", "--signal", "TERM")
    with application.start(program=strike) as worker:
        assert worker.ended() == 0, worker.tail()
        assert worker.logged("stopped")
    other.commit_transaction(30)  # it was not fenced
    assert application.scores() == [{}]

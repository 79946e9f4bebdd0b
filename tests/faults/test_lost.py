"""Row 8: partitions that are lost take their open sessions and what is not committed with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.broker.harness import Application, Record
from tests.broker.kafka import KafkaBroker
from tests.faults.mock import in_process, mock_cluster, mock_settings, run_script, totals
from tests.faults.report import FaultReport
from tests.worker.small_worker import INPUT
from worker.delivery.commit_pace import CommitPace
from worker.processing.records import Partition
from worker.settings.document import load_settings

MAX_POLL_S = 4.0


@pytest.mark.fault(row=8, core=False)
def test_partitions_lost_to_a_late_poll_are_dropped_and_nothing_is_committed_for_them(
    fault_report: FaultReport,
) -> None:
    fault_report("max.poll.interval.ms exceeded: partitions lost, dropped, restored", rounds=1)
    partition = Partition(INPUT, 0)
    with mock_cluster() as cluster, capture_logs() as log:
        settings = mock_settings(
            cluster,
            transaction_timeout_ms=int(MAX_POLL_S * 250),
            max_poll_interval_ms=int(MAX_POLL_S * 1000),
            session_timeout_ms=3000,
            heartbeat_interval_ms=200,
        )
        cluster.produce([b"a open", b"b open", b"b close"])
        worker = in_process(settings)

        def script() -> Iterator[Callable[[], bool]]:
            yield lambda: totals(worker)["scores"] == 1 and totals(worker)["commits"] > 0
            assert worker._pipeline.open_sessions(partition) == 1
            worker._commit_pace = CommitPace(float("inf"))  # what comes now stays uncommitted
            cluster.produce([b"c open", b"c close", b"d open"])
            yield lambda: totals(worker)["scores"] == 2
            committed = totals(worker)["commits"]
            time.sleep(MAX_POLL_S + 1.5)  # as a scorer that hangs
            yield lambda: totals(worker)["aborts"] == 1
            assert totals(worker)["commits"] == committed
            assert worker._progress == {}
            assert partition not in worker._pipeline._open, "sessions of a lost partition were kept"
            # The mock broker stores no offset of a transaction, so that it all begins anew, with b and c.
            yield lambda: totals(worker)["scores"] == 4

        run_script(worker, script)
    events = [entry["event"] for entry in log]
    assert events.count("partitions_lost") == 1
    assert "_MAX_POLL_EXCEEDED" in [entry.get("code") for entry in log]
    # Lost and begun again, then handed back at the end.
    assert events.count("partitions_revoked") == 1
    assert events.count("partition_starts_new") + events.count("partition_starts_over") == 2


@pytest.mark.fault(row=13, core=False)
def test_a_partition_whose_position_vanishes_under_a_running_worker_is_restored(
    broker: KafkaBroker, tmp_path: Path, checkpoint: Path, fault_report: FaultReport
) -> None:
    """The client stops fetching it then, and only a new assignment starts it again."""
    fault_report("a position that vanishes under a running worker: restored from what is committed", rounds=1)
    application = Application(broker.bootstrap, tmp_path, checkpoint)
    partition = Partition(application.input_topic, 0)
    lines = ["input.timestamp=null", "sessions.key={regex: '^\\w+'}", "sessions.max_events=2", "scoring.early=false"]
    settings = load_settings(application.config, lines)
    application.produce([Record(b"a open"), Record(b"a close"), Record(b"b open")])
    worker = in_process(settings)
    with capture_logs() as log:

        def script() -> Iterator[Callable[[], bool]]:
            yield lambda: worker._progress[partition].committed == 3 if partition in worker._progress else False
            worker._source.seek({partition: 1000})
            yield lambda: [entry for entry in log if entry["event"] == "partitions_revoked"] != []
            application.produce([Record(b"b close")])
            yield lambda: totals(worker)["scores"] == 2

        run_script(worker, script)
    assert [(score["session"], score["events"]) for score in application.scores()] == [("a", 2), ("b", 2)]

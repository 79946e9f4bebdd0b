"""Rows 9 and 11: topics of the output that cannot be written, for a while or at all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.broker.harness import Application, Record
from tests.broker.kafka import KafkaBroker, require_kafka
from tests.faults.proxy import Proxy
from tests.faults.report import FaultReport
from tests.faults.stream import RULES, Stream

MAX_POLL_S = 16.0
MIB = 2**20


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture
def blockable(proxy: Proxy, tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker that is reached through the proxy."""
    require_kafka()
    broker = KafkaBroker(tmp_path / "kafka", {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy.port}"})
    proxy.target, broker.bootstrap = broker.port, f"127.0.0.1:{proxy.port}"
    yield broker.start()
    broker.kill()


@pytest.mark.fault(row=9, core=False)
def test_while_the_output_is_blocked_the_input_is_paused_and_the_membership_kept(
    blockable: KafkaBroker, proxy: Proxy, stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    kafka = {"transaction.timeout.ms": int(MAX_POLL_S * 250), "max.poll.interval.ms": int(MAX_POLL_S * 1000)}
    with stream.unsent(tmp_path, blockable.bootstrap, kafka=kafka) as run:
        run.application.produce(stream.records)
        with run.start() as worker:
            worker.wait_until(lambda: run.share() > 0.1)
            proxy.block()
            run.struck()
            # What was on its way to the broker when the output was blocked may still be committed.
            worker.wait_until(lambda: worker.logged("input_paused") and worker.logged("transaction_aborted"))
            until, seen = time.monotonic() + MAX_POLL_S + 4, run.output.finals
            worker.wait_until(lambda: time.monotonic() > until)
            assert run.output.finals == seen, "the output was not blocked"
            assert members(run.application) == 1
            assert not worker.logged("partitions_lost", "partitions_revoked")
            with run.start("worker.instance=w1") as second:
                # Partitions are handed over while the output is still blocked.
                second.wait_until(lambda: second.logged("partition_restored"))
                assert worker.logged("partitions_revoked")
                proxy.unblock()
                seen = run.output.finals
                worker.wait_until(lambda: run.output.finals > seen + 100)
                assert second.stop() == 0, second.tail()
            assert worker.stop() == 0, worker.tail()
        run.finish()
        run.assert_exact(fault_report, "output blocked past max.poll.interval.ms, another worker joins meanwhile")


@pytest.mark.fault(row=9, core=False)
def test_a_burst_of_input_and_a_blocked_output_take_no_more_memory_than_the_settings_say(
    blockable: KafkaBroker, proxy: Proxy, checkpoint: Path, tmp_path: Path, fault_report: FaultReport
) -> None:
    """Ten times what the queues may hold, while nothing can be written and while it is worked off."""
    fetched_ahead, waiting = 8 * MIB, 8 * MIB
    application = Application(
        blockable.bootstrap,
        tmp_path,
        checkpoint,
        kafka={
            "queued.max.messages.kbytes": fetched_ahead // 1024,
            "queue.buffering.max.kbytes": waiting // 1024,
            "fetch.message.max.bytes": MIB,
        },
        worker={"batch_records": 1000},
        sessions=RULES.as_settings(),
    )
    warming, end = 2_000, 10 * (fetched_ahead + waiting) // 2000
    lines = (
        Record(f"240301 120000 7 INFO dfs.DataNode: Receiving block blk_{number} {'x' * 2000}".encode())
        for number in range(end)
    )
    most = 0
    with application.start() as worker:
        process = psutil.Process(worker.process.pid)

        def measured() -> bool:
            nonlocal most
            most = max(most, process.memory_info().rss)
            return True

        application.produce(itertools.islice(lines, warming))
        worker.wait_until(lambda: application.committed()[0].offset == warming)
        before = process.memory_info().rss
        proxy.block()
        application.produce(lines)
        worker.wait_until(lambda: measured() and worker.logged("input_paused"))
        until = time.monotonic() + 15
        worker.wait_until(lambda: measured() and time.monotonic() > until)
        assert application.committed()[0].offset < end, "the output was not blocked"
        proxy.unblock()
        worker.wait_until(lambda: measured() and application.committed()[0].offset == end)
        fault_report(f"burst of 10x, output blocked: {(most - before) / MIB:.0f} MiB more", records=end, rounds=1)
        assert worker.stop() == 0, worker.tail()
    assert not worker.logged("partitions_lost")
    # Beside the queues, one batch of records as Python has them: twice over covers it.
    assert most - before < 2 * (fetched_ahead + waiting)


@pytest.mark.fault(row=11, core=False)
def test_a_dead_letter_topic_that_cannot_be_written_stops_the_worker_which_skips_nothing(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    with stream.sent(tmp_path) as run:
        topic = run.application.bootstrap, run.application.dead_topic
        # No record fits, only the broker's own mark of a transaction's end.
        configure(*topic, "max.message.bytes", "120")
        refused = {each.partition: each.offset for each in sorted(stream.expected.dead_letters, reverse=True)}
        for _ in range(2):
            with run.start() as worker:
                run.struck()
                assert worker.ended() == 1, worker.tail()
            assert f"{run.application.dead_topic} cannot be written" in worker.tail()
            committed = run.application.committed()
            assert all(committed[number].offset <= offset for number, offset in refused.items())
            assert run.application.dead_letters() == []
        configure(*topic, "max.message.bytes", "1000000")
        run.finish()
        run.assert_exact(fault_report, "dead-letter topic refuses every record: stopped twice, skipped nothing")


def configure(bootstrap: str, topic: str, name: str, value: str) -> None:
    """Set a property of a topic."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)


def members(application: Application) -> int:
    """How many workers are in the application's group, none of them on its way in or out."""
    admin = AdminClient({"bootstrap.servers": application.bootstrap})
    [future] = admin.describe_consumer_groups([application.settings["application_id"]]).values()
    group = future.result(30)
    assert group.state.name == "STABLE", group.state
    return len(group.members)

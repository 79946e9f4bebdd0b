"""The source and the reader on the client library's own broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import orjson
import pytest

from tests.broker.harness import read_all
from tests.faults.mock import in_process, mock_cluster, mock_settings, run_script, totals
from tests.worker.small_worker import INPUT, SCORES, Clock
from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaReader, KafkaSource
from worker.processing.outputs import Output
from worker.processing.records import Partition, Records


@pytest.mark.parametrize("seconds", [0.0, 5.0], ids=["quick", "slow"])
def test_no_batch_has_more_records_than_batch_records(seconds: float) -> None:
    """Ends of partitions, which come among the records, and a scorer that is behind change nothing of it."""
    sizes = []
    with mock_cluster(partitions=3) as cluster:
        for partition in range(3):
            cluster.produce([b"a open"] * 100, partition)
        worker = in_process(mock_settings(cluster, "worker.batch_records=7"))
        worker._clock = clock = Clock()
        process = worker._pipeline.process

        def counted(batch: Sequence[Records]) -> list[Output]:
            sizes.append(sum(len(records.offsets) for records in batch))
            clock.now += seconds
            return process(batch)

        worker._pipeline.process = counted  # type: ignore[method-assign]

        def script() -> Iterator[Callable[[], bool]]:
            yield lambda: sum(sizes) == 300

        run_script(worker, script)
    assert max(sizes) == 7


class Listener:
    """Starts what is assigned at its beginning."""

    def __init__(self, source: KafkaSource) -> None:
        self.source = source

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        self.source.start(dict.fromkeys(partitions, 0))

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        self.source.forget(partitions)

    on_lost = on_revoked


def until_the_end(source: KafkaSource) -> list[int]:
    """Offsets that come before the partition's end is told."""
    offsets: list[int] = []
    deadline = time.monotonic() + 150
    while not source.fully_consumed():
        assert time.monotonic() < deadline, "no end was told"
        offsets += [offset for records in source.poll(10, 0.05) for offset in records.offsets]
    return offsets


@pytest.mark.parametrize("forgotten", ["paused", "asked", "fetched on", "sought"])
def test_an_end_that_may_be_stale_is_forgotten_and_told_again_after_what_has_come_since(forgotten: str) -> None:
    place = Partition(INPUT, 0)
    with mock_cluster() as cluster:
        cluster.produce([b"a open", b"a read"])
        settings = mock_settings(cluster)
        source = KafkaSource(ClientProperties(settings).consumer(), settings.input.topics, Outage())
        source.subscribe(Listener(source))
        assert until_the_end(source) == [0, 1]
        assert source.fully_consumed() == {place: 2}
        forget = {
            "paused": source.keep_alive,
            "asked": lambda: source.ask_for_end(place),
            "sought": lambda: source.seek({place: 1}),
        }.get(forgotten)
        if forget is not None:
            forget()
            assert source.fully_consumed() == {}
            assert until_the_end(source) == ([1] if forgotten == "sought" else [])
            assert source.fully_consumed() == {place: 2}, "told again although nothing came"
        cluster.produce([b"a close"])
        if forget is None:
            while not source.poll(1, 0.05):
                assert source.fully_consumed() == {place: 2}
            assert until_the_end(source) == []
        else:
            forget()
            assert until_the_end(source) == ([1, 2] if forgotten == "sought" else [2])
        assert source.fully_consumed() == {place: 3}
        source.close(Deadline(10))


def test_a_broker_may_be_asked_for_within_a_rebalance_whatever_else_the_client_has_to_tell() -> None:
    """The client has statistics to tell in the same call, which ended the process."""
    told = [0]

    def tell(_statistics: str) -> None:
        told[0] += 1

    answers: list[str | None] = []

    class Asking(Listener):
        def on_assigned(self, partitions: Sequence[Partition]) -> None:
            answers.append(outage.ask())
            super().on_assigned(partitions)
            time.sleep(0.2)  # statistics are due many times over

        def on_revoked(self, partitions: Sequence[Partition]) -> None:
            answers.append(outage.ask())
            super().on_revoked(partitions)
            time.sleep(0.2)

        on_lost = on_revoked

    with mock_cluster() as cluster:
        cluster.produce([b"a open", b"a read"])
        settings = mock_settings(cluster, statistics_interval_ms=10)
        outage = Outage()
        source = KafkaSource(ClientProperties(settings).consumer() | {"stats_cb": tell}, settings.input.topics, outage)
        source.subscribe(Asking(source))
        assert until_the_end(source) == [0, 1]
        assert told[0]
        source.close(Deadline(60))
    assert answers == [None, None]


def test_no_session_closes_as_idle_while_its_next_record_waits_in_the_clients_queue() -> None:
    skipped = 0.0
    with mock_cluster(partitions=2) as cluster:
        cluster.produce([b"quiet open"], 1)
        settings = mock_settings(cluster, "worker.batch_records=10", "sessions.max_events=1000")
        worker = in_process(settings)
        worker._clock = lambda: time.monotonic() + skipped

        def consumed() -> int:
            return worker._report.totals["records"]

        def script() -> Iterator[Callable[[], bool]]:
            nonlocal skipped
            yield lambda: Partition(INPUT, 1) in worker._source.fully_consumed() and consumed() == 1
            cluster.produce([b"busy read"] * 300)
            cluster.produce([b"quiet close"], 1)
            skipped += 3600
            yield lambda: consumed() == 302
            skipped += 3600
            yield lambda: totals(worker)["scores"] >= 2

        run_script(worker, script)
        scores = [orjson.loads(message.value() or b"") for message in read_all(cluster.bootstrap, SCORES)]
    assert sorted((each["session"], each["events"]) for each in scores) == [("busy", 300), ("quiet", 2)]


def test_what_is_read_beside_the_group_comes_in_batches_of_batch_records() -> None:
    with mock_cluster() as cluster:
        cluster.produce([b"line %d" % number for number in range(30)])
        settings = mock_settings(cluster)
        reader = KafkaReader(ClientProperties(settings).reader(), Outage(), batch_records=7)
        batches = list(reader.read(Partition(INPUT, 0), 3, 29))
        reader.close()
    assert [offset for batch in batches for offset in batch.offsets] == [*range(3, 29)]
    assert max(len(batch.offsets) for batch in batches) == 7


def test_the_first_and_last_offsets_of_a_partition_wait_for_its_leader() -> None:
    list_offsets, not_leader = 2, 6
    with mock_cluster() as cluster:
        cluster.produce([b"a line"] * 3)
        reader = KafkaReader(ClientProperties(mock_settings(cluster)).reader(), Outage(), batch_records=7)
        cluster.fail(list_offsets, not_leader, not_leader)
        assert reader.watermarks(Partition(INPUT, 0)) == (0, 3)
        reader.close()

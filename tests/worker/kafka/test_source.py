"""The source and the reader on the client library's own broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.faults.mock import in_process, mock_cluster, mock_settings, run_script
from tests.worker.small_worker import INPUT, Clock
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaReader
from worker.processing.pipeline import Output
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


def test_what_is_read_beside_the_group_comes_in_batches_of_batch_records() -> None:
    with mock_cluster() as cluster:
        cluster.produce([b"line %d" % number for number in range(30)])
        settings = mock_settings(cluster)
        reader = KafkaReader(ClientProperties(settings).reader(), batch_records=7)
        batches = list(reader.read(Partition(INPUT, 0), 3, 29))
        reader.close()
    assert [offset for batch in batches for offset in batch.offsets] == [*range(3, 29)]
    assert max(len(batch.offsets) for batch in batches) == 7

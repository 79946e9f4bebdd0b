"""Row 5: what an aborted transaction leaves in the score topic, offset by offset."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, TopicPartition

from tests.broker.harness import read_all
from tests.faults.report import FaultReport
from tests.faults.stream import PARTITIONS, Run, Stream


@pytest.mark.fault(row=5, core=True)
def test_an_abort_leaves_its_records_unseen_and_one_control_record_behind_them(
    stream: Stream, tmp_path: Path, fault_report: FaultReport
) -> None:
    # The broker gives nothing up by itself while the test looks.
    with stream.sent(
        tmp_path, kafka={"transaction.timeout.ms": 60_000, "max.poll.interval.ms": 240_000, "group.instance.id": "w0"}
    ) as run:
        application = run.application
        bootstrap, topic = application.bootstrap, application.score_topic

        died(run, "send_offsets", nth=1)  # nothing was ever committed
        assert set(positions(run).values()) == {OFFSET_INVALID}

        # All that this transaction was to publish has reached the broker; only its end is missing.
        died(run, "commit", 3, "worker.batch_records=2000")
        published, position = values(bootstrap, topic, "read_committed"), positions(run)
        stable, written = ends(bootstrap, topic, "read_committed"), ends(bootstrap, topic, "read_uncommitted")
        seen = values(bootstrap, topic, "read_uncommitted")
        unfinished = {place: value for place, value in seen.items() if place[1] >= stable[place[0]]}
        assert len(unfinished) > 20
        assert sorted(unfinished) == [
            (each, offset) for each in range(PARTITIONS) for offset in range(stable[each], written[each])
        ]

        # The next worker's producer ends what the dead one left open; this worker dies before it reads anything.
        died(run, "join", nth=1)
        assert values(bootstrap, topic, "read_committed") == published
        assert values(bootstrap, topic, "read_uncommitted") == seen
        assert positions(run) == position
        touched = {partition for partition, _ in unfinished}
        aborted = {each: end + 1 if each in touched else end for each, end in written.items()}
        assert ends(bootstrap, topic, "read_uncommitted") == aborted
        assert ends(bootstrap, topic, "read_committed") == aborted

        run.finish()
        final = values(bootstrap, topic, "read_committed")
        later = {place: value for place, value in final.items() if place not in published}
        assert {each: min(offset for place, offset in later if place == each) for each in touched} == {
            each: aborted[each] for each in touched
        }
        assert set(unfinished.values()) <= set(later.values()), "what was aborted came later, byte for byte"
        run.assert_exact(fault_report, "an aborted transaction, by its offsets")


def died(run: Run, point: str, nth: int, *settings: str) -> None:
    """A worker kills itself at this point."""
    with run.striking("--at", point, "--nth", str(nth), "--signal", "KILL", settings=settings) as worker:
        assert worker.ended() == -signal.SIGKILL, worker.tail()
        run.struck()


def positions(run: Run) -> dict[int, int]:
    """The committed offset of each input partition, without waiting for what an open transaction may change."""
    application = run.application
    member = _reader(application.bootstrap, "read_uncommitted", application.settings["application_id"])
    try:
        asked = [TopicPartition(application.input_topic, number) for number in range(PARTITIONS)]
        return {each.partition: each.offset for each in member.committed(asked, timeout=30)}
    finally:
        member.close()


def values(bootstrap: str, topic: str, isolation: str) -> dict[tuple[int, int], bytes]:
    """The values that a reader sees, by partition and offset."""
    messages = read_all(bootstrap, topic, isolation)
    return {(each.partition() or 0, each.offset() or 0): each.value() or b"" for each in messages}


def ends(bootstrap: str, topic: str, isolation: str) -> dict[int, int]:
    """The offset at which each partition ends for a reader; control records count, too."""
    reader = _reader(bootstrap, isolation, "reader")
    try:
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return {each.partition: reader.get_watermark_offsets(each, timeout=30)[1] for each in places}
    finally:
        reader.close()


def _reader(bootstrap: str, isolation: str, group: str) -> Consumer:
    return Consumer({"bootstrap.servers": bootstrap, "group.id": group, "isolation.level": isolation})

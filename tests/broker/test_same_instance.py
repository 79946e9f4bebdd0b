"""Two workers that were given one `worker.instance` by mistake, on a real broker."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, WorkerProcess, create_topic, hdfs_lines, keyed_by_block
from tests.broker.kafka import KafkaBroker
from tests.broker.test_operations import events
from tests.shared import needs_shared
from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Message
from worker.kafka.clients import ClientProperties
from worker.kafka.errors import Fenced
from worker.kafka.sink import TransactionalSink
from worker.settings.document import load_settings

LINES, AT_ONCE = 6_000, 200
CAUSE = "another worker with the same worker.instance has taken over (each needs its own)"


@needs_shared
def test_of_two_workers_of_one_name_one_stops_and_names_the_cause_and_the_other_does_all_of_it_once(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, partitions=2)
    lines = keyed_by_block(hdfs_lines(LINES), 2)
    sent = AT_ONCE
    with application.start() as first:
        application.produce(lines[:sent])
        first.wait_until(lambda: position(application) == sent)
        with application.start() as second:
            second.wait_until(lambda: second.logged("starting"))
            # Being fenced is noticed by whoever writes.
            while not ended(first, second) and sent < LINES:
                application.produce(lines[sent : sent + AT_ONCE])
                sent += AT_ONCE
                while not ended(first, second) and position(application) < sent:
                    time.sleep(0.1)
            [stopped] = ended(first, second)
            assert stopped.ended() == 1, stopped.tail()
            lines = stopped.log.read_text().splitlines()
            assert [line.partition(": ")[2].startswith(CAUSE) for line in lines if line.startswith("logmamba: ")] == [
                True
            ]
            # Nothing of it comes from the client library, nor from Python's way with errors in its callbacks.
            written = [line for line in lines if line and not line.startswith("logmamba: ")]
            assert all(json.loads(line)["event"] for line in written)
            assert not [line for line in written if re.search("fenced|old epoch|fatal|left_open", line, re.IGNORECASE)]
            left = second if stopped is first else first
            left.wait_until(lambda: events(application) == sent)
            assert left.stop() == 0, left.tail()
    assert events(application) == sent
    assert application.dead_letters() == []


def test_a_fenced_sink_names_the_cause_wherever_it_hears_of_it(broker: KafkaBroker, tmp_path: Path) -> None:
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint())
    create_topic(broker.bootstrap, application.score_topic, 1)
    properties = ClientProperties(load_settings(application.config)).producer()
    message = Message(application.score_topic, b"key", b"value", [])
    fenced = TransactionalSink(properties, Outage())
    TransactionalSink(properties, Outage()).close(Deadline(10))
    deadline = Deadline(30)

    def produce() -> None:
        while not deadline.passed:  # it begins a transaction, of which its client hears by and by that it must not
            fenced._produce([message], fenced._delivered, deadline)
            time.sleep(0.01)

    with pytest.raises(Fenced, match=re.escape(CAUSE)):
        produce()
    with pytest.raises(Fenced, match=re.escape(CAUSE)):
        fenced.send([message], Deadline(10))
    fenced.close(Deadline(10))


def ended(*workers: WorkerProcess) -> list[WorkerProcess]:
    return [worker for worker in workers if worker.process.poll() is not None]


def position(application: Application) -> int:
    """How many records are committed, of all partitions."""
    return sum(max(each.offset, 0) for each in application.committed().values())

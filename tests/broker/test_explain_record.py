"""`logmamba explain --record` on a real broker: a score record is enough to see its lines again."""

from __future__ import annotations

import html
import json
import re
import urllib.request
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, Record
from tests.broker.kafka import KafkaBroker
from tests.worker.command_line import logmamba

LINE = "081109 2035{:02} 147 INFO dfs.DataNode$DataXceiver: Receiving block blk_{} src: /10.0.0.1:1 dest: /10.0.0.{}:2"


def test_a_score_record_is_explained_from_its_own_offsets_in_kafka(broker: KafkaBroker, tmp_path: Path) -> None:
    observed = {"port": 0, "show_lines": "always"}
    application = Application(
        broker.bootstrap, tmp_path, demo_checkpoint(), observability=observed, scoring={"warning": 0.0, "critical": 1.0}
    )
    texts = [LINE.format(second, second % 3, second) for second in range(12)]
    application.produce(Record(text.encode()) for text in texts)
    with application.start() as worker:
        worker.wait_until(lambda: sum(record["kind"] == "final" for record in application.scores()) == 3)
        with urllib.request.urlopen(worker.address(), timeout=30) as answer:
            link = re.findall(r'href="(/session[^"]+)"><code>blk_1<', answer.read().decode())
        before = groups(broker)
        with urllib.request.urlopen(worker.address() + link[0], timeout=30) as answer:
            page = html.unescape(answer.read().decode())
        assert [page.count(text) for text in texts] == [each % 3 == 1 for each in range(12)]
        assert groups(broker) == before
        assert worker.stop() == 0, worker.tail()
    [record] = [each for each in application.scores() if (each["session"], each["kind"]) == ("blk_1", "final")]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    command = "explain", "--checkpoint", demo_checkpoint(), "--config", application.config, "--record", path
    before = groups(broker)
    done = logmamba(*command, "--json")
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    assert [(each["offset"], each["text"]) for each in explained["events"]] == [(i, texts[i]) for i in (1, 4, 7, 10)]
    assert explained["record"] == record
    assert "blk_1" in logmamba(*command).stdout
    assert groups(broker) == before

    path.write_text(json.dumps(record | {"events": 5}))
    told = logmamba(*command)
    assert (told.returncode, "4 events of session 'blk_1', and the record says 5" in told.stderr) == (1, True)
    path.write_text('{"schema": "logmamba.score/1", "session": 5}')
    told = logmamba(*command)
    assert (told.returncode, "not one score record (logmamba.score/1): session: " in told.stderr) == (1, True)
    path.write_text(json.dumps(record))
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    gone = TopicPartition(application.input_topic, 0, 3)
    admin.delete_records([gone])[gone].result(30)
    told = logmamba(*command)
    assert told.returncode == 1
    assert "offsets 1 to 10, are not in the topic, which holds 3 to 11" in told.stderr
    assert logmamba(*command, "--session", "blk_1").returncode == 2


def groups(broker: KafkaBroker) -> set[tuple[str, str]]:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    return {(group.group_id, group.state.name) for group in admin.list_consumer_groups().result(30).valid}

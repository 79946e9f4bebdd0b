"""On a real broker: a worker says that its topic has drifted, and `logmamba drift` says so of what the topic holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from confluent_kafka import Producer

from detector.quality.fingerprint import Fingerprint, Stream
from detector.text.vocabulary import Vocabulary
from tests.broker.harness import Application
from tests.broker.kafka import KafkaBroker
from tests.detector.small_models import save_random
from tests.worker.command_line import logmamba

VOCABULARY = Vocabulary(("open", "read", "odd", "close"))
USUAL, SESSIONS = 240, 400
BEGIN_MS = 1_714_978_800_000


def test_a_worker_and_the_command_say_the_same_of_a_topic(broker: KafkaBroker, tmp_path: Path) -> None:
    learnt = Stream.of([np.array([VOCABULARY.token_of(each) for each in ("open", "read", "close")])] * SESSIONS)
    fingerprint = Fingerprint.of(learnt, np.full(SESSIONS, np.nan), np.arange(SESSIONS) % 2 == 0)
    save_random(tmp_path / "checkpoint", VOCABULARY, fingerprint=fingerprint)
    application = Application(broker.bootstrap, tmp_path, tmp_path / "checkpoint", 1)
    application.settings["sessions"] = {"key": {"header": "visitor"}, "max_events": 3, "idle_flush": None}
    application.settings["input"]["timestamp"] = None
    application.config.write_text(yaml.safe_dump(application.settings))
    producer = Producer({"bootstrap.servers": application.bootstrap, "enable.idempotence": True})
    for number in range(SESSIONS):
        for second, step in enumerate(("open", "read" if number < USUAL else "odd", "close")):
            at = BEGIN_MS + number * 20_000 + second * 1_000
            producer.produce(
                application.input_topic, step, timestamp=at, headers=[("visitor", f"visitor{number}".encode())]
            )
    assert producer.flush(30) == 0

    done = logmamba("drift", "--config", application.config, "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["topics"]
    assert (told["topic"], told["verdict"]) == (application.input_topic, "watch")
    assert {"template": "odd", "before": 0.0, "now": told["new"]} in told["moved"]
    done = logmamba("drift", "--config", application.config, "--records", 3 * USUAL, "--json")
    assert json.loads(done.stdout)["topics"][0]["verdict"] == "watch"
    assert {partition: each.offset for partition, each in application.committed().items()} == {0: -1001}

    with application.start() as worker:
        worker.wait_until(lambda: worker.logged("drift"))
        assert worker.stop() == 0, worker.tail()
        (event,) = worker.events("drift")
        assert (event["level"], event["verdict"], event["topic"]) == ("warning", "watch", application.input_topic)

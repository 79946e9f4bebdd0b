"""What `logmamba adapt` learns from a topic of a real broker is what it learns from the same records in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from confluent_kafka import Producer

from detector.checkpoint import save
from detector.text.vocabulary import Vocabulary
from detector.training.data import TrainingSessions
from detector.training.replay import sample
from tests.broker.harness import Application
from tests.broker.kafka import KafkaBroker
from tests.detector.small_models import CALIBRATION, PROFILE, RECORD, random_model
from tests.worker.command_line import logmamba

VISITS = 120
STEPS = (b"opened", b"read", b"closed", b"paid in a new way")


def produce(application: Application) -> None:
    producer = Producer({"bootstrap.servers": application.bootstrap, "enable.idempotence": True})
    for visit in range(VISITS):
        for number, step in enumerate(STEPS):
            producer.produce(
                application.input_topic,
                step,
                b"visit%d" % visit,
                partition=visit % 2,
                timestamp=1_714_978_800_000 + visit * 60_000 + number * 1_000,
            )
    assert producer.flush(30) == 0


def adapted(*arguments: object) -> dict[str, Any]:
    """Its own account, without the time."""
    done = logmamba("adapt", "--planned", "--steps", 2, "--dry-run", "--json", *arguments)
    assert done.returncode in (0, 3), done.stderr  # a random model may well be worse
    told: dict[str, Any] = json.loads(done.stdout)
    return {name: value for name, value in told.items() if name not in ("at", "checkpoint")}


def test_a_topic_is_learnt_from_as_its_records_in_a_file_and_nothing_is_committed(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    checkpoint, vocabulary = tmp_path / "checkpoint", Vocabulary(("opened", "read", "closed"))
    save(
        checkpoint,
        model=random_model(vocabulary),
        vocabulary=vocabulary,
        profile=PROFILE,
        calibration=CALIBRATION,
        training=RECORD,
        replay=sample(TrainingSessions.of([np.array([3, 4, 5]), np.array([3, 5])], None, [200, 100])),
    )
    application = Application(broker.bootstrap, tmp_path, checkpoint, 2)
    application.settings["sessions"] = {"key": "record_key", "gap": "10m", "max_events": len(STEPS)}
    application.settings["input"]["timestamp"] = None
    application.config.write_text(yaml.safe_dump(application.settings))
    produce(application)
    captured = tmp_path / "records.jsonl.gz"
    assert logmamba("capture", "--config", application.config, "--output", captured).returncode == 0
    before = application.committed()
    of_topic = adapted("--config", application.config, "--since", "2024-05-01")
    assert of_topic == adapted("--config", application.config, "--input", captured)
    assert of_topic["templates"] == ["paid in a new way"]
    assert of_topic["sessions"] == VISITS
    assert application.committed() == before
    newest = adapted("--config", application.config, "--since", "2024-05-01", "--records", len(STEPS) * 100)
    assert newest["sessions"] == 100
    nothing = logmamba("adapt", "--config", application.config, "--since", "2030-01-01")
    assert nothing.returncode == 3
    assert "no record of that time" in nothing.stderr

"""A real Kafka broker for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.broker.harness import HDFS_SETTINGS, hdfs_lines, run_logmamba
from tests.broker.kafka import KafkaBroker, unavailable
from tests.shared import shared


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One broker for the whole run; a test uses topics and an application id of its own."""
    reason = unavailable()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tests against a real Kafka broker: {reason}")
        pytest.skip(f"needs a real Kafka broker: {reason}")
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of real HDFS lines, trained here as an operator trains one (only for less long)."""
    folder = tmp_path_factory.mktemp("checkpoint")
    lines, config = folder / "hdfs.log", folder / "hdfs.yaml"
    lines.write_bytes(b"\n".join(hdfs_lines(15_000)) + b"\n")
    config.write_text(yaml.safe_dump(HDFS_SETTINGS))
    labels = shared("data/hdfs/raw_labels.csv.gz")
    target = folder / "checkpoint"
    command = ["train", "--config", config, "--input", lines, "--labels", labels, "--output", target, "--steps", "12"]
    run_logmamba(*command)
    return target

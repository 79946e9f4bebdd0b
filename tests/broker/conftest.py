"""A checkpoint for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.broker.harness import HDFS_SETTINGS, hdfs_lines
from tests.shared import shared
from tests.worker.command_line import logmamba


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of real HDFS lines, trained here as an operator trains one (only for less long)."""
    folder = tmp_path_factory.mktemp("checkpoint")
    lines, config = folder / "hdfs.log", folder / "hdfs.yaml"
    lines.write_bytes(b"\n".join(hdfs_lines(8_000)) + b"\n")
    config.write_text(yaml.safe_dump(HDFS_SETTINGS))
    labels = shared("data/hdfs/raw_labels.csv.gz")
    target = folder / "checkpoint"
    command = ["train", "--config", config, "--input", lines, "--labels", labels, "--output", target, "--steps", "12"]
    trained = logmamba(*command)
    assert trained.returncode == 0, trained.stderr
    return target

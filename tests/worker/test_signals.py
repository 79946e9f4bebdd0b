"""What signals do to a command, and what they no longer do once it is over."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import WorkerProcess
from tests.faults.mock import mock_cluster

# The command line; the process gets the signal when Python has put its own handlers back, amid its clearing up.
SIGNALLED_AT_ITS_END = """
import os, sys
from worker.cli import main

class Last:
    def __del__(self, kill=os.kill, process=os.getpid(), number=int(sys.argv.pop(1))):
        kill(process, number)

sys.last = Last()
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_worker_that_is_ending_leaves_its_exit_code_as_it_is(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SIGNALLED_AT_ITS_END, str(int(number)), "run", "--config", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr


def test_sighup_takes_the_new_log_level_and_thresholds_and_names_what_needs_a_restart_or_is_wrong(
    tmp_path: Path,
) -> None:
    config = tmp_path / "worker.yaml"
    with mock_cluster() as cluster:
        settings: dict[str, dict[str, object]] = {
            "kafka": {"bootstrap.servers": cluster.bootstrap},
            "input": {"timestamp": {"pattern": r"^(\d{6} \d{6})", "format": "%y%m%d %H%M%S"}},
            "model": {"checkpoint": str(demo_checkpoint())},
            "observability": {"port": None, "log_format": "json", "log_level": "info"},
        }
        config.write_text(yaml.safe_dump(settings))
        with WorkerProcess(config, tmp_path / "worker.log") as worker:
            worker.wait_until(lambda: worker.logged("partition_starts_new"))
            settings["scoring"] = {"warning": 0.6}
            config.write_text(yaml.safe_dump(settings))
            worker.process.send_signal(signal.SIGHUP)
            worker.wait_until(lambda: worker.logged("reload_taken"))
            settings["observability"]["log_level"] = "warning"
            settings["kafka"]["linger.ms"] = 7
            config.write_text(yaml.safe_dump(settings))
            worker.process.send_signal(signal.SIGHUP)
            worker.wait_until(lambda: worker.logged("settings_need_restart"))
            assert worker.events("settings_need_restart")[0]["kept"] == {"kafka.linger.ms": None}
            config.write_text("scoring: {warning: 2}\n")
            worker.process.send_signal(signal.SIGHUP)
            worker.wait_until(lambda: worker.logged("settings_refused"))
            [error] = worker.events("settings_refused")[0]["errors"]
            assert error.startswith(f"{config}:1:11: scoring.warning: 2 is not a number from 0 to 1")
            assert worker.stop() == 0, worker.tail()
            assert not worker.logged("stopped")  # which is of level info

"""The processes that tests start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.broker.forked import ForkedProcess
from tests.broker.harness import wait_until

_ALONE = """
import sys, time
from pathlib import Path
from tests.broker import forked

print(forked.ForkedProcess(["http.server", "0"], Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""


def test_a_forked_program_has_all_of_a_worker_loaded(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert ForkedProcess(["tests.broker.loaded"], output).wait(150) == 0, output.read_text()
    loaded = {*output.read_text().split()}
    assert loaded >= {"torch", "numba", "pyarrow", "confluent_kafka", "worker.commands.run", "worker.kafka.connect"}


def test_a_forked_program_ends_with_tests_that_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ALONE, str(tmp_path / "output")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as tests:
        assert tests.stdout is not None
        program = psutil.Process(int(tests.stdout.readline()))
        assert program.is_running()
        os.kill(tests.pid, signal.SIGKILL)
    wait_until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE)

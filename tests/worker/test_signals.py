"""What signals do to a command, and what they no longer do once it is over."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

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

"""Programs in processes of their own, which begin where one that has loaded their libraries stands.

A worker takes seconds of a core to load PyTorch and the rest, and tests start a hundred. Here one process (Python's
fork server, which has neither threads nor a Kafka client) loads all that (`tests.broker.preloaded`), and each program
is a child of it: a real process, with its own signals and memory, that is killed and stopped like any other.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

_prctl = ctypes.CDLL(None).prctl  # found now: right after a fork there may be no time for it
_PR_SET_PDEATHSIG = 1
_ROOT = Path(__file__).resolve().parents[2]
_context = get_context("forkserver")
_context.set_forkserver_preload(["tests.broker.preloaded"])


class ForkedProcess:
    """`python -m MODULE ARGUMENTS`, as `subprocess.Popen` would start it from the project's folder.

    Args:
        arguments: the module's name and what it is given.
        output: the file that takes its standard output and its standard error.
    """

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self._process = _context.Process(
            target=_run, args=(list(arguments), str(output), dict(os.environ)), daemon=True
        )
        output.touch()
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for its exit code, at most so many seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked program", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()


def _run(arguments: list[str], output: str, environment: Mapping[str, str]) -> None:
    die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(_ROOT)
    with Path(output).open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends: tests leave nothing behind."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

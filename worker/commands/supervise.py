"""`logmamba run` with `worker.processes`: processes of one worker, started, watched and stopped by this one.

Each is a member of the group of its own and knows nothing of the others. It is a static member: the group keeps its
partitions for it while it is started again, so the others go on undisturbed. What each tells of itself comes through a
pipe, and one endpoint shows it together (`worker.observability.processes`).

A process that ends by itself is started again, ever later the more often it ends before it has worked, and given up in
the end: the others go on. What already stops the first one, such as settings that are refused, stops the worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from detector.errors import DetectorError
from worker.commands.run import Work, pages_of, reload_of
from worker.delivery.deadline import Deadline
from worker.delivery.loop import Worker
from worker.errors import RunError, SettingsError, WorkerError
from worker.observability.http_server import serve
from worker.observability.log import configure_logging
from worker.observability.metrics import Metrics
from worker.observability.processes import JoinedProcesses, ProcessReport, reporting
from worker.observability.status import WorkerStatus, versions
from worker.options import settings_of
from worker.processing.score_records import iso_now
from worker.settings.document import Settings
from worker.signals import stopped_by_signals

_LOOK_S: Final = 0.2
_LEAST_BACKOFF_S, _MOST_BACKOFF_S = 1.0, 60.0
_MOST_FAILURES: Final = 5  # in a row, of a process that has not worked in between
_LAST_S: Final = 2.0  # beyond worker.shutdown_timeout, until a process that does not end is killed

_log = structlog.get_logger(__name__)


class Ended(NamedTuple):
    """The last that a process tells: why it ends, and whether its settings are wrong."""

    reasons: Sequence[str]
    wrong_settings: bool

    def error(self, name: str) -> WorkerError:
        """The same of one of a worker's processes, as an error."""
        reasons = [f"process {name}: {reason}" for reason in self.reasons]
        return SettingsError(reasons) if self.wrong_settings else RunError("; ".join(reasons))


Start = Callable[[int, Connection], BaseProcess]
"""Starts a process by its number, which tells `ProcessReport`s and an `Ended` through the pipe."""


def run_processes(
    config: Path, overrides: list[str], settings: Settings, stopping: Callable[[], bool], work: Work
) -> None:
    """Run as many processes as the settings say until `stopping()`, with one endpoint; SIGHUP is for all of them.

    Args:
        config: file of the settings.
        overrides: of single ones, `path=value`.
        settings: what both come to.
        stopping: asked all the time.
        work: what each of them does.

    Raises:
        RunError: the endpoint cannot be used, no process could be kept up, or one did not end well.
        SettingsError: a process refuses its settings.
    """
    whole = settings.worker.instance or socket.gethostname()
    devices = _devices(settings)
    names = [f"{whole}-{number}" for number in range(settings.worker.processes)]
    static = settings.kafka.get("group.instance.id", whole)
    own = [
        [
            *("worker.processes=1", f"worker.instance={name}", "observability.port=null"),
            *(f"kafka.group.instance.id={static}-{number}", f"model.device={devices[number % len(devices)]}"),
        ]
        for number, name in enumerate(names)
    ]
    context = get_context("spawn")  # a fork would share PyTorch's and the Kafka client's threads

    def start(number: int, pipe: Connection) -> BaseProcess:
        process = context.Process(
            target=_work, args=(config, [*overrides, *own[number]], pipe, work), name=names[number]
        )
        process.start()
        return process

    status = WorkerStatus(
        application_id=settings.application_id,
        instance=whole,
        started_at=iso_now(),
        versions=versions(),
        checkpoint="",
        vocabulary="",
    )
    joined = JoinedProcesses(status, names)
    supervisor = Supervisor(names, start, joined, settings.worker.shutdown_timeout_ms / 1000)
    signal.signal(signal.SIGHUP, lambda *_: supervisor.reload())
    observed, limit_s = settings.observability, settings.max_poll_interval_ms / 1000
    with (
        # Settings as they are in the file at that time: the processes may have taken another checkpoint since.
        pages_of(partial(settings_of, config, overrides), joined, joined.status, joined) as pages,
        serve(observed.address, observed.port, joined, joined.status, limit_s, pages),
    ):
        supervisor.run(stopping)
    _log.info("stopped")


def _devices(settings: Settings) -> Sequence[str]:
    """What `model.device` comes to for processes in turn: several GPUs are shared out."""
    named = settings.model.device
    if named not in ("auto", "cuda"):
        return [named]
    # Asked in a process that ends: PyTorch takes hundreds of MB, which this one has no other use for.
    with get_context("spawn").Pool(1) as pool:
        count = pool.apply(_cuda_devices)
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [named]


def _cuda_devices() -> int:
    from detector.model.devices import cuda_devices

    return cuda_devices()


def _work(config: Path, overrides: list[str], pipe: Connection, work: Work) -> None:
    """One process: a worker that shows itself to whoever started it."""
    with stopped_by_signals(twice_at_once=False) as stopping:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            settings = settings_of(config, overrides)
            observed = settings.observability
            configure_logging(observed.log_level, observed.log_format, worker=settings.instance)
            work(settings, stopping, reload_of(config, overrides, settings), partial(_shown, pipe))
        except SettingsError as error:
            pipe.send(Ended(error.errors, wrong_settings=True))
            sys.exit(1)
        except (WorkerError, DetectorError) as error:
            pipe.send(Ended([str(error)], wrong_settings=False))
            sys.exit(1)


@contextmanager
def _shown(pipe: Connection, worker: Worker, metrics: Metrics) -> Iterator[None]:
    with reporting(pipe.send, metrics, worker.status, worker.alerts):
        yield


class Supervisor:
    """Starts processes, starts them again and stops them.

    Args:
        names: of the processes.
        start: starts one.
        joined: told what there is to tell.
        shutdown_s: how long a process may take to end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        names: Sequence[str],
        start: Start,
        joined: JoinedProcesses,
        shutdown_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._joined, self._shutdown_s, self._clock = start, joined, shutdown_s, clock
        self._processes = [_Process(number, name) for number, name in enumerate(names)]
        self._worked = False  # any of them, ever
        self._reload = False

    def reload(self) -> None:
        """Have every process read settings and checkpoint again; may be called by a signal's handler."""
        self._reload = True

    def run(self, stopping: Callable[[], bool]) -> None:
        """Keep the processes up until `stopping()`, then stop them.

        Raises:
            RunError: none could be kept up, or one did not end well.
            SettingsError: a process refuses its settings.
        """
        try:
            while not stopping():
                self._turn()
        except BaseException:
            self._stop()
            raise
        if failed := self._stop():
            raise failed[0]

    def _turn(self) -> None:
        for process in self._processes:
            if process.handle is None and not process.given_up and self._clock() >= process.start_at:
                self._start_one(process)
        if self._reload:
            self._reload = False
            for process in self._processes:
                process.reload_due = process.handle is not None
        for process in self._processes:
            if process.reload_due and process.tells and process.handle is not None:
                process.reload_due = False
                os.kill(process.pid, signal.SIGHUP)
        for process in self._listen(_LOOK_S):
            self._ended(process)

    def _start_one(self, process: _Process) -> None:
        process.pipe, theirs = get_context("spawn").Pipe(duplex=False)
        process.handle, process.tells, process.last = self._start(process.number, theirs), False, None
        theirs.close()  # so that its end is seen here once the process is gone
        self._joined.started(process.number, process.pid)
        _log.info("process_started", process=process.name, pid=process.pid)

    def _listen(self, seconds: float) -> list[_Process]:
        """Take what the processes tell; returns those that have ended."""
        there = {process.handle.sentinel: process for process in self._processes if process.handle is not None}
        pipes = {process.pipe: process for process in there.values() if process.pipe is not None}
        if not there:
            time.sleep(seconds)
            return []
        ready = wait([*there, *pipes], seconds)
        for pipe in ready:
            if isinstance(pipe, Connection):
                self._hear(pipes[pipe])
        return [there[each] for each in ready if isinstance(each, int)]

    def _hear(self, process: _Process) -> None:
        pipe = process.pipe
        try:
            while pipe is not None and pipe.poll():
                told = pipe.recv()
                if isinstance(told, ProcessReport):
                    process.tells = True
                    if told.status.joined:
                        process.failures, self._worked = 0, True
                    self._joined.told(process.number, told)
                else:
                    process.last = told
        except (EOFError, OSError):
            process.pipe = None

    def _ended(self, process: _Process) -> None:
        """Whether and when a process that has ended by itself is started again."""
        ended, ordered = self._reap(process)
        if ordered and not self._worked:
            raise ended.error(process.name)  # what stops one at the very beginning stops them all
        process.failures += 1
        process.given_up = process.failures >= _MOST_FAILURES
        reason = "; ".join(ended.reasons)
        self._joined.ended(process.number, reason, given_up=process.given_up)
        if process.given_up:
            _log.error("process_given_up", process=process.name, reason=reason, failures=process.failures)
            if all(each.given_up for each in self._processes):
                raise RunError(f"no process could be kept up; the last one, {process.name}: {reason}")
            return
        backoff_s = min(_LEAST_BACKOFF_S * 2 ** (process.failures - 1), _MOST_BACKOFF_S)
        process.start_at = self._clock() + backoff_s
        _log.warning("process_ended", process=process.name, reason=reason, again_in_s=backoff_s)

    def _reap(self, process: _Process) -> tuple[Ended, bool]:
        """Forget a process that is gone; returns why it ended, and whether it said so itself."""
        self._hear(process)
        assert process.handle is not None
        process.handle.join()
        code = process.handle.exitcode or 0
        process.handle = process.pipe = None
        if process.last is not None:
            return process.last, True
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Ended([how], wrong_settings=False), False

    def _stop(self) -> list[WorkerError]:
        """Have all end, within the time that they have; returns what went wrong."""
        failed = []
        for process in self._processes:
            if process.handle is not None:
                process.handle.terminate()
        until = Deadline(self._shutdown_s + _LAST_S, self._clock)
        while any(process.handle is not None for process in self._processes):
            for process in self._listen(_LOOK_S):
                ended, ordered = self._reap(process)
                if ordered or process.killed:
                    failed.append(ended.error(process.name))
                _log.info("process_stopped", process=process.name, **({"reason": ended.reasons} if ordered else {}))
            for process in self._processes:
                if process.handle is not None and until.passed and not process.killed:
                    _log.error("process_killed", process=process.name, reason="it did not end in time")
                    process.killed = True
                    process.handle.kill()
        return failed


class _Process:
    """What the supervisor knows of one."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.handle: BaseProcess | None = None  # None while it is not there
        self.pipe: Connection | None = None
        self.tells = False  # it has told of itself, so it listens to signals
        self.last: Ended | None = None  # what it told last of all
        self.failures = 0
        self.given_up = False
        self.killed = False
        self.start_at = 0.0
        self.reload_due = False

    @property
    def pid(self) -> int:
        assert self.handle is not None
        assert self.handle.pid is not None
        return self.handle.pid

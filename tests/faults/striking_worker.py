"""`logmamba` that sends itself a signal at a chosen point of its work.

    python -m tests.faults.striking_worker --at send_offsets --nth 3 --signal KILL run --config worker.yaml

It runs the command line of `logmamba`; only the methods at the chosen seam are wrapped, in this process. The log gets
the line `{"event":"strike","time":…}` (seconds since 1970) just before the signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from threading import Timer
from types import ModuleType
from typing import Any

import worker.commands.run
import worker.kafka.sink
from worker.cli import main
from worker.commands.reload import Reload
from worker.delivery.loop import Worker
from worker.delivery.restore import StateStore
from worker.kafka.source import KafkaSource
from worker.processing.pipeline import Pipeline

_Passed = Callable[..., bool]


def _records_came(_self: object, result: Any, *_: object) -> bool:
    return bool(result)


def _nothing_came(source: KafkaSource, result: Any, *_: object) -> bool:
    return not result and bool(source.fully_consumed())


def _replays(pipeline: Pipeline, _result: object, batch: Any) -> bool:
    return any(opened.position < opened.live_from for opened in pipeline._open.values())


def _always(*_: object) -> bool:
    return True


class _Producer(worker.kafka.sink.Producer):
    """Of the class, not of the client library's C type, so that its methods can be wrapped."""

    def send_offsets_to_transaction(self, *arguments: Any) -> Any:
        return super().send_offsets_to_transaction(*arguments)

    def commit_transaction(self, *arguments: Any) -> Any:
        return super().commit_transaction(*arguments)

    def produce(self, *arguments: Any, **named: Any) -> Any:
        return super().produce(*arguments, **named)


# Where a signal can be sent: the owner, its method or function, when a call of it counts, whether before or after it.
POINTS: dict[str, tuple[type | ModuleType, str, _Passed, str]] = {
    "load": (worker.commands.run, "load_scorer", _always, "before"),
    "join": (KafkaSource, "subscribe", _always, "after"),
    "restore": (StateStore, "start", _always, "before"),
    "replay": (Pipeline, "process", _replays, "after"),
    "consume": (KafkaSource, "poll", _records_came, "after"),
    "score": (Pipeline, "process", _records_came, "after"),
    "produce": (_Producer, "produce", _always, "after"),
    "send_offsets": (_Producer, "send_offsets_to_transaction", _always, "after"),
    "commit": (_Producer, "commit_transaction", _always, "before"),
    "idle": (KafkaSource, "poll", _nothing_came, "after"),
    "hand_over": (StateStore, "hand_over", _always, "before"),
    "taken": (Reload, "taken", _always, "after"),
    "revoke": (Worker, "on_revoked", _always, "before"),
}


def strike_at(point: str, nth: int, number: signal.Signals, delay_s: float) -> None:
    """Send the signal at the nth pass of the point; with a delay it comes while the work goes on."""
    owner, name, counts, when = POINTS[point]
    call = getattr(owner, name)
    passes = 0

    def strike() -> None:
        line = f'{{"event":"strike","time":{time.time():.3f}}}\n'
        os.write(sys.stderr.fileno(), line.encode())
        os.kill(os.getpid(), number)

    def passed() -> None:
        nonlocal passes
        passes += 1
        if passes == nth:
            if delay_s > 0:
                Timer(delay_s, strike).start()
            else:
                strike()

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        if when == "before":
            passed()
            return call(self, *arguments, **named)
        result = call(self, *arguments, **named)
        if counts(self, result, *arguments):
            passed()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", choices=POINTS, required=True)
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--signal", choices=("KILL", "STOP", "TERM"), required=True)
    parser.add_argument("--delay-ms", type=float, default=0)
    options, sys.argv[1:] = parser.parse_known_args()
    worker.kafka.sink.Producer = _Producer  # type: ignore[misc]
    strike_at(options.at, options.nth, signal.Signals[f"SIG{options.signal}"], options.delay_ms / 1000)
    main()
